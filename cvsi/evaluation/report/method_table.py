"""Every method on the labelled splits, from the same vectors: values per query, metrics, bars, values by aspect.

The dataset's own fusion was evaluated by the stage scores, and so was every method with the same weights; nothing is
ranked again for them.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from cvsi.core import tables
from cvsi.core.console import info
from cvsi.core.devices import device
from cvsi.core.params import Params
from cvsi.core.run_log import timed
from cvsi.core.schema import GALLERY_PARTS, PHI_PARTS, QUERY_PARTS
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation import methods, vectors
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import rank_targets
from cvsi.evaluation.scores import Evaluation, evaluate, metrics_of

Table = dict[str, dict[str, dict[str, float]]]


def evaluate_all(
    name: str, backbone: str, params: Params, protocol: Protocol, table: QueryTable, gallery: Gallery, own: pl.DataFrame
) -> dict[str, Evaluation]:
    """The evaluations of all methods that the vectors allow, the dataset's own fusion with the values `own` first.

    A method that needs a missing column is left out with a message.
    """
    first = methods.own_name(params, name)
    evaluations = {first: Evaluation(own, metrics_of(protocol, table, own))}
    if not table.labelled:
        return evaluations
    inputs, fusions = vectors.read(table.frame, gallery, backbone), methods.table(params, name)
    ranked = dict[str, Fusion]()
    for method, fusion in fusions.items():
        if fusion == fusions[first]:
            evaluations[method] = evaluations[first]
        elif missing := inputs.missing(fusion):
            info(f"method {method} left out: {next(iter(missing.values()))}")
        else:
            ranked[method] = fusion
    if ranked:
        together = inputs.fused_together(list(ranked.values()))
        with timed("compute"):
            ranks = rank_targets(
                together.linear, together.scored, together.gallery, table.named, device(params.compute)
            )
            evaluations |= {
                method: evaluate(protocol, table, *of_method) for method, of_method in zip(ranked, ranks, strict=True)
            }
    return {method: evaluations[method] for method in fusions if method in evaluations}


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


def bars(rows: Mapping[str, Mapping[str, float]], metric: str) -> list[dict[str, Any]]:
    """One bar per method in percent of the widest: value, and low and high of the interval."""
    widest = max(max(values[f"{metric} high"] for values in rows.values()), 1e-9)
    scale = 100 / widest
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


def by_aspect(rows: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, list[float]]:
    """`{aspect: [percent of each method]}`."""
    names = [name.removeprefix(f"{metric}/") for name in next(iter(rows.values())) if name.startswith(f"{metric}/")]
    return {aspect: [values[f"{metric}/{aspect}"] for values in rows.values()] for aspect in names}
