"""A block `fusion` of params.yaml to a typed fusion; `vectors` fuses the components by its weights.

A fusion consists of linear forms (weights of query columns and gallery columns, whose weighted sums are multiplied) and
the score form that combines them. The columns are those of the vector tables; no name of one is known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import FiniteFloat, field_validator

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Name, Settings, checked
from cvsi.core.schema import GALLERY_PARTS, QUERY_PARTS
from cvsi.evaluation.scorers import Scorer, scorer_of

Weights = dict[Name, FiniteFloat]
SUM = {"kind": "sum"}
# The order in which columns are added decides the last bit of a sum, so it must not depend on the order in a file.
ORDER = {name: number for number, name in enumerate((*QUERY_PARTS, *GALLERY_PARTS))}


class Form(Settings):
    """A linear score: weights by column of both vector tables, any finite numbers; zeros are left out.

    With `unit`, both fused vectors are scaled to unit length, so that the score is a cosine.
    """

    query: Weights
    gallery: Weights
    unit: bool = False

    @field_validator("query", "gallery")
    @classmethod
    def without_zeros(cls, weights: Weights) -> Weights:
        """Leave zeros out, and put the columns in the order in which they are added."""
        names = sorted(weights, key=lambda name: (ORDER.get(name, len(ORDER)), name))
        return {name: weights[name] for name in names if weights[name] != 0}


class Forms(Settings):
    """The block of a score form that takes several linear scores."""

    forms: dict[Name, Form]


@dataclass(frozen=True)
class Fusion:
    """How the components become scores: linear forms by name, in the order of the score form that combines them."""

    forms: Mapping[str, Form]
    scorer: Scorer

    @property
    def weights(self) -> Form | None:
        """The weights, where the score is a plain product of two weighted sums; None for every other score."""
        (form, *others) = self.forms.values()
        return form if self.scorer.is_product and not others and not form.unit else None

    def recipe(self) -> dict[str, Any]:
        """The resolved forms and numbers, as the provenance has them."""
        forms = {name: form.model_dump(exclude_defaults=True) for name, form in self.forms.items()}
        shown = next(iter(forms.values())) if self.weights else {"forms": forms}
        return shown | {"score": self.scorer.model_dump()}

    def describe(self) -> str:
        """The fusion in words: `0.6 edited + 0.4 pseudo, on 0.8 image + 0.2 caption`."""
        if self.weights:
            return _described(self.weights)
        numbers = ", ".join(f"{name} {value}" for name, value in self.scorer.model_dump().items() if name != "kind")
        forms = "; ".join(f"{name}: {_described(form)}" for name, form in self.forms.items())
        return f"{self.scorer.kind}{f' ({numbers})' if numbers else ''} of {forms}"


def read_fusion(block: Mapping[str, Any], where: str) -> Fusion:
    """The fusion of a block; raises CvsiError with one line for an unknown key, a bad number or an unknown score form.

    A block is `query` and `gallery`, or `forms` and `score`.
    """
    if "parts" in block:
        raise CvsiError(f"{PATH}: {where}.parts: this version computes no derived parts; use columns of the vectors")
    scorer = scorer_of(block.get("score", SUM), f"{where}.score")
    rest = {key: value for key, value in block.items() if key != "score"}
    if "forms" in rest:
        forms: dict[str, Form] = dict(checked(Forms, rest, where).forms)
    elif len(scorer.forms) == 1:
        forms = {scorer.forms[0]: checked(Form, rest, where)}
    else:
        forms = {}
    if set(forms) != set(scorer.forms):
        given = ", ".join(forms) or "none"
        raise CvsiError(
            f"{PATH}: {where}.forms: score form '{scorer.kind}' takes the forms {', '.join(scorer.forms)} (got {given})"
        )
    return Fusion({name: forms[name] for name in scorer.forms}, scorer)


def _described(form: Form) -> str:
    sides = (form.query, form.gallery)
    return ", on ".join(" + ".join(f"{weight:g} {column}" for column, weight in side.items()) for side in sides)
