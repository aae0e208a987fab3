"""Captions and an instruction to the questions for a language model, and its answers to an edit.

A prompt is a few-shot text of `cvsi/prompts/`, then the captions, the instruction and the task's cue. Answers are
untrusted: what does not parse becomes a row with a status and a fallback (the captions themselves, nothing added).
"""

from collections.abc import Sequence
from importlib import resources
from typing import Any
from unicodedata import category

from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Prompts
from cvsi.models.llm import STOP, Answer

EDITED_CUE = "Edited Description:"
ADDED_CUE = "Objects most likely added:"
CONTROL = frozenset({"Cc", "Cs"})  # Unicode's categories
LABELS = ("Image Content:", "Instruction:", EDITED_CUE, ADDED_CUE)
LONGEST_ANSWER = 2000
LONGEST_KEPT = 20_000  # of an answer as it was given


def few_shot(name: str) -> str:
    """A few-shot text by name; raises CvsiError with the names there are."""
    folder = resources.files("cvsi") / "prompts"
    file = folder / f"{name}.txt"
    if not file.is_file():
        names = sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))
        raise CvsiError(f"params.yaml: no prompt '{name}'; there are: {', '.join(names)}")
    return file.read_text(encoding="utf-8").strip()


def prompt(examples: str, captions: Sequence[str], instruction: str, cue: str) -> str:
    """One prompt: few-shot text, blank line, captions joined by commas, instruction, cue."""
    content, asked = (" ".join(text.split()) for text in (", ".join(captions), instruction))
    return f"{examples}\n\nImage Content: {content}\nInstruction: {asked}\n{cue}"


def few_shots(prompts: Prompts) -> dict[str, str]:
    """The few-shot texts of both tasks, by task."""
    return {"edited": few_shot(prompts.edited), "added": few_shot(prompts.added)}


def parts(mode: str, captions: Sequence[str]) -> list[list[str]]:
    """The captions that each question for an edited description holds: all of them (joint), or one each."""
    return [list(captions)] if mode == "joint" else [[caption] for caption in captions]


def parse(answer: str) -> str | None:
    """An answer as one line of text, or None where it is empty, endless, holds another prompt or is no plain text.

    No plain text are control characters, terminal escapes among them, and half characters (surrogates).
    """
    text = answer.split(STOP)[0].strip()
    if not text or "\n" in text or len(text) > LONGEST_ANSWER or any(label in text for label in LABELS):
        return None
    line = " ".join(text.split()).strip('"').strip()
    return line if line and CONTROL.isdisjoint(map(category, line)) else None


def row(key: str, asked: Sequence[Sequence[str]], edited: Sequence[Answer], added: Answer) -> dict[str, Any]:
    """A row of the store from raw answers: `edited` has one for each list of captions in `asked`, see `parts`.

    `status` is `ok` or the reason for a fallback; an answer of None stands for a prompt that was too long to ask.
    """
    found = [parse(answer) if answer is not None else None for answer in edited]
    objects = parse(added) if added is not None else None
    descriptions = [[text] if text else list(lines) for text, lines in zip(found, asked, strict=True)]
    lost = found.count(None)
    reasons = [f"edited ({lost} of {len(found)})" if len(found) > 1 else "edited"] if lost else []
    reasons += [] if objects else ["added"]
    why = "prompt too long" if None in (*edited, added) else "no usable answer"
    return {
        "key": key,
        "edited": [text for texts in descriptions for text in texts],
        "added": objects or "",
        "status": f"{why}: {' and '.join(reasons)}" if reasons else "ok",
        "answers": [_kept(answer or "") for answer in (*edited, added)],
    }


def _kept(answer: str) -> str:
    """An answer for the record: what can be written as UTF-8, and not endless."""
    return answer[:LONGEST_KEPT].encode("utf-8", "replace").decode("utf-8")
