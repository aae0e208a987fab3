"""Where a model's weights are and what identifies them: a folder's content, or a hub name with its revision.

Two people with the same weights in different folders get the same recipe. Where a folder is not there, the store may
know, from a pack that was unpacked, what it would hold: rows made from it are found, but no new ones are computed.
"""

import hashlib
from pathlib import Path

import polars as pl
import pyarrow as pa

from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.run_log import spending
from cvsi.core.schema import STORED_WEIGHTS
from cvsi.store.rows import Shelf

READ_BYTES = 1 << 22
RECORDS = {"code": 1}


def identify(model: str, revision: str | None = None, store: str | Path | None = None) -> dict[str, str | None]:
    """Facts for a recipe: the digest of a local file or folder, else the hub's name and revision.

    `store` may know what a folder that is not there would hold. Raises CvsiError for a path that is neither there nor
    known to it.
    """
    path = Path(model.removeprefix("local-dir:"))
    if path.exists():
        return {"weights": content_digest(path)}
    if is_hub_name(model):
        return {"model": model, "revision": revision}
    if store is not None and (weights := recorded(model, store)):
        return {"weights": weights}
    raise CvsiError(f"{path}: no such model folder; check the model in params.yaml, or unpack rows of it (cvsi unpack)")


def is_hub_name(model: str) -> bool:
    """Whether a model that is no local path can be one of the hub's: `owner/name`."""
    local = model.startswith(("local-dir:", ".", "~")) or Path(model).is_absolute()
    return not local and len(Path(model).parts) == 2


def absent(model: str) -> bool:
    """Whether a model is a local file or folder that is not there."""
    return not is_hub_name(model) and not Path(model.removeprefix("local-dir:")).exists()


def require(model: str) -> None:
    """Raise CvsiError where new rows would need a local model that is not there."""
    if absent(model):
        path = model.removeprefix("local-dir:")
        raise CvsiError(f"{path}: not here, and the store lacks rows of it; put the model there or unpack those rows")


def recorded(model: str, store: str | Path) -> str | None:
    """The digest that the store knows of a model that is not there, or None."""
    shelf, key = _records(store), pl.Series([_key(model)])
    shelf.mend(key)
    return None if shelf.missing(key).len() else str(shelf.take(key)["weights"][0].as_py())


def record(model: str, weights: str, store: str | Path) -> str:
    """Keep the digest of a model that is not there; returns the one that counts, which is the first ever kept."""
    if (known := recorded(model, store)) is not None:
        return known
    _records(store).add(pa.table({"key": [_key(model)], "weights": [weights]}, schema=STORED_WEIGHTS))
    return weights


def _records(store: str | Path) -> Shelf:
    return Shelf(store, "weights", RECORDS, STORED_WEIGHTS)


def _key(model: str) -> str:
    return digest(Path(model.removeprefix("local-dir:")).as_posix())


def content_digest(path: Path) -> str:
    """SHA-256 over names and bytes of a file, or of all files below a folder but hidden ones."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    total = hashlib.sha256()
    for file in files:
        relative = file.relative_to(path.parent if path.is_file() else path)
        if any(part.startswith(".") for part in relative.parts):
            continue
        single = hashlib.sha256()
        with spending("load"), file.open("rb") as handle:
            while data := handle.read(READ_BYTES):
                single.update(data)
        total.update(f"{'' if path.is_file() else relative.as_posix()}\0{single.hexdigest()}\n".encode())
    return total.hexdigest()
