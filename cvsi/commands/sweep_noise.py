"""Values per weighting and query to what a sweep's figures are worth: a noise band, and a choice on half the queries.

The best of many weightings is the best on these queries, partly by chance. The band has the weightings whose paired
bootstrap interval against the best one contains no difference. The halves give an honest figure for the choice: each
query is answered with the weights that the other half's queries chose.
"""

from dataclasses import dataclass

import numpy as np

from cvsi.commands.moved import EPSILON
from cvsi.evaluation.metrics import BLOCK, interval, intervals

FEWEST = 10  # queries of a half; the best of hundreds of weightings on fewer is chance


@dataclass(frozen=True)
class Mean:
    """A mean in percent, or a difference of two, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """Every weighting against the best one, on the queries that count under all weightings.

    `difference`, `low` and `high` [weightings] are the weighting less the best; `within` marks those whose interval
    contains no difference.
    """

    best: int
    queries: int
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    within: np.ndarray


@dataclass(frozen=True)
class Half:
    """The weighting that one half chose, its mean there, and its mean on the other half."""

    queries: int
    chosen: int
    here: float
    other: float


@dataclass(frozen=True)
class Halves:
    """Weights chosen on one half and reported on the other, both ways.

    `honest` is the mean over all queries, each under the weights that the other half chose; `gain` is that less the
    dataset's own weighting, where there is one; `optimistic` is the best weighting's on the queries that chose it.
    """

    first: Half
    second: Half
    honest: Mean
    gain: Mean | None
    optimistic: Mean


def counting(values: np.ndarray) -> np.ndarray:
    """The queries that count under every weighting, [queries] bool, of values [weightings, queries] with NaN."""
    return np.asarray(~np.isnan(values).any(axis=0))


def noise_of(values: np.ndarray, best: int) -> Noise:
    """The noise band of values [weightings, queries] without NaN, at least two queries."""
    number, queries = values.shape
    difference, low, high = np.empty((3, number))
    for start in range(0, number, BLOCK):  # a second table of all values is not in memory
        rows = slice(start, start + BLOCK)
        paired = values[rows] - values[best]
        difference[rows] = paired.mean(axis=1)
        low[rows], high[rows] = intervals(paired)
    within = (low <= EPSILON) & (high >= -EPSILON)
    return Noise(best, queries, difference, low, high, within)


def halves_of(values: np.ndarray, first: np.ndarray, own: int | None, best: int) -> Halves | None:
    """Choices by half of values [weightings, queries] without NaN; None where a half has fewer than `FEWEST` queries.

    Of equal means the first weighting is chosen.
    """
    if min(first.sum(), (~first).sum()) < FEWEST:
        return None
    means = [values[:, half].mean(axis=1).round(9) for half in (first, ~first)]  # rounded, or rounding breaks ties
    chosen = [int(mean.argmax()) for mean in means]
    honest = np.where(first, values[chosen[1]], values[chosen[0]])
    first_half, second_half = (
        Half(int(half.sum()), choice, float(here[choice]), float(other[choice]))
        for half, choice, here, other in zip((first, ~first), chosen, means, reversed(means), strict=True)
    )
    gain = None if own is None else _mean(honest - values[own])
    return Halves(first_half, second_half, _mean(honest), gain, _mean(values[best]))


def _mean(values: np.ndarray) -> Mean:
    return Mean(float(values.mean()), *interval(values))
