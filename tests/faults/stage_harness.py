"""A harness around one stage: removes what it wrote, runs it again, compares the result with a run without faults.

Everything is read from the disk alone: which part of its writing a stage is in, whether its output is complete, which
rows are stored.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from tests.conftest import Workspace, environment
from tests.faults.fork_server import ForkedRun, ForkServer
from tests.faults.workspace import Case, snapshot

STALE = "stale.txt"


class StageHarness:
    """One stage in a workspace of its own that has the stage's inputs, and its output of a run without faults."""

    def __init__(self, workspace: Workspace, case: Case, fork_server: ForkServer | None = None) -> None:
        """Keep the output's bytes as the expected ones; runs are forked where there is a server."""
        self.workspace, self.case = workspace, case
        self.output = workspace.path / case.output
        self.partial = self.output.with_name(f".{self.output.name}.partial")
        self.store = workspace.path / "cache" / "store"
        self.parts = [*(["store"] if case.kinds else []), "output"]
        self.expected = snapshot(self.output)
        self.expected_rows: dict[str, pl.DataFrame] = {}
        self.fork_server = fork_server

    def start(self, before: Callable[[], object] | None = None) -> "subprocess.Popen[str] | ForkedRun":
        """Start the stage, forked if a server is set; with `before`, a new process calls that first."""
        script, folder = f"stages/{self.case.stage}.py", self.workspace.path
        if self.fork_server is not None and before is None:
            return self.fork_server.start(folder, script, self.case.arguments, environment(folder))
        return subprocess.Popen(
            [sys.executable, script, *self.case.arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment(folder), preexec_fn=before,
        )  # fmt: skip

    def clear(self, stale: bool = False) -> None:
        """Remove everything that the stage wrote; with `stale`, write another output in its place."""
        for folder in (self.output, self.partial, *(self.store / kind for kind in self.case.kinds)):
            shutil.rmtree(folder, ignore_errors=True)
        if stale:
            for name in (STALE, *self.expected):
                (self.output / name).parent.mkdir(parents=True, exist_ok=True)
                (self.output / name).write_text("stale")

    def has_begun(self, part: str) -> bool:
        """Whether the stage writes this part of its work (`store` or `output`), or has written it."""
        if part == "store":
            return any(files for kind in self.case.kinds for _, _, files in os.walk(self.store / kind))
        if self.case.stage == "world":  # its folder is made long before its first picture
            return any(files for _, _, files in os.walk(self.partial)) or self.is_complete()
        return self.partial.is_dir() or self.is_complete()

    def is_complete(self) -> bool:
        """Whether the output is complete and of this run: nothing is left to write."""
        return self.output.is_dir() and not (self.output / STALE).exists()

    def stored_counts(self) -> dict[str, int]:
        """The number of rows of each kind in the store's complete files."""
        files = {kind: (self.store / kind).glob("*/*.parquet") for kind in self.case.kinds}
        return {kind: sum(pq.read_metadata(file).num_rows for file in paths) for kind, paths in files.items()}

    def stored_rows(self) -> dict[str, pl.DataFrame]:
        """All rows of each kind, sorted by key; fails for a file that cannot be read."""
        return {kind: _rows(self.store / kind) for kind in self.case.kinds}

    def rerun(self) -> None:
        """Run the stage to its end, without a fault."""
        process = self.start()
        out, err = process.communicate()
        assert process.returncode == 0, f"{self.case.stage}: exit {process.returncode}\n{out}\n{err}"

    def error(self, before: Callable[[], object] | None = None) -> str:
        """Run the stage, which cannot continue; its single line on standard error."""
        process = self.start(before)
        out, err = process.communicate()
        assert process.returncode == 1, f"exit {process.returncode}: {out} {err}"
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(self.case.stage) and "Traceback" not in err, err
        return lines[0]

    def keep_own_rows(self) -> None:
        """Reduce the stage's kinds to its own rows (other stages share them), and expect these from now on."""
        self.clear()
        self.rerun()
        self.expected_rows = self.stored_rows()

    def last_steps(self) -> dict[str, tuple[int, int]]:
        """By kind, how many rows were stored before the latest run, and how many it computed."""
        latest = max((self.workspace.path / "cache" / ".runs").glob("*.json"))
        steps = json.loads(latest.read_text(encoding="utf-8"))["steps"]
        return {step["kind"]: (step["found"], step["computed"]) for step in steps}

    def differences(self) -> list[str]:
        """The differences between what is on disk and the result without faults."""
        files = snapshot(self.output)
        lines = [f"{name}: missing" for name in self.expected.keys() - files.keys()]
        lines += [f"{name}: unexpected file" for name in files.keys() - self.expected.keys()]
        lines += [f"{name}: other bytes" for name in self.expected if self.expected[name] != files.get(name, b"")]
        lines += [f"{path}: left over" for path in self.output.parent.glob(".*.partial")]
        for kind, rows in self.stored_rows().items():
            if kind in self.expected_rows and not rows.equals(self.expected_rows[kind]):
                lines.append(f"store: rows of {kind} differ")
        return lines

    def partial_files(self) -> int:
        """The number of incomplete files in the store, under hidden names that are never read."""
        return len(list(self.store.rglob(".*.partial"))) if self.store.is_dir() else 0


def correct_or_one_line(harness: StageHarness, fault: str, meanwhile: Callable[[], object] = lambda: None) -> str:
    """Run a stage that meets a fault: `correct`, or the one line that it ended with; fails for anything else.

    `meanwhile` is called while it runs; `fault` is named in failures.
    """
    process = harness.start()
    meanwhile()
    _, err = process.communicate()
    if process.returncode == 0:
        assert harness.differences() == [], f"{fault}: {harness.differences()}"
        return "correct"
    lines = err.splitlines()
    assert process.returncode == 1 and len(lines) == 1 and err.startswith(harness.case.stage), f"{fault}: {err}"
    assert "a bug" not in err and "Traceback" not in err, f"{fault}: {err}"
    return lines[0]


def _rows(kind: Path) -> pl.DataFrame:
    tables = [
        pl.DataFrame(pq.read_table(file, partitioning=None, page_checksum_verification=True))
        for file in sorted(kind.glob("*/*.parquet"))
    ]
    return pl.concat(tables).sort("key") if tables else pl.DataFrame()
