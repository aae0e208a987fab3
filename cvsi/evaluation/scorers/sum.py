"""The score form `sum`: the dot product of one weighted sum per query and one per image."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor


from cvsi.evaluation.scorers import Scorer, Tile


class Sum(Scorer):
    """The plain product, without numbers."""

    forms: ClassVar[tuple[str, ...]] = ("similarity",)
    is_product: ClassVar[bool] = True

    def combine(self, tiles: Mapping[str, Tile]) -> "Tensor":
        """The product itself."""
        return tiles["similarity"].products
