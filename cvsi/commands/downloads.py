"""The missing models of `cvsi check` to a table: how much is downloaded, in what time, and where each size was read."""

from collections.abc import Mapping

from cvsi.commands.layout import Table
from cvsi.core.console import count, seconds
from cvsi.models.catalogue import UNKNOWN_TEXT, Entry, gigabytes

MEGABITS = (20, 100, 1000)  # a second, of lines that users have


def table(downloads: Mapping[str, Entry]) -> Table:
    """One row per missing model: its repository, its size, and the source of the size."""
    shown = Table("to download").texts("model", key=True).figures("size").texts("source of the size", least=30)
    for name, entry in downloads.items():
        fact = entry.download
        shown.add_row(name, gigabytes(fact.value if fact else None), fact.source if fact else UNKNOWN_TEXT)
    return shown


def total(downloads: Mapping[str, Entry]) -> str:
    """The sum in one line, with the time that it takes at several speeds."""
    facts = [entry.download for entry in downloads.values()]
    size = sum(fact.value for fact in facts if fact)
    without = facts.count(None)
    if not size:
        return f"in all {count(without, 'model')} of unknown size"
    times = ", ".join(f"{_duration(size * 8 / (speed * 1e6))} at {_speed(speed)}" for speed in MEGABITS)
    unknown = f", and {count(without, 'model')} of unknown size" if without else ""
    return f"in all {gigabytes(size)}{unknown}; {'at least ' if without else ''}{times}"


def _duration(value: float) -> str:
    """A time without seconds where it takes minutes: it is an estimate."""
    if 60 <= value < 3600:
        return f"{round(value / 60)} min"
    return seconds(value)


def _speed(megabits: int) -> str:
    return f"{megabits} Mbit/s" if megabits < 1000 else f"{megabits // 1000} Gbit/s"
