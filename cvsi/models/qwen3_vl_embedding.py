"""The kind of backbone `qwen3-vl-embedding`: one pass of a Qwen3-VL over an instruction, an image and a text.

A vector is the state of the last token (arXiv 2601.04720). Images and texts are embedded with one instruction, a
composed query with another, so that a composed query is {instruction, image, text} and a gallery image {instruction,
image}. No code of a model's repository is run.
"""

from typing import Any, Self

from pydantic import PositiveInt, model_validator

from cvsi.core.params import Backbone, Settings, Text
from cvsi.models import encoder
from cvsi.models.encoder import EncoderKind
from cvsi.models.engines import imported

ARCHITECTURE = "Qwen3VLModel"
SIDE = 32  # of the square of pixels that is one token in the published models


class QwenEmbeddingSettings(Settings):
    """What the model gets besides image and text, and how large an image and a prompt may be.

    An image is resized to between `min_pixels` and `max_pixels`. `max_length` is in tokens, those of the image and the
    template included; a longer text is cut. The default of `instruction` and the sizes are upstream's.
    """

    instruction: Text = "Represent the user's input."
    composed_instruction: Text = "Find the picture that shows the given picture with the described change."
    min_pixels: PositiveInt = 4 * SIDE**2
    max_pixels: PositiveInt = 1280 * SIDE**2
    max_length: PositiveInt = 8192

    @model_validator(mode="after")
    def sizes_are_in_order(self) -> Self:
        """Refuse a least size above the largest."""
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels}, but max_pixels are {self.max_pixels}; lower min_pixels")
        return self


def settings_of(backbone: Backbone) -> QwenEmbeddingSettings:
    """The kind's own settings; raises CvsiError for an unknown key or value."""
    return encoder.own_settings(QwenEmbeddingSettings, backbone)


def width(backbone: Backbone) -> int:
    """The width of the language model's states."""
    content = encoder.configuration(backbone, "qwen3_vl", "a Qwen3-VL")
    return encoder.width_in(backbone, content, "text_config", "hidden_size")


def recipe(backbone: Backbone, kind: str, precision: str) -> dict[str, Any]:
    """What decides a backbone's `image`, `text` or `composed` rows besides their keys."""
    settings = settings_of(backbone)
    instruction = settings.composed_instruction if kind == "composed" else settings.instruction
    facts = encoder.facts(backbone, kind, precision)
    facts |= {"instruction": instruction, "max_length": settings.max_length, "pooling": "last", "padding": "right"}
    sizes = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    return facts if kind == "text" else facts | sizes


KIND = EncoderKind(
    width=width,
    recipe=recipe,
    load=imported("cvsi.models.qwen3_vl_embedding_model:Qwen3VlEmbedding"),
    settings=QwenEmbeddingSettings,
    models=encoder.model_of,
    composes=True,
)
