"""CLIP weights to the activation they were trained with, QuickGELU or GELU, as far as it is known.

Both activations have the same tensors, so weights load under the wrong one and give other vectors. What is known comes
from open_clip's own table of pretrained tags: by the tag, by the names of the file and of its folder (a hub repository
or a tag), and by the SHA-256 that the table has of a published file.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from cvsi.core.errors import CvsiError

TWIN = "-quickgelu"  # how open_clip's names of models with QuickGELU end
OPENAI = "openai"  # all of OpenAI's weights were trained with QuickGELU
COMMON = {
    OPENAI,
    "frozen",
    "laion",
    "meta",
    "mrl",
    "mscoco",
    "v1",
}  # first words of tags that say nothing by themselves
WORD = re.compile("[a-z0-9]+")
URL_DIGEST = re.compile("[0-9a-f]{64}")  # OpenAI's addresses have it as a folder
NAME_DIGEST = re.compile(
    r"-([0-9a-f]{8})\.(?:pt|pth)$"
)  # open_clip's own releases have its beginning at the end of the name


@dataclass(frozen=True)
class Evidence:
    """What says which activation some weights were trained with."""

    quick: bool
    why: str


def check_tag(model: str, tag: str, entry: Mapping[str, Any]) -> None:
    """Raise CvsiError for open_clip's tag whose weights were trained with another activation than the model has."""
    _compare(model, f"'{tag}'", _model_quick(model), [Evidence(bool(entry.get("quick_gelu", False)), "")])


def check_file(model: str, file: str) -> str:
    """A message where nothing is known of a file's activation, else nothing.

    Raises CvsiError where it is known and is not the model's.
    """
    known = list(evidence(model, Path(file)))
    if len({one.quick for one in known}) == 1:
        _compare(model, f"'{file}'", _model_quick(model), known)
        return ""
    why = f"its names contradict each other: {'; '.join(one.why for one in known)}" if known else "nothing says which"
    return (
        f"pretrained '{file}': trained with QuickGELU or with GELU, {why}. The model {model} computes "
        f"with {_name(_model_quick(model))}; for the other one set model to {_other(model)} (OpenAI's need QuickGELU)"
    )


def check_folder(model: str, file: str, config: Mapping[str, Any]) -> None:
    """Raise CvsiError where a folder's configuration has another activation than its weights are known to need."""
    known = list(evidence(model, Path(file)))
    quick = bool(config.get("quick_gelu", False))
    if len({one.quick for one in known}) == 1 and known[0].quick != quick:
        raise CvsiError(
            f"{file}: these weights were trained with {_name(known[0].quick)} ({known[0].why}), the folder's "
            f'configuration computes with {_name(quick)}; set "quick_gelu": {str(known[0].quick).lower()} in the '
            "model_cfg of its open_clip_config.json"
        )


def evidence(model: str, file: Path) -> Iterator[Evidence]:
    """What is known of a file of weights for a model, from its names (its target's too), its SHA-256 and its format."""
    digests, names = _table()
    places = dict.fromkeys(place for path in (file.absolute(), file.resolve()) for place in _places(path))
    for place in places:
        published = names.get(place)
        if published is not None:
            yield Evidence(published, f"open_clip's table has a file {place}")
        yield from _by_words(model.removesuffix(TWIN), place)
    if is_program(file):
        yield Evidence(True, "it is a TorchScript program, as OpenAI publishes its weights")
    if file.suffix != ".safetensors":  # all files whose SHA-256 is known are pickles or programs
        sha = _sha256(file)
        yield from (Evidence(quick, "by its SHA-256") for start, quick in digests.items() if sha.startswith(start))


