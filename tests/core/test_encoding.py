"""Messages on streams of a narrow encoding: characters that it lacks are spelled out, on a terminal's bar too."""

import io
import json
import os
import pty
import sys

import pytest

from cvsi.core import console
from cvsi.core.console import encodable_json, info, warn

BAR = """
import os
from cvsi.core.console import Meter, info, set_prefix, tolerate_encoding
tolerate_encoding()
set_prefix("index ph\\u00f6tos")
with Meter(20, "bild\\u65e5") as meter:
    for _ in range(2):
        meter.advance(10)
        info("\\u201cquoted\\u201d")
"""


def stream(encoding: str) -> io.TextIOWrapper:
    """A stream that refuses what its encoding lacks."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"cvsi: ph\\xf6tos \\u65e5\n"),
        ("latin-1", b"cvsi: ph\xf6tos \\u65e5\n"),
        ("cp1252", b"cvsi: ph\xf6tos \\u65e5\n"),
        ("shift_jis", b"cvsi: ph\\xf6tos \x93\xfa\n"),
        ("utf-8", "cvsi: phötos 日\n".encode()),
    ],
)
def test_lines_spell_out_what_a_stream_lacks(monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes) -> None:
    monkeypatch.setattr(console, "_prefix", "cvsi")
    for name, write in (("stdout", info), ("stderr", warn)):
        narrow = stream(encoding)
        monkeypatch.setattr(sys, name, narrow)
        write("phötos 日")
        narrow.flush()
        assert narrow.buffer.getvalue() == expected  # type: ignore[attr-defined]


def test_a_name_that_is_no_utf8_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = stream("utf-8")
    monkeypatch.setattr(sys, "stdout", strict)
    info("a\udcff")
    strict.flush()
    assert strict.buffer.getvalue().endswith(b"a\\udcff\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["phötos", "日", "\U0001f600", 'a "b" \\ c'])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_stays_json(monkeypatch: pytest.MonkeyPatch, encoding: str, text: str) -> None:
    monkeypatch.setattr(sys, "stdout", stream(encoding))
    written = encodable_json(json.dumps({"name": text}, ensure_ascii=False))
    assert json.loads(written.encode(encoding).decode(encoding)) == {"name": text}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252:strict"])
def test_the_bar_of_a_terminal_needs_no_other_characters(encoding: str) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.environ["PYTHONIOENCODING"] = encoding
        os.execv(sys.executable, [sys.executable, "-c", BAR])
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux's end of a terminal
        pass
    _, status = os.waitpid(process, 0)
    assert status == 0, shown.decode("latin-1")
    assert b"bild\\u65e5" in shown and b"20/20" in shown and b"Traceback" not in shown
