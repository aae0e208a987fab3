"""What is known of weights and datasets by name: where to get them, how big they are, on what terms they may be used.

`catalogue.yaml` has the facts, each with its source; a name or fact that it does not contain is unknown, no error.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import yaml
from pydantic import Field, PositiveInt

from cvsi.core.params import Backbone, Positive, Settings

T = TypeVar("T")
Words = Annotated[str, Field(min_length=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
UNKNOWN_TEXT = "unknown"
GB = 10**9


class Fact(Settings, Generic[T]):
    """A value and where it was read or how it was measured."""

    value: T
    source: Words


class Terms(Fact[Words]):
    """Terms of use; `commercial` is None where it is not known."""

    commercial: bool | None = None


class Rate(Settings):
    """Rows a second of one kind, measured on a device; `captions` counts single captions."""

    rows: Literal["captions", "edits", "verdicts", "image_vectors", "text_vectors"]
    device: Literal["cpu", "cuda"]
    per_second: Positive
    source: Words


class Entry(Settings):
    """One model, phi or dataset; a fact that is None is unknown."""

    get: str = "see the name's own page"
    terms: Terms | None = None
    parameters: Fact[PositiveInt] | None = None
    download: Fact[PositiveInt] | None = None
    revision: Fact[Commit] | None = None
    rates: tuple[Rate, ...] = ()
    width: PositiveInt | None = None
    repository: str | None = None

    def rate(self, rows: str, device: str) -> Rate | None:
        """The measured rate of one kind of rows on a kind of device, None where it is unknown."""
        return next((rate for rate in self.rates if (rate.rows, rate.device) == (rows, device)), None)


class Catalogue(Settings):
    """The whole of `catalogue.yaml`."""

    models: dict[str, Entry]
    backbones: dict[str, Entry]
    phis: dict[str, Entry]
    benchmarks: dict[str, Entry]


UNKNOWN = Entry()


@cache
def known() -> Catalogue:
    """The facts, read once."""
    text = (resources.files("cvsi.models") / "catalogue.yaml").read_text(encoding="utf-8")
    return Catalogue.model_validate(yaml.safe_load(text))


def of_model(name: str) -> Entry:
    """A captioner's or editor's model by hub name."""
    return known().models.get(name, UNKNOWN)


def of_backbone(backbone: Backbone) -> Entry:
    """A backbone by open_clip's names, or by hub name."""
    if backbone.pretrained is None:
        return of_model(backbone.model)
    return known().backbones.get(f"{backbone.model}/{backbone.pretrained}", UNKNOWN)


def of_phi(path: str) -> Entry:
    """A phi by the name of its file."""
    return known().phis.get(Path(path).name, UNKNOWN)


def of_benchmark(name: str | None) -> Entry:
    """A dataset by its benchmark."""
    return known().benchmarks.get(name or "", UNKNOWN)


def gigabytes(size: float | None) -> str:
    """A number of bytes for people: `0.6 GB`, `31 GB`, or `unknown`."""
    if size is None:
        return UNKNOWN_TEXT
    return f"{size / GB:,.0f} GB" if size >= 10 * GB else f"{max(size / GB, 0.1):.1f} GB"
