"""A stage on the stand: what it wrote cleared away, run again, held against a run that met no fault.

What counts is read from the disk alone: which part of its writing a stage is in, whether its output is there in full,
which rows the store holds.
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
from tests.faults.fork_server import Forked, Nursery
from tests.faults.workspace import Case, snapshot

STALE = "stale.txt"


class Stand:
    """One stage in a workspace of its own, whose inputs are there and where the stage ran once, unharmed."""

    def __init__(self, workspace: Workspace, case: Case) -> None:
        """Remember what the stage wrote, to hold later runs against it."""
        self.workspace, self.case = workspace, case
        self.output = workspace.path / case.output
        self.partial = self.output.with_name(f".{self.output.name}.partial")
        self.store = workspace.path / "cache" / "store"
        self.memos = self.store / "index"
        self.parts = [*(["store"] if case.kinds else []), "output", *(["memo"] if case.memo else [])]
        self.wanted = snapshot(self.output)
        self.rows: dict[str, pl.DataFrame] = {}
        self.nursery: Nursery | None = None

    def start(self, before: Callable[[], object] | None = None) -> "subprocess.Popen[str] | Forked":
        """Start the stage, from the nursery where one is set; `before` is called in its process first."""
        if self.nursery is not None and before is None:
            script, folder = f"stages/{self.case.stage}.py", self.workspace.path
            return self.nursery.start(folder, script, self.case.arguments, environment(folder))
        command = [sys.executable, f"stages/{self.case.stage}.py", *self.case.arguments]
        return subprocess.Popen(
            command, cwd=self.workspace.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(self.workspace.path), preexec_fn=before,
        )  # fmt: skip

    def clear(self, stale: bool = False) -> None:
        """Remove all that the stage wrote; with `stale`, an older output stands in its place."""
        for place in (self.output, self.partial, *(self.store / kind for kind in self.case.kinds)):
            shutil.rmtree(place, ignore_errors=True)
        if self.case.memo:
            shutil.rmtree(self.memos, ignore_errors=True)
        if stale:
            for name in (STALE, *self.wanted):
                (self.output / name).parent.mkdir(parents=True, exist_ok=True)
                (self.output / name).write_text("older")

    def begun(self, part: str) -> bool:
        """Whether the stage writes this part of its work, or did: `store`, `output` or `memo`."""
        if part == "store":
            return any(files for kind in self.case.kinds for _, _, files in os.walk(self.store / kind))
        if part == "memo":
            return self.memos.is_dir() and any(os.scandir(self.memos))
        if self.case.stage == "world":  # its folder is made long before its first picture
            return any(files for _, _, files in os.walk(self.partial)) or self.written()
        return self.partial.is_dir() or self.written()

    def written(self) -> bool:
        """Whether the output is there in full, by this run."""
        return self.output.is_dir() and not (self.output / STALE).exists()

    def ended(self) -> bool:
        """Whether nothing is left to write."""
        memo = not self.case.memo or (self.memos.is_dir() and any(self.memos.glob("[0-9a-f]*")))
        return self.written() and memo

    def kept(self) -> dict[str, int]:
        """How many rows of each kind the store's whole files hold."""
        files = {kind: (self.store / kind).glob("*/*.parquet") for kind in self.case.kinds}
        return {kind: sum(pq.read_metadata(file).num_rows for file in found) for kind, found in files.items()}

    def stored(self) -> dict[str, pl.DataFrame]:
        """All rows of each kind, by key; fails for a file that cannot be read."""
        return {kind: _rows(self.store / kind) for kind in self.case.kinds}

    def again(self) -> str:
        """Run the stage plainly, to its end; what it said."""
        return self.workspace.run(self.case.stage, *self.case.arguments)

    def alone(self) -> None:
        """Let the store hold the rows of this stage alone, and remember them: others share its kinds in the chain."""
        self.clear()
        self.again()
        self.rows = self.stored()

    def steps(self) -> dict[str, tuple[int, int]]:
        """By kind, how many rows the latest run found and computed."""
        latest = max((self.workspace.path / "cache" / ".runs").glob("*.json"))
        steps = json.loads(latest.read_text(encoding="utf-8"))["steps"]
        return {step["kind"]: (step["found"], step["computed"]) for step in steps}

    def differences(self) -> list[str]:
        """How what is there now differs from what a run without faults leaves; empty where it does not."""
        found = snapshot(self.output)
        lines = [f"{name}: missing" for name in self.wanted.keys() - found.keys()]
        lines += [f"{name}: should not be there" for name in found.keys() - self.wanted.keys()]
        lines += [f"{name}: other bytes" for name in self.wanted if self.wanted[name] != found.get(name, b"")]
        lines += [f"{left}: left over" for left in self.output.parent.glob(".*.partial")]
        for kind, rows in self.stored().items():
            if kind in self.rows and not rows.equals(self.rows[kind]):
                lines.append(f"store: rows of {kind} differ")
        return lines

    def leftovers(self) -> int:
        """How many half-written files lie in the store, under names that nobody reads."""
        return len(list(self.store.rglob(".*.partial"))) if self.store.is_dir() else 0


def right_or_a_line(stand: Stand, fault: str, meanwhile: Callable[[], object] = lambda: None) -> str:
    """Run a stage that meets a fault: `right` for the right bytes, else the one line that it ended with; else fail.

    `meanwhile` is called while it runs.
    """
    process = stand.start()
    meanwhile()
    _, err = process.communicate()
    if process.returncode == 0:
        assert stand.differences() == [], f"{fault}: {stand.differences()}"
        return "right"
    lines = err.splitlines()
    assert process.returncode == 1 and len(lines) == 1 and err.startswith(stand.case.stage), f"{fault}: {err}"
    assert "a bug" not in err and "Traceback" not in err, f"{fault}: {err}"
    return lines[0]


def _rows(kind: Path) -> pl.DataFrame:
    tables = [
        pl.DataFrame(pq.read_table(file, partitioning=None, page_checksum_verification=True))
        for file in sorted(kind.glob("*/*.parquet"))
    ]
    return pl.concat(tables).sort("key") if tables else pl.DataFrame()
