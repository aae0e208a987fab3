"""The registry of score forms: each file of this package that defines a `Scorer`, and what such a class provides.

A score form computes the score of a query and an image from one or more linear scores (dot products of fused vectors).
To add one, write one file and one line below (or an entry point of another package). A form has a class with its
numbers as typed settings, the names of the linear scores it takes, and a function that combines one tile of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor


from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Settings, checked
from cvsi.core.registry import Registry


@dataclass(frozen=True)
class Tile:
    """A linear score of all queries and some images: `products` [queries, images] float32.

    `empty` [queries, 1] bool marks the queries whose fused vector is zero, so that the query has no text for this form.
    """

    products: "Tensor"
    empty: "Tensor"


class Scorer(Settings, ABC):
    """A score form with its numbers, which are the keys of `score` in params.yaml; one without numbers has none."""

    forms: ClassVar[tuple[str, ...]]
    is_product: ClassVar[bool] = False  # whether the score is the product of the only form, as weights express it

    kind: str

    @abstractmethod
    def combine(self, tiles: Mapping[str, Tile]) -> "Tensor":
        """The scores [queries, images] of one tile, element by element from those of every form.

        The tensors of `tiles` must not be changed, as another method may use them; one of them may be returned. Use
        operations that round once (not `addcmul`, nor `add` with `alpha`): torch computes the ends of an array by other
        instructions, and equal images would not score equally.
        """


SCORERS: Registry[type[Scorer]] = Registry(
    "score form",
    "cvsi.scorers",
    {
        "sum": "cvsi.evaluation.scorers.sum:Sum",
        "gate": "cvsi.evaluation.scorers.gate:Gate",
        "soft": "cvsi.evaluation.scorers.soft:Soft",
        "slope": "cvsi.evaluation.scorers.slope:Slope",
        "product": "cvsi.evaluation.scorers.product:Product",
    },
)


def scorer_of(block: Any, where: str) -> Scorer:
    """The score form of a block `{kind: ..., ...}`; raises CvsiError for an unknown kind, key or bad number."""
    kind = block.get("kind") if isinstance(block, Mapping) else None
    if not isinstance(kind, str):
        names = ", ".join(SCORERS.names())
        raise CvsiError(f"{PATH}: {where}: must be a mapping with the key kind; there are: {names}")
    return checked(SCORERS.get(kind, f"{PATH}: {where}.kind"), block, where)
