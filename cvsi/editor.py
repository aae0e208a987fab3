"""A language model in vLLM: captions and an instruction to the edited description and the objects most likely added.

A prompt is a few-shot text of `cvsi/prompts/`, then the captions, the instruction and the task's cue. Answers are
untrusted: what does not parse becomes a row with a status and a fallback (the captions themselves, nothing added).
"""

import os
from collections.abc import Sequence
from importlib import resources
from typing import Any

from cvsi.errors import CvsiError
from cvsi.params import Compute, Editor, Prompts
from cvsi.weights import device, identify, precision

CODE = 1
EDITED_CUE = "Edited Description:"
ADDED_CUE = "Objects most likely added:"
STOP = "\n\n"
LONGEST_ANSWER = 2000


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


def recipe(editor: Editor, prompts: Prompts, compute: Compute) -> dict[str, Any]:
    """What decides an edit besides captions and instruction."""
    settings = editor.model_dump(exclude={"model", "revision", "precision"})
    texts = {"edited": few_shot(prompts.edited), "added": few_shot(prompts.added)}
    used = precision(editor.precision, device(compute))
    return settings | identify(editor.model, editor.revision) | {"prompts": texts, "precision": used, "code": CODE}


def parse(answer: str) -> str | None:
    """An answer as one line of text, or None where it is empty, endless or holds another prompt."""
    text = answer.split(STOP)[0].strip()
    if not text or "\n" in text or len(text) > LONGEST_ANSWER or EDITED_CUE in text or ADDED_CUE in text:
        return None
    return " ".join(text.split()).strip('"') or None


def row(key: str, captions: Sequence[str], edited: str, added: str) -> dict[str, Any]:
    """A row of the store from two raw answers, with `status` `ok` or the reason for a fallback."""
    description, objects = parse(edited), parse(added)
    lost = [name for name, value in (("edited", description), ("added", objects)) if not value]
    return {
        "key": key,
        "edited": [description] if description else list(captions),
        "added": objects or "",
        "status": f"no usable answer: {' and '.join(lost)}" if lost else "ok",
        "answers": [edited, added],
    }


class VllmEngine:
    """vLLM's offline engine in this process, greedy."""

    def __init__(self, editor: Editor, compute: Compute) -> None:
        """Load the engine; raises CvsiError when the model can not be loaded."""
        on = device(compute)
        # In this process the engine starts in a third of the time; its chatter would hide our lines.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM, SamplingParams  # seconds of imports, needed only when a row is missing

        names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        try:
            self.engine: Any = LLM(
                editor.model, revision=editor.revision, dtype=names[precision(editor.precision, on)],
                max_model_len=editor.context, enforce_eager=on.type == "cpu", seed=0, disable_log_stats=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CvsiError(f"params.yaml: editor model '{editor.model}' does not load: {reason}") from None
        self.sampling = SamplingParams(temperature=0.0, max_tokens=editor.max_tokens, stop=[STOP])

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """One raw answer a prompt, in order."""
        outputs = self.engine.generate(list(prompts), self.sampling, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]
