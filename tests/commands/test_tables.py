"""All tables of the command line: golden texts at 80 and 160 columns, and what holds at every width.

`python -m tests.commands.table_cases` writes the texts anew.
"""

import io
import os
import pty
import re
import subprocess
import sys
import termios
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from cvsi.commands import layout
from cvsi.commands.layout import NARROWEST, WIDE, WIDEST, Table, fold, page_width, say
from cvsi.commands.main import app
from tests.commands.table_cases import CASES, EXPECTED, WIDTHS, printed, run_record
from tests.conftest import environment
from tests.imports import ROOT

LAID_OUT_BY_RICH = re.compile(r"rich\.(table|box|columns)|import (Table|box)\b.*rich")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_a_table_is_as_expected(name: str, width: int) -> None:
    assert printed(name, width) == (EXPECTED / f"{name}-{width}.txt").read_text(encoding="utf-8")


def test_no_expected_text_is_left_over() -> None:
    assert {file.stem for file in EXPECTED.iterdir()} == {f"{name}-{width}" for name in CASES for width in WIDTHS}


def names_of(name: str) -> set[str]:
    """The columns' names of a case that are on one line."""
    tables = [part for part in CASES[name]() if isinstance(part, Table) and part.names]
    columns = chain.from_iterable(table.columns for table in tables)
    return {column.name for column in columns if "\n" not in column.name}


@pytest.mark.parametrize("width", [40, 60, 79, 80, 81, 100, 120, 160, 200, 400])
@pytest.mark.parametrize("name", CASES)
def test_every_table_fits_and_has_every_name_and_figure(name: str, width: int) -> None:
    text = printed(name, width)
    wide = [line for line in text.splitlines() if cell_len(line) > width]
    assert all(" " not in line.strip() and "/" in line for line in wide), "only a path in a text may be wider"
    assert "…" not in text
    if width >= 60:
        assert names_of(name) <= set(re.split(r" {2,}|\n", text)), "a name is cut, folded or missing"
    figures = set(re.findall(r"[-+]?\d[\d,]*\.\d+(?= |\n)", printed(name, 400)))
    assert figures <= set(re.findall(r"[-+]?\d[\d,]*\.\d+(?= |\n)", text)), "a figure is cut or missing"


texts = st.text(st.sampled_from("ab 日-_/.,:é"), max_size=60)
figures = st.from_regex(r"-?[0-9]{1,6}\.[0-9]{2}", fullmatch=True)


@given(
    st.lists(st.tuples(st.booleans(), st.from_regex("[a-z]{1,14}", fullmatch=True)), min_size=1, max_size=9),
    st.integers(0, 4), st.integers(NARROWEST, WIDEST), st.data(),
)  # fmt: skip
def test_any_table_fits(columns: list[tuple[bool, str]], rows: int, width: int, data: st.DataObject) -> None:
    """And no character of a cell is lost; a name is whole, and so is a figure."""
    table = Table(data.draw(texts))
    table.texts("key", key=True)
    for is_figures, name in columns:
        table = table.figures(name) if is_figures else table.texts(name, least=data.draw(st.integers(1, 80)))
    cells = [[data.draw(texts), *(data.draw(figures if kind else texts) for kind, _ in columns)] for _ in range(rows)]
    for row in cells:
        table.add_row(*row)
    lines = [line for line, _ in table.lines(width)]
    assert max(map(cell_len, lines), default=0) <= width
    shown = "\n".join(lines)
    for place, (is_figures, name) in enumerate(columns, 1):
        assert name in shown
        assert not is_figures or all(row[place] in shown for row in cells)
    for character in "abé日":
        wanted = sum(cell.count(character) for row in cells for cell in row[1:])
        assert shown.count(character) >= wanted


@given(texts, st.integers(8, 90), st.integers(0, 3))
def test_a_folded_text_loses_nothing_but_blanks(text: str, width: int, hanging: int) -> None:
    lines = fold(text, width, hanging)
    assert max(map(cell_len, lines)) <= width
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("demo/tiny/gallery_vectors", ["demo/tiny/", "gallery_", "vectors"]),
        ("one two three four", ["one two", "three four"]),
        ("a fashioniq-dress-vit-bigg", ["a", "fashioniq-", "dress-vit-", "bigg"]),
        ("abcdefghijklmnop", ["abcdefghijk", "lmnop"]),
        ("  image_vectors", ["  image_", "  vectors"]),
        ("日本語日本語日本語", ["日本語日本", "語日本語"]),
    ],
)
def test_texts_fold_at_blanks_and_after_separators(text: str, lines: list[str]) -> None:
    assert fold(text, 11) == lines


