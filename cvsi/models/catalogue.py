"""What is known of weights and datasets by name: where to get them, how big they are, on what terms they may be used.

`sources.yaml` has the facts; a name that it does not hold is no fault, there is just less to say.
"""

from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from cvsi.core.params import Backbone, Settings


class Source(Settings):
    """One model, phi or dataset."""

    get: str = "see the name's own page"
    terms: str | None = None
    commercial: bool = True
    parameters: int | None = None
    width: int | None = None
    repository: str | None = None


class Sources(Settings):
    """The whole of `sources.yaml`."""

    models: dict[str, Source]
    backbones: dict[str, Source]
    phis: dict[str, Source]
    benchmarks: dict[str, Source]


UNKNOWN = Source()


@cache
def known() -> Sources:
    """The facts, read once."""
    text = (resources.files("cvsi.models") / "catalogue.yaml").read_text(encoding="utf-8")
    return Sources.model_validate(yaml.safe_load(text))


def of_model(name: str) -> Source:
    """A captioner's or editor's model by hub name."""
    return known().models.get(name, UNKNOWN)


def of_backbone(backbone: Backbone) -> Source:
    """A backbone by open_clip's names."""
    return known().backbones.get(f"{backbone.model}/{backbone.pretrained}", UNKNOWN)


def of_phi(path: str) -> Source:
    """A phi by the name of its file."""
    return known().phis.get(Path(path).name, UNKNOWN)


def of_benchmark(name: str | None) -> Source:
    """A dataset by its benchmark."""
    return known().benchmarks.get(name or "", UNKNOWN)
