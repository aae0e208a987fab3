"""The score form `soft`: a base score mixed with a reward for desired texts and a penalty for forbidden ones.

SoFT's score (`docs/methods.md` names its source).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor

from pydantic import FiniteFloat

from cvsi.evaluation.scorers import Scorer, Tile


class Soft(Scorer):
    """`(1 - scale) b + scale b (r + 1 - p) / 2`; without desired texts r is 1, without forbidden ones p is 0."""

    forms: ClassVar[tuple[str, ...]] = ("base", "desired", "forbidden")

    scale: FiniteFloat

    def combine(self, tiles: Mapping[str, Tile]) -> "Tensor":
        """From the base score and the cosines of the desired and of the forbidden texts."""
        reward = tiles["desired"].products.masked_fill(tiles["desired"].empty, 1)
        penalty = tiles["forbidden"].products.masked_fill(tiles["forbidden"].empty, 0)
        factor = reward.add_(1).sub_(penalty).mul_(self.scale / 2).add_(1 - self.scale)
        return factor.mul_(tiles["base"].products)
