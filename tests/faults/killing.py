"""Kills a stage at random instants while it writes, and runs it again after each.

An instant is drawn from the time that a part of the writing took when nothing was killed: the store's files, the
output's folder, the index's memo. What the kill hit is then read from the disk. One that came when all was written, or
when the process had ended, does not count and is tried again.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.faults.fork_server import Nursery
from tests.faults.stage_harness import Stand

POLL = 0.0005
RESULTS = Path(__file__).parent / "results"
PLAIN = 6
TRIES = 10  # a kill; more often too late, and something else is wrong


@dataclass(frozen=True)
class Kill:
    """What a kill hit, how long after the first written byte, and what a plain rerun found and computed then."""

    part: str
    after: float
    stale: bool
    forked: bool
    kept: int
    computed: int
    differences: list[str]


@dataclass
class Tally:
    """All kills of a stage."""

    stage: str
    seed: int
    windows: dict[str, float]
    files: int
    rows: int
    kills: list[Kill] = field(default_factory=list)
    late: int = 0
    leftovers: int = 0

    @property
    def failures(self) -> list[str]:
        """Everything that was not as it should be."""
        return [line for kill in self.kills for line in kill.differences]

    def save(self) -> None:
        """Write the tally where `python -m tests.faults.table` finds it."""
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.stage}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def many(stand: Stand, number: int, seed: int, young: Nursery | None = None) -> Tally:
    """Kill the stage `number` times, and say so on standard error; from the nursery all but each sixth."""
    random = Random(f"{seed} {stand.case.stage}")
    tally = Tally(stand.case.stage, seed, _unharmed(stand), len(stand.wanted), sum(map(len, stand.rows.values())))
    windows = dict(tally.windows)
    while len(tally.kills) < number:
        assert tally.late < TRIES * number, f"{tally.late} kills of {stand.case.stage} came too late"
        part = stand.parts[(len(tally.kills) + tally.late) % len(stand.parts)]
        stale = random.random() < 0.5
        stand.nursery = young if len(tally.kills) % PLAIN else None
        stand.clear(stale)
        hit = _kill(stand, part, random.random() * windows[part])
        if hit is None:
            tally.late += 1
            windows[part] = max(windows[part] * 0.8, POLL)
            sys.stderr.write(f"{tally.stage}: a kill in its {part} came too late, tried again\n")
            continue
        tally.kills.append(_recovered(stand, *hit, stale))
        tally.leftovers += stand.leftovers()
        _say(tally, number)
        if number > 1:
            tally.save()  # after each, so that a run cut short has its figures
    return tally


def _unharmed(stand: Stand) -> dict[str, float]:
    """Run the stage from nothing, without a kill: how many seconds it wrote each part; its rows are the right ones."""
    stand.clear()
    process, seen = stand.start(), dict[str, float]()
    while process.poll() is None:
        now = time.monotonic()
        for part in stand.parts:
            if part not in seen and stand.begun(part):
                seen[part] = now
        if "end" not in seen and stand.ended():
            seen["end"] = now
        time.sleep(POLL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert stand.differences() == []  # a run from nothing gives what the chain's did
    stand.rows = stand.stored()
    moments = [seen.get(part, seen["end"]) for part in (*stand.parts, "end")]
    return {part: max(moments[at + 1] - moments[at], 2 * POLL) for at, part in enumerate(stand.parts)}


def _kill(stand: Stand, part: str, delay: float) -> tuple[str, float] | None:
    """Start the stage, wait until it writes `part`, then `delay` seconds, and kill it.

    The part that it was in and the seconds since its first byte; None where nothing was left to write.
    """
    process, first = stand.start(), 0.0
    while process.poll() is None:
        if not first and stand.begun(stand.parts[0]):
            first = time.monotonic()
        if first and stand.begun(part):
            break
        time.sleep(POLL)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    after = time.monotonic() - first
    process.communicate()
    if process.returncode != -signal.SIGKILL or not first or stand.ended():
        return None
    writing = stand.partial.exists()
    return ("output" if writing else "memo" if stand.written() else "store" if stand.case.kinds else "output"), after


def _recovered(stand: Stand, part: str, after: float, stale: bool) -> Kill:
    """Run the stage again, plainly, and hold what is there then against the right result."""
    kept = stand.kept()
    said = stand.start()
    out, err = said.communicate()
    lines = [] if said.returncode == 0 else [f"exit {said.returncode}: {out} {err}"]
    lines += [f"said: {err.strip()}"] if err.strip() and not lines else []
    lines += stand.differences()
    steps = stand.steps()
    for kind, rows in kept.items():
        found, _ = steps.get(kind, (0, 0))
        if found != rows:
            lines.append(f"{kind}: {rows} rows were stored before the kill, {found} were found again")
    forked = stand.nursery is not None
    return Kill(
        part, round(after, 4), stale, forked, sum(kept.values()), sum(made for _, made in steps.values()), lines
    )


def _say(tally: Tally, number: int) -> None:
    last = tally.kills[-1]
    wrong = f" WRONG: {last.differences}" if last.differences else ""
    sys.stderr.write(
        f"{tally.stage}: kill {len(tally.kills)} of {number}, {last.after:.3f} s after the first byte, "
        f"in its {last.part}; {last.kept} rows kept, {last.computed} computed again{wrong}\n"
    )
    sys.stderr.flush()


def seed() -> int:
    """The seed of this run, from CVSI_FAULTS_SEED or drawn; every message of a failure names it."""
    return int(os.environ.get("CVSI_FAULTS_SEED") or Random().randrange(10**6))
