"""The records of `cache/.runs/` to a table: how long each stage took, on which device, and its rows per second.

`other` is the remaining time: starting the interpreter's libraries, and everything else. Not every wanted row is
computed: some are duplicates (`equal`), some are in the store (`stored`).
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from cvsi.commands.layout import Table
from cvsi.core.console import seconds, warn
from cvsi.core.paths import runs_folder

PARTS = ("load", "read", "compute", "write")
ENOUGH_ROWS = 64  # of one step: a batch or more, so that the rows outweigh what precedes the first
ENOUGH_SECONDS, SEVERAL_ROWS = 30.0, 4  # or fewer rows that take long each


class StepRecord(BaseModel):
    """One kind of rows in a run's record: how many were wanted, stored and computed, and how long that took."""

    model_config = ConfigDict(frozen=True)

    kind: str
    recipe: str = ""
    rows: NonNegativeInt = 0
    distinct: NonNegativeInt = 0
    found: NonNegativeInt = 0
    computed: NonNegativeInt = 0
    load_seconds: NonNegativeFloat = 0.0
    seconds: NonNegativeFloat = 0.0

    @property
    def rate(self) -> float | None:
        """Rows computed a second, loading left out; None where none was."""
        return self.computed / max(self.seconds - self.load_seconds, 1e-3) if self.computed else None


class RunRecord(BaseModel):
    """The record of one run of a stage."""

    model_config = ConfigDict(frozen=True)

    stage: str
    arguments: tuple[str, ...]
    began: str
    seconds: NonNegativeFloat
    outcome: str
    times: dict[str, NonNegativeFloat] = {}
    steps: tuple[StepRecord, ...] = ()
    device: str = ""
    hardware: tuple[str, ...] = ()
    python: str = ""
    libraries: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The stage with its arguments."""
        return " ".join([self.stage, *self.arguments])

    @property
    def environment(self) -> str:
        """What it ran on and with, as far as it is recorded."""
        on = " on ".join(text for text in (self.device, ", ".join(self.hardware)) if text)
        versions = [f"{library} {version}" for library, version in self.libraries.items()]
        return ", ".join(text for text in (on, f"Python {self.python}", *versions) if text)

    @property
    def other(self) -> float:
        """The seconds that are in none of the parts."""
        return max(self.seconds - sum(self.times.values()), 0.0)


def records(every: bool) -> list[RunRecord]:
    """The runs on record, oldest first: all of them, or the latest of each stage and arguments that ended well.

    A record that cannot be read is named on standard error and left out.
    """
    every_run = [record for file in sorted(runs_folder().glob("*.json")) if (record := _read(file)) is not None]
    if every:
        return every_run
    latest = {(record.stage, record.arguments): record for record in every_run if record.outcome == "done"}
    return sorted(latest.values(), key=lambda record: record.began)


def of_run(dataset: str, backbone: str) -> list[RunRecord]:
    """The latest record of each stage of a run that ended well, on this machine, oldest first."""
    return [record for record in records(False) if record.arguments in ((dataset,), (dataset, backbone))]


def environment(runs: Sequence[RunRecord]) -> list[str]:
    """A line for each kind of device, processor and versions that runs had, with these runs before it."""
    groups: dict[str, list[str]] = {}
    for record in runs:
        groups.setdefault(record.environment, []).append(f"{record.name} ({seconds(record.seconds)})")
    return [f"{', '.join(dict.fromkeys(names))}: {where}" for where, names in groups.items()]


def tables(runs: Sequence[RunRecord]) -> Iterator[Table]:
    """The time of each run of a stage, by part; and the rows of each kind that these runs needed."""
    took = Table("time per stage").texts("stage", key=True).figures("took", *PARTS, "other").texts("began (UTC)")
    rows = Table("rows per stage").texts("stage", key=True, least=16)
    rows.figures("wanted", "equal", "stored", "computed", "took", "load", "per second")
    for record in runs:
        parts = [_short(record.times.get(part)) for part in PARTS] if record.times else ["-"] * len(PARTS)
        other = _short(record.other) if record.times else "-"
        name = record.name + ("" if record.outcome == "done" else " (did not end well)")
        took.add_row(name, seconds(record.seconds), *parts, other, record.began[:19].replace("T", " "))
        if record.steps:
            rows.add_heading(name)
        for step in record.steps:
            rate = "" if step.rate is None else f"{step.rate:,.1f}"
            numbers = (f"{number:,}" for number in (step.rows, step.rows - step.distinct, step.found, step.computed))
            rows.add_row(f"  {step.kind}", *numbers, _short(step.seconds), _short(step.load_seconds), rate)
    yield took
    if rows.rows:
        yield rows


def _short(value: float | None) -> str:
    return "" if not value else seconds(value)


def _read(file: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        warn(f"{file}: not a readable record ({error.errors()[0]['msg']}); left out")
        return None


class Measured(NamedTuple):
    """Rows that one step computed, and the seconds that took, loading left out."""

    rows: int
    seconds: float

    def enough_for(self, todo: int) -> bool:
        """Whether the time of `todo` rows follows from it: a few rows take as long as starting to compute does."""
        long = self.seconds >= ENOUGH_SECONDS and self.rows >= SEVERAL_ROWS
        return long or self.rows >= min(todo, ENOUGH_ROWS)


@cache
def rates() -> dict[tuple[str, str], tuple[Measured, ...]]:
    """What this folder's records measured, by kind and recipe, on the devices of the latest record of these alone."""
    found: dict[tuple[str, str], tuple[Any, list[Measured]]] = {}
    for file in sorted(runs_folder().glob("*.json"), reverse=True):
        try:
            record = RunRecord.model_validate_json(file.read_bytes())
        except (ValidationError, OSError):
            continue  # the incomplete record of a killed run measured nothing
        for step in record.steps:
            if step.computed and step.recipe:
                on = record.device, record.hardware
                latest, measured = found.setdefault((step.kind, step.recipe), (on, []))
                if on == latest:
                    measured.append(Measured(step.computed, max(step.seconds - step.load_seconds, 1e-3)))
    return {key: tuple(measured) for key, (_, measured) in found.items()}


def rate_of(kind: str, recipe: str, todo: int) -> float | None:
    """Rows per second of the steps that measured enough to tell the time of `todo` rows; None without such a step."""
    enough = [step for step in rates().get((kind, recipe), ()) if step.enough_for(todo)]
    return sum(step.rows for step in enough) / sum(step.seconds for step in enough) if enough else None
