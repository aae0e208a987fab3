"""`cvsi show --markdown`: the figures of `--json` as a table that GitHub reads; and the table of docs/methods.md."""

import json
import re

import pytest
from typer.testing import CliRunner, Result

from cvsi.commands import show_markdown
from cvsi.commands.main import app
from cvsi.commands.show_figures import Figures, Shown
from cvsi.evaluation.methods import _builtin
from cvsi.evaluation.paired import Difference
from tests.commands.test_show import METHODS, write
from tests.conftest import Workspace
from tests.imports import ROOT

PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def command(*options: str) -> Result:
    return CliRunner().invoke(app, ["show", "toy-tiny", *options])


def rows_of(text: str) -> list[list[str]]:
    """The cells of every line of a table; a bar after a backslash is part of a cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_each_split_has_a_table_with_the_figures_of_json(toy: Workspace) -> None:
    write(left_out={"sdr": "needs a reader with the role target"})
    printed, content = command("--markdown").stdout, json.loads(command("--json").stdout)
    parts = re.split(r"^toy-tiny, (\w+), percent:$", printed, flags=re.M)[1:]
    assert parts[::2] == list(content["splits"]) == ["val", "dev"]
    for split, text in zip(parts[::2], parts[1::2], strict=True):
        names, rule, *rows = rows_of(text)
        assert {len(row) for row in rows} == {len(names)} == {len(rule)} and set(rule) == {"---"}
        assert names[:4] == ["method", "mAP@10", "95% interval", "less `cvsi`, paired"]
        assert [row[0] for row in rows] == [f"`{method}`" for method in (*METHODS, "sdr")]
        figures = content["splits"][split]
        for row, (method, values) in zip(rows, figures["methods"].items(), strict=False):
            assert row[1] == f"{values['mAP@10']:.1f}" and [float(cell) for cell in row[4:]] == pytest.approx(
                [values[name] for name in names[4:]], abs=0.05
            )
            assert row[2] == f"{values['mAP@10 low']:.1f} to {values['mAP@10 high']:.1f}", method
        differences = {row["method"]: row for row in figures["differences"]}
        for row in rows[1 : len(METHODS)]:
            one = differences[row[0].strip("`")]
            assert row[3] == f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})"
        assert rows[-1][1:4] == ["-", "needs a reader with the role target", "-"]


def test_values_that_are_not_there_are_dashes_and_bars_are_escaped() -> None:
    difference = Difference(method="a|b", difference=-1.0, low=None, high=None, better=0, worse=1, same=0)
    figures = Figures(
        methods={"cvsi": {"mAP@10": 5.0}, "a|b": {"mAP@5": 4.0, "mAP@10": 4.0, "mAP@10/aspect": 1.0}},
        differences=[difference], aspects=[], tags=[],
    )  # fmt: skip
    shown = Shown(
        run="r", dataset="d", backbone="b", metric="mAP@10", own="cvsi", splits={"val": figures}, edits=None,
        left_out={"c": "a|b"}, report="", notes=[],
    )  # fmt: skip
    assert rows_of("\n".join(show_markdown.lines(shown)))[2:] == [
        ["`cvsi`", "5.0", "-", "-", "-"], ["`a\\|b`", "4.0", "-", "-1.0", "4.0"], ["`c`", "-", "a\\|b", "-", "-"],
    ]  # fmt: skip


def test_without_labels_there_is_a_line_and_two_formats_are_refused(toy: Workspace) -> None:
    write(splits={})
    assert "No split has labels" in command("--markdown").stdout
    refused = command("--markdown", "--json")
    assert refused.exit_code == 1 and "give one of the two" in str(refused.exception)


def test_the_page_has_a_row_a_sentence_and_figures_of_every_method() -> None:
    facts, _, figures = PAGE.partition("## On the demo")
    in_words = facts.partition("In words:")[2]
    named = {name for row in rows_of(facts) for name in re.findall(r"`([^`]+)`", row[0])}
    assert named == set(_builtin())
    assert {name for name in _builtin() if f"`{name}`" not in in_words} == set()
    table = rows_of(figures.partition("## What a method costs")[0])
    assert [row[0].strip("`") for row in table[2:]] == list(_builtin())
    for row in table[2:]:
        interval = re.fullmatch(r"([\d.]+) to ([\d.]+)", row[2])
        assert (
            row[2].startswith("needs ")
            if interval is None
            else float(interval[1]) <= float(row[1]) <= float(interval[2])
        )
