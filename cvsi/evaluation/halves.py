"""Query ids to two halves of the queries, so that numbers chosen on one half are reported on the other."""

from collections.abc import Sequence

import numpy as np

SEED = 0  # of the split in halves


def in_first_half(query_ids: Sequence[str]) -> np.ndarray:
    """Which queries are in the first half, [queries] bool: by their ids and a seed, whatever their order."""
    order = np.argsort(np.array(query_ids, dtype=np.str_), kind="stable")
    shuffled = np.random.default_rng(SEED).permutation(len(order))
    first = np.zeros(len(order), dtype=bool)
    first[order[shuffled[: (len(order) + 1) // 2]]] = True
    return first
