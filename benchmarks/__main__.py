"""Runs the benchmarks one after the other, each as a process of its own, and sums them up in `results/summary.md`.

`python -m benchmarks scores edits` runs some of them, and so does
`--only scores,edits`. A target that is missed is printed and is no error.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from benchmarks import measure, worlds
from cvsi.core.console import seconds
from cvsi.core.errors import CvsiError

NAMES = ("scores", "methods", "captions", "edits", "gallery_vectors", "repro", "explorer")
SUMMARY = measure.RESULTS / "summary.md"


def chosen(only: str) -> list[str]:
    """The benchmarks to run, in their own order; raises CvsiError for a name that is none."""
    names = [name.strip() for name in only.split(",")] if only else list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise CvsiError(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    return [name for name in NAMES if name in names]


def run(name: str) -> bool:
    """Run one benchmark, its output passed on; whether it came to its end."""
    began = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=worlds.ROOT).returncode
    took = seconds(time.perf_counter() - began)
    measure.say(f"{name}: took {took}" if code == 0 else f"{name}: FAILED after {took}, exit {code}", "")
    return code == 0


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """What the benchmarks published as a Markdown table: a row per variant, and a row per target."""
    lines = [
        "| benchmark | case | variant | median s | peak MB | reached | wanted | |",
        "|---|---|---|--:|--:|--:|---|---|",
    ]
    for record in records:
        for case in record["cases"]:
            for cells in _rows(case):
                lines.append(f"| {record['benchmark']} | {case['case']} | {' | '.join(cells)} |")
    machines = dict.fromkeys(_machine(record["machine"]) for record in records)
    return "\n".join([*lines, "", *(f"Measured on {machine}." for machine in machines), ""])


def _rows(case: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, found in case["variants"].items():
        peak = "" if found["peak_mb"] is None else f"{found['peak_mb']:,}"
        yield name, f"{found['median_seconds']:.3f}", peak, "", "", ""
    for target in case["targets"]:
        met = "met" if target["met"] else "**not met**"
        yield target["what"], "", "", f"{target['figure']:,.2f}{target['unit']}", target["target"], met


def _machine(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB of memory, Python {facts['python']}, "
        f"{versions}"
    )


def missed(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each target that was not met."""
    return [
        f"not met: {record['benchmark']}, {case['case']}: {target['what']} is {target['figure']:,.2f}{target['unit']}, "
        f"wanted {target['target']}"
        for record in records
        for case in record["cases"]
        for target in case["targets"]
        if not target["met"]
    ]


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Benchmarks to run: {', '.join(NAMES)}.")] = None,
    only: Annotated[str, typer.Option(help="The same, separated by commas.")] = "",
) -> None:
    """Run the benchmarks, print their tables, and write results/summary.md."""
    failed = [name for name in chosen(",".join([*(names or []), *filter(None, [only])])) if not run(name)]
    records = [measure.read(name) for name in NAMES if (measure.RESULTS / f"{name}.json").exists()]
    measure.RESULTS.mkdir(exist_ok=True)
    SUMMARY.write_text(summary(records), encoding="utf-8")
    measure.say(*missed(records) or ["every target is met"], f"summary: {SUMMARY.relative_to(worlds.ROOT)}")
    if failed:
        raise CvsiError(f"{', '.join(failed)} did not come to the end; see above")


if __name__ == "__main__":
    measure.run(main)
