"""A repository's listing to the files that a model needs: configuration, tokenizer, processor and safetensors.

Files that can hold code (pickles, Python, HDF5) and copies of the weights for other libraries are never chosen.
"""

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from cvsi.models.hub import HubError, HubFile, Listing

# What the libraries read beside the weights; `*.json` at any depth, as transformers_keys asks for.
SMALL = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model", "*.tiktoken")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
INDEX_BYTES = 64 << 20
MOST_FILES = 2000


def small_files(listing: Listing) -> list[HubFile]:
    """The files of a model besides its weights, the index of sharded weights among them."""
    names = sorted(name for name in listing.files if any(fnmatch(name, pattern) for pattern in SMALL))
    return _files(listing, names)


def weights(listing: Listing, index: bytes | None) -> list[HubFile]:
    """The files of a model's weights; `index` is the content of INDEX where the repository has one.

    A repository with an index and a whole file has both, since libraries differ in which they take. A single file may
    have any name. Raises HubError for a repository without safetensors, and for several files without an index.
    """
    names = _shards(listing, index) if index is not None else []
    names += [SINGLE] if SINGLE in listing else []
    names = names or sorted(name for name in listing.files if fnmatch(name, "*.safetensors") and "/" not in name)
    if len(names) > 1 and index is None:
        raise HubError(
            f"{listing.repository}: {len(names)} files of safetensors ({', '.join(names[:3])}) without {INDEX}, which "
            "says what belongs together; not downloaded: name another revision or model"
        )
    if not names:
        raise _without_safetensors(listing, "weights as safetensors")
    return _files(listing, names)


def one_file(listing: Listing, name: str) -> list[HubFile]:
    """The one file that open_clip reads; raises HubError for a repository without it."""
    if name not in listing:
        raise _without_safetensors(listing, name)
    return _files(listing, [name])


def _files(listing: Listing, names: Iterable[str]) -> list[HubFile]:
    files = [listing.file(name) for name in dict.fromkeys(names)]
    if len(files) > MOST_FILES:
        raise HubError(f"{listing.repository}: {len(files):,} files, more than {MOST_FILES:,}; not downloaded")
    return files


def _shards(listing: Listing, index: bytes) -> list[str]:
    """The names of an index's files; raises HubError for an index that is unreadable."""
    try:
        content: Any = json.loads(index)["weight_map"].values()
        names = sorted(set(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = []
    if not names or not all(isinstance(name, str) and name.endswith(".safetensors") for name in names):
        raise HubError(f"{listing.repository}: {INDEX} names no files of safetensors; take another revision")
    return names


def _without_safetensors(listing: Listing, what: str) -> HubError:
    others = sorted(name for name in listing.files if name.endswith(UNSAFE))
    only = f", only {', '.join(others[:3])}{', ...' * (len(others) > 3)}, which can hold code" if others else ""
    return HubError(
        f"{listing.repository}: no {what}{only}; not downloaded: name another revision or model, or put one with "
        "safetensors into a folder"
    )
