"""Parts and a step to the weightings of a sweep: a grid of weights that sum to 1, and the named weightings in it."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from cvsi.core.errors import CvsiError
from cvsi.core.params import Fusion
from cvsi.core.schema import GALLERY_PARTS, QUERY_PARTS
from cvsi.evaluation.fusion import needs

PARTS = (*QUERY_PARTS, *GALLERY_PARTS)
MOST = 200_000


def used(parts: Sequence[str], fusion: Fusion) -> list[str]:
    """The query parts of a grid: those asked for and those of the fusion; raises CvsiError for a name that is none."""
    unknown = [part for part in parts if part not in QUERY_PARTS]
    if unknown:
        raise CvsiError(f"--parts: no part '{unknown[0]}'; there are: {', '.join(QUERY_PARTS)}")
    found = [part for part in QUERY_PARTS if part in parts or part in needs(fusion.query)]
    if not found:
        raise CvsiError(
            f"--parts: none to weigh, and the dataset's fusion has none; there are: {', '.join(QUERY_PARTS)}"
        )
    return found


def points(parts: Sequence[str], step: float) -> np.ndarray:
    """All weights of query parts that sum to 1, times image and caption that do: [weightings, PARTS] float64.

    Raises CvsiError for a step that does not divide 1 or gives more than `MOST` weightings.
    """
    steps = round(1 / step) if 1e-6 <= step <= 1 else 0
    if not steps or abs(steps * step - 1) > 1e-9:
        raise CvsiError(f"--step {step:g}: a step must divide 1, as 0.1, 0.05 and 0.25 do")
    number = math.comb(steps + len(parts) - 1, len(parts) - 1) * (steps + 1)
    if number > MOST:
        raise CvsiError(
            f"--step {step:g}: {number:,} weightings of {len(parts)} query parts, more than {MOST:,}; "
            "take a larger step or fewer --parts"
        )
    # A composition of `steps` into parts is where the bars stand among stars.
    bars = np.array(list(combinations(range(steps + len(parts) - 1), len(parts) - 1)), dtype=np.int64)
    ends = np.full((len(bars), 1), steps + len(parts) - 1)
    left = np.diff(np.concatenate([np.full_like(ends, -1), bars, ends], axis=1), axis=1) - 1
    image = np.arange(steps + 1)
    table = np.zeros((len(left), steps + 1, len(PARTS)))
    table[:, :, [PARTS.index(part) for part in parts]] = left[:, None]
    table[:, :, PARTS.index("image")], table[:, :, PARTS.index("caption")] = image, steps - image
    return table.reshape(-1, len(PARTS)) / steps


def with_named(table: np.ndarray, named: dict[str, Fusion]) -> tuple[list[str], np.ndarray]:
    """A grid with names where it holds a named weighting, and the others at its end; equal ones share a row."""
    rows = {tuple(row): "" for row in table.tolist()}
    for name, fusion in named.items():
        key = weights_of(fusion)
        rows[key] = f"{rows[key]}, {name}" if rows.get(key) else name
    return list(rows.values()), np.array(list(rows))


def weights_of(fusion: Fusion) -> tuple[float, ...]:
    """A weighting's numbers in the order of `PARTS`."""
    numbers = fusion.query.model_dump() | fusion.gallery.model_dump()
    return tuple(float(numbers[part]) for part in PARTS)
