"""What readers share: their settings, the schema of an answer, and the conversation that a reference image becomes.

A reader gets the reference image (or its captions) and the instruction, and answers with texts by role: what the target
shows, what must be present, what remains, what must be absent. All engines get the same conversation, with the image as
a data URL, so that a model answers alike in this process and behind a server.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from PIL import Image
from pydantic import Field, PositiveInt

from cvsi.core.params import Name, Precision, Settings
from cvsi.models.conversations import image_part, template_facts, text_part
from cvsi.models.editor import Answer
from cvsi.models.image_data import ENCODING, data_url

LONGEST_TEXT = 300  # characters of one text in an answer
MAX_TOKENS = 768
Role = Annotated[str, Field(pattern=r"^[a-z_]+$", max_length=40)]
Most = Annotated[int, Field(ge=1, le=64)]
Turns = list[dict[str, Any]]  # messages as OpenAI's interface has them


class ReaderSettings(Settings):
    """The settings of a model that reads references at temperature 0; `roles` are the largest numbers of texts.

    `sees` is what it gets of a reference: the image, at most `image_size` pixels wide and high, or its first `captions`
    distinct captions. `output` is how an answer is written: `schema` (JSON that the engine enforces), `json` (JSON by
    the prompt alone) or `lines` (one line per role).
    """

    engine: str
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    prompt: Name = "roles"
    roles: Annotated[dict[Role, Most], Field(min_length=1, max_length=16)]
    sees: Literal["image", "captions"] = "image"
    output: Literal["schema", "json", "lines"] = "schema"
    max_tokens: Annotated[int, Field(ge=1, le=32768)] = MAX_TOKENS
    image_size: Annotated[int, Field(ge=32, le=4096)] = 768
    captions: PositiveInt | Literal["all"] = 2
    context: PositiveInt | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(default={})

    def facts(self, *left_out: str) -> dict[str, Any]:
        """The settings that decide an answer, as flat facts of a recipe; of image and captions those that are used."""
        unused = {"captions"} if self.sees == "image" else {"image_size"}
        apart = {"model", "revision", "precision", "prompt", "roles", "chat_template_kwargs"}
        facts = self.model_dump(exclude={*unused, *apart, *left_out})
        facts |= {"encoding": ENCODING} if self.sees == "image" else {}
        facts |= template_facts(self.chat_template_kwargs)
        return facts | {"roles": ", ".join(f"{role}: {most}" for role, most in self.roles.items())}


class Reading(NamedTuple):
    """One reference to read: the texts of the conversation, and the image as a data URL (empty for captions alone).

    `examples` are pairs of a request and its answer; `last` is what is said about the reference itself. `second` is the
    second image of a reference that has two.
    """

    task: str
    examples: Sequence[tuple[str, str]]
    last: str
    image: str = ""
    second: str = ""


class Reader(Protocol):
    """A loaded reader."""

    def answers(self, readings: Sequence[Reading]) -> list[Answer]:
        """One raw answer per reading, in order; raises Unfinished where it stops early and some answers are there."""


def image_url(image: Image.Image, settings: ReaderSettings) -> str:
    """An image (RGB) as readers get it."""
    return data_url(image, settings.image_size)


def schema_of(settings: ReaderSettings) -> dict[str, Any]:
    """The JSON schema of an answer: one list of short texts per role, all of them required."""
    text = {"type": "string", "maxLength": LONGEST_TEXT}
    lists = {role: {"type": "array", "items": text, "maxItems": most} for role, most in settings.roles.items()}
    return {"type": "object", "properties": lists, "required": list(lists), "additionalProperties": False}


def turns_of(reading: Reading, system: bool = True) -> Turns:
    """A reading as messages; without `system`, the task is the beginning of the first user message."""
    before = "" if system else f"{reading.task}\n\n"
    turns: Turns = [{"role": "system", "content": reading.task}] if system else []
    for request, answer in reading.examples:
        turns += [{"role": "user", "content": before + request}, {"role": "assistant", "content": answer}]
        before = ""
    if not reading.image:
        return [*turns, {"role": "user", "content": before + reading.last}]
    images = [image_part(url) for url in (reading.image, reading.second) if url]
    return [*turns, {"role": "user", "content": [*images, text_part(before + reading.last)]}]
