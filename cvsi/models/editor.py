"""What editors share: their common settings, and the interface of a loaded one."""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field, PositiveInt

from cvsi.core.params import Precision, Settings

STOP = "\n\n"  # an answer ends at a blank line

Answer = str | None  # None: the prompt was too long for the model and was not sent


class EditorSettings(Settings):
    """The settings of a language model that answers at temperature 0."""

    engine: str
    model: str
    revision: str | None = None
    precision: Precision = "auto"
    style: Literal["completion", "chat"] = "completion"
    mode: Literal["joint", "each"] = "joint"
    exact: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 700
    context: PositiveInt | None = None


class Editor(Protocol):
    """A loaded language model."""

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """One raw answer per prompt, in order; None for a prompt that is too long."""
