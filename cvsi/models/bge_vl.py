"""The kind of backbone `bge-vl`: CLIP's architecture in transformers; an image and a text together are one vector.

BGE-VL-base and -large (arXiv 2412.14475) are CLIP ViT-B/16 and ViT-L/14, trained further on pairs of images with an
instruction. A composed query is the sum of the projected embeddings of image and text, neither of them normalised,
scaled to unit length. Any `CLIPModel` of transformers can be named. No code of a model's repository is run.
"""

from typing import Any, Literal

from cvsi.core.params import Backbone, Settings
from cvsi.models import encoder
from cvsi.models.encoder import EncoderKind
from cvsi.models.engines import imported

ARCHITECTURE = "CLIPModel"


class BgeVlSettings(Settings):
    """`preprocess` is `plain` by default: resized and cropped by the model's own image processor, as it was trained."""

    preprocess: Literal["target-pad", "plain"] = "plain"


def settings_of(backbone: Backbone) -> BgeVlSettings:
    """The kind's own settings; raises CvsiError for an unknown key or value."""
    return encoder.own_settings(BgeVlSettings, backbone)


def width(backbone: Backbone) -> int:
    """The width of the projections."""
    return encoder.width_in(
        backbone, encoder.configuration(backbone, "clip", "a CLIP in transformers"), "projection_dim"
    )


def recipe(backbone: Backbone, kind: str, precision: str) -> dict[str, Any]:
    """What decides a backbone's `image`, `text` or `composed` rows besides their keys."""
    facts = encoder.facts(backbone, kind, precision)
    return facts if kind == "text" else facts | {"preprocess": settings_of(backbone).preprocess}


KIND = EncoderKind(
    width=width,
    recipe=recipe,
    load=imported("cvsi.models.bge_vl_model:BgeVl"),
    settings=BgeVlSettings,
    models=encoder.model_of,
    composes=True,
)
