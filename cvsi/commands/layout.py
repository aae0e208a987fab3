"""Columns and rows to a table that fits the terminal, and texts to lines that do: the only place that lays out tables.

No name of a column and no figure is ever cut. Figures and their names stay on one line, right-aligned; texts fold at
blanks, and names and paths after a separator. Where the columns do not fit side by side, the table goes on below, with
its key columns repeated; columns of one group stay together where they can.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cvsi.core.console import plain

WIDE = 160  # columns of a page that is written to a file or a pipe
NARROWEST, WIDEST = 20, 400  # what is taken from COLUMNS; a value outside becomes the nearer one
HEIGHT = 25  # of a page; nothing that is printed depends on it
GAP = 2  # blanks between two columns
KEPT = 12  # columns that a text keeps beside others before the table goes on below, where it is so long
PIECES = re.compile(r"[^/_\-.,:=]*[/_\-.,:=]+|[^/_\-.,:=]+")  # of a long name or path


def terminal() -> Console:
    """Standard output with the width that COLUMNS says, else that of the terminal, else a wide page."""
    # With a height, too, rich asks neither COLUMNS nor TERM for another width.
    return Console(width=page_width(), height=HEIGHT)


def page_width() -> int:
    """How many columns there are; a COLUMNS that is no number above 0 is as if it were not set."""
    given = os.environ.get("COLUMNS", "").strip()
    if given.isascii() and given.isdigit() and given.strip("0"):
        return WIDEST if len(given.lstrip("0")) > len(str(WIDEST)) else min(max(int(given), NARROWEST), WIDEST)
    try:
        found = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    except (OSError, ValueError):
        found = 0
    return max(found, NARROWEST) if found else WIDE


def tolerate_columns() -> None:
    """Put the width that is used in place of a COLUMNS that cannot be one, for libraries that read it, too."""
    if "COLUMNS" in os.environ:
        os.environ["COLUMNS"] = str(page_width())


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text, folded at blanks, later lines indented; a longer word, such as a path to copy, stays whole."""
    text = _spelled(plain(text), console.encoding)
    for line in fold(text, console.width, hanging=2, whole_words=True):
        console.print(Text(line, style), soft_wrap=True, highlight=False)


def print_all(console: Console, parts: Iterable["Table | Prose"]) -> None:
    """Print tables and texts."""
    for part in parts:
        console.print(part)


