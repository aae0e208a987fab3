"""What judges share: their common settings, the questions they get and the raw verdicts they return.

A judge is a vision-language model that sees a query's reference image and a candidate, and answers with one word. Its
verdict is computed from the probabilities of the first token (`pipeline/verdicts.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Protocol, Self, TypeVar

from PIL import Image
from pydantic import Field, StringConstraints, model_validator

from cvsi.core.params import Name, Precision, Settings
from cvsi.models.conversations import text_part
from cvsi.models.editor import Answer

T = TypeVar("T")
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40)]
ROUNDING = 1e-3  # a logarithm of a probability is above 0 by no more
GAP = 16  # pixels between the two images of a canvas
BACKGROUND = (255, 255, 255)


class JudgeSettings(Settings):
    """The settings of a model that answers a question about two images with one of two words, the positive one first.

    `prompt` is a file of `cvsi/prompts/`. `image_size` is the longest side of an image, in pixels. `images: canvas`
    puts both images on one, the reference on the left, for models that take one image.
    """

    engine: str
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    prompt: Name = "match"
    answers: tuple[Word, Word] = ("yes", "no")
    images: Literal["pair", "canvas"] = "pair"
    image_size: Annotated[int, Field(ge=32, le=4096)] = 768

    @model_validator(mode="after")
    def answers_differ(self) -> Self:
        """Refuse two answers that differ in case alone, as tokens are compared without it."""
        if normalised(self.answers[0]) == normalised(self.answers[1]):
            raise ValueError(f"answers are both '{self.answers[0]}'; name a positive and a negative one")
        return self


@dataclass(frozen=True)
class Question(Generic[T]):
    """One question: a text, the reference image, a text, and last the candidate; the images as `prepare` made them.

    `system` is the text of a system message, empty without one.

    The candidate is last so that an engine which caches prefixes computes the rest once for all candidates of a query.
    """

    before: str
    reference: T
    between: str
    candidate: T
    system: str = ""


@dataclass(frozen=True)
class Verdict(Answer):
    """The alternatives for the first token that an engine reports, as texts and logarithms of probabilities."""

    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()


def conversation(
    question: Question[T], images: Literal["pair", "canvas"], part: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    """A question's messages; `part` makes a part of the user's one from a prepared image, or from a canvas of both."""
    texts, both = (question.before, question.between), (question.reference, question.candidate)
    if images == "canvas":
        content = [text_part("".join(texts)), part(canvas(*both))]  # type: ignore[arg-type]  # prepared as images
    else:
        pairs = zip(texts, both, strict=True)
        content = [one for text, image in pairs for one in (*([text_part(text)] if text else []), part(image))]
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": content}]


class Judge(Protocol[T]):
    """A loaded judge."""

    def prepare(self, image: Image.Image) -> T:
        """An image (RGB) as the engine's input; called in threads, once per image of a block."""

    def verdicts(self, questions: Sequence[Question[T]]) -> Sequence[Answer]:
        """A `Verdict` per question, in order, or an `Answer` with the reason why there is none.

        Raises Unfinished where it stops early and some verdicts are there.
        """


def judge_facts(settings: JudgeSettings, *left_out: str) -> dict[str, Any]:
    """The settings that belong in a recipe, flat as in a pack; the prompt's text, not its name, is part of it, too."""
    facts = settings.model_dump(exclude={"model", "revision", "precision", "prompt", "answers", *left_out})
    return facts | {"answers": dict(zip(("positive", "negative"), settings.answers, strict=True))}


def normalised(token: str) -> str:
    """A token's text as it is compared with the answers."""
    return token.strip().lower()


def scaled(image: Image.Image, size: int) -> Image.Image:
    """A copy of an image, scaled down to `size` pixels on its longer side, without metadata."""
    scale = min(1.0, size / max(image.size))
    wide, high = (max(1, round(side * scale)) for side in image.size)
    copy = image.resize((wide, high), Image.Resampling.LANCZOS)
    copy.info = {}
    return copy


def canvas(reference: Image.Image, candidate: Image.Image) -> Image.Image:
    """Both images side by side on a white canvas, the reference on the left."""
    wide = reference.width + GAP + candidate.width
    both = Image.new("RGB", (wide, max(reference.height, candidate.height)), BACKGROUND)
    both.paste(reference, (0, 0))
    both.paste(candidate, (reference.width + GAP, 0))
    return both
