"""The published figures of `published.yaml`, and the differences of a run to its counterparts among them.

A figure is compared only where benchmark, split and CLIP weights are the same; where they are not, or where no figure
is known, the verdict gives the reason.
"""

import importlib.resources
from collections.abc import Mapping
from functools import cache
from typing import Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Backbone, Settings, explain

Verdict = Literal["near", "off", "not comparable", "not available", "submit to see"]
Weighting = Literal["cvsi", "pseudo", "edited", "pdv", "seize", "osrcir", "sdr", "soft"]

# The same method and backbone with other versions of the language model: CIReVL's CIRCO mAP@5 with ViT-G was printed as
# 26.77 and measured again as 26.47, 25.77, 24.43 and 22.76 (Vision_by_Language issues 4 and 9; AdaST). A difference
# within 2 points is no evidence; one of up to 4 may be due to the language model alone, where a method uses one.
NEAR = 2.0
DRIFT = 4.0
EDITED = ("edited", "pdv", "seize", "osrcir", "sdr", "soft")


class Benchmark(Settings):
    """The split that published figures are of, and the metrics in the order of a row's list."""

    split: str
    metrics: tuple[str, ...]


class Clip(Settings):
    """A CLIP by open_clip's names of model and weights."""

    model: str
    pretrained: str


class Row(Settings):
    """What one method with one backbone reached on each benchmark, in percent; None where nothing was printed."""

    method: str
    kind: Literal["zero-shot", "trained"] = "zero-shot"
    backbone: str
    pretrained: str | None = None
    weighting: Weighting | None = None
    shared_concept: bool = False
    figures: dict[str, tuple[float | None, ...]]
    sources: tuple[str, ...]
    note: str = ""


class Published(Settings):
    """The whole of `published.yaml`."""

    sources: dict[str, str]
    benchmarks: dict[str, Benchmark]
    backbones: dict[str, Clip]
    counterparts: dict[Weighting, str]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def rows_fit(self) -> Self:
        """Refuse a row with a name that is not declared above, or with too few or too many figures."""
        for row in self.rows:
            if row.backbone not in self.backbones or not set(row.sources) <= set(self.sources):
                raise ValueError(f"{row.method}, {row.backbone}: its backbone or a source is not declared")
            for name, figures in row.figures.items():
                if name not in self.benchmarks or len(figures) != len(self.benchmarks[name].metrics):
                    raise ValueError(
                        f"{row.method}, {row.backbone}: {name} is unknown or has another number of metrics"
                    )
        return self

    def clip(self, row: Row) -> Clip:
        """The CLIP of a row: its backbone's, with the row's own weights where it names some."""
        clip = self.backbones[row.backbone]
        return clip if row.pretrained is None else Clip(model=clip.model, pretrained=row.pretrained)

    def figures(self, row: Row, benchmark: str) -> dict[str, float]:
        """`{metric: percent}` of a row, what was not printed left out."""
        pairs = zip(self.benchmarks[benchmark].metrics, row.figures.get(benchmark, ()), strict=False)
        return {name: value for name, value in pairs if value is not None}


class Comparison(Settings):
    """A published row beside one weighting of a run on one split: verdict, its words, and ours minus theirs."""

    weighting: str
    split: str
    verdict: Verdict
    words: str
    ours: dict[str, float]
    differences: dict[str, float]


@cache
def load() -> Published:
    """The published figures of this package; raises CvsiError for a broken file."""
    text = (importlib.resources.files("cvsi.evaluation") / "published.yaml").read_text(encoding="utf-8")
    try:
        return Published.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise CvsiError(f"cvsi/evaluation/published.yaml: {explain(error)}") from None


def check_benchmark(name: str | None, dataset: str) -> None:
    """Raise CvsiError for a dataset's benchmark of which no figures are known; None is no benchmark."""
    known = load().benchmarks
    if name is not None and name not in known:
        raise CvsiError(f"{PATH}: datasets.{dataset}.benchmark: no figures of '{name}'; there are: {', '.join(known)}")


