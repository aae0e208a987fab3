"""A model's folder or hub name to what of its checkpoint fits: transformers' own key rules on headers alone.

Both libraries that load such folders may leave tensors random. vLLM, for one, counts a fused weight as loaded as soon
as one of its parts was. The model is built without memory for its weights, and the checkpoint's headers are matched by
transformers, which knows old names, tied weights and buffers. No tensor is read.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cvsi.core.console import warn
from cvsi.core.errors import CvsiError, cause
from cvsi.models.checkpoint_keys import Difference, misfit, pattern, removable_prefix, removal, shared_prefixes

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
# Numbers that earlier versions of transformers saved although the configuration has them; none is learned.
CONSTANTS = ("position_ids", "inv_freq", "masked_bias")
ADVICE = "use a complete checkpoint of this model"


def checked_prefix(model: str, revision: str | None, architecture: str = "") -> str:
    """The prefix to remove from a checkpoint's keys (mostly empty); prints a line where one is, or nothing is checked.

    `architecture` is the class in transformers where the configuration does not decide it. Raises CvsiError for keys or
    shapes that do not fit, and for missing files. What transformers does not know (GGUF, other formats and
    architectures) is left to vLLM.
    """
    if model.lower().endswith(".gguf"):
        return _unchecked(model, "it is a GGUF file")
    folder = _folder(model, revision)
    try:
        checkpoint = Checkpoint.of(folder, architecture)
    except CvsiError:
        raise
    except Exception as error:  # a configuration may be anything; the library that loads it has the last word
        return _unchecked(model, cause(error))
    if checkpoint is None:
        return _unchecked(model, "transformers does not know its architecture")
    prefix, left = checkpoint.fit()
    if left:
        raise misfit(model, prefix, left, ADVICE)
    if prefix:
        warn(removal(model, prefix))
    return prefix


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of some files without their content, and the model that they are for, without weights."""

    files: tuple[Path, ...]
    config: Any
    architecture: Any
    quantised: bool

    @classmethod
    def of(cls, folder: Path, architecture: str) -> "Checkpoint | None":
        """A folder's checkpoint; None for an architecture that transformers lacks. Raises CvsiError without weights."""
        import transformers  # seconds of imports, needed only when a row is missing

        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        name = architecture or (config.architectures or [""])[0]
        known = getattr(transformers, name, None) if name else None
        if known is None:
            return None
        quantised = _take_quantisation(config)
        return cls(tuple(weights(folder)), config, known, quantised)

    @cached_property
    def headers(self) -> dict[str, Any]:
        """Every tensor by key, on torch's device `meta`; raises RuntimeError for a file that is damaged."""
        from transformers.modeling_utils import load_state_dict

        tensors: dict[str, Any] = {}
        for file in self.files:
            try:
                tensors |= load_state_dict(str(file), map_location="meta", weights_only=True)
            except Exception as error:  # safetensors, torch and the pickle's content raise many kinds
                raise RuntimeError(f"{cause(error)} ({file.name})") from None
        return tensors

    def fit(self) -> tuple[str, Difference]:
        """The prefix to remove, and what differs then.

        Keys that are the model's own letter by letter come first: transformers also takes them with its own prefix in
        front, or without it, and vLLM does not.
        """
        names = self.headers.keys()
        own = set(self.model().state_dict())
        prefixes = shared_prefixes(names, own)
        for prefix in ["", *prefixes]:
            if all(name.removeprefix(prefix) in own for name in names) and not self.difference(prefix):
                return prefix, Difference()
        return removable_prefix(prefixes, self.difference)

    def model(self) -> Any:
        """The model without memory for its weights."""
        import torch

        with torch.device("meta"):
            return self.architecture(self.config)

    def difference(self, prefix: str) -> Difference:
        """What differs once a prefix is removed, by the rules of transformers' own loading."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.modeling_utils import LoadStateDictConfig

        model = self.model()
        options = LoadStateDictConfig(
            device_map={"": "meta"},
            weight_mapping=get_model_conversion_mapping(model, pattern(prefix), None),
            ignore_mismatched_sizes=True,
        )
        # `from_pretrained` does this too, but then gives memory and random numbers to what is missing.
        loaded, _ = self.architecture._load_pretrained_model(model, dict(self.headers), None, options)
        model.mark_tied_weights_as_initialized(loaded)
        model.tie_weights(missing_keys=loaded.missing_keys, recompute_mapping=False)
        model._adjust_missing_and_unexpected_keys(loaded)
        found = loaded_difference(loaded.missing_keys, loaded.unexpected_keys, loaded.mismatched_keys)
        return _tolerant(found, {name for name, _ in model.named_modules()}) if self.quantised else found


def shared_prefix(model: str) -> str:
    """What all keys of a local checkpoint begin with, from its index or headers alone; empty where unknown.

    It imports torch only for a single pickle.
    """
    folder = Path(model)
    if not folder.is_dir():
        return ""
    try:
        names = _names(folder)
    except Exception:  # whatever is wrong with it is reported when it is loaded
        return ""
    return os.path.commonprefix(names)


def _names(folder: Path) -> list[str]:
    for name in INDEXES:
        if (folder / name).is_file():
            return list(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"])
    (file, *_) = weights(folder)
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "numpy") as tensors:
            return list(tensors.keys())
    import torch

    return list(torch.load(file, map_location="meta", weights_only=True))


def loaded_difference(
    missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]
) -> Difference:
    """What transformers reports about a load, as a difference; numbers that the configuration has are no part of it."""
    unexpected = [name for name in unexpected if name.rpartition(".")[2] not in CONSTANTS]
    shapes = sorted((name, tuple(has), tuple(needs)) for name, has, needs in mismatched)
    return Difference(tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(shapes))


def weights(folder: Path) -> list[Path]:
    """A folder's files of weights; raises CvsiError where there are none, or one that the index names is missing."""
    for name in INDEXES:
        index = folder / name
        if index.is_file():
            return _indexed(index)
    files = [folder / name for name in SINGLE if (folder / name).is_file()][:1]
    files = files or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise CvsiError(f"{folder}: no weights (*.safetensors or *.bin) in this folder; {ADVICE}")
    return files


