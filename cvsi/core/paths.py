"""Where things lie under `cache/` and `models/`, by name; folders and files that appear whole or not at all.

The only module that spells a path under `cache/`. It imports nothing but the standard library, so that a stage with
nothing to do ends at once.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path("cache")
MODELS = Path("models")
WORLD = Path("data/demo")  # what the stage world draws


def folder(stage: str, dataset: str, backbone: str | None = None) -> Path:
    """Where a stage's output lies: `cache/<dataset>/[<backbone>/]<stage>`."""
    return CACHE.joinpath(*([dataset, backbone, stage] if backbone else [dataset, stage]))


def runs_folder() -> Path:
    """Where records of single runs lie (times, device, versions), outside every output."""
    return CACHE / ".runs"


def phi_folder(name: str) -> Path:
    """Where the training of phi `name` puts it: `models/<name>`."""
    return MODELS / name


def phi_checkpoint(store: str | Path, recipe: str) -> Path:
    """Where the training of a phi stands, by its recipe's digest; outside every output, which DVC clears."""
    return Path(store) / "phi" / recipe / "checkpoint.pt"


def libraries_log() -> Path:
    """The file that takes what libraries print while a model is loaded."""
    return runs_folder() / "libraries.log"


def flush(path: Path) -> None:
    """Push a file's or folder's bytes to the disk, so that a rename never names something half-written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let an error of the system name the file that was to be: a write that fails does not say where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(target)
        raise


@contextmanager
def whole_or_absent(target: Path) -> Iterator[Path]:
    """Make a folder beside its final place; it appears there, flushed, only when the block ends without an error."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _named(target):
            yield partial
            for path in partial.rglob("*"):
                flush(path)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def once(target: Path) -> Iterator[Path]:
    """Make a folder that several processes may make at once, all alike; it appears whole, by whoever is first."""
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}.partial")
    partial.mkdir(parents=True)
    try:
        with _named(target):
            yield partial
            for path in partial.rglob("*"):
                flush(path)
            try:
                partial.rename(target)
            except OSError:
                if not target.exists():
                    raise
            flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write a file at, which takes its final place, flushed, only when the block ends without an error.

    The folder has to be there.
    """
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}.partial")
    try:
        with _named(target):
            yield partial
            flush(partial)
            partial.replace(target)
            flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)
