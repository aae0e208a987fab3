"""Recipes of runs to warnings, one line each: reasons why their metrics may not belong side by side.

Reasons are outputs that are older than their inputs, and recipes that differ in more than what is compared.
"""

from collections.abc import Iterable, Mapping

from cvsi.core import provenance
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.provenance import Recipes

Differences = Mapping[str, Mapping[str, tuple[str, str]]]
DESCRIBING = ("captioner", "editor", "prompts")  # the parts that decide captions and edits
SENSITIVE_FIELDS = ("precision", "code")  # fields that are rarely compared on purpose


def stale_outputs(run: str, recipes: Recipes) -> list[str]:
    """Outputs of a run that do not belong together, as far as their recipes show."""
    lines = [
        f"{run}: its {stage} were made by another recipe of {name} than the current one; run dvc repro"
        for stage, name in provenance.stale(recipes)
    ]
    mixed = [field for field, value in provenance.by_part(recipes)["backbone"].items() if " | " in value]
    if mixed:
        lines.append(f"{run}: its query and gallery vectors differ in {words(mixed)}; run dvc repro")
    return lines


def differences(first: Recipes, second: Recipes) -> dict[str, dict[str, tuple[str, str]]]:
    """`{part: {field: (first's value, second's value)}}` where two runs differ; "" where a run has no such field."""
    left, right = provenance.by_part(first), provenance.by_part(second)
    changed: dict[str, dict[str, tuple[str, str]]] = {}
    for part in provenance.PARTS:
        for field in dict.fromkeys([*left[part], *right[part]]):
            pair = left[part].get(field, ""), right[part].get(field, "")
            if pair[0] != pair[1]:
                changed.setdefault(part, {})[field] = pair
    return changed


def confounded(differences: Differences) -> list[str]:
    """A line where two runs differ in several parts, one where in precision or in code; each phi has its backbone."""
    if not_in_both(differences, "rerank"):  # a ranking and its rerank, which is what is compared
        differences = {part: fields for part, fields in differences.items() if part != "judge"}
    parts = [part for part in differences if not (part == "phi" and "backbone" in differences)]
    lines = []
    if len(parts) > 1:
        lines.append(f"these runs differ in more than what is compared: {words(parts)}")
    for name in SENSITIVE_FIELDS:
        where = [part for part, fields in differences.items() if any(field.split(".")[-1] == name for field in fields)]
        if where:
            noun = "code version" if name == "code" else name
            lines.append(f"these runs differ in {noun}: {words(where)}")
    return lines


def not_in_both(differences: Differences, part: str) -> bool:
    """Whether only one of two runs has a part at all."""
    pairs = list(differences.get(part, {}).values())
    return bool(pairs) and any(not any(values) for values in zip(*pairs, strict=True))


def of_summary(settings: Params, scored: Iterable[str], averaged: Iterable[Iterable[str]]) -> list[str]:
    """The warnings about the runs of one table; `averaged` has the names of runs that were averaged together."""
    lines: list[str] = []
    recipes: dict[str, Recipes] = {}
    for name in dict.fromkeys(scored):
        run = settings.run(name)
        try:
            recipes[name] = provenance.recipes(run.dataset, run.backbone)
        except CvsiError as error:
            lines.append(f"{name}: {error}")
    mixed_inputs = [line for dataset in settings.datasets if (line := _mixed_inputs(settings, dataset, recipes))]
    lines += mixed_inputs or [line for name, mine in recipes.items() for line in stale_outputs(name, mine)]
    for names in averaged:
        known = [name for name in names if name in recipes]
        parts = {part for name in known[1:] for part in differences(recipes[known[0]], recipes[name])}
        if mixed := [part for part in DESCRIBING if part in parts]:
            lines.append(f"the average of {words(known)} is over runs that differ in {words(mixed)}")
    return lines


def words(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _mixed_inputs(settings: Params, dataset: str, recipes: Mapping[str, Recipes]) -> str | None:
    """A line where runs of one dataset were made from different captions or edits."""
    used = {
        name: mine["query_vectors"]["from"]
        for name, mine in recipes.items()
        if settings.run(name).dataset == dataset and "from" in mine["query_vectors"]
    }
    kinds = [kind for kind in ("captions", "edits") if len({made.get(kind) for made in used.values()}) > 1]
    if not kinds:
        return None
    return f"{words(used)}: made from different {words(kinds)} of {dataset}; run dvc repro for the older ones"