def _indexed(index: Path) -> list[Path]:
    files = [index.parent / name for name in _shards(index)]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CvsiError(f"{index}: {len(absent)} of its {len(files)} files are missing ({absent[0]}); download them")
    return files


def _shards(index: Path) -> list[str]:
    """The names of an index's files; raises CvsiError for an index that is unreadable."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(Path(name).name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CvsiError(f"{index}: no readable index of weights ({cause(error)}); download it again") from None


def _folder(model: str, revision: str | None) -> Path:
    """The folder of a model; a hub's files are downloaded first, those that the library that loads it would take."""
    if Path(model).exists():
        return Path(model)
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(model, revision=revision, allow_patterns=["*.json"]))
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is not None:
        snapshot_download(model, revision=revision, allow_patterns=_shards(index))
        return folder
    for pattern_of_files in (SINGLE[0], "*.safetensors", "*.bin"):
        snapshot_download(model, revision=revision, allow_patterns=[pattern_of_files])
        if any(folder.glob(pattern_of_files)):
            break
    return folder


def _take_quantisation(config: Any) -> bool:
    """Whether a configuration names a quantisation, which is removed from it: its packages need not be here."""
    named = [part for part in (config, config.get_text_config()) if getattr(part, "quantization_config", None)]
    for part in named:
        part.quantization_config = None
    return bool(named)


def _tolerant(found: Difference, modules: set[str]) -> Difference:
    """The difference of a quantised checkpoint: packed weights, scales and zero points stand in for a module's tensors.

    Their names and shapes depend on the method, so only modules are compared: one without any tensor is missing.
    """
    packed = {_module(name) for name in found.unexpected}
    return Difference(
        tuple(name for name in found.missing if _module(name) not in packed or name.endswith(".bias")),
        tuple(name for name in found.unexpected if _module(name) not in modules),
    )


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _unchecked(model: str, why: str) -> str:
    warn(f"{model}: the keys of its checkpoint were not checked ({why})")
    return ""
