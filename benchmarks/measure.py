"""Variants of the same work to seconds, peak memory and ratios: measured in turn, printed as a table, kept as JSON.

Machines drift, so variants take turns and a ratio is the median of the ratios of each turn. Every figure comes from the
run that prints it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cvsi.core.errors import CvsiError

REPEATS = 5
RESULTS = Path(__file__).resolve().parent / "results"
MB = 1 << 20
OURS, PLAIN, FLOOR = "this project", "plain loop", "floor"

Work = Callable[[], float | None]


@dataclass
class Case:
    """One piece of work done by several variants: their seconds, turn by turn, and their peak memory where measured.

    `at_least` and `at_most` hold targets for a ratio: `(plain loop, this project)` at least 8, say; `at_most_more`
    targets for a difference: `(this project, floor)` at most 3 seconds more; `at_most_mb` the same for peak memory.
    """

    name: str
    seconds: dict[str, list[float]]
    work: str = ""
    peak: dict[str, int] = field(default_factory=dict)
    at_least: dict[tuple[str, str], float] = field(default_factory=dict)
    at_most: dict[tuple[str, str], float] = field(default_factory=dict)
    at_most_more: dict[tuple[str, str], float] = field(default_factory=dict)
    at_most_mb: dict[tuple[str, str], float] = field(default_factory=dict)
    most_seconds: dict[str, float] = field(default_factory=dict)
    most_mb: dict[str, float] = field(default_factory=dict)

    def ratio(self, above: str, below: str) -> float:
        """The median over the turns of one variant's seconds over another's."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def difference(self, above: str, below: str) -> float:
        """The median over the turns of one variant's seconds less another's."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(one - other for one, other in pairs)

    def record(self) -> dict[str, Any]:
        """The case for JSON."""
        return {
            "case": self.name,
            "work": self.work,
            "variants": {
                name: {
                    "median_seconds": round(statistics.median(values), 4),
                    "seconds": [round(value, 4) for value in values],
                    "peak_mb": round(self.peak[name] / MB) if name in self.peak else None,
                }
                for name, values in self.seconds.items()
            },
            "targets": self._targets(),
        }

    def _targets(self) -> list[dict[str, Any]]:
        """Each target in words and the figure reached: a ratio, or a difference in seconds or in MB of peak memory."""
        listed = [(_of(pair, "/"), self.ratio(*pair), "at least", least, "") for pair, least in self.at_least.items()]
        listed += [(_of(pair, "/"), self.ratio(*pair), "at most", most, "") for pair, most in self.at_most.items()]
        for pair, most in self.at_most_more.items():
            listed.append((_of(pair, "-"), self.difference(*pair), "at most", most, " s"))
        for (above, below), most in self.at_most_mb.items():
            more = (self.peak[above] - self.peak[below]) / MB
            listed.append((_of((above, below), "-"), more, "at most", most, " MB"))
        for name, most in self.most_seconds.items():
            listed.append((name, statistics.median(self.seconds[name]), "at most", most, " s"))
        for name, most in self.most_mb.items():
            listed.append((name, self.peak[name] / MB, "at most", most, " MB"))
        return [
            {
                "what": what,
                "figure": round(figure, 3),
                "unit": unit,
                "target": f"{words} {bound:g}{unit}",
                "met": figure >= bound if words == "at least" else figure <= bound,
            }
            for what, figure, words, bound, unit in listed
        ]


def _of(pair: tuple[str, str], sign: str) -> str:
    return f"{pair[0]} {sign} {pair[1]}"


def in_turn(variants: Mapping[str, Work], repeats: int = REPEATS, warm: bool = True) -> dict[str, list[float]]:
    """The seconds of each variant, `repeats` times, one after the other in turn; once before that without counting.

    A variant that returns a number measured itself (without loading, say); else the clock is read around it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + warm):
        for name, work in variants.items():
            began = time.perf_counter()
            own = work()
            took = time.perf_counter() - began if own is None else own
            if turn >= warm:
                seconds[name].append(took)
    return seconds


