"""The mapping network phi: an image embedding becomes the word embedding of a pseudo token.

Trained on text alone (LinCIR, arXiv 2312.01998), applied to the projected, un-normalised image embedding.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cvsi.errors import CvsiError


class Phi(nn.Module):
    """Three linear layers with GELU and dropout: d to 4d to 4d to the text tower's token width."""

    def __init__(self, width: int, token_width: int) -> None:
        """Build an untrained phi from embeddings of `width` to tokens of `token_width`."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.5),
            nn.Linear(4 * width, 4 * width), nn.GELU(), nn.Dropout(0.5),
            nn.Linear(4 * width, token_width),
        )  # fmt: skip

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings [n, d] to word embeddings [n, token width]."""
        return self.layers(embeddings)  # type: ignore[no-any-return]


def load(path: str, width: int, token_width: int) -> Phi:
    """Read phi's weights; raises CvsiError where the file, its keys or its shapes do not fit the backbone."""
    state = _state(Path(path))
    phi = Phi(width, token_width)
    expected = {name: tuple(tensor.shape) for name, tensor in phi.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        name = min(set(expected.items()) ^ set(found.items()))[0]
        raise CvsiError(
            f"{path}: {name} is {found.get(name, 'missing')}, the backbone needs {expected.get(name, 'none')}; "
            "use the phi trained for this backbone"
        )
    phi.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return phi.eval().requires_grad_(False)


def _state(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file, or of a published `.pt` checkpoint, read without running code."""
    try:
        if path.suffix != ".pt":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; check the backbone's phi in params.yaml") from None
    except (SafetensorError, OSError) as error:
        raise CvsiError(f"{path}: not a safetensors file ({error})") from None
    except Exception as error:  # torch raises many kinds on a hostile or broken pickle; none of it was run
        raise CvsiError(
            f"{path}: not a checkpoint of tensors alone ({type(error).__name__}); it was not opened"
        ) from None
    state = content.get("Phi") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CvsiError(f"{path}: no state dict under the key 'Phi'; use a checkpoint as LinCIR publishes it")
    return state
