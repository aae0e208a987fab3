"""The score form `gate`: an edited text's cosine, raised by a proxy's where the edit fits better than the source.

AdaST's score (`docs/methods.md` names its source).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor

from pydantic import FiniteFloat

from cvsi.evaluation.scorers import Scorer, Tile


class Gate(Scorer):
    """`e + e G p`, where `G` is `scale` if `e - s + margin >= 0`, else 0."""

    forms: ClassVar[tuple[str, ...]] = ("edited", "source", "proxy")

    scale: FiniteFloat
    margin: FiniteFloat

    def combine(self, tiles: Mapping[str, Tile]) -> "Tensor":
        """From the cosines of the edited text, of the source captions and of the proxy."""
        edited, source, proxy = (tiles[name].products for name in self.forms)
        passes = (edited - source).add_(self.margin).ge_(0)  # 1 or 0
        return passes.mul_(proxy).mul_(self.scale).add_(1).mul_(edited)