def test_a_row_needs_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table().texts("a", "b").add_row("x")


def test_control_characters_and_markup_are_text() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    table = Table("[bold]t[/]").texts("n\x1b[2J", key=True)
    table.add_row("[red]\x07[/red]\x1b[1m")
    console.print(table)
    say(console, "[blue]\x1b[1mline")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.split() == ["[bold]t[/]", r"n\x1b[2J", "─" * 22, r"[red]\x07[/red]\x1b[1m", r"[blue]\x1b[1mline"]


def test_a_path_to_copy_is_not_broken() -> None:
    console = Console(file=io.StringIO(), width=30)
    say(console, "Report: cache/a-long-name/of-a-backbone/report/index.html")
    assert console.file.getvalue() == "Report:\n  cache/a-long-name/of-a-backbone/report/index.html\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("columns", "width"),
    [
        ("80", 80), (" 100 ", 100), ("0080", 80), ("20", 20), ("400", 400),
        ("1", NARROWEST), ("10000", WIDEST), pytest.param("9" * 5000, WIDEST, id="many digits"),
        ("0", WIDE), ("000", WIDE), ("-5", WIDE), ("abc", WIDE), ("", WIDE), ("80.5", WIDE), ("1e2", WIDE),
        ("+80", WIDE), ("\uff18\uff10", WIDE), ("0x50", WIDE),
    ],
)  # fmt: skip
def test_a_width_that_cannot_be_is_not_used(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert page_width() == width == layout.terminal().width
    layout.tolerate_columns()
    assert os.environ["COLUMNS"] == str(width)


@pytest.mark.parametrize(("columns", "width"), [("70", 70), (None, 91), ("0", 91), ("abc", 91), ("-1", 91)])
def test_a_terminal_has_its_width_unless_columns_says_another(columns: str | None, width: int) -> None:
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    code = "from cvsi.commands.layout import terminal; print(terminal().width)"
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (30, 91))
        subprocess.run(
            [sys.executable, "-c", code], env=env | ({"COLUMNS": columns} if columns else {}), stdout=theirs, check=True
        )
        assert os.read(ours, 100).split() == [str(width).encode()]
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two records of runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache/.runs").mkdir(parents=True)
    for number, stage in enumerate(("captions", "gallery_vectors")):
        content = run_record(stage, ("fashioniq-dress", "vit-bigg-14"), 75.0).model_dump_json()
        (tmp_path / f"cache/.runs/{number}.json").write_text(content, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("option", [[], ["--all"]])
@pytest.mark.parametrize("columns", ["60", "80", "160", "0", None])
def test_times_in_a_pipe_keeps_every_name(records: Path, option: list[str], columns: str | None) -> None:
    env = {name: value for name, value in environment(records).items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", "from cvsi.commands.main import main; main()", "times", *option],
        env=env | ({"COLUMNS": columns} if columns else {}) | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= (int(columns or 0) or WIDE)
    names = "stage began (UTC) took load read compute write other wanted equal stored computed per second".split()
    assert set(names) <= set(done.stdout.split()) and "…" not in done.stdout
    assert "began (UTC)" in done.stdout and "per second" in done.stdout


def test_the_width_of_an_ascii_stream_is_kept() -> None:
    table = Table("日本").texts("名 1234567890")
    table.add_row("日本" * 30)
    lines = [line for line, _ in table.lines(40, encoding="ascii", ascii_only=True)]
    assert max(map(len, lines)) <= 40 and "".join(lines).isascii() and "-" * 40 in lines


def test_one_place_lays_out_tables() -> None:
    """No command makes a table of its own."""
    own = [file.name for file in (ROOT / "cvsi").rglob("*.py") if LAID_OUT_BY_RICH.search(file.read_text("utf-8"))]
    assert own == []


def test_help_survives_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("0", "abc", "-5", "10000"):
        monkeypatch.setenv("COLUMNS", columns)
        layout.tolerate_columns()
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0
