"""The mapping network phi: an image embedding becomes the word embedding of a pseudo token.

Trained on text alone (LinCIR, arXiv 2312.01998), applied to the projected, un-normalised image embedding.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cvsi.core.atomic import atomic_file
from cvsi.core.console import warn
from cvsi.core.errors import CvsiError
from cvsi.models.checkpoint_keys import Shape, removal, shared_prefixes, some

MAX_WIDTH = 4096  # no backbone is wider; a file may claim any shape


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
    state = _checked(path, _state(Path(path)), width, token_width)
    phi = Phi(width, token_width)
    phi.load_state_dict(state)
    return phi.eval().requires_grad_(False)


def convert(source: Path, target: Path, sizes: tuple[int, int] | None, force: bool) -> tuple[int, int, str, str]:
    """Write a phi as safetensors, float32, without metadata: the bytes depend on the tensors alone.

    Returns phi's width and token width, and the SHA-256 of both files. Raises CvsiError for a file that is no phi, or
    none of these `sizes`, and for a target that is there, unless `force`.
    """
    if target.suffix != ".safetensors":
        raise CvsiError(f"{target}: the converted phi needs a name that ends in .safetensors")
    if target.exists() and not force:
        raise CvsiError(f"{target}: already there; give another name, or --force to overwrite it")
    state = _state(source)
    width, token_width = sizes or _sizes(source, state)
    content = save(dict(sorted(_checked(str(source), state, width, token_width).items())))
    try:
        with atomic_file(target) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise CvsiError(f"{target}: cannot be written ({error.strerror})") from None
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (source, target)]
    return width, token_width, digests[0], digests[1]


def _sizes(path: Path, state: dict[str, Tensor]) -> tuple[int, int]:
    """Width and token width as the first and the last layer's shapes say."""
    first, last = state.get("layers.0.weight"), state.get("layers.6.weight")
    if first is None or last is None or first.dim() != 2 or last.dim() != 2:
        raise CvsiError(f"{path}: no phi, it lacks matrices layers.0.weight and layers.6.weight (has {_names(state)})")
    width, token_width = first.shape[1], last.shape[0]
    if not (0 < width <= MAX_WIDTH and 0 < token_width <= MAX_WIDTH):
        raise CvsiError(f"{path}: no phi, its widths {width} and {token_width} are not from 1 to {MAX_WIDTH}")
    return width, token_width


def _checked(path: str, state: dict[str, Tensor], width: int, token_width: int) -> dict[str, Tensor]:
    """The state in float32; raises CvsiError where its keys, shapes or values are not those of such a phi."""
    expected = _meta(width, token_width)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != expected:
        # Where only shapes differ, one of them says it all: the phi is another backbone's.
        differ = shapes.keys() ^ expected.keys() or {name for name, shape in shapes.items() if shape != expected[name]}
        name, *others = sorted(differ)
        more = f" (likewise {some(others)})" if others and shapes.keys() != expected.keys() else ""
        raise CvsiError(
            f"{path}: {name} is {shapes.get(name, 'missing')}, the backbone needs {expected.get(name, 'none')}{more}; "
            "use the phi trained for this backbone"
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or not bool(tensor.isfinite().all()):
            raise CvsiError(f"{path}: {name} does not hold finite numbers ({tensor.dtype}); the file is damaged")
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def _names(state: dict[str, Tensor]) -> str:
    return ", ".join(name[:40] for name in list(state)[:3]) or "nothing"


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by phi's names; prints a line where a prefix that all of them share was removed."""
    state, own = _read(path), _meta(1, 1).keys()
    for prefix in shared_prefixes(state, own):
        renamed = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if renamed.keys() == own:
            warn(removal(str(path), prefix))
            return renamed
    return state


def _meta(width: int, token_width: int) -> dict[str, Shape]:
    """The shapes of a phi's tensors by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Phi(width, token_width).state_dict().items()}


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file, or of a published `.pt` checkpoint, read without running code."""
    try:
        if path.suffix != ".pt":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; check its name, the backbone's phi in params.yaml") from None
    except (SafetensorError, OSError) as error:
        raise CvsiError(f"{path}: not a safetensors file ({error})") from None
    except Exception as error:  # torch raises many kinds on a hostile or broken pickle; none of it was run
        raise CvsiError(
            f"{path}: not a checkpoint of tensors alone ({type(error).__name__}); it was not opened"
        ) from None
    state = content.get("Phi") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CvsiError(f"{path}: no state dict under the key 'Phi'; use a checkpoint as LinCIR publishes it")
    return state