def rows(benchmark: str, backbone: Backbone) -> list[Row]:
    """The rows of a benchmark whose CLIP has this backbone's architecture, whatever the weights; CVSI's among them."""
    published = load()
    return [
        row
        for row in published.rows
        if _architecture(published.clip(row).model) == _architecture(backbone.model)
        and (benchmark in row.figures or row.weighting == "cvsi")
    ]


def compare(
    benchmark: str,
    split: str,
    backbone: Backbone,
    weighting: str,
    metrics: Mapping[str, float] | None,
    variant: str = "",
) -> list[tuple[Row, Comparison]]:
    """Every published counterpart of a weighting with its verdict; `metrics` in percent, None where labels are hidden.

    `near` means that every metric that both have is within `NEAR` points; else the largest difference is named.
    """
    counterparts = [row for row in rows(benchmark, backbone) if row.weighting == weighting]
    return [(row, _compared(row, benchmark, split, backbone, weighting, metrics, variant)) for row in counterparts]


def _compared(
    row: Row,
    benchmark: str,
    split: str,
    backbone: Backbone,
    weighting: str,
    metrics: Mapping[str, float] | None,
    variant: str,
) -> Comparison:
    published = load()
    theirs = published.figures(row, benchmark)
    ours = {name: value for name, value in (metrics or {}).items() if name in published.benchmarks[benchmark].metrics}
    differences = {name: ours[name] - value for name, value in theirs.items() if name in ours}
    unlike = [_other_weights(row, backbone), _other_split(benchmark, split), _other_variant(row, benchmark, variant)]
    verdict, words = _verdict(row, [reason for reason in unlike if reason], metrics is None, differences)
    if verdict not in ("near", "off"):
        differences = {}
    return Comparison(
        weighting=weighting, split=split, verdict=verdict, words=words, ours=ours, differences=differences
    )


def _verdict(row: Row, reasons: list[str], hidden: bool, differences: Mapping[str, float]) -> tuple[Verdict, str]:
    if not row.figures:
        return "not available", f"not available: {row.note}"
    if reasons:
        return "not comparable", f"not comparable: {'; '.join(reasons)}"
    if hidden:
        return "submit to see", "submit to see: the server has the labels; a submission holds the dataset's own fusion"
    if not differences:
        return "not comparable", "not comparable: this method has no figure here"
    metric = max(differences, key=lambda name: abs(differences[name]))
    gap = differences[metric]
    if abs(gap) <= NEAR:
        return "near", f"near: within {NEAR:g} points, at most {gap:+.2f} ({metric})"
    words = f"off: {gap:+.2f} at {metric}"
    if abs(gap) <= DRIFT and row.weighting in EDITED:
        words += f"; the language model alone may explain up to {DRIFT:g} points"
    return "off", words


def _other_weights(row: Row, backbone: Backbone) -> str:
    """Why a run's CLIP is not the row's, or nothing. `openclip` stands for any weights but OpenAI's."""
    clip = load().clip(row)
    ours, theirs = f"{backbone.model} {backbone.pretrained or ''}".strip(), f"{clip.model} {clip.pretrained}"
    same = ours == theirs
    if clip.pretrained == "openclip":
        same = backbone.pretrained not in (None, "openai")
        theirs = f"{_architecture(clip.model)}, weights of OpenCLIP"
    return "" if same else f"other CLIP weights (published: {theirs}; here: {ours})"


def _other_split(benchmark: str, split: str) -> str:
    theirs = load().benchmarks[benchmark].split
    return "" if split == theirs else f"other split (published: {theirs}, here: {split})"


def _other_variant(row: Row, benchmark: str, variant: str) -> str:
    theirs = "shared_concept: true" if row.shared_concept and benchmark == "circo" else ""
    usual = "the benchmark's own"
    return (
        ""
        if variant == theirs
        else f"other queries or gallery (published: {theirs or usual}; here: {variant or usual})"
    )


def _architecture(model: str) -> str:
    return model.removesuffix("-quickgelu")
