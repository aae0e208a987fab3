"""Kills a stage at random instants while it writes, and runs it again after each kill.

An instant is drawn from the time that a part of the writing took in a run without a kill: the store's files, or the
output's folder. Which part the kill hit is then read from the disk. A kill that came after the last write, or after
the process had ended, does not count and is tried again.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.faults.stage_harness import StageHarness

POLL_SECONDS = 0.0005
RESULTS = Path(__file__).parent / "results"
PLAIN_EVERY = 6  # of so many kills one hits a newly started process, the others a forked one
MAX_LATE = 10  # per kill; a stage that is done before all of these is not being killed at all


@dataclass(frozen=True)
class Kill:
    """What a kill hit, its seconds after the first written byte, and the rows that a plain rerun had and computed."""

    part: str
    after: float
    stale: bool
    forked: bool
    kept: int
    computed: int
    differences: list[str]


@dataclass
class KillCounts:
    """All kills of a stage."""

    stage: str
    seed: int
    windows: dict[str, float]
    files: int
    rows: int
    kills: list[Kill] = field(default_factory=list)
    late: int = 0
    partial_files: int = 0

    @property
    def failures(self) -> list[str]:
        """Every difference from the expected result, of all kills."""
        return [line for kill in self.kills for line in kill.differences]

    def save(self) -> None:
        """Write the counts where `python -m tests.faults.table` reads them."""
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.stage}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def kill_repeatedly(harness: StageHarness, number: int, seed: int, plain_every: int = PLAIN_EVERY) -> KillCounts:
    """Kill the stage `number` times, with progress on standard error; with `plain_every` 0, every run is forked."""
    random, fork_server = Random(f"{seed} {harness.case.stage}"), harness.fork_server
    windows, rows = _run_without_kill(harness), sum(map(len, harness.expected_rows.values()))
    counts = KillCounts(harness.case.stage, seed, dict(windows), len(harness.expected), rows)
    while len(counts.kills) < number:
        assert counts.late < MAX_LATE * (number + 2), f"{counts.late} kills of {harness.case.stage} came too late"
        part = harness.parts[(len(counts.kills) + counts.late) % len(harness.parts)]
        stale = random.random() < 0.5
        plain = plain_every and len(counts.kills) % plain_every == 0
        harness.fork_server = None if plain else fork_server
        harness.clear(stale)
        hit = _kill(harness, part, random.random() * windows[part])
        if hit is None:
            counts.late += 1
            windows[part] = max(windows[part] * 0.8, POLL_SECONDS)
            sys.stderr.write(f"{counts.stage}: a kill in its {part} came too late, tried again\n")
            continue
        counts.kills.append(_recover(harness, *hit, stale))
        counts.partial_files += harness.partial_files()
        _print_last(counts, number)
        if number > 1:
            counts.save()  # after each, so that an interrupted run has its figures
    return counts


def _run_without_kill(harness: StageHarness) -> dict[str, float]:
    """Run the stage from nothing: the seconds that it wrote each part; its rows are expected from now on."""
    harness.clear()
    process, seen = harness.start(), dict[str, float]()
    while process.poll() is None:
        now = time.monotonic()
        for part in harness.parts:
            if part not in seen and harness.has_begun(part):
                seen[part] = now
        if "end" not in seen and harness.is_complete():
            seen["end"] = now
        time.sleep(POLL_SECONDS)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert harness.differences() == []  # a run from nothing gives the same bytes as that in the complete workspace
    harness.expected_rows = harness.stored_rows()
    end = seen.get("end", time.monotonic())
    moments = [seen.get(part, end) for part in (*harness.parts, "end")]
    return {
        part: max(moments[index + 1] - moments[index], 2 * POLL_SECONDS) for index, part in enumerate(harness.parts)
    }


def _kill(harness: StageHarness, part: str, delay: float) -> tuple[str, float] | None:
    """Start the stage, wait until it writes `part`, then `delay` seconds, and kill it.

    Returns the part that it was in and the seconds since its first byte; None where nothing was left to write.
    """
    process, first = harness.start(), 0.0
    while process.poll() is None:
        if not first and harness.has_begun(harness.parts[0]):
            first = time.monotonic()
        if first and harness.has_begun(part):
            break
        time.sleep(POLL_SECONDS)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    after = time.monotonic() - first
    process.communicate()
    if process.returncode != -signal.SIGKILL or not first or harness.is_complete():
        return None
    return "output" if harness.partial.exists() or not harness.case.kinds else "store", after


def _recover(harness: StageHarness, part: str, after: float, stale: bool) -> Kill:
    """Run the stage again, without a fault, and compare what is on disk then with the expected result."""
    kept = harness.stored_counts()
    process = harness.start()
    out, err = process.communicate()
    lines = [] if process.returncode == 0 else [f"exit {process.returncode}: {out} {err}"]
    lines += [f"printed: {err.strip()}"] if err.strip() and not lines else []
    lines += harness.differences()
    steps = harness.last_steps()
    for kind, rows in kept.items():
        stored, _ = steps.get(kind, (0, 0))
        if stored != rows:
            lines.append(f"{kind}: {rows} rows were stored before the kill, {stored} after it")
    forked, computed = harness.fork_server is not None, sum(number for _, number in steps.values())
    return Kill(part, round(after, 4), stale, forked, sum(kept.values()), computed, lines)


def _print_last(counts: KillCounts, number: int) -> None:
    last = counts.kills[-1]
    wrong = f" WRONG: {last.differences}" if last.differences else ""
    sys.stderr.write(
        f"{counts.stage}: kill {len(counts.kills)} of {number}, {last.after:.3f} s after the first byte, "
        f"in its {last.part}; {last.kept} rows kept, {last.computed} computed again{wrong}\n"
    )
    sys.stderr.flush()


def seed() -> int:
    """The seed of this run, from CVSI_FAULTS_SEED or drawn; every message of a failure names it."""
    return int(os.environ.get("CVSI_FAULTS_SEED") or Random().randrange(10**6))
