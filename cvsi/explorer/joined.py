"""Names of runs to the views that one page shows: runs with the same queries, so that a row stands for all of them."""

from collections.abc import Sequence

import polars as pl

from cvsi.core import tables
from cvsi.core.console import info, warn
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.explorer.run_view import RunView

KEY = ("split", "query_id")
ASKED = {"reference_id": "another reference", "instruction": "another instruction", "target_ids": "other targets"}


def views(names: Sequence[str], settings: Params) -> dict[str, RunView]:
    """The named runs, or without names the first run of params.yaml that has scores and the others over its queries.

    Raises CvsiError for an unknown run, for a named one that cannot be read or has other queries than the first one,
    and where there is no run to show. A run that was not named and is left out is told of in a line.
    """
    if names:
        return _named(list(dict.fromkeys(names)), settings)
    if not settings.runs:
        raise CvsiError("params.yaml has no run; add one under runs")
    return _all(settings)


def difference(first: RunView, other: RunView) -> str:
    """Why the queries of two runs are not the same; empty where those that both have are, and there are some."""
    left, right = (run.frame.select(*KEY, *ASKED) for run in (first, other))
    both = left.join(right, on=KEY, suffix=" other")
    if not both.height and (left.height or right.height or first.dataset != other.dataset):
        return "they have no query in common"
    for column, what in ASKED.items():
        changed = both.filter(pl.col(column) != pl.col(f"{column} other"))
        if changed.height:
            split, query = changed.select(KEY).row(0)
            return f"query {query} of split {split} has {what}"
    return ""


def _named(names: Sequence[str], settings: Params) -> dict[str, RunView]:
    for name in names:
        settings.run(name)
    found = {name: RunView(name, settings) for name in names}
    first, *others = found.values()
    for other in others:
        if why := difference(first, other):
            raise CvsiError(
                f"{first.name} and {other.name} are not joined: {why}; start cvsi explore once for each of them"
            )
    return found


def _all(settings: Params) -> dict[str, RunView]:
    scored = [name for name, run in settings.runs.items() if tables.exists("scores", run.dataset, run.backbone)]
    found: dict[str, RunView] = {}
    unreadable: list[CvsiError] = []
    for name in scored:
        try:
            view = RunView(name, settings)
        except CvsiError as error:
            unreadable.append(error)
            continue
        first = next(iter(found.values()), view)
        if first is not view and (why := difference(first, view)):
            info(f"{name} is not shown beside {first.name}: {why}; see it with cvsi explore {name}")
        else:
            found[name] = view
    if not found and unreadable:
        raise unreadable[0]
    if not found:
        raise CvsiError(f"no run of params.yaml has scores ({', '.join(settings.runs)}); run dvc repro first")
    for reason in unreadable:
        warn(f"left out: {reason}")
    return found
