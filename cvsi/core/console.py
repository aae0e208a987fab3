"""Messages of a stage: lines that begin with its name, and progress with rate and remaining time.

On a terminal progress is a bar; elsewhere (DVC logs, CI) a plain line every few seconds. Characters that a stream
cannot encode are spelled out as in Python's literals: a path or a text must never stop a command.
"""

import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 5.0
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_prefix = "cvsi"
_aside: dict[int, int] = {}  # within `redirect_output`: where 1 and 2 led before


def set_prefix(name: str) -> None:
    """Begin every line with this name from now on."""
    global _prefix
    _prefix = name


def tolerate_encoding() -> None:
    """Let both standard streams, and those of processes started from here, spell out what they cannot encode.

    Where Python would take file names for another encoding than UTF-8 (`LC_ALL=C` with UTF-8 switched off), it is
    started again with UTF-8 for these, since it would find no name that is not ASCII.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.environ["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def encodable(text: str, stream: TextIO) -> str:
    """The text with every character spelled out that a stream cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def encodable_json(text: str) -> str:
    """JSON for standard output: a character that it cannot encode becomes JSON's own escape."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)
    return text


def plain(text: str) -> str:
    """The text with every control character spelled out, so that a name in a message cannot control a terminal."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def info(text: str) -> None:
    """Print one line to standard output, at once."""
    _print(sys.stdout, f"{_prefix}: {plain(text)}\n")


def warn(text: str, red: bool = False) -> None:
    """Print one line to standard error, at once; line breaks in it become blanks. `red` applies to a terminal."""
    line = f"{_prefix}: {plain(' '.join(text.split()))}"
    _print(sys.stderr, f"\x1b[31m{line}\x1b[0m\n" if red and sys.stderr.isatty() else f"{line}\n")


def _print(stream: TextIO, line: str) -> None:
    """Write a line, past `redirect_output`: it is for people, and the log of the libraries is not."""
    line = encodable(line, stream)
    stream.flush()
    descriptor = _descriptor(stream)
    if descriptor in _aside:
        os.write(_aside[descriptor], line.encode(stream.encoding, "backslashreplace"))
    else:
        stream.write(line)
        stream.flush()


def _descriptor(stream: TextIO) -> int:
    """A stream's file descriptor, -1 where it has none."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 image`, `2,140 images`, `2 queries`."""
    return f"1 {noun}" if number == 1 else f"{number:,} {plural(noun)}"


def plural(noun: str) -> str:
    """`images`, `queries`, `days`."""
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:] != "ay" else noun + "s"


def seconds(value: float) -> str:
    """A duration for people: `0.4 s`, `2 min 5 s`, `3 h 2 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Append what libraries print inside, on both streams and from C++ too, to a file; our own lines are printed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with path.open("ab") as log:
        try:
            for stream in kept:
                os.dup2(log.fileno(), stream)
            _aside.update(kept)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            _aside.clear()
            for stream, original in kept.items():
                os.dup2(original, stream)
                os.close(original)


class Meter:
    """Progress of one piece of work: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, noun: str) -> None:
        """Measure `total` things called `noun`."""
        self.total, self.noun, self.done = total, noun, 0
        self.began = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start the clock and, on a terminal, the bar."""
        if sys.stdout.isatty() and self.total:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self._bar = Progress(TextColumn(f"{_prefix}:"), *columns, transient=True)
            self._task = self._bar.add_task(self.noun, total=self.total, rate="")
            self._bar.start()
        return self

    def advance(self, number: int) -> None:
        """Count `number` more as done."""
        self.done += number
        now = time.monotonic()
        rate = self.done / max(now - self.began, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{rate:,.1f} {self.noun}/s")
        elif now - self._last >= PLAIN_SECONDS and 0 < self.done < self.total:
            self._last = now
            left = seconds((self.total - self.done) / rate)
            info(f"{self.done:,} of {self.total:,} {self.noun} ({rate:,.1f} a second, {left} left)")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()
