"""A file of CLIP weights to an open_clip model, tensor by tensor, all of them used.

open_clip's own loading resizes position embeddings without a message, and takes seven characters off every key where
the first begins with `module`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cvsi.core.console import warn
from cvsi.models.checkpoint_keys import Shape, removal, without_prefix
from cvsi.models.clip_activation import is_program

# OpenAI's programs list these numbers among their tensors.
SETTINGS = ("input_resolution", "context_length", "vocab_size")
ADVICE = "use weights of this backbone's model"


def load_into(model: Any, file: Path) -> bool:
    """Load a file's tensors into an open_clip model; prints a line where a prefix of their names was removed.

    Returns whether the file lists the settings of one of OpenAI's programs, from which it then comes.

    Raises CvsiError where tensors are missing, unknown to the model or of another shape, and ValueError where the file
    has no dictionary of tensors; what torch and safetensors raise on a broken file is passed on.
    """
    content = _read(file)
    state = {name: tensor for name, tensor in content.items() if name.rpartition(".")[2] not in SETTINGS}
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = without_prefix(str(file), needed, _shapes(state, needed), ADVICE)
    if prefix:
        warn(removal(str(file), prefix))
    renamed = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    model.load_state_dict({name: tensor.reshape(needed[name]) for name, tensor in renamed.items()})
    return len(state) < len(content)


def _read(file: Path) -> dict[str, Tensor]:
    """A file's tensors by name, of safetensors or of a pickle that holds nothing else; no code is run."""
    if file.suffix == ".safetensors":
        content: Any = load_file(file)
    elif is_program(file):
        raise ValueError("it is a program (TorchScript), which is not run; use the same weights as safetensors")
    else:
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("the file holds no dictionary of tensors")
    return {str(name): tensor for name, tensor in content.items()}


def _shapes(state: Mapping[str, Tensor], needed: Mapping[str, Shape]) -> dict[str, Shape]:
    """The tensors' shapes; a single number fits both `()` and `(1,)`, which versions of open_clip differ in."""
    singles = {name for name, shape in needed.items() if shape in ((), (1,))}

    def shape(name: str, tensor: Tensor) -> Shape:
        own = next((single for single in singles if name == single or name.endswith(f".{single}")), None)
        return needed[own] if own is not None and tensor.numel() == 1 else tuple(tensor.shape)

    return {name: shape(name, tensor) for name, tensor in state.items()}
