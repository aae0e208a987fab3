"""`params.yaml` to frozen, typed settings; an unknown key, a missing one or a bad value is one clear line.

The file is read from the working directory. DVC reads it too, to decide which stages run. This module checks the
common frame: no key is given twice, and no name leads an output into a folder that something else uses. The blocks of a
format, an engine, a fusion or an executor stay as they are; the registry that the block belongs to checks it with
`checked`: a stage checks the blocks that it reads, `cvsi check` checks all of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from cvsi.core import paths
from cvsi.core.errors import CvsiError

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)

PATH = Path("params.yaml")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Block = dict[str, Any]  # a part of the file that a registry checks
Text = Annotated[str, Field(min_length=1, max_length=4096)]
# What other systems put beside photos: Synology's thumbnails, macOS's attributes, GNOME's thumbnails.
NOT_PHOTOS = ("@eaDir", "._*", ".thumbnails")
OPEN_CLIP = "open_clip"  # the kind of a backbone without the key `kind`


class Settings(BaseModel):
    """Immutable settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Prompts(Settings):
    """Which few-shot texts of `cvsi/prompts/` the editor gets, by file name without `.txt`."""

    edited: Name = "general"
    added: Name = "added"


class Dataset(Settings):
    """One dataset, complete in itself: its folder, what captions, edits and reads it, how it is scored.

    Keys that are not listed here are those of its format, see `own`.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    format: Name
    root: str
    captioner: Block
    editor: Block
    fusion: Block | str
    reader: Block | None = None
    prompts: Prompts = Prompts()
    splits: tuple[Name, ...] | None = None
    bad_images: Literal["stop", "drop"] = "stop"
    missing_images: Literal["stop", "drop"] = "stop"
    normalize_captions: bool = False
    sizes: dict[Name, PositiveInt] = Field(default={})
    benchmark: Name | None = None
    fallback_limit: Annotated[float, Field(ge=0, le=1)] = 0.2
    roots: tuple[Text, ...] = ()
    ignore: tuple[Text, ...] = NOT_PHOTOS
    tags: Text | None = None

    @property
    def own(self) -> Block:
        """The keys of this dataset's format, unchecked."""
        return dict(self.model_extra or {})

    @field_validator("fusion", mode="before")
    @classmethod
    def fusion_is_weights_or_a_name(cls, fusion: Any) -> Any:
        """Refuse anything but a mapping and a name with one message."""
        if not isinstance(fusion, dict | str):
            raise ValueError("must be weights (query and gallery) or the name of a method")
        return fusion


class Run(Settings):
    """What is embedded and scored: a dataset with a backbone."""

    dataset: str
    backbone: str


class Rerank(Settings):
    """A second pass over a run: a judge's verdicts on the first `top` images of each query, which then order these.

    `mix` is the weight of the verdict beside the score. No key has a default, since DVC tracks each by its name.
    """

    run: Run
    judge: Block
    top: Annotated[int, Field(ge=1, le=100)]
    mix: Annotated[float, Field(ge=0, le=1)]


class Backbone(Settings):
    """A model that embeds images and texts; `kind` says which code loads it.

    The kind `open_clip` is a CLIP of open_clip (a name with `pretrained`, or `local-dir:FOLDER`) and, if any, the phi
    that belongs to it; without a phi, nothing that needs pseudo tokens is computed. Another kind has other keys in
    their place, see `own`.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    kind: Name = OPEN_CLIP
    model: str
    pretrained: str | None = None
    revision: str | None = None
    phi: Text | None = None
    precision: Precision = "auto"
    preprocess: Literal["target-pad", "plain"] = "target-pad"

    @property
    def own(self) -> Block:
        """The keys that are given besides those of every kind, unchecked."""
        common = {"kind", "model", "revision", "precision"}
        return {name: getattr(self, name) for name in sorted(self.model_fields_set - common)}

    @model_validator(mode="before")
    @classmethod
    def open_clip_has_no_other_keys(cls, block: Any) -> Any:
        """Refuse unknown keys here where no other kind is named; the registry of kinds checks the others."""
        if isinstance(block, dict) and block.get("kind", OPEN_CLIP) == OPEN_CLIP:
            unknown = [name for name in block if name not in cls.model_fields]
            if unknown:
                errors = [InitErrorDetails(type="extra_forbidden", loc=(name,), input=block[name]) for name in unknown]
                raise ValidationError.from_exception_data(cls.__name__, errors)
        return block


class WordList(Settings):
    """A file of keywords, one per line, for captions whose words are known; spaCy's blank English pipeline reads it."""

    words: str


