"""The score form `slope`: a score after an edit, changed by how far it is above or below the score before.

SEIZE's score (`docs/methods.md` names its source).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor

from pydantic import FiniteFloat

from cvsi.evaluation.scorers import Scorer, Tile


class Slope(Scorer):
    """`a + neg min(a - b, 0) + pos max(a - b, 0)`."""

    forms: ClassVar[tuple[str, ...]] = ("after", "before")

    neg: FiniteFloat
    pos: FiniteFloat

    def combine(self, tiles: Mapping[str, Tile]) -> "Tensor":
        """From the scores after and before the edit."""
        after, before = (tiles[name].products for name in self.forms)
        change = after - before
        return change.clamp(max=0).mul_(self.neg).add_(change.clamp_(min=0).mul_(self.pos)).add_(after)
