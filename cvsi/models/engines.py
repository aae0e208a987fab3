"""What an engine is, and the registries of engines by the key `engine` of params.yaml.

An engine is one file of this package: its settings, what they require, what identifies it in a recipe, and how it is
loaded. Nothing else compares engines by name. To add one, write one file and one line below (or an entry point).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Generic, TypeVar

from cvsi.core.params import PATH, Block, Compute, Dataset, Precision, Rerank, Settings, checked
from cvsi.core.registry import Registry
from cvsi.models.captioner import Captioner, CaptionerSettings
from cvsi.models.editor import Editor, EditorSettings
from cvsi.models.judge import Judge, JudgeSettings
from cvsi.models.reader import Reader, ReaderSettings
from cvsi.store.rows import Store

S = TypeVar("S", bound=Settings)
M = TypeVar("M", covariant=True)


@dataclass(frozen=True)
class Model:
    """A model that must be on this machine or in the hub's cache: its name or folder, and the precision it runs in.

    `family` is what its configuration must be (`captioner_family`); empty where any is fine.
    """

    name: str
    revision: str | None = None
    precision: Precision = "auto"
    family: str = ""


@dataclass(frozen=True)
class Requirements:
    """What an engine needs before it can compute a row: models, Python packages, and addresses of servers."""

    models: tuple[Model, ...] = ()
    packages: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine(Generic[S, M]):
    """One engine.

    `recipe` gets the settings, the precision on this machine and the store (which may know the digest of a model that
    is not here), and returns what decides a row's value. `load` gets the settings, those of speed, and a worker's
    number. `one_worker` means that a loaded model uses all GPUs by itself. `answers` means that a captioner returns raw
    answers (`AnsweringCaptioner`), which are stored and parsed. `prompted` is the engine under the same name for
    blocks with the key `prompt`, where those are another kind of model.
    """

    settings: type[S]
    requirements: Callable[[S], Requirements]
    recipe: Callable[[S, str, Store], dict[str, Any]]
    load: Callable[[S, Compute, int], M]
    one_worker: bool = False
    answers: bool = False
    prompted: "Engine[Any, Any] | None" = None


def imported(path: str) -> Callable[..., Any]:
    """A class by `module:name` that is imported when it is called: a model's libraries take seconds to import."""
    return lambda *arguments: EntryPoint("", path, "").load()(*arguments)


CAPTIONERS: Registry[Engine[Any, Captioner[Any]]] = Registry(
    "captioner engine",
    "cvsi.captioners",
    {
        "transformers": "cvsi.models.blip2:ENGINE",
        "vllm": "cvsi.models.blip2_vllm:ENGINE",
        "blip": "cvsi.models.blip:ENGINE",
        "server": "cvsi.models.captioner_server:ENGINE",
    },
)
EDITORS: Registry[Engine[Any, Editor]] = Registry(
    "editor engine",
    "cvsi.editors",
    {
        "vllm": "cvsi.models.llm_vllm:ENGINE",
        "server": "cvsi.models.llm_server:ENGINE",
    },
)
JUDGES: Registry[Engine[Any, Judge[Any]]] = Registry(
    "judge engine",
    "cvsi.judges",
    {
        "vllm": "cvsi.models.judge_vllm:ENGINE",
        "server": "cvsi.models.judge_server:ENGINE",
    },
)
READERS: Registry[Engine[Any, Reader]] = Registry(
    "reader engine",
    "cvsi.readers",
    {
        "vllm": "cvsi.models.reader_vllm:ENGINE",
        "server": "cvsi.models.reader_server:ENGINE",
    },
)
# Of a block without the key `engine`.
DEFAULT_CAPTIONER, DEFAULT_EDITOR, DEFAULT_JUDGE, DEFAULT_READER = "transformers", "vllm", "vllm", "vllm"


def captioner_settings(block: Block, where: str) -> CaptionerSettings:
    """A captioner's block as its engine's settings; raises CvsiError for an unknown engine, key or value."""
    settings: CaptionerSettings = _settings(CAPTIONERS, {"engine": DEFAULT_CAPTIONER} | block, where)
    return settings


def editor_settings(block: Block, where: str) -> EditorSettings:
    """An editor's block as its engine's settings; raises CvsiError for an unknown engine, key or value."""
    settings: EditorSettings = _settings(EDITORS, {"engine": DEFAULT_EDITOR} | block, where)
    return settings


def judge_settings(block: Block, where: str) -> JudgeSettings:
    """A judge's block as its engine's settings; raises CvsiError for an unknown engine, key or value."""
    settings: JudgeSettings = _settings(JUDGES, {"engine": DEFAULT_JUDGE} | block, where)
    return settings


def reader_settings(block: Block, where: str) -> ReaderSettings:
    """A reader's block as its engine's settings; raises CvsiError for an unknown engine, key or value."""
    settings: ReaderSettings = _settings(READERS, {"engine": DEFAULT_READER} | block, where)
    return settings


def captioner_of(dataset: Dataset, name: str) -> CaptionerSettings:
    """The captioner of a dataset by the dataset's name; raises CvsiError for an unknown engine, key or value."""
    return captioner_settings(dataset.captioner, f"datasets.{name}.captioner")


def editor_of(dataset: Dataset, name: str) -> EditorSettings:
    """The editor of a dataset by the dataset's name; raises CvsiError for an unknown engine, key or value."""
    return editor_settings(dataset.editor, f"datasets.{name}.editor")


def judge_of(rerank: Rerank, name: str) -> JudgeSettings:
    """The judge of a rerank by the rerank's name; raises CvsiError for an unknown engine, key or value."""
    return judge_settings(rerank.judge, f"reranks.{name}.judge")


def reader_of(dataset: Dataset, name: str) -> ReaderSettings | None:
    """The reader of a dataset by the dataset's name, None without one; raises CvsiError for a wrong block."""
    return None if dataset.reader is None else reader_settings(dataset.reader, f"datasets.{name}.reader")


def captioner_engine(settings: CaptionerSettings) -> Engine[Any, Captioner[Any]]:
    """The engine that checked settings belong to."""
    engine = CAPTIONERS.get(settings.engine, f"{PATH}: captioner")
    return engine.prompted if engine.prompted and isinstance(settings, engine.prompted.settings) else engine


def editor_engine(settings: EditorSettings) -> Engine[Any, Editor]:
    """The engine that checked settings belong to."""
    return EDITORS.get(settings.engine, f"{PATH}: editor")


def judge_engine(settings: JudgeSettings) -> Engine[Any, Judge[Any]]:
    """The engine that checked settings belong to."""
    return JUDGES.get(settings.engine, f"{PATH}: judge")


def reader_engine(settings: ReaderSettings) -> Engine[Any, Reader]:
    """The engine that checked settings belong to."""
    return READERS.get(settings.engine, f"{PATH}: reader")


def facts_of(settings: Settings, *left_out: str) -> dict[str, Any]:
    """The settings that belong in a recipe: all but what identifies the model, and what is left out."""
    neutral = settings.neutral() if isinstance(settings, EditorSettings) else set()
    return settings.model_dump(exclude={"model", "revision", "precision", *left_out, *neutral})


def _settings(registry: Registry[Engine[Any, Any]], block: Mapping[str, Any], where: str) -> Any:
    engine = registry.get(block["engine"], f"{PATH}: {where}.engine")
    if engine.prompted and "prompt" in block:
        engine = engine.prompted
    return checked(engine.settings, block, where)
