"""Every method on the labelled splits, from the same vectors: values per query, metrics, bars, values by aspect.

The dataset's own fusion was evaluated by the stage scores, and so was every method with the same weights: their values
are those of that stage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from cvsi.core import tables
from cvsi.core.console import info
from cvsi.core.devices import device
from cvsi.core.params import Params
from cvsi.core.run_log import timed
from cvsi.core.schema import GALLERY_PARTS, PHI_PARTS, QUERY_PARTS
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation import methods, paired, vectors
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.paired import Difference
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import Ranking, rank_together
from cvsi.evaluation.scores import Evaluation, evaluate, metrics_of
from cvsi.evaluation.vectors import RunVectors

Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Compared:
    """The methods of a table: their evaluations in its order, and the first images of every query for each.

    Methods with the fusion of another one share its ranking. `rankings` is empty where no first images were wanted.
    """

    evaluations: dict[str, Evaluation]
    rankings: dict[str, Ranking]


def evaluate_all(
    name: str, backbone: str, params: Params, protocol: Protocol, table: QueryTable, gallery: Gallery,
    own: pl.DataFrame, k: int = 0,
) -> Compared:  # fmt: skip
    """The evaluations of all methods that the vectors allow, the dataset's own fusion with the values `own` first.

    A method that needs a missing column is left out with a message. With `k`, also the first k images of every query,
    in the same pass over the gallery.
    """
    first = methods.own_name(params, name)
    evaluations = {first: Evaluation(own, metrics_of(protocol, table, own))}
    if not table.labelled and not (k and table.frame.height):
        return Compared(evaluations, {})
    inputs, fusions = vectors.read(table.frame, gallery, backbone), methods.table(params, name)
    ranked, same = dict[str, Fusion](), [first]
    for method, fusion in fusions.items():
        if fusion == fusions[first]:
            same.append(method)
        elif missing := inputs.missing(fusion):
            info(f"method {method} left out: {next(iter(missing.values()))}")
        else:
            ranked[method] = fusion
    if k:
        ranked = {first: fusions[first]} | ranked
    rankings = _rank(inputs, ranked, table, k, params) if ranked else {}
    for method, ranking in rankings.items():
        if method != first:
            evaluations[method] = evaluate(protocol, table, ranking.target_ranks, ranking.group_scores)
    evaluations |= {method: evaluations[first] for method in same}
    if k:
        rankings |= {method: rankings[first] for method in same}
    order = [method for method in fusions if method in evaluations]
    return Compared(
        {method: evaluations[method] for method in order}, {method: rankings[method] for method in order if k}
    )


def _rank(
    inputs: RunVectors, fusions: Mapping[str, Fusion], table: QueryTable, k: int, params: Params
) -> dict[str, Ranking]:
    together = inputs.fused_together(list(fusions.values()))
    with timed("compute"):
        rankings = rank_together(
            together.linear, together.scored, together.gallery, table.named, k, device(params.compute)
        )
    return dict(zip(fusions, rankings, strict=True))


def left_out(name: str, backbone: str, params: Params, evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """The methods of a labelled dataset that were not evaluated, each with what it needs or the columns it lacks."""
    if not any(outcome.metrics for outcome in evaluations.values()):
        return {}
    of_queries, of_images = (
        tables.schema_of(stage, name, backbone).names for stage in ("query_vectors", "gallery_vectors")
    )
    without_phi, known = params.backbone(backbone).phi is None, methods.methods(params)
    reasons = {}
    for method, fusion in methods.table(params, name).items():
        if method not in evaluations:
            missing = [part for part in fusion.query_columns if part not in of_queries]
            missing += [part for part in fusion.gallery_columns if part not in of_images]
            of_others = set(missing) - {*QUERY_PARTS, *GALLERY_PARTS}  # roles, say
            if of_others and method in known and known[method].about.needs:
                reasons[method] = f"needs {known[method].about.needs}"
                continue
            reason = "; the backbone has no phi" if without_phi and set(missing) & set(PHI_PARTS) else ""
            reasons[method] = f"no column {', '.join(dict.fromkeys(missing))}{reason}"
    return reasons


def metrics_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """`{split: {method: {metric: percent}}}`."""
    splits = next(iter(evaluations.values())).metrics
    return {split: {name: outcome.metrics[split] for name, outcome in evaluations.items()} for split in splits}


def values_table(evaluations: Mapping[str, Evaluation]) -> pl.DataFrame:
    """The values per query of all methods, with their names in the first column."""
    return pl.concat(
        outcome.per_query.select(pl.lit(name).alias("method"), pl.all()) for name, outcome in evaluations.items()
    )


def axis(rows: Mapping[str, Mapping[str, float]], metric: str) -> list[float]:
    """The marks of an axis from 0 to just above the widest interval: at most six, at 1, 2 or 5 times a power of ten."""
    widest = max(max(values[f"{metric} high"] for values in rows.values()), 1.0)
    power = 10.0 ** np.floor(np.log10(widest))
    step = next(step for step in (power / 10, power / 5, power / 2, power, 2 * power) if widest <= 5 * step)
    return [float(step * number) for number in range(int(np.ceil(widest / step - 1e-9)) + 1)]


def bars(rows: Mapping[str, Mapping[str, float]], metric: str) -> list[dict[str, Any]]:
    """One bar per method in percent of the axis: value, and low and high of the interval."""
    scale = 100 / axis(rows, metric)[-1]
    return [
        {
            "name": name,
            "value": values[metric],
            "width": values[metric] * scale,
            "low": values[f"{metric} low"] * scale,
            "high": values[f"{metric} high"] * scale,
        }
        for name, values in rows.items()
    ]


def differences(evaluations: Mapping[str, Evaluation], own: str, main: str) -> dict[str, dict[str, Difference]]:
    """By labelled split, each method less the own one over the same queries, by the method's name."""
    values = values_table(evaluations).rename({main: "value"})
    return {
        split: {
            row.method: row for row in paired.differences(values.filter(split=split), evaluations, own)
        }
        for split in next(iter(evaluations.values())).metrics
    }  # fmt: skip


def sentences(params: Params, name: str, shown: Iterable[str]) -> dict[str, str]:
    """What each method does, as `methods.yaml` or params.yaml says it, else its weights."""
    known, fusions = methods.methods(params), methods.table(params, name)
    about = {method: known[method].about.about if method in known else "" for method in shown}
    return {method: text or fusions[method].describe() for method, text in about.items()}


def by_aspect(rows: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, list[float]]:
    """`{aspect: [percent of each method]}`."""
    names = [name.removeprefix(f"{metric}/") for name in next(iter(rows.values())) if name.startswith(f"{metric}/")]
    return {aspect: [values[f"{metric}/{aspect}"] for values in rows.values()] for aspect in names}
