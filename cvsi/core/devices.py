"""The device and the precision that a model computes with: decided here, from the parameters and the machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvsi.core import run_log
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute, Precision

if TYPE_CHECKING:
    import torch

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DRIVERS = ("nvidia*", "dxg", "kfd")  # NVIDIA's, that of Windows' Linux, AMD's


def device_kind(compute: Compute) -> str:
    """`cuda` or `cpu`: the kind of device that models compute on.

    torch, which takes seconds to import, is only imported where a GPU's driver is present.
    """
    if compute.device == "cuda":
        return "cuda"
    if compute.device == "cpu" or not any(any(Path("/dev").glob(name)) for name in DRIVERS):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device(compute: Compute, worker: int = 0) -> "torch.device":
    """The device of a worker: the CPU, or one of the GPUs, which workers take in turn; written to the run's record."""
    import torch

    kind = device_kind(compute)
    if kind == "cuda" and not torch.cuda.is_available():
        raise CvsiError("params.yaml: compute.device is cuda, but no GPU can be used here; set it to auto or cpu")
    run_log.record(device=kind)
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", worker % torch.cuda.device_count())


def precision(chosen: Precision, on: str) -> str:
    """The precision on a kind of device (`cuda`, `cpu`): the chosen one; `auto` is bf16 on a GPU and fp32 on a CPU."""
    if chosen != "auto":
        return chosen
    return "bf16" if on == "cuda" else "fp32"


def dtype(name: str) -> Any:
    """Torch's type of a precision."""
    import torch

    return getattr(torch, NAMES[name])