class Prose:
    """A text between tables, as `console.print` takes it: folded at blanks, with a blank line below."""

    def __init__(self, text: str) -> None:
        """Keep a plain text, which is not markup."""
        self.text = plain(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines."""
        for line in (*fold(_spelled(self.text, options.encoding), options.max_width, hanging=2), ""):
            yield Text(line, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Column:
    """A column's name; whether it holds figures; whether it is repeated below; its group; a text's least width."""

    name: str
    figures: bool
    key: bool
    group: str
    least: int


@dataclass(frozen=True)
class Row:
    """The cells of a row, or a heading over the whole table, and their style; `ruled`: a blank line is above it."""

    cells: tuple[str, ...]
    style: str
    ruled: bool
    heading: str = ""


class Table:
    """A table with a title, as `console.print` takes it; names and cells are plain texts, not markup."""

    def __init__(self, title: str = "", names: bool = True) -> None:
        """Begin without columns; without `names`, their names are not shown."""
        self.title, self.names = title, names
        self.columns: list[Column] = []
        self.rows: list[Row] = []
        self._ruled = False

    def texts(self, *names: str, key: bool = False, group: str = "", least: int = KEPT) -> Self:
        """Add columns of texts, left-aligned; `least` columns of one stay, where it is as long, or it goes below."""
        self.columns += [Column(plain_lines(name), False, key, group, least) for name in names]
        return self

    def figures(self, *names: str, key: bool = False, group: str = "") -> Self:
        """Add columns of figures, right-aligned and never folded."""
        self.columns += [Column(plain_lines(name), True, key, group, 0) for name in names]
        return self

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row with a cell for each column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(Row(tuple(plain(cell) for cell in cells), style, self._ruled))
        self._ruled = False

    def add_heading(self, text: str) -> None:
        """Add a line that stands over the rows below it and takes the width of the page."""
        self.rows.append(Row(("",) * len(self.columns), "bold", self._ruled, plain(text)))
        self._ruled = False

    def add_section(self) -> None:
        """Leave a blank line above the next row, where there is one above it."""
        self._ruled = bool(self.rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title and the blocks, each followed by a blank line."""
        for line, style in self.lines(options.max_width, options.encoding, options.ascii_only):
            yield Text(line, style, no_wrap=True, overflow="ignore")

    def lines(self, width: int, encoding: str = "utf-8", ascii_only: bool = False) -> Iterator[tuple[str, str]]:
        """All lines with their styles, none of which is wider than `width`; without a title, the first is blank."""
        spell = partial(_spelled, encoding=encoding)
        rows = [
            replace(row, cells=tuple(spell(cell) for cell in row.cells), heading=spell(row.heading))
            for row in self.rows
        ]
        for line in fold(spell(plain(self.title)), width):
            yield line, "italic"
        columns = [replace(column, name=spell(column.name)) for column in self.columns]
        for block in _blocks(columns, rows, width, self.names):
            yield from self._block(block, columns, rows, width, "-" if ascii_only else "─")
            yield "", ""

    def _block(
        self, block: "Block", columns: Sequence[Column], rows: Sequence[Row], width: int, rule: str
    ) -> Iterator[tuple[str, str]]:
        """Names, a rule and rows; a row that has nothing in this part of a divided table is left out."""
        divided = len(block.columns) < len(columns)
        if self.names:
            for line in _row([columns[index].name for index in block.columns], block, columns, top=False):
                yield line, "bold"
            yield rule * (sum(block.widths) + GAP * (len(block.widths) - 1)), ""
        for row in rows:
            if divided and not row.heading and not any(row.cells[index] for index in block.own):
                continue
            if row.ruled:
                yield "", ""
            if row.heading:
                yield from ((line, row.style) for line in fold(row.heading, width))
                continue
            for line in _row([row.cells[index] for index in block.columns], block, columns):
                yield line, row.style


@dataclass(frozen=True)
class Block:
    """Columns that stand side by side, by their places, their widths, and which of them are no keys."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    own: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """How wide each column is without a fold, how narrow it may be, and how wide its name and its figures are."""

    natural: tuple[int, ...]
    least: tuple[int, ...]
    heads: tuple[int, ...]
    figures: tuple[int, ...]


def plain_lines(name: str) -> str:
    """A column's name with line breaks kept and all other control characters spelled out."""
    return "\n".join(map(plain, name.split("\n")))


def _spelled(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _row(cells: Sequence[str], block: Block, columns: Sequence[Column], top: bool = True) -> Iterator[str]:
    """The lines of one row; names stand at the bottom of theirs, cells at the top."""
    folded = [
        [line for part in cell.split("\n") for line in fold(part, width)]
        for cell, width in zip(cells, block.widths, strict=True)
    ]
    height = max(map(len, folded))
    for number in range(height):
        parts = []
        for index, lines, width in zip(block.columns, folded, block.widths, strict=True):
            place = number if top else number - (height - len(lines))
            text = lines[place] if 0 <= place < len(lines) else ""
            blanks = " " * (width - cell_len(text))
            parts.append(blanks + text if columns[index].figures else text + blanks)
        yield (" " * GAP).join(parts).rstrip()


def _blocks(columns: Sequence[Column], rows: Sequence[Row], width: int, names: bool) -> Iterator[Block]:
    """The fewest blocks of columns that fit, in their order; a group that fits beside the keys is not divided."""
    sizes = _sizes(columns, rows, names)
    keys = [index for index, column in enumerate(columns) if column.key]
    if _total([sizes.least[index] for index in keys]) > width // 2:
        keys = keys[:1]  # a narrow page has no space for more beside what they are the keys of

    def fits(chosen: Sequence[int]) -> bool:
        return _total([sizes.least[index] for index in (*keys, *chosen)]) <= width

    others = [index for index in range(len(columns)) if index not in keys]
    if not others or fits(others):
        yield _block(range(len(columns)), others, sizes, width)
        return
    groups: dict[str, list[int]] = {}
    for index in others:
        groups.setdefault(columns[index].group or str(index), []).append(index)
    chosen: list[int] = []
    for group in groups.values():
        parts = [group] if fits(group) else [[index] for index in group]
        for part in parts:
            if chosen and not fits([*chosen, *part]):
                yield _block([*keys, *chosen], chosen, sizes, width)
                chosen = []
            chosen += part
    yield _block([*keys, *chosen], chosen, sizes, width)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _sizes(columns: Sequence[Column], rows: Sequence[Row], names: bool) -> Sizes:
    natural, least, heads, figures = [], [], [], []
    for index, column in enumerate(columns):
        head = max(map(cell_len, column.name.split("\n"))) if names else 0
        cells = max((cell_len(row.cells[index]) for row in rows), default=0)
        natural.append(max(head, cells))
        # A very long name, such as a run's with its state and folder, folds as a text does.
        heads.append(min(head, max(cells, 2 * KEPT)))
        figures.append(cells if column.figures else 1)
        least.append(max(heads[-1], cells if column.figures else min(cells, column.least)))
    return Sizes(tuple(natural), tuple(least), tuple(heads), tuple(figures))


def _block(columns: Sequence[int], own: Sequence[int], sizes: Sizes, width: int) -> Block:
    """Columns with the widths that they get: what is left completes those that need the least more.

    What completes none is shared by the narrowest. Where the least does not fit, the widest give: first texts, then
    names, and figures last.
    """
    widths = [sizes.least[index] for index in columns]
    whole = [max(sizes.heads[index], sizes.figures[index]) for index in columns]
    for floors in (whole, [sizes.figures[index] for index in columns], [1] * len(columns)):
        while _total(widths) > width:
            spare = [place for place, floor in enumerate(floors) if widths[place] > max(floor, 1)]
            if not spare:
                break
            widths[max(spare, key=lambda place: widths[place])] -= 1
    needs = {place: sizes.natural[index] - widths[place] for place, index in enumerate(columns)}
    left = width - _total(widths)
    for place in sorted((place for place, need in needs.items() if need > 0), key=lambda place: needs[place]):
        if needs[place] <= left:
            left -= needs[place]
            widths[place] += needs.pop(place)
    short = [place for place, need in needs.items() if need > 0]
    for _ in range(left if short else 0):
        widths[min(short, key=lambda place: widths[place])] += 1
    return Block(tuple(columns), tuple(widths), tuple(own))


def fold(text: str, width: int, hanging: int = 0, whole_words: bool = False) -> list[str]:
    """A text as lines of a width: broken at blanks, and a word that is longer after its separators, or anywhere.

    Blanks at the beginning are kept; `hanging` blanks begin later lines; with `whole_words`, no word is broken.
    """
    if cell_len(text) <= width:
        return [text]
    indent = min(len(text) - len(text.lstrip()), max(width // 4, 0))
    hanging = min(indent + hanging, max(width // 4, 0))
    lines, line = [], " " * indent
    empty = True  # whether the line has no word yet
    for word in text.split():
        start = "" if empty else " "
        if not empty and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line, start = " " * hanging, ""
        if whole_words or cell_len(line) + cell_len(start) + cell_len(word) <= width:
            line += start + word
        else:
            *full, line = _broken(word, line, " " * hanging, width)
            lines += full
        empty = False
    return [*lines, line]


def _broken(word: str, line: str, hanging: str, width: int) -> list[str]:
    """A line and a word longer than one, as lines."""
    lines, begun = [], False
    for piece in PIECES.findall(word):
        if begun and cell_len(line) + cell_len(piece) > width:
            lines.append(line)
            line, begun = hanging, False
        if cell_len(line) + cell_len(piece) > width:
            parts = chop_cells(piece, max(width - max(len(line), len(hanging)), 1))
            lines.append(line + parts[0])
            lines += [hanging + part for part in parts[1:-1]]
            line = hanging + parts[-1] if len(parts) > 1 else hanging
        else:
            line += piece
        begun = True
    return [*lines, line]
