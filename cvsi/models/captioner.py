"""What captioners share: their common settings, and the interface of a loaded one."""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, Self, TypeVar

from PIL import Image
from pydantic import Field, PositiveInt, StringConstraints, model_validator

from cvsi.core.params import Precision, Settings
from cvsi.models.conversations import image_part, template_facts, text_part
from cvsi.models.editor import Answer
from cvsi.models.image_data import ENCODING

T = TypeVar("T")
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096)]


class CaptionerSettings(Settings):
    """The settings that every captioner has; `n` is the number of captions per image."""

    engine: str
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    n: PositiveInt = 15


class SamplingSettings(CaptionerSettings):
    """How captions are sampled, token by token."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=512)] = 0
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 30
    redraws: Annotated[int, Field(ge=0, le=20)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0

    @model_validator(mode="before")
    @classmethod
    def no_prompt(cls, block: Any) -> Any:
        """Refuse a prompt, which other models take."""
        if isinstance(block, dict) and "prompt" in block and "prompt" not in cls.model_fields:
            raise ValueError(
                "prompt is for a vision-language model with a chat template; set engine: vllm or server, or leave "
                "prompt out"
            )
        return block

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        """Refuse a shortest length above the longest."""
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}")
        return self


class PromptedSettings(CaptionerSettings):
    """A vision-language model with a chat template, which gets `prompt` and the image as one message, and is sampled.

    `image_size` is the longest side of the image, in pixels.
    """

    n: Annotated[int, Field(ge=1, le=64)] = 3
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: Annotated[int, Field(ge=1, le=32768)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    prompt: Prompt
    image_size: Annotated[int, Field(ge=32, le=4096)] = 768
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(default={})

    @property
    def greedy(self) -> bool:
        """Whether all captions of an image are its most likely one."""
        return self.temperature == 0

    @model_validator(mode="after")
    def captions_differ(self) -> Self:
        """Refuse several captions without sampling, which would all be the same."""
        if self.n > 1 and self.greedy:
            raise ValueError(f"temperature is 0, so all {self.n} captions would be equal; set n: 1 or a temperature")
        return self

    def facts(self) -> dict[str, Any]:
        """The settings that decide an answer, as flat facts of a recipe, without those of the engine alone."""
        names = {"n", "temperature", "top_p", "max_tokens", "seed", "prompt", "image_size"}
        return self.model_dump(include=names) | template_facts(self.chat_template_kwargs) | {"encoding": ENCODING}


def message(prompt: str, image: str) -> list[dict[str, Any]]:
    """The conversation of one caption, from the image as a data URL."""
    return [{"role": "user", "content": [text_part(prompt), image_part(image)]}]


class Captioner(Protocol[T]):
    """A loaded captioner."""

    def prepare(self, image: Image.Image) -> T:
        """An image (RGB) as the model's input; called in threads."""

    def captions(self, images: Sequence[T], digests: Sequence[str]) -> list[list[str]]:
        """Prepared images and their files' digests to at most n captions per image; a caption depends on both alone."""


class AnsweringCaptioner(Protocol[T]):
    """A loaded captioner that answers as a language model does: with texts to be parsed, or with a reason."""

    def prepare(self, image: Image.Image) -> T:
        """An image (RGB) as the model's input; called in threads."""

    def answers(self, images: Sequence[T], digests: Sequence[str]) -> list[Answer]:
        """Raw answers, n per image, image by image; raises Unfinished where it stops early and some are there."""
