"""The registry of dataset formats, and what a format consists of.

To add a format, write one file that defines a `FORMAT`, and one line below (or an entry point of another package). No
other code compares the names of formats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from cvsi.core.params import PATH, Dataset, checked
from cvsi.core.registry import Registry
from cvsi.datasets.base import FormatSettings, Listing
from cvsi.datasets.metrics import Protocol
from cvsi.datasets.submissions import Submission

S = TypeVar("S", bound=FormatSettings)


@dataclass(frozen=True)
class Format(Generic[S]):
    """A dataset format: its own keys of params.yaml, its reader, its metrics, and the files that its server takes.

    `queries` reads one annotation file as the queries of a split; `check-submission` needs it where no index exists.
    `query_file` names the JSON-lines file (`reference`, `instruction`, `targets`) of a format whose datasets may be
    without queries; for the other formats, a dataset without queries is an error.
    `excludes_reference`: a query's reference image is never among its results.
    """

    settings: type[S]
    read: Callable[[Dataset, S], Listing]
    protocol: Protocol
    submissions: tuple[Submission, ...] = ()
    queries: Callable[[Path, str], pl.DataFrame] | None = None
    query_file: str = ""
    excludes_reference: bool = False


FORMATS: Registry[Format[FormatSettings]] = Registry(
    "format",
    "cvsi.formats",
    {
        "circo": "cvsi.datasets.circo:FORMAT",
        "cirr": "cvsi.datasets.cirr:FORMAT",
        "fashioniq": "cvsi.datasets.fashioniq:FORMAT",
        "folder": "cvsi.datasets.folder:FORMAT",
        "genecis": "cvsi.datasets.genecis:FORMAT",
        "pinpoint": "cvsi.datasets.pinpoint:FORMAT",
    },
)


def format_of(dataset: Dataset, name: str) -> Format[FormatSettings]:
    """The format of a dataset; raises CvsiError, which lists all formats, for an unknown one."""
    return FORMATS.get(dataset.format, f"{PATH}: datasets.{name}.format")


def settings_of(dataset: Dataset, name: str) -> FormatSettings:
    """The keys of a dataset that only its format has; raises CvsiError for an unknown key or a bad value."""
    return checked(format_of(dataset, name).settings, dataset.own, f"datasets.{name}")


def read(dataset: Dataset, name: str) -> Listing:
    """The listing of a dataset's folder, by its format's reader; raises CvsiError for what is broken or missing."""
    return format_of(dataset, name).read(dataset, settings_of(dataset, name))
