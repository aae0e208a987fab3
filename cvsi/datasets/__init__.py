"""Dataset folders to listings: one reader a format, found by name in a plain dict."""

from collections.abc import Callable
from pathlib import Path

from cvsi.datasets import circo, folder
from cvsi.datasets.listing import Listing

Reader = Callable[[Path, tuple[str, ...] | None], Listing]
READERS: dict[str, Reader] = {"circo": circo.read, "folder": folder.read}
