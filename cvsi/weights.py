"""Where a model's weights are and what identifies them: a folder's content, or a hub name with its revision.

Two people with the same weights in different folders get the same recipe. Device and precision are settled here, once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from cvsi.errors import CvsiError
from cvsi.params import Compute, Precision

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
READ_BYTES = 1 << 22


def identify(model: str, revision: str | None = None) -> dict[str, str | None]:
    """Facts for a recipe: the digest of a local file or folder, else the hub's name and revision.

    Raises CvsiError for a path (absolute, or starting with a dot, or with a folder that exists) that is not there.
    """
    path = Path(model.removeprefix("local-dir:"))
    if path.exists():
        return {"weights": content_digest(path)}
    if model.startswith("local-dir:") or path.is_absolute() or len(path.parts) != 2 or path.parts[0] in (".", ".."):
        raise CvsiError(f"{path}: no such model folder; check the model in params.yaml")
    return {"model": model, "revision": revision}


def content_digest(path: Path) -> str:
    """SHA-256 over names and bytes of a file, or of all files below a folder but hidden ones."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    total = hashlib.sha256()
    for file in files:
        relative = file.relative_to(path.parent if path.is_file() else path)
        if any(part.startswith(".") for part in relative.parts):
            continue
        single = hashlib.sha256()
        with file.open("rb") as handle:
            while data := handle.read(READ_BYTES):
                single.update(data)
        total.update(f"{'' if path.is_file() else relative.as_posix()}\0{single.hexdigest()}\n".encode())
    return total.hexdigest()


def device(compute: Compute, worker: int = 0) -> torch.device:
    """The device to compute on: as told, or a GPU where there is one; workers take the GPUs there are in turn."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise CvsiError("params.yaml: compute.device is cuda, but no GPU can be used here; set it to auto or cpu")
    if compute.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", worker % torch.cuda.device_count())


def precision(asked: Precision, on: torch.device) -> str:
    """The precision to compute in: as told, or bf16 on a GPU and fp32 on a CPU."""
    if asked != "auto":
        return asked
    return "bf16" if on.type == "cuda" else "fp32"
