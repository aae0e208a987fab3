"""Ranked ids to numbers in percent: pure functions, one value a query, then means and an interval.

Hits are boolean matrices [queries, ranks]: whether the image at a rank is a right answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

BOOTSTRAP_DRAWS = 1000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Protocol:
    """What a format's benchmark reports: cut-offs of each metric, and the metric that aspects and the interval use."""

    main: str
    average_precision: tuple[int, ...] = ()
    recall: tuple[int, ...] = ()
    subset_recall: tuple[int, ...] = ()

    def names(self) -> list[str]:
        """Every metric by name, in the order they are computed and read."""
        kinds = (("mAP", self.average_precision), ("Recall", self.recall), ("Recall_subset", self.subset_recall))
        return [f"{kind}@{k}" for kind, ks in kinds for k in ks]

    def cut_offs(self) -> list[str]:
        """The main metric's other cut-offs, and its kind within a query's group."""
        family = self.main.partition("@")[0]
        kinds = (family, f"{family}_subset")
        return [name for name in self.names() if name.partition("@")[0] in kinds and name != self.main]


PROTOCOLS: Mapping[str, Protocol] = {
    "circo": Protocol("mAP@10", average_precision=(5, 10, 25, 50), recall=(5, 10, 25, 50)),
    "cirr": Protocol("Recall@5", recall=(1, 5, 10, 50), subset_recall=(1, 2, 3)),
    "fashioniq": Protocol("Recall@10", recall=(1, 5, 10, 50)),
    "folder": Protocol("mAP@10", average_precision=(5, 10), recall=(1, 5, 10, 50)),
}


def average_precision(hits: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """AP@k of each query: the sum of the precision at each hit within k, over min(number of targets, k).

    Hits [q, >= k] bool and numbers of targets [q] to [q] float64 in 0..1 (CIRCO, arXiv 2303.15247).
    """
    first = hits[:, :k].astype(np.float64)
    precision = first.cumsum(axis=1) / np.arange(1, first.shape[1] + 1)
    return np.asarray((precision * first).sum(axis=1) / np.minimum(targets, k))


def recall(main_hits: np.ndarray, k: int) -> np.ndarray:
    """Whether the main target of each query is within k, [q] float64 of 0 and 1."""
    return np.asarray(main_hits[:, :k].any(axis=1), dtype=np.float64)


def per_query(
    protocol: Protocol, hits: np.ndarray, main: np.ndarray, targets: np.ndarray, subset: np.ndarray
) -> dict[str, np.ndarray]:
    """Every metric of a protocol for every query, in percent.

    `hits` and `main` are [q, ranks] bool for all targets and for the first; `subset` is the first target's rank from 1
    among the query's group (0 where there is none).
    """
    values = {f"mAP@{k}": average_precision(hits, targets, k) for k in protocol.average_precision}
    values |= {f"Recall@{k}": recall(main, k) for k in protocol.recall}
    values |= {f"Recall_subset@{k}": ((subset > 0) & (subset <= k)).astype(np.float64) for k in protocol.subset_recall}
    return {name: 100 * value for name, value in values.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean over queries: percentiles of the means of seeded resamples."""
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(protocol: Protocol, values: Mapping[str, np.ndarray], aspects: pl.Series) -> dict[str, float]:
    """Means of all metrics, the main one's interval, and the main one by aspect, in the order they are read."""
    found = {name: float(value.mean()) for name, value in values.items()}
    main = values[protocol.main]
    low, high = interval(main)
    found |= {f"{protocol.main} low": low, f"{protocol.main} high": high}
    by_aspect = pl.DataFrame({"aspect": aspects, "value": main}).explode("aspect").drop_nulls("aspect")
    means = by_aspect.group_by("aspect").agg(pl.col("value").mean()).sort("aspect")
    return found | {f"{protocol.main}/{aspect}": value for aspect, value in means.iter_rows()}
