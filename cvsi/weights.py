"""Where a model's weights are and what identifies them: a folder's content, or a hub name with its revision.

Two people with the same weights in different folders get the same recipe.
"""

import hashlib
from pathlib import Path

from cvsi.errors import CvsiError
from cvsi.runs import spending

READ_BYTES = 1 << 22


def identify(model: str, revision: str | None = None) -> dict[str, str | None]:
    """Facts for a recipe: the digest of a local file or folder, else the hub's name and revision.

    Raises CvsiError for a path (absolute, or starting with a dot, or with a folder that exists) that is not there.
    """
    path = Path(model.removeprefix("local-dir:"))
    if path.exists():
        return {"weights": content_digest(path)}
    if not is_hub_name(model):
        raise CvsiError(f"{path}: no such model folder; check the model in params.yaml")
    return {"model": model, "revision": revision}


def is_hub_name(model: str) -> bool:
    """Whether a model that is no local path can be one of the hub's: `owner/name`."""
    path = Path(model)
    local = model.startswith("local-dir:") or path.is_absolute() or path.parts[:1] in ((".",), ("..",))
    return not local and len(path.parts) == 2


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
