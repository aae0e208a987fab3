"""Which device and precision a model computes with: settled here, once, from the parameters and the machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvsi.core import run_log
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.core.settings import Precision

if TYPE_CHECKING:
    import torch

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def device(compute: Compute, worker: int = 0) -> "torch.device":
    """The device to compute on: as told, or a GPU where there is one; workers take the GPUs there are in turn.

    The run's record says which it was.
    """
    import torch  # seconds of imports, which looking at what is there must not cost

    if compute.device == "cuda" and not torch.cuda.is_available():
        raise CvsiError("params.yaml: compute.device is cuda, but no GPU can be used here; set it to auto or cpu")
    if compute.device == "cpu" or not torch.cuda.is_available():
        run_log.note(device="cpu")
        return torch.device("cpu")
    run_log.note(device="cuda")
    return torch.device("cuda", worker % torch.cuda.device_count())


def precision(asked: Precision, on: str) -> str:
    """The precision to compute in on a kind of device (`cuda`, `cpu`): as told, or bf16 on a GPU and fp32 on a CPU."""
    if asked != "auto":
        return asked
    return "bf16" if on == "cuda" else "fp32"


def dtype(name: str) -> Any:
    """Torch's type of a precision."""
    import torch

    return getattr(torch, NAMES[name])


def has_gpu() -> bool:
    """Whether an NVIDIA GPU's driver is there; torch would know better and takes seconds to ask."""
    return Path("/dev/nvidia0").exists()
