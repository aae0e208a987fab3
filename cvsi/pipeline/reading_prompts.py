"""A reference and an instruction to the conversation of a reader, by a text of `cvsi/prompts/`.

The text has the form of the editor's: a first paragraph (the task), then example blocks whose third line is the answer
as JSON. Its roles that a reader does not have are left out, and what is said about the form follows the reader's
settings, so one text serves any choice of roles and numbers.
"""

import json
from collections.abc import Sequence
from typing import Any

from cvsi.core.errors import CvsiError
from cvsi.models.reader import ReaderSettings, Reading
from cvsi.pipeline.prompting import CONTENT, INSTRUCTION, Example, distinct, examples_of, task_of

CUE = "Answer:"
BOTH = "The reference is both photos together."  # for queries with two reference images
TURNS = 1  # the form of a conversation, raised when it changes: part of the recipe


def reading_of(
    settings: ReaderSettings,
    text: str,
    instruction: str,
    image: str = "",
    captions: Sequence[str] = (),
    second: str = "",
) -> Reading:
    """The conversation about one reference: its image as a data URL, `second` where it has two, or its captions.

    Raises CvsiError for an example block that does not have its three lines, or whose answer is no JSON.
    """
    words = " ".join(instruction.split())
    shown = " ".join(", ".join(distinct(captions, settings.captions)).split())
    last = f"{INSTRUCTION} {words}" if settings.sees == "image" else f"{CONTENT} {shown}\n{INSTRUCTION} {words}"
    last = f"{BOTH}\n{last}" if second else last
    return Reading(f"{task_of(text)}\n\n{form_of(settings)}", examples(settings, text), last, image, second)


def form_of(settings: ReaderSettings) -> str:
    """The sentence about the form of an answer: its roles, and how many texts each may have."""
    numbers = ", ".join(f"{role} (at most {most})" for role, most in settings.roles.items())
    if settings.output == "lines":
        return f"Answer with one line per key: the key, a colon, then its texts separated by semicolons: {numbers}."
    return f"Answer with one JSON object alone. Each key has a list of texts: {numbers}."


def examples(settings: ReaderSettings, text: str) -> list[tuple[str, str]]:
    """The requests and answers of the example blocks, with the reader's roles; without any of them, none."""
    answered = [(example.request, answer_of(example)) for example in examples_of(text, CUE)]
    return [
        (request, _written(settings, answer))
        for request, answer in answered
        if not settings.roles.keys().isdisjoint(answer)
    ]


def example_texts(text: str) -> list[str]:
    """Every text of the examples' answers."""
    answers = [answer_of(example) for example in examples_of(text, CUE)]
    return [item for answer in answers for items in answer.values() for item in items]


def answer_of(example: Example) -> dict[str, list[str]]:
    """An example's answer as texts by role; raises CvsiError for one that is none."""
    try:
        answer: Any = json.loads(example.answer)
    except ValueError:
        answer = None
    lists = list(answer.values()) if isinstance(answer, dict) else [None]
    if not all(isinstance(items, list) and all(isinstance(item, str) for item in items) for items in lists):
        raise CvsiError(
            f"cvsi/prompts: an example's {CUE} line needs a JSON object whose keys have lists of texts; "
            f"this one is {example.answer[:60]!r}"
        )
    return answer  # type: ignore[no-any-return]


def _written(settings: ReaderSettings, answer: dict[str, list[str]]) -> str:
    texts = {role: answer.get(role, [])[:most] for role, most in settings.roles.items()}
    if settings.output == "lines":
        return "\n".join(f"{role}: {'; '.join(items)}".rstrip() for role, items in texts.items())
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":"))  # as engines enforce it