def _by_words(model: str, place: str) -> Iterator[Evidence]:
    """Evidence from the words of a name: `openai`, `quickgelu`, a whole tag of the architecture, or a tag's first word.

    A tag's first word (`laion2b`) counts where all of the architecture's tags that begin with it agree.
    """
    words = WORD.findall(place.lower())
    if OPENAI in words:
        yield Evidence(True, f"'{place}' names OpenAI")
    if "quickgelu" in "".join(words):
        yield Evidence(True, f"'{place}' names QuickGELU")
    tags = _tags(model)
    whole = [tag for tag in tags if f"_{tag}_" in f"_{'_'.join(words)}_"]
    for word in sorted({max(whole, key=len)} if whole else {_start(tag) for tag in tags} & set(words)):
        agreed = {quick for tag, quick in tags.items() if tag == word or (not whole and _start(tag) == word)}
        if len(agreed) == 1:
            yield Evidence(agreed.pop(), f"'{place}' names {word}")


def _places(path: Path) -> list[str]:
    """The names that say something of a file: its own, and its folder's, or its repository's in the hub's cache."""
    cached = [part for part in path.parts if part.startswith("models--")]
    return [path.name, *(cached[-1:] or [path.parent.name])]


@cache
def _tags(model: str) -> dict[str, bool]:
    """An architecture's tags, other than OpenAI's, with their activation.

    Of an architecture that open_clip does not have: the tags whose first word means the same everywhere.
    """
    from open_clip.pretrained import _PRETRAINED

    of_words: dict[str, set[bool]] = {}
    tags: dict[str, bool] = {}
    for entries in [_PRETRAINED[model]] if model in _PRETRAINED else _PRETRAINED.values():
        for tag, entry in entries.items():
            tags[tag] = bool(entry.get("quick_gelu", False))
            of_words.setdefault(_start(tag), set()).add(tags[tag])
    return {
        tag: quick
        for tag, quick in tags.items()
        if _start(tag) not in COMMON and (model in _PRETRAINED or len(of_words[_start(tag)]) == 1)
    }


def _start(tag: str) -> str:
    return tag.split("_")[0]


@cache
def _table() -> tuple[dict[str, bool], dict[str, bool | None]]:
    """Beginnings of SHA-256 digests and names of published files to their activation, from open_clip's table."""
    from open_clip.pretrained import _PRETRAINED

    digests: dict[str, bool] = {}
    names: dict[str, bool | None] = {}
    for entry in (entry for tags in _PRETRAINED.values() for entry in tags.values()):
        address, quick = PurePosixPath(entry.get("url") or ""), bool(entry.get("quick_gelu", False))
        named = names.setdefault(address.name, quick)
        names[address.name] = quick if named == quick else None
        found = [part for part in address.parts if URL_DIGEST.fullmatch(part)] + NAME_DIGEST.findall(address.name)
        digests |= dict.fromkeys(found, quick)
    names.pop("", None)
    return digests, names


def check_settings(model: str, file: str, quick: bool) -> None:
    """Raise CvsiError where the model has GELU and the file lists the settings of one of OpenAI's programs."""
    if not quick:
        raise CvsiError(
            f"params.yaml: '{file}' was trained with QuickGELU (it lists the settings of OpenAI's program), {model} "
            f"computes with GELU; set this backbone's model to {_other(model)}"
        )


def is_program(file: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


@cache
def _sha256_of(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256(file: Path) -> str:
    state = file.stat()
    return _sha256_of(file, state.st_size, state.st_mtime_ns)


def _compare(model: str, weights: str, quick: bool, known: list[Evidence]) -> None:
    if known[0].quick == quick:
        return
    why = f" ({known[0].why})" if known[0].why else ""
    raise CvsiError(
        f"params.yaml: {weights} was trained with {_name(not quick)}{why}, {model} computes with {_name(quick)}; "
        f"set this backbone's model to {_other(model)}"
    )


def _model_quick(model: str) -> bool:
    import open_clip

    return bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))


def _other(model: str) -> str:
    """The model of the same shape with the other activation, or how to make one where open_clip has none."""
    import open_clip

    other = model.removesuffix(TWIN) if model.endswith(TWIN) else model + TWIN
    if other in open_clip.list_models():
        return other
    return f'a local-dir: with an open_clip_config.json of {model} and another "quick_gelu"'


def _name(quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"