class PhiTraining(Settings):
    """A phi trained on captions alone, for one backbone; the defaults are LinCIR's (arXiv 2312.01998).

    `spans` is an installed spaCy pipeline that tags parts of speech, or a word list.
    """

    backbone: Name
    captions: str
    spans: Name | WordList = "en_core_web_sm"
    steps: PositiveInt
    batch: PositiveInt = 512
    learning_rate: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Positive | None = None
    held_out: PositiveInt = 2000
    validate_every: PositiveInt = 500
    patience: PositiveInt | None = None
    checkpoint_every: PositiveInt = 500
    precision: Precision = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0

    @model_validator(mode="after")
    def warmup_ends(self) -> Self:
        """Refuse a warm-up as long as the training."""
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup}, but steps are {self.steps}; warmup must be less")
        return self


class Compute(Settings):
    """Speed alone: no result depends on it, rounding aside, and no stage tracks it."""

    executor: Block | str = "local"
    workers: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel: PositiveInt = 1
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    requests: PositiveInt = 32
    caption_batch: PositiveInt = 32
    edit_batch: PositiveInt = 1024
    verdict_batch: PositiveInt = 256
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
    captioners: dict[Name, Block] = Field(default={})
    editors: dict[Name, Block] = Field(default={})
    judges: dict[Name, Block] = Field(default={})
    readers: dict[Name, Block] = Field(default={})
    datasets: dict[Name, Dataset]
    backbones: dict[Name, Backbone]
    phis: dict[Name, PhiTraining] = Field(default={})
    reranks: dict[Name, Rerank] = Field(default={})
    methods: dict[Name, Block] = Field(default={})
    world: World = World()
    compute: Compute = Compute()
    store: Annotated[str, Field(min_length=1)] = paths.STORE.as_posix()

    @field_validator("store")
    @classmethod
    def store_is_a_folder(cls, store: str) -> str:
        """Refuse the address of an object store, which would become a folder's name."""
        if "://" in store:
            raise ValueError("not a folder; the store is one on a disk, an object store can be a DVC remote")
        return store

    @model_validator(mode="after")
    def names_are_defined(self) -> Self:
        """Refuse an active dataset or a run that names something not defined."""
        for dataset in self.active:
            if dataset not in self.datasets:
                raise ValueError(f"active names '{dataset}', which is not among the datasets")
        runs = {f"runs.{name}": run for name, run in self.runs.items()}
        runs |= {f"reranks.{name}.run": rerank.run for name, rerank in self.reranks.items()}
        for where, run in runs.items():
            if run.dataset not in self.datasets:
                raise ValueError(f"{where} names dataset '{run.dataset}', which is not among the datasets")
            if run.backbone not in self.backbones:
                raise ValueError(f"{where} names backbone '{run.backbone}', which is not among the backbones")
        for name, phi in self.phis.items():
            if phi.backbone not in self.backbones:
                raise ValueError(f"phis.{name} names backbone '{phi.backbone}', which is not among the backbones")
        return self

    @model_validator(mode="after")
    def names_have_folders_of_their_own(self) -> Self:
        """Refuse names and a store by which two outputs, or an output and the store, would share a folder."""
        folders = (
            ("datasets", [*self.datasets]), ("backbones", [*self.backbones]), ("phis", [*self.phis]),
            ("reranks", [*self.reranks]),
        )  # fmt: skip
        for noun, names in folders[:2]:
            for name in names:
                if what := paths.reserved().get(paths.comparable(name)):
                    raise ValueError(f"{noun}.{name}: the name is reserved, {what} has it; choose another name")
        for noun, names in folders:
            first: dict[str, str] = {}
            for name in names:
                other = first.setdefault(paths.comparable(name), name)
                if other != name:
                    raise ValueError(
                        f"{noun}.{name} and {noun}.{other} would share a folder where case, or a dot at the end, does "
                        "not count; choose another name"
                    )
        outputs = [paths.CACHE / name for name in self.datasets] + [paths.phi_folder(name) for name in self.phis]
        for folder in (*outputs, paths.WORLD, paths.runs_folder()):
            if paths.inside(self.store, folder):
                raise ValueError(
                    f"store: {self.store} lies in {folder}, which outputs or records replace; name another"
                )
        if paths.inside(self.store, paths.CACHE) and paths.inside(paths.CACHE, Path(self.store)):
            raise ValueError(f"store: {self.store} is the folder of the datasets' outputs; name one of its own")
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

    def run(self, name: str) -> Run:
        """A run, or a CvsiError that lists the names there are."""
        return _named(self.runs, name, "run")

    def rerank_of(self, run: str, name: str) -> str:
        """The name of a rerank, or a CvsiError where there is none, or where it is of another run."""
        if self.rerank(name).run != self.run(run):
            raise CvsiError(f"{run}:{name}: rerank '{name}' is of another run than {run}; cvsi show RUN lists a run's")
        return name

    def reranks_of(self, dataset: str) -> list[str]:
        """The names of the reranks of a dataset's runs."""
        return [name for name, rerank in self.reranks.items() if rerank.run.dataset == dataset]

    def rerank(self, name: str) -> Rerank:
        """A rerank, or a CvsiError that lists the names there are."""
        return _named(self.reranks, name, "rerank")

    @property
    def used_datasets(self) -> list[str]:
        """The datasets that are active or in a run, in order, each once."""
        return list(dict.fromkeys([*self.active, *(run.dataset for run in self.runs.values())]))

    @property
    def used_backbones(self) -> list[str]:
        """The backbones of the runs, in order, each once."""
        return list(dict.fromkeys(run.backbone for run in self.runs.values()))


