"""A block `fusion` of params.yaml to a typed fusion; `vectors` fuses the components by its weights.

A fusion consists of parts (query columns derived from others), linear forms (weights of query columns and gallery
columns, whose weighted sums are multiplied) and the score form that combines them. The columns are those of the vector
tables; no name of one is known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_origin

from pydantic import field_validator

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Name, Settings, checked
from cvsi.core.schema import GALLERY_PARTS, QUERY_PARTS
from cvsi.evaluation.parts import Part, Weights, check_parts, described
from cvsi.evaluation.scorers import SCORERS, Scorer, scorer_of

Path = tuple[str | int, ...]  # the keys of a value in a block
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


class Parts(Settings):
    """The block `parts`."""

    parts: dict[Name, Part]


@dataclass(frozen=True)
class Fusion:
    """How the components become scores.

    `forms` are linear scores by name, in the order of the score form that combines them. `parts` are derived query
    columns by name, in the order in which they are computed.
    """

    forms: Mapping[str, Form]
    scorer: Scorer
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def weights(self) -> Form | None:
        """The weights, where the score is a plain product of two weighted sums; None for every other score."""
        (form, *others) = self.forms.values()
        plain = self.scorer.is_product and not others and not form.unit and not self.parts
        return form if plain else None

    @property
    def query_columns(self) -> tuple[str, ...]:
        """The columns of the query vectors that it uses, by itself or in a part, each once."""
        used = [name for part in self.parts.values() for name in part.inputs]
        used += [name for form in self.forms.values() for name in form.query]
        return tuple(dict.fromkeys(name for name in used if name not in self.parts))

    @property
    def gallery_columns(self) -> tuple[str, ...]:
        """The columns of the gallery vectors that it uses, each once."""
        return tuple(dict.fromkeys(name for form in self.forms.values() for name in form.gallery))

    def recipe(self) -> dict[str, Any]:
        """The resolved parts, forms and numbers, as the provenance has them."""
        forms = {name: form.model_dump(exclude_defaults=True) for name, form in self.forms.items()}
        shown = next(iter(forms.values())) if len(forms) == 1 and self.scorer.is_product else {"forms": forms}
        parts = {name: part.model_dump(by_alias=True, exclude_none=True) for name, part in self.parts.items()}
        return ({"parts": parts} if parts else {}) | shown | {"score": self.scorer.model_dump()}

    def describe(self) -> str:
        """The fusion in words: `0.6 edited + 0.4 pseudo, on 0.8 image + 0.2 caption`."""
        parts = f", with {', '.join(f'{name} = {part.describe()}' for name, part in self.parts.items())}"
        (first, *others) = self.forms.values()
        if self.scorer.is_product and not others:
            return _described(first) + parts * bool(self.parts)
        numbers = ", ".join(f"{name} {value}" for name, value in self.scorer.model_dump().items() if name != "kind")
        forms = "; ".join(f"{name}: {_described(form)}" for name, form in self.forms.items())
        return f"{self.scorer.kind}{f' ({numbers})' if numbers else ''} of {forms}{parts * bool(self.parts)}"


def read_fusion(block: Mapping[str, Any], where: str) -> Fusion:
    """The fusion of a block; raises CvsiError with one line for an unknown key, a bad number or an unknown score form.

    A block is `query` and `gallery`, or `forms` and `score`; either may also have `parts`.
    """
    for path, values in lists_in(block).items():
        raise CvsiError(
            f"{PATH}: {where}.{dotted(path)}: one value, not the list {repr(values)[:60]}; only cvsi sweep takes lists"
        )
    parts = checked(Parts, {"parts": block.get("parts", {})}, where).parts
    check_parts(parts, where)
    scorer = scorer_of(block.get("score", SUM), f"{where}.score")
    rest = {key: value for key, value in block.items() if key not in ("score", "parts")}
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
    for name, form in forms.items():
        if derived := [column for column in form.gallery if column in parts]:
            shown = f"{where}.forms.{name}" if "forms" in rest else where
            raise CvsiError(
                f"{PATH}: {shown}.gallery: '{derived[0]}' is a part of the query; use columns of the gallery vectors"
            )
    return Fusion({name: forms[name] for name in scorer.forms}, scorer, parts)


def lists_in(block: Mapping[str, Any]) -> dict[Path, list[Any]]:
    """The lists of a block that stand where one value belongs, by path; a pair of a score form is no such list."""
    score = block.get("score")
    kind = score.get("kind") if isinstance(score, Mapping) else None
    fields = SCORERS.get(kind, "score").model_fields if isinstance(kind, str) and kind in SCORERS.names() else {}
    pairs = {("score", name) for name, field in fields.items() if get_origin(field.annotation) in (tuple, list)}
    found: dict[Path, list[Any]] = {}

    def walk(value: Any, path: Path) -> None:
        if isinstance(value, list) and path not in pairs:
            found[path] = value
        elif isinstance(value, Mapping | list):
            for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
                walk(inner, (*path, key))

    walk(block, ())
    return found


def dotted(path: Path) -> str:
    """A path as it is written: `score.low.0`."""
    return ".".join(str(key) for key in path)


def _described(form: Form) -> str:
    return f"{described(form.query)}, on {described(form.gallery)}"
