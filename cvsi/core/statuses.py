"""Statuses of edits and of their answers: their order, which of them are fallbacks, and when there are too many.

A status is one of `STATUSES`, with a reason after a colon where there is one. A query whose status is neither `ok` nor
`repaired` fell back to its captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

STATUSES = ("too long", "refused", "no answer", "cut", "repaired", "ok")  # the worst first
USABLE = ("ok", "repaired")


def kind(status: str) -> str:
    """A status without its reason."""
    return status.partition(":")[0]


def usable(status: str) -> bool:
    """Whether an answer or a query of this status is no fallback."""
    return kind(status) in USABLE


def worst(statuses: Sequence[str]) -> str:
    """The worst of some statuses, with its reason; of equal ones the first."""
    return min(statuses, key=lambda status: STATUSES.index(kind(status)))


def fell_back(column: str = "status") -> pl.Expr:
    """Whether each query of a table of edits fell back."""
    return ~pl.col(column).str.split(":").list.first().is_in(USABLE)


def counts(statuses: pl.Series) -> dict[str, int]:
    """How many rows have each status, without reasons, the best first; statuses without a row are left out."""
    kinds = statuses.str.split(":").list.first().alias("kind")
    numbers = dict(kinds.value_counts(name="n").iter_rows())
    order = [*reversed(STATUSES), *sorted(set(numbers) - set(STATUSES))]
    return {name: numbers[name] for name in order if name in numbers}


@dataclass(frozen=True)
class Fallbacks:
    """How many of a dataset's queries fell back, and the most frequent status among them."""

    number: int
    queries: int
    reason: str = ""
    of_reason: int = 0

    @property
    def share(self) -> float:
        """The share of queries that fell back, from 0 to 1."""
        return self.number / max(self.queries, 1)

    def warning(self, limit: float) -> str:
        """One line where the share is above the limit, else an empty text."""
        if not self.number or self.share <= limit:
            return ""
        return (
            f"{self.number:,} of {self.queries:,} edits ({100 * self.share:.0f}%) fell back to the captions, "
            f"above {100 * limit:g}%; most frequent: {self.reason} ({self.of_reason:,})"
        )


def fallbacks(edits: pl.DataFrame, column: str = "status") -> Fallbacks:
    """The fallbacks of a table of edits by its column of statuses, that of the edits or of the readings."""
    reasons = edits.filter(fell_back(column))[column].value_counts(name="n").sort("n", column, descending=[True, False])
    first = reasons.row(0) if reasons.height else ("", 0)
    return Fallbacks(int(reasons["n"].sum()), edits.height, *first)
