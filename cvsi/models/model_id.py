"""What identifies a model in a recipe: the digest of a folder's content, or a hub name with its revision.

Two people with the same weights in different folders get the same recipe. For a missing folder, the store may contain
the digest of its weights, from a pack that was unpacked: rows computed from it are used, but no new ones are computed.
"""

import hashlib
from pathlib import Path

import polars as pl
import pyarrow as pa

from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.run_log import timed
from cvsi.core.schema import STORED_WEIGHTS
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.rows import RowStore, Store

READ_BYTES = 1 << 22
RECORDS = {"code": CODE_VERSIONS["weights"]}


def identify(model: str, revision: str | None = None, store: Store | None = None) -> dict[str, str | None]:
    """Facts for a recipe: the digest of a local file or folder, else the hub's name and revision.

    `store` may contain the digest of a missing folder. Raises CvsiError for a path that is missing otherwise.
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
    """Whether a model is a local file or folder that is missing."""
    return not is_hub_name(model) and not Path(model.removeprefix("local-dir:")).exists()


def require(model: str) -> None:
    """Raise CvsiError for a local model that is missing."""
    if absent(model):
        path = model.removeprefix("local-dir:")
        raise CvsiError(
            f"{path}: no such model, and the store has no rows of it; put the model there or unpack its rows"
        )


def recorded(model: str, store: Store) -> str | None:
    """The digest that the store contains for a missing model, or None."""
    rows, key = _records(store), pl.Series([_key(model)])
    rows.quarantine_corrupt(key)
    return None if rows.missing(key).len() else str(rows.get(key)["weights"][0].as_py())


def record(model: str, weights: str, store: Store) -> str:
    """Store the digest of a missing model; returns the one that counts, which is the first ever stored."""
    if (earlier := recorded(model, store)) is not None:
        return earlier
    _records(store).append(pa.table({"key": [_key(model)], "weights": [weights]}, schema=STORED_WEIGHTS))
    return weights


def _records(store: Store) -> RowStore:
    return store.rows("weights", RECORDS, STORED_WEIGHTS)


def _key(model: str) -> str:
    return digest(Path(model.removeprefix("local-dir:")).as_posix())


def content_digest(path: Path) -> str:
    """SHA-256 over the names and bytes of a file, or of all files below a folder except hidden ones."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    total = hashlib.sha256()
    for file in files:
        relative = file.relative_to(path.parent if path.is_file() else path)
        if any(part.startswith(".") for part in relative.parts):
            continue
        single = hashlib.sha256()
        with timed("load"), file.open("rb") as handle:
            while data := handle.read(READ_BYTES):
                single.update(data)
        total.update(f"{'' if path.is_file() else relative.as_posix()}\0{single.hexdigest()}\n".encode())
    return total.hexdigest()
