"""A rerank to its page `index.html`: metrics beside the first stage's, verdicts by status, queries before and after.

The page is one of the rerank's own outputs, since a report cannot depend on reranks that its run may not have.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import tables
from cvsi.core.params import Params
from cvsi.core.statuses import counts
from cvsi.datasets.files import changes_recorded
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation.metrics import EPSILON, interval, tally
from cvsi.evaluation.report.templates import template
from cvsi.evaluation.report.thumbnails import pictures

KEY = ["split", "query_id"]
SHOWN = 10  # images of a strip
MOST = 6  # queries that became better, and as many that became worse
# The page changes with the verdicts alone, so it has no setting that changes none of them, such as an address.
OF_JUDGE = ("engine", "model", "revision", "prompt", "answers", "images", "image_size")
Metrics = Mapping[str, Mapping[str, float]]


def render(
    name: str, params: Params, protocol: Protocol, queries: pl.DataFrame, values: tuple[pl.DataFrame, pl.DataFrame],
    metrics: tuple[Metrics, Metrics], ranked: pl.DataFrame, verdicts: pl.DataFrame,
) -> str:  # fmt: skip
    """The page of a rerank as HTML that needs neither server nor network.

    `queries` has the index's queries; `values` the tables `per_query` and `metrics` the metrics, of the first stage and
    of the rerank. `ranked` has the rankings with the new ranks, as `rerank.reordered` gives them.
    """
    entry, run = params.rerank(name), params.rerank(name).run
    with changes_recorded(params):
        strips = _strips(params, run.dataset, protocol.main, queries, values, ranked, verdicts, entry.top)
    failed = verdicts.filter(pl.col("yes").is_null())
    judge = ", ".join(f"{key} {_words(entry.judge[key])}" for key in OF_JUDGE if key in entry.judge)
    return template("rerank.html").render(
        name=name, dataset=run.dataset, backbone=run.backbone, main=protocol.main, shown=SHOWN, top=entry.top,
        facts={"judge": judge, "top": f"{entry.top} images of each query", "mix": f"{entry.mix:g}"},
        statuses=counts(verdicts["status"]), pairs=verdicts.height, failed=failed.height,
        reasons=_reasons(failed["status"]), strips=strips,
        splits={split: _rows(split, protocol, values, metrics) for split in metrics[1]},
    )  # fmt: skip


def _rows(
    split: str, protocol: Protocol, values: tuple[pl.DataFrame, pl.DataFrame], metrics: tuple[Metrics, Metrics]
) -> list[dict[str, Any]]:
    """One row per metric of a split: both values, the paired difference with its interval, and queries by direction."""
    rows = []
    before, after = (table.filter(pl.col("split") == split) for table in values)
    for metric in (name for name in metrics[1][split] if name in protocol.names() and name in metrics[0][split]):
        paired = pl.DataFrame({"before": before[metric], "after": after[metric]}).drop_nulls()
        difference = (paired["after"] - paired["before"]).to_numpy()
        low, high = interval(difference)
        better, worse, same = tally(difference)
        rows.append(
            {
                "metric": metric, "first": metrics[0][split][metric], "second": metrics[1][split][metric],
                "difference": float(difference.mean()), "low": low, "high": high,
                "certain": not low <= 0 <= high, "better": better, "worse": worse, "same": same,
            }
        )  # fmt: skip
    return rows


def _words(value: Any) -> str:
    """A value of params.yaml; a list as its words."""
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _reasons(statuses: pl.Series) -> list[tuple[str, int]]:
    """The statuses of failed pairs with their numbers, the most frequent first."""
    table = statuses.value_counts(name="n").sort("n", statuses.name, descending=[True, False])
    return list(table.head(5).iter_rows())


def _strips(
    params: Params, dataset: str, main: str, queries: pl.DataFrame, values: tuple[pl.DataFrame, pl.DataFrame],
    ranked: pl.DataFrame, verdicts: pl.DataFrame, top: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """The shown queries, each with its reference, and the first images before and after with their verdicts."""
    chosen = _chosen(main, queries, *values)
    verdict = verdicts.select(*KEY, "image_id", verdict="yes", reason="status")
    of_chosen = ranked.join(chosen.select(KEY), on=KEY, how="semi", maintain_order="left")
    of_chosen = of_chosen.select(*KEY, "image_id", "rank", "new").join(
        verdict, on=[*KEY, "image_id"], how="left", maintain_order="left"
    )
    first = {
        column: of_chosen.filter(pl.col(column) <= SHOWN).sort(column)
        for column in ("rank", "new")
    }  # fmt: skip
    named = pl.concat([chosen["reference_id"].alias("image_id"), *(rows["image_id"] for rows in first.values())])
    images = pl.DataFrame(tables.read("index", dataset, "images.parquet"))
    images = images.filter(pl.col("image_id").is_in(named.unique().implode()))
    shown_as = pictures(Path(params.dataset(dataset).root), images)
    lists = {column: rows.group_by(KEY, maintain_order=True).all() for column, rows in first.items()}
    by_query = {column: {row[:2]: row for row in table.iter_rows()} for column, table in lists.items()}
    names = lists["rank"].columns
    return [
        query
        | {"picture": shown_as[query["reference_id"]]}
        | {
            key: _strip(dict(zip(names, by_query[column][query["split"], query["query_id"]], strict=True)), query,
                        shown_as, top)
            for key, column in (("before", "rank"), ("after", "new"))
        }
        for query in chosen.iter_rows(named=True)
        if (query["split"], query["query_id"]) in by_query["rank"]
    ]  # fmt: skip


def _strip(
    rows: Mapping[str, Any], query: Mapping[str, Any], pictures: Mapping[str, str], top: int
) -> list[dict[str, Any]]:
    """The images of one strip, in order: picture, yes-probability, and whether it is right or failed."""
    columns = (rows[name] for name in ("image_id", "rank", "verdict", "reason"))
    return [
        {
            "id": image, "picture": pictures[image], "rank": rank, "yes": yes, "judged": rank <= top,
            "reason": reason if yes is None and rank <= top else "", "hit": image in query["target_ids"],
            "own": image == query["reference_id"],
        }
        for image, rank, yes, reason in zip(*columns, strict=True)
    ]  # fmt: skip


def _chosen(main: str, queries: pl.DataFrame, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The queries that are shown, with the main metric `first` and `second` and their difference `change`.

    These are the queries that became better and those that became worse by most, as many of each; without them, or
    without labels, queries evenly spaced through the index.
    """
    both = before.select(*KEY, first=main).join(after.select(*KEY, second=main), on=KEY, how="left")
    table = queries.join(both, on=KEY, how="left", maintain_order="left")
    table = table.with_columns(change=pl.col("second") - pl.col("first"))
    better = table.filter(pl.col("change") > EPSILON).sort("change", descending=True, maintain_order=True).head(MOST)
    worse = table.filter(pl.col("change") < -EPSILON).sort("change", maintain_order=True).head(MOST)
    if better.height + worse.height:
        return pl.concat([better, worse])
    number = min(MOST, table.height)
    return table[[place * table.height // number for place in range(number)]]
