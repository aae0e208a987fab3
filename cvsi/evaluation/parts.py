"""Blocks `parts` of a fusion to derived query columns: closed forms of other columns of the same query.

A part is computed once per query and then has weights like any column. Parts are computed in their order, so a later
one may use an earlier one. Sums are taken in float64 and rounded to float32 at the end.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Self

import pyarrow as pa
from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Name, Settings

if TYPE_CHECKING:  # torch takes seconds to import, and checking params.yaml does not need it
    from torch import Tensor

Weights = dict[Name, FiniteFloat]
Operand = Name | Weights  # a column or an earlier part, or a weighted sum of them
Sum = Callable[[Operand], "Tensor"]
TINY = 1e-30  # below it, a vector counts as zero and remains zero
STRAIGHT = 1e-6  # sine of the angle between equal or opposite directions, at most


class Shift(Settings):
    """`from + a * along`, with the `a` at which the cosine to `toward` is largest; 1 where it has no maximum.

    AdaST's proxy; the formula of `a` is in `docs/methods.md`.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[Operand, Field(alias="from")]
    along: Operand
    toward: Operand

    def compute(self, sum_of: Sum) -> "Tensor":
        """One vector per query, [queries, d] float64."""
        import torch

        x, d, y = sum_of(self.from_), sum_of(self.along), sum_of(self.toward)
        xy, xd, dy, xx, dd = (
            (left * right).sum(dim=1, keepdim=True) for left, right in ((x, y), (x, d), (d, y), (x, x), (d, d))
        )
        denominator = dy * xd - xy * dd
        maximum = denominator < 0
        a = torch.where(maximum, (xy * xd - dy * xx) / denominator.masked_fill(~maximum, 1.0), 1.0)
        return x + a * d


class Slerp(Settings):
    """The point at `at` (0 to 1) on the arc from `from` to `to`, both scaled to unit length.

    Where the two are equal or opposite there is no single arc, and the unit sum is taken, zero for opposite ends.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[Operand, Field(alias="from")]
    to: Operand
    at: Annotated[float, Field(ge=0, le=1)]

    def compute(self, sum_of: Sum) -> "Tensor":
        """One vector per query, [queries, d] float64."""
        import torch

        start, end = _unit(sum_of(self.from_)), _unit(sum_of(self.to))
        angle = torch.arccos((start * end).sum(dim=1, keepdim=True).clamp(-1, 1))
        sine = torch.sin(angle)
        straight = sine < STRAIGHT
        arc = torch.sin((1 - self.at) * angle) * start + torch.sin(self.at * angle) * end
        total = start + end
        opposite = total.norm(dim=1, keepdim=True) < STRAIGHT  # what remains of such a sum is rounding
        return torch.where(straight, _unit(total.masked_fill(opposite, 0)), arc / sine.masked_fill(straight, 1.0))


class Part(Settings):
    """One derived column: exactly one of `unit`, `mean`, `shift` and `slerp`.

    `unit` is a weighted sum scaled to unit length. `mean` is a weighted mean over the columns that are not zero for the
    query: where a query has no text for a role, the others take its weight.
    """

    unit: Weights | None = None
    mean: Weights | None = None
    shift: Shift | None = None
    slerp: Slerp | None = None

    @model_validator(mode="after")
    def one_kind(self) -> Self:
        """Refuse none and several."""
        kinds = [name for name in Part.model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"must have exactly one of {', '.join(Part.model_fields)} (got {', '.join(kinds) or 'none'})"
            )
        if (self.unit == {}) or (self.mean == {}):
            raise ValueError(f"{kinds[0]} needs at least one weight")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns and earlier parts that it uses, each once."""
        operands: list[Operand] = [weights for weights in (self.unit, self.mean) if weights is not None]
        if self.shift is not None:
            operands = [self.shift.from_, self.shift.along, self.shift.toward]
        if self.slerp is not None:
            operands = [self.slerp.from_, self.slerp.to]
        names = [name for operand in operands for name in ([operand] if isinstance(operand, str) else operand)]
        return tuple(dict.fromkeys(names))

    def compute(self, sum_of: Sum) -> "Tensor":
        """One vector per query, [queries, d] float64."""
        if self.unit is not None:
            return _unit(sum_of(self.unit))
        if self.mean is not None:
            return _mean(self.mean, sum_of)
        part = self.shift or self.slerp
        assert part is not None  # one_kind
        return part.compute(sum_of)

    def describe(self) -> str:
        """The part in words: `unit(0.85 target + 0.15 reference)`."""
        if self.shift is not None:
            words = {"from": self.shift.from_, "along": self.shift.along, "toward": self.shift.toward}
        elif self.slerp is not None:
            words = {"from": self.slerp.from_, "to": self.slerp.to}
        else:
            return f"unit({described(self.unit)})" if self.unit is not None else f"mean({described(self.mean or {})})"
        ends = ", ".join(f"{key} {described(operand)}" for key, operand in words.items())
        return f"shift({ends})" if self.slerp is None else f"slerp({ends}, at {self.slerp.at:g})"


def described(operand: Operand) -> str:
    """A column, or a weighted sum in words: `0.85 target + 0.15 reference`."""
    if isinstance(operand, str):
        return operand
    return " + ".join(f"{weight:g} {name}" for name, weight in operand.items())


def with_parts(table: pa.Table, parts: Mapping[str, Part], where: str) -> pa.Table:
    """A table of query vectors with one more column per part; raises CvsiError for a column that is missing."""
    import torch

    from cvsi.core.vector_columns import column, numbers_of

    for name, part in parts.items():
        columns: dict[str, Tensor] = {}

        def vectors(name: str, columns: "dict[str, Tensor]" = columns, table: pa.Table = table) -> "Tensor":
            if name not in columns:
                columns[name] = numbers_of(table, name, where).to(torch.float64)
            return columns[name]

        def sum_of(operand: Operand, vectors: "Callable[[str], Tensor]" = vectors) -> "Tensor":
            if isinstance(operand, str):
                return vectors(operand)
            names = sorted(operand)  # the order in a file must not decide the last bit
            return torch.stack([operand[name] * vectors(name) for name in names]).sum(dim=0)

        derived = part.compute(sum_of).to(torch.float32).numpy()
        table = table.append_column(name, column(derived))
    return table


def check_parts(parts: Mapping[str, Part], where: str) -> None:
    """Raise CvsiError for a part that uses itself or a later part."""
    names = list(parts)
    for number, (name, part) in enumerate(parts.items()):
        for used in part.inputs:
            if used in names[number:]:
                raise CvsiError(
                    f"{PATH}: {where}.parts.{name}: uses '{used}', which is computed later; parts are computed in order"
                )


def _unit(vectors: "Tensor") -> "Tensor":
    import torch

    return torch.nn.functional.normalize(vectors, dim=1, eps=TINY)  # a zero vector remains zero


def _mean(weights: Weights, sum_of: Sum) -> "Tensor":
    """The weighted mean over the vectors that are not zero."""
    import torch

    total = present = None
    for name in sorted(weights):
        vectors = sum_of(name)
        share = weights[name] * vectors.any(dim=1, keepdim=True).to(vectors.dtype)
        total = weights[name] * vectors if total is None else total + weights[name] * vectors
        present = share if present is None else present + share
    assert total is not None and present is not None  # one_kind
    return torch.where(present == 0, total, total / present.masked_fill(present == 0, 1.0))
