"""Captions and an instruction to the prompts of a language model, by a few-shot text of `cvsi/prompts/`.

Such a text is a first paragraph (the task) and example blocks of three lines, separated by blank lines. Completion
style sends it unchanged, then the captions, the instruction and the task's cue. Chat style makes the paragraph the
system message and each block two turns. With `output: json` one conversation asks for both answers, and its examples
are the blocks that both texts have.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from cvsi.core.errors import CvsiError
from cvsi.core.params import Prompts
from cvsi.models.editor import EditorSettings, Prompt, Turn

CONTENT, INSTRUCTION = "Image Content:", "Instruction:"
EDITED_CUE, ADDED_CUE = "Edited Description:", "Objects most likely added:"
CUES = {"edited": EDITED_CUE, "added": ADDED_CUE}
TURNS = 1  # the form of a conversation, raised when it changes: part of the recipe in chat style
BLANK = re.compile(r"\n\s*\n")
AS_JSON = (
    "Answer with a JSON object alone: under the key edited the answer to the first task, under the key added the "
    "answer to the second."
)


class Example(NamedTuple):
    """One example block of a few-shot text."""

    content: str
    instruction: str
    answer: str

    @property
    def request(self) -> str:
        """Its first two lines, as a user's turn."""
        return f"{CONTENT} {self.content}\n{INSTRUCTION} {self.instruction}"


def few_shot(name: str) -> str:
    """A few-shot text by name; raises CvsiError with the names there are."""
    folder = resources.files("cvsi") / "prompts"
    file = folder / f"{name}.txt"
    if not file.is_file():
        names = sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))
        raise CvsiError(f"params.yaml: no prompt '{name}'; there are: {', '.join(names)}")
    return file.read_text(encoding="utf-8").strip()


def load_prompts(prompts: Prompts) -> dict[str, str]:
    """The few-shot texts of both tasks, by task."""
    return {"edited": few_shot(prompts.edited), "added": few_shot(prompts.added)}


def check_prompts(settings: EditorSettings, texts: Mapping[str, str]) -> None:
    """Raise CvsiError, in chat style, for a few-shot text whose example blocks are not three lines each."""
    for task, text in texts.items() if settings.style == "chat" else ():
        examples_of(text, CUES[task])


def task_of(text: str) -> str:
    """A few-shot text's first paragraph, on one line."""
    return " ".join(BLANK.split(text, maxsplit=1)[0].split())


def examples_of(text: str, cue: str) -> list[Example]:
    """A few-shot text's example blocks; raises CvsiError that names one which does not have the three lines."""
    return [_example(block, cue) for block in BLANK.split(text.strip())[1:]]


def example_texts(text: str) -> list[str]:
    """Every line of a few-shot text's blocks, without its label."""
    lines = [line for block in BLANK.split(text.strip())[1:] for line in block.splitlines()]
    labels = (CONTENT, INSTRUCTION, *CUES.values())
    return [line.removeprefix(next(filter(line.startswith, labels), "")).strip() for line in lines]


def prompts_of(
    settings: EditorSettings, texts: Mapping[str, str], captions: Sequence[str], instruction: str
) -> list[Prompt]:
    """The prompts of one query: one for each edited description, then one for the objects; or one for both as JSON."""
    chosen = distinct(captions, settings.captions)
    if settings.output == "json":
        return [json_turns(texts, chosen, instruction)]
    make = turns if settings.style == "chat" else prompt
    groups = caption_groups(settings.mode, chosen)
    edited = [make(texts["edited"], lines, instruction, EDITED_CUE) for lines in groups]
    return [*edited, make(texts["added"], chosen, instruction, ADDED_CUE)]


def distinct(captions: Sequence[str], number: int | str) -> list[str]:
    """The first `number` captions that differ in more than case and blanks; all, duplicates included, for "all"."""
    if not isinstance(number, int):
        return list(captions)
    first = {" ".join(caption.split()).casefold(): caption for caption in reversed(captions)}
    return list(reversed(first.values()))[:number]


def caption_groups(mode: str, captions: Sequence[str]) -> list[list[str]]:
    """The captions of each prompt for an edited description: all of them (joint), or one each."""
    return [list(captions)] if mode == "joint" else [[caption] for caption in captions]


def prompt(examples: str, captions: Sequence[str], instruction: str, cue: str) -> str:
    """A prompt to continue: few-shot text, blank line, captions joined by commas, instruction, cue."""
    return f"{examples}\n\n{_request(captions, instruction)}\n{cue}"


def turns(text: str, captions: Sequence[str], instruction: str, cue: str) -> list[Turn]:
    """A conversation: the task as the system message, the examples as turns, then the captions and the instruction."""
    answered = [(example.request, example.answer) for example in examples_of(text, cue)]
    return _conversation(task_of(text), answered, _request(captions, instruction))


def json_turns(texts: Mapping[str, str], captions: Sequence[str], instruction: str) -> list[Turn]:
    """A conversation for both answers as one JSON object, see `conversations.JSON_SCHEMA`."""
    added = {example.request: example.answer for example in examples_of(texts["added"], ADDED_CUE)}
    both = [
        (example.request, json.dumps({"edited": example.answer, "added": _objects(added[example.request])}))
        for example in examples_of(texts["edited"], EDITED_CUE)
        if example.request in added
    ]
    task = "\n\n".join([task_of(texts["edited"]), task_of(texts["added"]), AS_JSON])
    return _conversation(task, both, _request(captions, instruction))


def _conversation(task: str, answered: Sequence[tuple[str, str]], last: str) -> list[Turn]:
    conversation = [Turn(role="system", content=task)]
    for request, answer in answered:
        conversation += [Turn(role="user", content=request), Turn(role="assistant", content=answer)]
    return [*conversation, Turn(role="user", content=last)]


def _request(captions: Sequence[str], instruction: str) -> str:
    content, text = (" ".join(words.split()) for words in (", ".join(captions), instruction))
    return f"{CONTENT} {content}\n{INSTRUCTION} {text}"


def _objects(answer: str) -> str:
    return "" if answer.casefold() == "none" else answer


def _example(block: str, cue: str) -> Example:
    lines = [line.strip() for line in block.splitlines()]
    labels = (CONTENT, INSTRUCTION, cue)
    if len(lines) != len(labels) or not all(map(str.startswith, lines, labels)):
        raise CvsiError(
            f"cvsi/prompts: an example block needs three lines that begin with {', '.join(labels)}; "
            f"this one begins with {block[:60]!r}"
        )
    return Example(*(line.removeprefix(label).strip() for line, label in zip(lines, labels, strict=True)))
