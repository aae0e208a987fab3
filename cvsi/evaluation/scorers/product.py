"""The score form `product`: two scores multiplied, so that an image has to fit both, less the square of their sum.

BASIC's core (`docs/methods.md` names its source).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor

from pydantic import FiniteFloat

from cvsi.evaluation.scorers import Scorer, Tile


class Product(Scorer):
    """`l r - harris (l + r)^2`, where each score `s` is first `max((s - low) / |low|, 0)`, unchanged if `low` is 0."""

    forms: ClassVar[tuple[str, ...]] = ("left", "right")

    low: tuple[FiniteFloat, FiniteFloat]
    harris: FiniteFloat

    def combine(self, tiles: Mapping[str, Tile]) -> "Tensor":
        """From the two scores."""
        left, right = (_scaled(tiles[name].products, low) for name, low in zip(self.forms, self.low, strict=True))
        return (left * right).sub_((left + right).square_().mul_(self.harris))


def _scaled(scores: "Tensor", low: float) -> "Tensor":
    return scores if low == 0 else (scores - low).div_(abs(low)).clamp_(min=0)
