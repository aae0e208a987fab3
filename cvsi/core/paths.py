"""Every path below `cache/` and `models/`, by name.

No other module spells a path below `cache/`. Only the standard library is imported, so that a stage with nothing to do
ends at once.
"""

from pathlib import Path

CACHE = Path("cache")
MODELS = Path("models")
WORLD = Path("data/demo")  # what the stage world draws
DVC_CACHE = Path(".dvc/cache")  # DVC's own, where its settings (their section has the same name) name no other


def folder(stage: str, dataset: str, backbone: str | None = None) -> Path:
    """The folder of a stage's output: `cache/<dataset>/[<backbone>/]<stage>`."""
    return CACHE.joinpath(*([dataset, backbone, stage] if backbone else [dataset, stage]))


def runs_folder() -> Path:
    """The folder with the records of single runs (times, device, versions), outside every output."""
    return CACHE / ".runs"


def phi_folder(name: str) -> Path:
    """The folder that the training of phi `name` writes: `models/<name>`."""
    return MODELS / name


def phi_checkpoint(store: str | Path, recipe: str) -> Path:
    """The checkpoint of training a phi, by its recipe's digest; outside every output, which DVC clears."""
    return Path(store) / "phi" / recipe / "checkpoint.pt"


def libraries_log() -> Path:
    """The file that gets what libraries print while a model is loaded."""
    return runs_folder() / "libraries.log"
