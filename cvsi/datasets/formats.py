"""Dataset folders to listings: one reader a format, found by name in a plain dict."""

from collections.abc import Callable

from cvsi.core.params import Dataset
from cvsi.datasets import circo, cirr, fashioniq, folder
from cvsi.datasets.base import Listing

READERS: dict[str, Callable[[Dataset], Listing]] = {
    "circo": circo.read,
    "cirr": cirr.read,
    "fashioniq": fashioniq.read,
    "folder": folder.read,
}
