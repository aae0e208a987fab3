"""`params.yaml` to frozen, typed settings; an unknown key, a missing one or a bad value is one clear line.

The file is read from the working directory. DVC reads it too and decides by it which stages run; this module is the
only one of ours that parses it.
"""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import Field, FiniteFloat, PositiveInt, ValidationError, field_validator, model_validator

from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Backbone, Captioner, Editor, Prompts
from cvsi.core.settings import Name, PhiTraining, Settings

T = TypeVar("T")
Benchmark = Literal["circo", "cirr", "fashioniq-dress", "fashioniq-shirt", "fashioniq-toptee"]


class QueryWeights(Settings):
    """Weights of the five query parts (any finite numbers)."""

    edited: FiniteFloat = 0.0
    pseudo: FiniteFloat = 0.0
    reference: FiniteFloat = 0.0
    source: FiniteFloat = 0.0
    instruction: FiniteFloat = 0.0


class GalleryWeights(Settings):
    """Weights of the two gallery parts (any finite numbers)."""

    image: FiniteFloat = 0.0
    caption: FiniteFloat = 0.0


class Fusion(Settings):
    """How the parts become one vector a query and one a gallery image."""

    query: QueryWeights
    gallery: GalleryWeights


class Dataset(Settings):
    """One dataset, complete in itself: where it lies, what describes and edits it, how it is scored."""

    format: Literal["circo", "cirr", "fashioniq", "folder"]
    root: str
    captioner: Captioner
    editor: Editor
    fusion: Fusion
    prompts: Prompts = Prompts()
    category: Literal["dress", "shirt", "toptee"] | None = None
    splits: tuple[Name, ...] | None = None
    bad_images: Literal["stop", "drop"] = "stop"
    missing_images: Literal["stop", "drop"] = "stop"
    normalize_captions: bool = False
    sizes: dict[Name, PositiveInt] = Field(default={})
    benchmark: Benchmark | None = None


class Run(Settings):
    """What is embedded and scored: a dataset with a backbone."""

    dataset: str
    backbone: str


class Compute(Settings):
    """Speed alone: no result depends on it, rounding aside, and no stage tracks it."""

    executor: Literal["local"] = "local"
    workers: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel: PositiveInt = 1
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    requests: PositiveInt = 32
    caption_batch: PositiveInt = 32
    edit_batch: PositiveInt = 1024
    image_batch: PositiveInt = 64
    text_batch: PositiveInt = 64
    block_batches: PositiveInt = 4


class World(Settings):
    """The demo world that stage `world` draws: a seed and how many images and queries."""

    seed: Annotated[int, Field(ge=0)] = 1
    gallery: PositiveInt = 2140
    val: PositiveInt = 240
    test: PositiveInt = 100


class Params(Settings):
    """The whole of `params.yaml`."""

    active: tuple[Name, ...]
    runs: dict[Name, Run]
    captioners: dict[Name, Captioner] = Field(default={})
    editors: dict[Name, Editor] = Field(default={})
    datasets: dict[Name, Dataset]
    backbones: dict[Name, Backbone]
    phis: dict[Name, PhiTraining] = Field(default={})
    world: World = World()
    compute: Compute = Compute()
    store: Annotated[str, Field(min_length=1)] = "cache/store"

    @field_validator("store")
    @classmethod
    def store_is_a_folder(cls, store: str) -> str:
        """Refuse the address of an object store, of which a folder's name would be made."""
        if "://" in store:
            raise ValueError("not a folder; the store is one on a disk, an object store can be a DVC remote")
        return store

    @model_validator(mode="after")
    def names_are_defined(self) -> Self:
        """Refuse an active dataset or a run that names something not defined."""
        for dataset in self.active:
            if dataset not in self.datasets:
                raise ValueError(f"active names '{dataset}', which is not among the datasets")
        for name, run in self.runs.items():
            if run.dataset not in self.datasets:
                raise ValueError(f"runs.{name} names dataset '{run.dataset}', which is not among the datasets")
            if run.backbone not in self.backbones:
                raise ValueError(f"runs.{name} names backbone '{run.backbone}', which is not among the backbones")
        for name, phi in self.phis.items():
            if phi.backbone not in self.backbones:
                raise ValueError(f"phis.{name} names backbone '{phi.backbone}', which is not among the backbones")
        return self

    def dataset(self, name: str) -> Dataset:
        """The settings of a dataset, or a CvsiError that lists the names there are."""
        return _named(self.datasets, name, "dataset")

    def backbone(self, name: str) -> Backbone:
        """The settings of a backbone, or a CvsiError that lists the names there are."""
        return _named(self.backbones, name, "backbone")

    def phi(self, name: str) -> PhiTraining:
        """How a phi is trained, or a CvsiError that lists the names there are."""
        return _named(self.phis, name, "phi")


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check `params.yaml`; raises CvsiError with one line that names each bad key and value."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; run in the project's folder, where params.yaml lies") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CvsiError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise CvsiError(f"{path}: nested too deeply for settings") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise CvsiError(f"{path}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """A pydantic error as one line: `where: what (got value)`, joined by semicolons."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            text = "unknown key"
        elif item["type"] == "missing":
            text = "key is missing"
        else:
            text = item["msg"].removeprefix("Value error, ")
            if not isinstance(item["input"], dict | list):
                text += f" (got {repr(item['input'])[:80]})"
        lines.append(f"{where}: {text}" if where else text)
    return "; ".join(dict.fromkeys(lines))


def _named(table: dict[str, T], name: str, noun: str) -> T:
    if name not in table:
        raise CvsiError(f"params.yaml: no {noun} '{name}'; there are: {', '.join(sorted(table))}")
    return table[name]


def used_datasets(params: Params) -> list[str]:
    """The datasets that are active or in a run, in order, each once."""
    return list(dict.fromkeys([*params.active, *(run.dataset for run in params.runs.values())]))


def used_backbones(params: Params) -> list[str]:
    """The backbones of the runs, in order, each once."""
    return list(dict.fromkeys(run.backbone for run in params.runs.values()))


def run_named(settings: Params, run: str) -> Run:
    """A run of `params.yaml`; raises CvsiError, which lists the names there are, where there is none of that name."""
    if run not in settings.runs:
        raise CvsiError(f"params.yaml: no run '{run}'; there are: {', '.join(settings.runs)}")
    return settings.runs[run]
