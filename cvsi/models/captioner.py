"""What captioners share: their common settings, and the interface of a loaded one."""

from collections.abc import Sequence
from typing import Annotated, Protocol, Self, TypeVar

from PIL import Image
from pydantic import Field, PositiveInt, model_validator

from cvsi.core.params import Precision, Settings
from cvsi.models.editor import Answer

T = TypeVar("T")


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

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        """Refuse a shortest length above the longest."""
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}")
        return self


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
