"""Every path below `cache/` and `models/`, by name.

No other module spells a path below `cache/`. Only the standard library is imported, so that a stage with nothing to do
ends at once.
"""

import os
from pathlib import Path

CACHE = Path("cache")
MODELS = Path("models")
STORE = CACHE / "store"  # unless params.yaml names another
WORLD = Path("data/demo")  # what the stage world draws
# The folders of outputs below `cache/<dataset>/` and `cache/<dataset>/<backbone>/`, and the other stages' nouns.
OF_DATASET = ("index", "captions", "edits")
OF_RUN = ("gallery_vectors", "query_vectors", "scores", "report", "sweep", "verdicts", "rerank")
OTHER_STAGES = ("world", "train_phi", "demo_captions")
DVC_CACHE = Path(".dvc/cache")  # DVC's own, where its settings (their section has the same name) name no other


def folder(stage: str, dataset: str, backbone: str | None = None, rerank: str | None = None) -> Path:
    """The folder of a stage's output: `cache/<dataset>/[<backbone>/]<stage>[/<rerank>]`."""
    names = [dataset, backbone, stage, rerank] if backbone else [dataset, stage]
    return CACHE.joinpath(*filter(None, names))


def runs_folder() -> Path:
    """The folder with the records of single runs (times, device, versions), outside every output."""
    return CACHE / ".runs"


def server_file(run: str) -> Path:
    """Where a server that keeps a run's models loaded says how it is reached."""
    return runs_folder() / "servers" / f"{run}.json"


def phi_folder(name: str) -> Path:
    """The folder that the training of phi `name` writes: `models/<name>`."""
    return MODELS / name


def phi_checkpoint(store: str | Path, recipe: str) -> Path:
    """The checkpoint of training a phi, by its recipe's digest; outside every output, which DVC clears."""
    return Path(store) / "phi" / recipe / "checkpoint.pt"


def libraries_log() -> Path:
    """The file that gets what libraries print while a model is loaded."""
    return runs_folder() / "libraries.log"


def reserved() -> dict[str, str]:
    """Names that no dataset and no backbone may have, as `comparable` spells them, each with what has it."""
    own = {STORE.name: "the store", runs_folder().name: "the records of runs", "README.md": "a file of the project"}
    nouns = dict.fromkeys((*OF_DATASET, *OF_RUN, *OTHER_STAGES), "a stage")
    return {comparable(name): what for name, what in (nouns | own).items()}


def comparable(name: str) -> str:
    """A folder's name as a file system sees it that ignores case, and dots and blanks at the end."""
    return name.casefold().rstrip(". ")


def inside(path: str | Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, links resolved and case ignored."""
    parts, above = ([comparable(part) for part in Path(os.path.realpath(name)).parts] for name in (path, folder))
    return parts[: len(above)] == above
