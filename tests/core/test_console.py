"""Our own lines past the log of the libraries."""

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
from pathlib import Path
from cvsi.core.console import info, redirect_output, warn
info("before")
with redirect_output(Path("log.txt")):
    print("library")
    os.write(2, b"library in C\\n")
    warn("while the libraries' output is redirected: \\u00e9")
    info("and this")
warn("after")
"""


def test_our_lines_are_printed_while_the_output_of_libraries_goes_to_a_log(tmp_path: Path) -> None:
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True,
            env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == "cvsi: before\ncvsi: and this\n"
        accent = "é" if encoding == "utf-8" else "\\xe9"
        expected = f"cvsi: while the libraries' output is redirected: {accent}\ncvsi: after\n"
        assert done.stderr.decode() == expected
    assert sorted((tmp_path / "log.txt").read_text().splitlines()) == ["library"] * 2 + ["library in C"] * 2
