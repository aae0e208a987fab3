"""Captions and an instruction to prompts for a language model, and its answers to an edit.

A prompt is a few-shot text of `cvsi/prompts/`, then the captions, the instruction and the task's cue. Answers are
untrusted: one that does not parse becomes a row with a status and a fallback (the captions themselves, nothing added).
"""

from collections.abc import Sequence
from importlib import resources
from typing import Any
from unicodedata import category

from cvsi.core.errors import CvsiError
from cvsi.core.params import Prompts
from cvsi.models.editor import STOP, Answer

EDITED_CUE = "Edited Description:"
ADDED_CUE = "Objects most likely added:"
CONTROL = frozenset({"Cc", "Cs"})  # Unicode's categories
LABELS = ("Image Content:", "Instruction:", EDITED_CUE, ADDED_CUE)
LONGEST_ANSWER = 2000
LONGEST_STORED = 20_000  # characters of an answer as the model gave it


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


def prompt(examples: str, captions: Sequence[str], instruction: str, cue: str) -> str:
    """One prompt: few-shot text, blank line, captions joined by commas, instruction, cue."""
    content, text = (" ".join(words.split()) for words in (", ".join(captions), instruction))
    return f"{examples}\n\nImage Content: {content}\nInstruction: {text}\n{cue}"


def caption_groups(mode: str, captions: Sequence[str]) -> list[list[str]]:
    """The captions of each prompt for an edited description: all of them (joint), or one each."""
    return [list(captions)] if mode == "joint" else [[caption] for caption in captions]


def parse(answer: str) -> str | None:
    """An answer as one line of text; None where it is empty, endless, contains another prompt or is not plain text.

    Not plain text are control characters, terminal escapes among them, and single surrogates.
    """
    text = answer.split(STOP)[0].strip()
    if not text or "\n" in text or len(text) > LONGEST_ANSWER or any(label in text for label in LABELS):
        return None
    line = " ".join(text.split()).strip('"').strip()
    return line if line and CONTROL.isdisjoint(map(category, line)) else None


def parse_answers(key: str, groups: Sequence[Sequence[str]], edited: Sequence[Answer], added: Answer) -> dict[str, Any]:
    """A row of the store from raw answers: `edited` has one for each of `groups`, see `caption_groups`.

    `status` is `ok` or the reason for a fallback; an answer of None stands for a prompt that was too long to send.
    """
    parsed = [parse(answer) if answer is not None else None for answer in edited]
    objects = parse(added) if added is not None else None
    descriptions = [[text] if text else list(lines) for text, lines in zip(parsed, groups, strict=True)]
    unusable = parsed.count(None)
    reasons = [f"edited ({unusable} of {len(parsed)})" if len(parsed) > 1 else "edited"] if unusable else []
    reasons += [] if objects else ["added"]
    why = "prompt too long" if None in (*edited, added) else "no usable answer"
    return {
        "key": key,
        "edited": [text for texts in descriptions for text in texts],
        "added": objects or "",
        "status": f"{why}: {' and '.join(reasons)}" if reasons else "ok",
        "answers": [_storable(answer or "") for answer in (*edited, added)],
    }


def _storable(answer: str) -> str:
    """The beginning of an answer, without what cannot be written as UTF-8."""
    return answer[:LONGEST_STORED].encode("utf-8", "replace").decode("utf-8")
