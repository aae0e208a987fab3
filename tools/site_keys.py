"""Makes the page of every key of params.yaml from the typed settings, and the keys' meanings from the tables of docs/.

Type, bounds and default come from the pydantic models, so they are those that `cvsi check` enforces. The meaning of a
key is written once, in a table of docs/ whose first column is `key`: SOURCES names the sections for each model.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

from cvsi.core import params
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation.fusion import Form
from cvsi.evaluation.methods import About
from cvsi.evaluation.parts import Part, Shift, Slerp
from cvsi.evaluation.scorers import SCORERS
from cvsi.models.encoder import ENCODERS
from cvsi.models.engines import CAPTIONERS, EDITORS, JUDGES, READERS

DOCS = Path("docs")
NAME = TypeAdapter(params.Name).json_schema()["pattern"]  # of every name in the file
KEYS = re.compile(r"`([a-z_0-9]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
BOUNDS = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than", "exclusiveMaximum": "less than"}
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`",
         "null": "`null`", "object": "mapping"}  # fmt: skip

INTRODUCTION = """\
# Every key of params.yaml

`make docs` makes this page from the typed settings, by which `cvsi check` and every stage check the file: a key that is
not here is refused. [params.yaml](../parameters.md) explains how the blocks belong together.

"""


@dataclass(frozen=True)
class Block:
    """A block of params.yaml: its title, the model that checks it, and the sections of docs/ that explain its keys."""

    title: str
    where: str
    model: type[BaseModel]
    sources: tuple[str, ...]


def blocks() -> Iterator[Block]:
    """All blocks, in the order of the page; engines, formats, kinds and score forms come from their registries."""
    yield Block("Top level", "The file itself", params.Params, ("parameters.md#params.yaml",))
    yield Block("A run", "`runs.NAME`", params.Run, ("parameters.md#Runs and reranks",))
    yield Block("A dataset", "`datasets.NAME`", params.Dataset, ("parameters.md#Dataset",))
    for name, form in FORMATS:
        if set(form.settings.model_fields):
            yield Block(f"A dataset of format {name}", "`datasets.NAME`", form.settings, ("parameters.md#Dataset",))
    yield Block("Prompts of a dataset", "`datasets.NAME.prompts`", params.Prompts, ("parameters.md#Prompts",))
    nouns = (("captioner", "Captioner", CAPTIONERS), ("editor", "Editor", EDITORS), ("reader", "Reader", READERS))
    for noun, section, registry in nouns:
        for name, engine in registry:
            own = (f"parameters.md#engine: {name}", f"parameters.md#{section}")
            yield Block(f"{section}, engine {name}", f"`{noun}s.NAME`", engine.settings, own)
            if engine.prompted is not None:
                own = ("parameters.md#engine: vllm with a prompt", f"parameters.md#{section}")
                title = f"{section}, engine {name} with a prompt"
                yield Block(title, f"`{noun}s.NAME`", engine.prompted.settings, own)
    yield Block("A backbone of kind open_clip", "`backbones.NAME`", params.Backbone, ("parameters.md#Backbone",))
    for name, kind in ENCODERS:
        if kind.settings is not None:
            sources = (f"parameters.md#Kind {name}", "parameters.md#Backbone")
            yield Block(f"A backbone of kind {name}: further keys", "`backbones.NAME`", kind.settings, sources)
    yield Block("Training of a phi", "`phis.NAME`", params.PhiTraining, ("phi.md#Parameters",))
    yield Block("A word list", "`phis.NAME.spans`", params.WordList, ("phi.md#Parameters",))
    method = ("methods.md#A method of your own",)
    yield Block("A method: texts", "`methods.NAME`", About, method)
    yield Block("A method: weights, or one of its forms", "`methods.NAME`, `fusion`", Form, method)
    yield Block("A part of a method", "`parts.NAME`", Part, ("methods.md#Parts",))
    yield Block("A shift", "`parts.NAME.shift`", Shift, ("methods.md#Parts",))
    yield Block("An arc", "`parts.NAME.slerp`", Slerp, ("methods.md#Parts",))
    for name, scorer in SCORERS:
        yield Block(f"A score of kind {name}", "`score`", scorer, ("methods.md#Scores",))
    for name, judge in JUDGES:
        yield Block(f"Judge, engine {name}", "`judges.NAME`", judge.settings, ("reranking.md#The judge's settings",))
    yield Block("A rerank", "`reranks.NAME`", params.Rerank, ("parameters.md#Runs and reranks",))
    yield Block("The demo's world", "`world`", params.World, ("parameters.md#World",))
    yield Block("Speed", "`compute`", params.Compute, ("parameters.md#compute",))


def page() -> str:
    """The page as Markdown; raises KeyError that names a key without a meaning in docs/."""
    return INTRODUCTION + "\n".join(_section(block) for block in blocks())


def _section(block: Block) -> str:
    """A block's heading, the first sentence of its model, and a table of its keys."""
    summary = inspect.cleandoc(block.model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    lines = [f"## {block.title}", "", f"{block.where}: {summary[:1].lower()}{summary[1:]}", ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    schema = block.model.model_json_schema(by_alias=True)
    for key, facts in schema["properties"].items():
        cells = (f"`{key}`", type_of(facts, schema.get("$defs", {})), default_of(block.model, key), meaning(block, key))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def type_of(facts: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """The type of a key in words, from its JSON schema: `whole number, at least 1`."""
    if "$ref" in facts:
        return type_of(models[facts["$ref"].rpartition("/")[2]], models)
    if "anyOf" in facts:
        return " or ".join(dict.fromkeys(type_of(one, models) for one in facts["anyOf"]))
    if "enum" in facts or "const" in facts:
        return ", ".join(f"`{value}`" for value in facts.get("enum", [facts.get("const")]))
    if facts.get("pattern") == NAME:
        return "name"
    kind = facts.get("type")
    if kind == "array":
        items = facts.get("items") or facts["prefixItems"][0]
        number = f" of {facts['minItems']}" if facts.get("minItems") and "prefixItems" in facts else ""
        return f"list{number}: {type_of(items, models)}"
    if kind == "object":
        values = [*facts.get("patternProperties", {}).values(), facts.get("additionalProperties")]
        if isinstance(values[0], dict):
            return f"mapping of names to: {type_of(values[0], models)}"
    bounds = [f"{words} {facts[name]:,}" for name, words in BOUNDS.items() if name in facts]
    return ", ".join([TYPES.get(str(kind), "any value"), *bounds])


def default_of(model: type[BaseModel], key: str) -> str:
    """The default as YAML; `required`; `none` for null; for a block, where its keys' defaults are."""
    field = next(field for name, field in model.model_fields.items() if (field.alias or name) == key)
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "that of each key"
    if value is None:
        return "none"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return f"`{text}`" if text else "empty"


def meaning(block: Block, key: str) -> str:
    """What docs/ says about a key; raises KeyError where its sections do not name it."""
    for source in block.sources:
        document, _, section = source.partition("#")
        if key in (found := tables(document).get(section, {})):
            return found[key]
    raise KeyError(f"{block.title}: `{key}` has no meaning in {', '.join(block.sources)}; add a row to its table")


@cache
def tables(document: str) -> dict[str, dict[str, str]]:
    """The meanings by section and key of a document's tables with columns `key` and `meaning`; links are the page's."""
    found: dict[str, dict[str, str]] = {}
    section, column, cells = "", -1, list[str]()
    for line in (DOCS / document).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ").replace("`", "")
        if not line.startswith("|"):
            column = -1
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if "key" in cells and "meaning" in cells:
            column = cells.index("key")
            place = cells.index("meaning")
        elif column >= 0 and not cells[0].startswith("---"):
            text = LINK.sub(lambda match: f"](../{match[1] or document}{match[2] or ''})", cells[place])
            found.setdefault(section, {}).update(dict.fromkeys(KEYS.findall(cells[column]), text))
    return found