def load(path: Path = PATH) -> Params:
    """Read and check `params.yaml`; raises CvsiError with one line that names each bad key and value."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; run in the project's folder, where params.yaml is") from None
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse(text, path)


def parse(text: str, path: Path = PATH) -> Params:
    """Check the text of a `params.yaml`; raises CvsiError with one line that names each bad key and value."""
    try:
        raw = _parse(text, path)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise CvsiError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise CvsiError(f"{path}: nested too deeply for settings") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise CvsiError(f"{path}: {explain(error)}") from None


def _parse(text: str, path: Path) -> Any:
    """The content of a YAML text; raises CvsiError for a key that a mapping has twice, which DVC refuses too."""
    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        if document is None:
            return None
        repeated = [
            f"key {key} is given {'twice' if len(lines) == 2 else f'{len(lines)} times'}, in {_lines(lines)}"
            for key, lines in sorted(_repeated_keys(loader, document), key=lambda item: item[1])
        ]
        if repeated:
            raise CvsiError(f"{path}: {'; '.join(repeated)}; keep one")
        return loader.construct_document(document)
    finally:
        loader.dispose()


def _lines(numbers: list[int]) -> str:
    """`line 3` or `lines 3 and 7`."""
    *before, last = map(str, dict.fromkeys(numbers))
    return f"lines {', '.join(before)} and {last}" if before else f"line {last}"


def _repeated_keys(loader: yaml.SafeLoader, document: yaml.Node) -> Iterator[tuple[str, list[int]]]:
    """Each key that a mapping has more than once, dotted, with its lines; keys that `<<` merges in do not count."""
    seen, todo = set[int](), [("", document)]
    while todo:
        where, node = todo.pop(0)  # in this order, an anchor comes before its aliases
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += [(f"{where}[{number}]", item) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, list[int]] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    # `<<` has no value of its own.
                    name = key.value if key.tag.endswith(":merge") else loader.construct_object(key)
                    lines.setdefault(name, []).append(key.start_mark.line + 1)
                    todo.append((f"{where}.{name}" if where else str(name), value))
            yield from ((f"{where}.{key}" if where else str(key), at) for key, at in lines.items() if len(at) > 1)


def checked(settings: type[S], block: Mapping[str, Any], where: str) -> S:
    """A block as typed settings; raises CvsiError with one line that names each bad key below `where`."""
    try:
        return settings.model_validate(block)
    except ValidationError as error:
        raise CvsiError(f"{PATH}: {explain(error, where)}") from None


def explain(error: ValidationError, where: str = "") -> str:
    """A pydantic error as one line: `where: what (got value)`, joined by semicolons."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join([*([where] if where else []), *(str(step) for step in item["loc"])])
        if item["type"] == "extra_forbidden":
            text = "unknown key"
        elif item["type"] == "missing":
            text = "key is missing"
        else:
            text = item["msg"].removeprefix("Value error, ")
            if not isinstance(item["input"], dict | list):
                text += f" (got {repr(item['input'])[:80]})"
        lines.append(f"{path}: {text}" if path else text)
    return "; ".join(dict.fromkeys(lines))


def _named(table: dict[str, T], name: str, noun: str) -> T:
    if name not in table:
        raise CvsiError(f"{PATH}: no {noun} '{name}'; there are: {', '.join(sorted(table)) or 'none'}")
    return table[name]
