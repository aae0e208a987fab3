"""Which file holds a backbone's weights: open_clip's tag, at a revision of its hub repository, or a local file.

open_clip takes no revision for a tag. The tag's file is therefore located here and passed as a path, together with the
tag's preprocessing, which open_clip would otherwise not apply.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from cvsi.core.console import warn
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone
from cvsi.models import catalogue
from cvsi.models.clip_activation import check_file, check_folder, check_tag
from cvsi.models.model_id import identify

FOLDER = "local-dir:"
SAFETENSORS, PICKLE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"  # open_clip's names


def identity(backbone: Backbone) -> dict[str, Any]:
    """What a recipe says of a backbone's weights: digests of what is local, else names, and the revision where set.

    Raises CvsiError for weights that no one could find again (none, or a revision of what is local), and for weights
    that are known to need another activation than the model has.
    """
    if backbone.model.startswith(FOLDER):
        if backbone.pretrained or backbone.revision:
            raise CvsiError(f"params.yaml: {backbone.model} holds its weights; leave out pretrained and revision")
        return identify(backbone.model) | {"pretrained": None}
    if backbone.pretrained is None:
        raise CvsiError(f"params.yaml: backbone model '{backbone.model}' has no pretrained; set a tag or a file")
    pretrained: Any = backbone.pretrained
    if Path(pretrained).is_file():
        check_file(backbone.model, pretrained)  # here too: rows of an earlier version must not be used either
        pretrained = identify(pretrained)
    facts = {"model": backbone.model, "pretrained": pretrained}
    return facts | ({"revision": backbone.revision} if backbone.revision else {})


def tag(backbone: Backbone) -> dict[str, Any]:
    """open_clip's entry for `pretrained`: empty where that is a file, or none; raises CvsiError for what does not fit.

    Weights trained with another activation than the model has fit only for open_clip, which warns and computes
    something else. Of a file, `clip_activation` knows it in part.
    """
    model, pretrained, revision = backbone.model, backbone.pretrained, backbone.revision
    if pretrained is None or model.startswith(FOLDER):
        return {}
    if Path(pretrained).is_file():
        if revision:
            raise CvsiError(f"params.yaml: pretrained '{pretrained}' is a file; leave out revision {revision}")
        doubt = check_file(model, pretrained)
        if doubt:
            _say_once(f"params.yaml: {doubt}")
        return {}
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    entry: dict[str, Any] = get_pretrained_cfg(model, pretrained)
    if not entry:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise CvsiError(f"params.yaml: pretrained '{pretrained}' is no file and no tag of {model} (tags: {known})")
    if revision and not entry.get("hf_hub"):
        raise CvsiError(
            f"params.yaml: '{pretrained}' of {model} is in no hub repository; leave out revision {revision}"
        )
    check_tag(model, pretrained, entry)
    return entry


def hub_file(backbone: Backbone) -> tuple[str, str] | None:
    """The hub repository of a backbone's weights and their file of safetensors; None where they are in none.

    open_clip is imported only for a tag that the catalogue does not know; raises CvsiError for one that does not exist.
    """
    if backbone.model.startswith(FOLDER) or Path(backbone.pretrained or "").is_file():
        return None
    repository, name = catalogue.of_backbone(backbone).repository, ""
    if repository is None:
        repository, name = os.path.split(tag(backbone).get("hf_hub", ""))
    # open_clip looks for these in place of a pickle; without a name it takes the first.
    name = SAFETENSORS if name in ("", PICKLE) else f"{name.rpartition('.')[0]}.safetensors"
    return (repository, name) if repository else None


def locate(backbone: Backbone) -> tuple[str | None, dict[str, Any]]:
    """The weights' file, downloaded where it is not in the hub's cache, and the tag's preprocessing.

    A local file has no preprocessing of its own (open_clip then takes OpenAI's), a folder's is in its configuration.
    Without `pretrained` there is no file, and such a backbone has no recipe. Raises CvsiError when there is no way to
    the file.
    """
    if backbone.model.startswith(FOLDER):
        return _in_folder(backbone.model), {}
    entry = tag(backbone)
    if not entry:
        return backbone.pretrained, {}
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    repository, name = os.path.split(entry.get("hf_hub", ""))
    try:
        if repository:
            return download_pretrained_from_hf(repository, filename=name or None, revision=backbone.revision), entry
        return download_pretrained(entry), entry
    except Exception as error:  # the hub's client, urllib and open_clip raise many kinds: there is no file
        name = name or "open_clip_model.safetensors (or open_clip_pytorch_model.bin)"
        source = f"{name} of the hub's {repository}" if repository else str(entry["url"])
        source += f" at revision {backbone.revision}" if backbone.revision else ""
        raise CvsiError(
            f"params.yaml: pretrained '{backbone.pretrained}' of {backbone.model} is not here and was not downloaded "
            f"({_first_words(error)}); download {source} and set its pretrained to the file, without revision"
        ) from None


@cache
def _say_once(line: str) -> None:
    warn(line)


def _in_folder(model: str) -> str:
    """The file of weights that open_clip would choose in a folder; raises CvsiError where there is none."""
    from open_clip.factory import _find_checkpoint_in_dir, get_model_config

    file = _find_checkpoint_in_dir(Path(model.removeprefix(FOLDER)))
    if file is None:
        raise CvsiError(
            f"params.yaml: backbone model '{model}' does not load: Required pretrained weights are missing there "
            "(open_clip_model.safetensors, or another .safetensors, .bin or .pth file)"
        )
    check_folder(model, str(file), get_model_config(model))
    return str(file)


def _first_words(error: Exception) -> str:
    last = str(error).rpartition("Last error: ")[2]  # open_clip puts its own words before the hub client's
    return " ".join(last.split())[:140] or type(error).__name__
