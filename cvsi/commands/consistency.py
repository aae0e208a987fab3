"""What makes figures that stand side by side doubtful, a line each.

Outputs that are older than what they were made from, and recipes that differ in more than what is compared.
"""

from collections.abc import Iterable, Mapping

from cvsi.core import provenance
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.provenance import Recipes

Differences = Mapping[str, Mapping[str, tuple[str, str]]]
DESCRIBING = ("captioner", "editor", "prompts")  # what decides captions and edits
TELLING = ("precision", "code")  # fields that nobody compares on purpose


def older(run: str, found: Recipes) -> list[str]:
    """Where a run's outputs do not belong together, as far as their recipes tell."""
    lines = [
        f"{run}: its {stage} were made by another recipe of {name} than lies there now; dvc repro makes them anew"
        for stage, name in provenance.stale(found)
    ]
    mixed = [field for field, value in provenance.by_part(found)["backbone"].items() if " | " in value]
    if mixed:
        lines.append(f"{run}: its query and gallery vectors differ in {words(mixed)}; dvc repro makes them anew")
    return lines


def differences(first: Recipes, second: Recipes) -> dict[str, dict[str, tuple[str, str]]]:
    """`{part: {field: (first's value, second's value)}}` where two runs differ; "" is a field that one has not."""
    left, right = provenance.by_part(first), provenance.by_part(second)
    found = {}
    for part in provenance.PARTS:
        fields = dict.fromkeys([*left[part], *right[part]])
        pairs = {field: (left[part].get(field, ""), right[part].get(field, "")) for field in fields}
        if changed := {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}:
            found[part] = changed
    return found


def more_than_compared(found: Differences) -> list[str]:
    """A line where two runs differ in several parts, one where in precision or in code; each phi has its backbone."""
    parts = [part for part in found if not (part == "phi" and "backbone" in found)]
    lines = []
    if len(parts) > 1:
        lines.append(f"these runs differ in more than what is compared: {words(parts)}")
    for name in TELLING:
        where = [part for part, fields in found.items() if any(field.split(".")[-1] == name for field in fields)]
        if where:
            said = "code version" if name == "code" else name
            lines.append(f"these runs differ in {said}: {words(where)}")
    return lines


def of_summary(settings: Params, scored: Iterable[str], averaged: Iterable[Iterable[str]]) -> list[str]:
    """What is doubtful about the runs of one table; `averaged` has the names of those that were averaged together."""
    lines: list[str] = []
    recipes: dict[str, Recipes] = {}
    for name in dict.fromkeys(scored):
        run = settings.runs[name]
        try:
            recipes[name] = provenance.recipes(run.dataset, run.backbone)
        except CvsiError as error:
            lines.append(f"{name}: {error}")
    apart = [line for dataset in settings.datasets if (line := _apart(settings, dataset, recipes))]
    lines += apart or [line for name, found in recipes.items() for line in older(name, found)]
    for names in averaged:
        known = [name for name in names if name in recipes]
        parts = {part for name in known[1:] for part in differences(recipes[known[0]], recipes[name])}
        if mixed := [part for part in DESCRIBING if part in parts]:
            lines.append(f"the average of {words(known)} is over runs that differ in {words(mixed)}")
    return lines


def _apart(settings: Params, dataset: str, recipes: Mapping[str, Recipes]) -> str | None:
    """A line where runs of one dataset were made from different captions or edits."""
    mine = {
        name: found["query_vectors"]["from"]
        for name, found in recipes.items()
        if settings.runs[name].dataset == dataset and "from" in found["query_vectors"]
    }
    kinds = [kind for kind in ("captions", "edits") if len({made.get(kind) for made in mine.values()}) > 1]
    if not kinds:
        return None
    return f"{words(mine)}: made from different {words(kinds)} of {dataset}; dvc repro makes the older ones anew"


def words(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