@dataclass(frozen=True)
class Ended:
    """A process that succeeded: its seconds from start to end, its peak memory, what it printed."""

    seconds: float
    peak: int
    output: str


# A process's peak begins with that of the one it was forked from, so a small one starts it.
_BETWEEN = """
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
facts = {"seconds": time.perf_counter() - began, "peak": usage.ru_maxrss * 1024, "status": status}
open(sys.argv[1], "w").write(json.dumps(facts))
"""


def process(command: Sequence[str], folder: Path, **variables: str) -> Ended:
    """Run a command to its end in a folder; raises RuntimeError with the end of its output when it fails."""
    with tempfile.NamedTemporaryFile() as result:
        output = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _BETWEEN, result.name, *command],
            cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout.decode(errors="backslashreplace")  # fmt: skip
        facts = json.loads(result.read() or b'{"status": -1}')
    if facts["status"]:
        code = os.waitstatus_to_exitcode(facts["status"])
        raise RuntimeError(f"{' '.join(command)}: exit {code}: {output[-2000:]}")
    return Ended(facts["seconds"], facts["peak"], output)


def script(name: str) -> list[str]:
    """The command of a stage's script, to be run from any folder."""
    return [sys.executable, str(RESULTS.parent.parent / "stages" / f"{name}.py")]


def publish(benchmark: str, cases: Sequence[Case], **facts: Any) -> None:
    """Print the cases as a table, and keep them, with facts of the machine, as `results/<benchmark>.json`."""
    record = {"benchmark": benchmark, "machine": machine(), **facts, "cases": [case.record() for case in cases]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{benchmark}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 150).print(table(record))


def read(benchmark: str) -> dict[str, Any]:
    """The record that a benchmark published; raises CvsiError where it has not run yet."""
    path = RESULTS / f"{benchmark}.json"
    if not path.exists():
        raise CvsiError(f"{path}: no such file; run python -m benchmarks.{benchmark} first")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def table(record: Mapping[str, Any]) -> Table:
    """A benchmark's record as a table: a row per variant, ratios with their targets below each case."""
    shown = Table("case", "variant", title=str(record["benchmark"]), box=box.SIMPLE_HEAD)
    for head in ("median s", "lowest", "highest", "peak MB"):
        shown.add_column(head, justify="right")
    for case in record["cases"]:
        for index, (name, facts) in enumerate(case["variants"].items()):
            seconds, peak = facts["seconds"], facts["peak_mb"]
            figures = (f"{value:.3f}" for value in (facts["median_seconds"], min(seconds), max(seconds)))
            shown.add_row("" if index else case["case"], name, *figures, "" if peak is None else f"{peak:,}")
        for target in case["targets"]:
            figure, met = f"{target['figure']:,.2f}{target['unit']}", "met" if target["met"] else "NOT met"
            shown.add_row("", target["what"], figure, "", "", "", style="bold")
            shown.add_row("", f"  target {target['target']}: {met}", "", "", "", "", style="dim")
        shown.add_section()
    return shown


def machine() -> dict[str, Any]:
    """The processor, its cores, memory, and the versions that matter."""
    from cvsi.core.run_log import versions

    model = [line.partition(":")[2].strip() for line in _cpu() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / (1 << 30)),
        "python": platform.python_version(),
        "libraries": versions(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def run(main: Callable[..., None]) -> None:
    """Run a benchmark from the command line; a mistake that people can correct is one line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @wraps(main)
    def guarded(**arguments: Any) -> None:
        try:
            main(**arguments)
        except CvsiError as error:
            sys.exit(f"benchmarks: {error}")

    app.command()(guarded)
    app()


def say(*lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        Console(width=None if sys.stdout.isatty() else 150).print(line, markup=False, highlight=False, soft_wrap=True)
