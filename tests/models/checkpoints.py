"""Variants of the demo's checkpoints: what people's files look like when something went wrong with their keys."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.imports import ROOT

State = dict[str, Tensor]
Change = Callable[[State], State]
PROJECTION = "language_projection."


def same(state: State) -> State:
    """The checkpoint as it is."""
    return state


def without(*parts: str) -> Change:
    """No key that contains one of these."""
    return lambda state: {key: tensor for key, tensor in state.items() if not any(part in key for part in parts)}


def prefixed(prefix: str) -> Change:
    """Every key begins with the prefix."""
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def alternately(*prefixes: str) -> Change:
    """The keys begin with these prefixes in turn."""
    return lambda state: {
        prefixes[number % len(prefixes)] + key: tensor for number, (key, tensor) in enumerate(sorted(state.items()))
    }


def with_one_more(state: State) -> State:
    """One key that no model has."""
    return state | {"head.more": torch.ones(3)}


def renamed(old: str, new: str) -> Change:
    """A part of the keys is spelled in another way."""
    return lambda state: {key.replace(old, new): tensor for key, tensor in state.items()}


def reshaped(end: str) -> Change:
    """The first tensor whose key ends so has another shape."""

    def change(state: State) -> State:
        name = min(key for key in state if key.endswith(end))
        return state | {name: torch.ones(3, 5)}

    return change


def folder_of(name: str, change: Change, target: Path) -> Path:
    """A copy of a folder below demo/weights with a changed state dict."""
    shutil.copytree(ROOT / "demo/weights" / name, target)
    (file,) = target.glob("*model.safetensors")
    state = {key: tensor.contiguous() for key, tensor in change(load_file(file)).items()}
    save_file(state, file, metadata={"format": "pt"})
    return target


def shard(folder: Path, number: int) -> list[str]:
    """Split a folder's weights into shards with an index; the shards' names."""
    file = folder / "model.safetensors"
    state, names = load_file(file), [f"model-{one}-of-{number}.safetensors" for one in range(number)]
    index = {key: names[place % number] for place, key in enumerate(sorted(state))}
    for name in names:
        part = {key: state[key] for key in state if index[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    file.unlink()
    content = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    return names


def as_pickle(folder: Path) -> None:
    """Replace a folder's safetensors by a pickle of tensors."""
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()


def configure(folder: Path, **changes: object) -> None:
    """Change a folder's config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | changes), encoding="utf-8")
