"""Renders a pack's README.md from its rows and recipes.

Texts of models and people are written as indented code, as JSON without HTML, or in cells where Markdown's own
characters are escaped: no page that shows the README interprets them.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import polars as pl

from cvsi.commands.pack_format import Kind
from cvsi.core.statuses import fell_back
from cvsi.models.engines import DEFAULT_CAPTIONER

EXAMPLES, LONGEST = 3, 300
DIGITS = 4  # of a logarithm of a probability
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
HTML = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def readme(
    dataset: str,
    recipes: Mapping[Kind, Mapping[str, Any]],
    labels: Mapping[Kind, str | None],
    frames: Mapping[Kind, pl.DataFrame],
    terms: Mapping[str, str],
) -> str:
    """The README's Markdown, from recipes, names of the models and rows by kind, and terms of use by owner."""
    parts = {
        kind: ({"model in params.yaml": plain(label)} if (label := labels[kind]) else {})
        | {plain(name): plain(value) for name, value in _named(kind, recipe).items() if not isinstance(value, dict)}
        for kind, recipe in recipes.items()
    }
    prompts = {
        kind: {plain(task): code(text) for task, text in recipe["prompts"].items()}
        for kind, recipe in recipes.items()
        if "prompts" in recipe
    } | {kind: {"question": code(recipe["prompt"])} for kind, recipe in recipes.items() if "prompt" in recipe}
    return _template().render(
        what=_words(list(recipes)).capitalize(),
        dataset=plain(dataset),
        parts=parts,
        prompts=prompts,
        numbers=_numbers(recipes, frames),
        examples={kind: code("\n".join(_lines(frame))) for kind, frame in frames.items() if frame.height},
        terms={plain(who): plain(text) for who, text in terms.items()},
    )


def _named(kind: Kind, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the engine that a captioner's leaves out, and a judge's answers as words, without its prompt."""
    if kind == "verdicts":
        answers = recipe.get("answers")
        sides = ("positive", "negative")
        words = " / ".join(str(answers.get(side)) for side in sides) if isinstance(answers, Mapping) else answers
        return {name: value for name, value in recipe.items() if name != "prompt"} | {"answers": words}
    return ({"engine": DEFAULT_CAPTIONER} if kind == "captions" else {}) | dict(recipe)


def _words(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def plain(value: Any) -> str:
    """A value as Markdown that reads as what it is, on one line."""
    text = " ".join(("none" if value is None else str(value)).split())[:LONGEST]
    return SPECIAL.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def code(text: str) -> str:
    """Lines as indented code, without HTML and without control characters."""
    lines = ["".join(mark for mark in line if mark.isprintable()) for line in text.splitlines()]
    return "\n".join(f"    {line}".rstrip() for line in lines).translate(HTML)


def _lines(frame: pl.DataFrame) -> list[str]:
    return [json.dumps(_short(row), ensure_ascii=False) for row in frame.head(EXAMPLES).to_dicts()]


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_short(part) for part in value]
    if isinstance(value, float):
        return round(value, DIGITS)
    return value[:LONGEST] + "..." if isinstance(value, str) and len(value) > LONGEST else value


def _numbers(recipes: Mapping[Kind, Mapping[str, Any]], frames: Mapping[Kind, pl.DataFrame]) -> dict[str, Any]:
    found: dict[str, Any] = {"statuses": {}}
    if "captions" in frames:
        captions = int(frames["captions"]["captions"].list.len().sum())
        images, n = frames["captions"].height, recipes["captions"].get("n")
        found |= {"images": images, "captions": captions, "empty": images * n - captions if n else 0}
    if "edits" in frames:
        status = frames["edits"]["status"]
        bad = frames["edits"].filter(fell_back())["status"].value_counts(name="edits")
        bad = bad.sort("edits", "status", descending=[True, False])
        found |= {"edits": status.len(), "fallbacks": int(bad["edits"].sum())}
        found["statuses"] = {plain(name): number for name, number in bad.iter_rows()}
    if "readings" in frames:
        found["readings"] = frames["readings"].height
    if "verdicts" in frames:
        found["verdicts"] = frames["verdicts"].height
    return found


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cvsi.commands", ""),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template("pack_readme.md")
