"""What identifies a CLIP backbone and its sentences: widths, recipes of its rows, and the template of the pseudo token.

No model is loaded here, and torch is not imported: `clip_encoder` does both.
"""

import json
from pathlib import Path
from typing import Any

from cvsi.core.errors import CvsiError
from cvsi.core.params import OPEN_CLIP, Backbone
from cvsi.models.clip_checkpoint import FOLDER, identity
from cvsi.models.encoder import EncoderKind
from cvsi.models.engines import imported
from cvsi.models.model_id import identify
from cvsi.store.kinds import CODE_VERSIONS

TOKEN = "$"


def template(instruction: str, added: str) -> str:
    """The sentence whose first `$` stands for the reference image; without objects added, its first half."""
    sentence = f"a photo of {TOKEN} that {instruction}."
    return f"{sentence} And the photo should have {added}." if added else sentence


# Both forms of the sentence, for people. The recipe of pseudo-token rows has the first form alone: a row's key contains
# its whole sentence, so the recipe need not tell the forms apart, and stored rows stay in use.
TEMPLATES = {"objects added": template("{instruction}", "{added}"), "nothing added": template("{instruction}", "")}


def embedding_dims(backbone: Backbone) -> tuple[int, int]:
    """A CLIP's vector width and token width, from its configuration alone; raises CvsiError where there is none.

    A backbone of another kind has no width of tokens, which a phi needs, and is an error.
    """
    if backbone.kind != OPEN_CLIP:
        raise CvsiError(
            f"params.yaml: backbone model '{backbone.model}' is of kind {backbone.kind}, which has no phi; name a "
            f"backbone of kind {OPEN_CLIP}"
        )
    if backbone.model.startswith(FOLDER):
        path = Path(backbone.model.removeprefix(FOLDER)) / "open_clip_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
            return int(config["embed_dim"]), int(config["text_cfg"]["width"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CvsiError(f"{path}: no readable open_clip configuration ({error})") from None
    import open_clip

    if backbone.model not in open_clip.list_models():
        raise CvsiError(
            f"params.yaml: open_clip knows no model '{backbone.model}'; take one of its names, or {FOLDER}FOLDER"
        )
    config = open_clip.get_model_config(backbone.model)
    return int(config["embed_dim"]), int(config["text_cfg"]["width"])


def recipe(backbone: Backbone, kind: str, precision: str) -> dict[str, Any]:
    """What decides a backbone's `image`, `text` or `pseudo` rows besides their keys; loads and imports no model.

    Raises CvsiError for the `pseudo` rows of a backbone without phi.
    """
    facts: dict[str, Any] = {"kind": kind, "code": CODE_VERSIONS[f"{kind}_vectors"], "precision": precision}
    facts |= identity(backbone)
    if kind != "text":
        facts["preprocess"] = backbone.preprocess
    if kind == "pseudo":
        if backbone.phi is None:
            raise CvsiError(f"params.yaml: backbone {backbone.model} has no phi, which pseudo tokens need; add one")
        facts |= {"phi": identify(backbone.phi), "template": TEMPLATES["objects added"]}
    return facts


KIND = EncoderKind(
    width=lambda backbone: embedding_dims(backbone)[0],
    recipe=recipe,
    load=imported("cvsi.models.clip_encoder:Encoder"),
)
