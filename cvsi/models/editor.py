"""What editors share: their common settings, the prompts they get and the raw answers they return."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self, TypedDict

from pydantic import Field, PositiveInt, model_validator

from cvsi.core.params import Precision, Settings

STOP = "\n\n"  # in completion style, an answer ends at a blank line
STOPPED, CUT, FILTERED, TOO_LONG = "stop", "length", "content_filter", "too long"  # finish reasons; "" is unknown
REFUSED, FAILED = "refused: ", "failed: "  # beginnings of finish reasons, before what the server reported
# The defaults in chat style: the longest answer by output, and the number of captions (measured, see docs/editors.md).
CHAT_TOKENS, CHAT_CAPTIONS = {"text": 128, "json": 256}, 2


class Turn(TypedDict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Sequence[Turn]  # a text to continue (completion style), or a conversation (chat style)


@dataclass(frozen=True)
class Answer:
    """What a language model answered to one prompt: its text, unchanged, and why it ended there.

    `finish` is `stop`, `length` (cut at max_tokens), `content_filter`, `too long` (the prompt was not sent), `refused:`
    with the server's reason, `failed:` with a failure that may pass, or empty where the engine does not report it.
    """

    text: str
    finish: str = ""

    @property
    def permanent(self) -> bool:
        """Whether it may be stored: a failure that may pass must not become a row."""
        return not self.finish.startswith(FAILED)


class Unfinished(Exception):
    """An editor stopped early: `answers` has what arrived (None elsewhere); the cause is the exception's cause."""

    def __init__(self, answers: Sequence[Answer | None]) -> None:
        """Keep the answers that arrived."""
        super().__init__("not all prompts were answered")
        self.answers = list(answers)


class EditorSettings(Settings):
    """The settings of a language model that answers at temperature 0.

    `captions` is the largest number of distinct captions in a prompt. `output: json` gets both answers with one call.
    """

    engine: str
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    style: Literal["completion", "chat"] = "completion"
    mode: Literal["joint", "each"] = "joint"
    exact: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=32768)] = 700
    context: PositiveInt | None = None
    captions: PositiveInt | Literal["all"] = "all"
    output: Literal["text", "json"] = "text"
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def defaults_of_the_style(cls, block: Any) -> Any:
        """Fill in what differs in chat style: a sentence is a shorter answer, and fewer captions confuse less."""
        if not isinstance(block, dict) or block.get("style") != "chat":
            return block
        tokens = CHAT_TOKENS.get(str(block.get("output")), CHAT_TOKENS["text"])
        return {"max_tokens": tokens, "captions": CHAT_CAPTIONS} | block

    @model_validator(mode="after")
    def style_fits(self) -> Self:
        """Refuse what only a conversation can do, and one call for answers that need several."""
        if self.style == "completion" and self.output == "json":
            raise ValueError("output: json needs style: chat")
        if self.style == "completion" and self.chat_template_kwargs:
            raise ValueError("chat_template_kwargs needs style: chat")
        if self.output == "json" and self.mode == "each":
            raise ValueError("output: json needs mode: joint")
        return self

    def neutral(self) -> set[str]:
        """The keys at values that change no answer; recipes omit them, so rows stored before these keys are used."""
        values = {"captions": "all", "output": "text", "chat_template_kwargs": {}}
        return {name for name, value in values.items() if getattr(self, name) == value}


class Editor(Protocol):
    """A loaded language model."""

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One raw answer per prompt, in order; raises Unfinished where it stops early and some answers are there."""
