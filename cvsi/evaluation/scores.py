"""The index and the two kinds of vectors to rankings, values per query, metrics and submissions.

Nothing else is read (but the edits' status and the dropped queries, to count them), so vectors may come from any
program. The stage ranks by the dataset's own fusion alone; the report ranks by the other methods.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from cvsi.core import parquet, paths, provenance, tables
from cvsi.core.console import count, info, warn
from cvsi.core.devices import device
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.run_log import timed
from cvsi.core.schema import DROPPED, DROPPED_QUERIES, EDITS, GROUP_RANKINGS, RANKINGS, SCORED_GROUP_RANKINGS, per_query
from cvsi.core.statuses import fell_back
from cvsi.datasets.formats import format_of
from cvsi.datasets.metrics import Protocol
from cvsi.datasets.submissions import Submission
from cvsi.evaluation import queries, submissions, vectors
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.methods import fusion_of
from cvsi.evaluation.metrics import by_query, summarise, with_ranks
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import Ranking, group_ranks, rank

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """The values of labelled queries, in the columns of `per_query`, and the metrics of each labelled split."""

    per_query: pl.DataFrame
    metrics: Metrics


def build(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/scores`: rankings (first 100), values per query, metrics, plots, submissions."""
    from cvsi.evaluation import plots  # loads matplotlib, which the commands that import this module do without

    settings = params.backbone(backbone)  # a name that params.yaml does not define is an error
    dataset_format, fusion = format_of(params.dataset(name), name), fusion_of(params, name)
    table, gallery = queries.read(name)
    inputs = vectors.read(table.frame, gallery, backbone)
    inputs.require(fusion, settings)
    info(f"{count(table.frame.height, 'query')} against {count(gallery.size, 'image')}")
    with timed("compute"):
        ranking = rank(*inputs.fused(fusion), table.named, scorer=fusion.scorer, device=device(params.compute))
        evaluation = evaluate(dataset_format.protocol, table, ranking.target_ranks, ranking.group_scores)
    rankings, in_groups = rankings_table(ranking, table, gallery), group_rankings_table(ranking, table, gallery)
    dropped = pl.DataFrame(tables.optional("index", name, "dropped_queries.parquet", DROPPED_QUERIES))
    recipe = {"fusion": fusion.recipe(), "format": params.dataset(name).format}
    recipe |= provenance.inputs("scores", name, backbone)
    with tables.output("scores", name, backbone, recipe) as out:
        out.table("rankings.parquet", rankings.to_arrow(), RANKINGS)
        # DVC tracks each of these, so a run without groups, hidden splits or labels writes them, too, without content.
        out.table(
            "group_rankings.parquet",
            in_groups.to_arrow(),
            SCORED_GROUP_RANKINGS if in_groups.height else GROUP_RANKINGS,
        )
        names = dataset_format.protocol.names()
        values = evaluation.per_query
        out.table("per_query.parquet", values.to_arrow(), per_query(names, values.columns))
        metrics = with_counts(name, evaluation.metrics, table, dropped)
        out.json("metrics.json", metrics)
        out.folder("submissions")
        for file, text in submission_texts(dataset_format.submissions, table, rankings, in_groups).items():
            out.file(f"submissions/{file}").write_text(text, encoding="utf-8")
        for file, text in plots.pictures(dataset_format.protocol, metrics, evaluation.per_query).items():
            out.file(f"plots/{file}").write_text(text, encoding="utf-8")
    print_main_metric(dataset_format.protocol, evaluation.metrics)
    warn_of_dropped(dataset_format.submissions, table, dropped)


def evaluate(protocol: Protocol, table: QueryTable, target_ranks: np.ndarray, group_scores: np.ndarray) -> Evaluation:
    """The values per query and the metrics of labelled splits, from the ranks of all queries' targets."""
    rows, named = table.labelled_rows(), table.named
    groups = group_ranks(group_scores[rows], named.groups[rows], named.targets[rows, 0])
    values = by_query(protocol, with_ranks(table.frame[rows], target_ranks[rows], groups, named.negatives))
    return Evaluation(values, metrics_of(protocol, table, values))


def metrics_of(protocol: Protocol, table: QueryTable, values: pl.DataFrame) -> Metrics:
    """The metrics of each labelled split, without counts, from the values per query."""
    metrics = {}
    for split in table.labelled:
        queries = table.of_split(split)
        variants = queries["variant_of"] if "variant_of" in queries.columns else None
        metrics[split] = summarise(protocol, values.filter(pl.col("split") == split), queries["aspects"], variants)
    return metrics


def rankings_table(ranking: Ranking, table: QueryTable, gallery: Gallery) -> pl.DataFrame:
    """A ranking as rows of `RANKINGS`, queries in the index's order."""
    rows, ranks = ranking.positions.shape
    frame = pl.DataFrame(
        {
            "row": np.repeat(np.arange(rows), ranks),
            "rank": np.tile(np.arange(1, ranks + 1), rows),
            "position": ranking.positions.reshape(-1),
            "score": ranking.scores.reshape(-1),
        }
    ).filter(pl.col("position") >= 0)
    ids = gallery.ids(frame["position"].to_numpy())
    keys = table.frame.select("query_id", "split")[frame["row"]]
    return pl.concat([keys, frame.select("rank"), ids.to_frame(), frame.select("score")], how="horizontal")


def group_rankings_table(ranking: Ranking, table: QueryTable, gallery: Gallery) -> pl.DataFrame:
    """Each query's group ranked by score, equal scores by position, as rows of `SCORED_GROUP_RANKINGS`."""
    groups = table.named.groups
    rows, columns = np.nonzero((groups >= 0) & (ranking.group_scores > -np.inf))
    positions, scores = groups[rows, columns], ranking.group_scores[rows, columns]
    order = np.lexsort((positions, -scores, rows))
    ids = gallery.ids(positions[order])
    keys: pl.DataFrame = table.frame.select("query_id", "split")[rows[order]]
    return keys.with_columns(
        pl.int_range(1, pl.len() + 1).over("split", "query_id").alias("rank"), image_id=ids, score=scores[order]
    )


def submission_texts(
    kinds: tuple[Submission, ...], table: QueryTable, rankings: pl.DataFrame, in_groups: pl.DataFrame
) -> dict[str, str]:
    """The files that a benchmark's server expects for the hidden splits, by name."""
    texts = {}
    for split in table.splits:
        for kind in kinds if split not in table.labelled else ():
            ranked = (in_groups if kind.of_group else rankings).filter(pl.col("split") == split)
            texts[f"{split}.{kind.metric}.json"] = submissions.build(kind, table.of_split(split), ranked)
    return texts


def with_counts(name: str, metrics: Metrics, table: QueryTable, dropped: pl.DataFrame) -> Metrics:
    """The metrics of labelled splits with the numbers of queries, of dropped ones, and of edits that fell back."""
    edits = tables.whole("edits", name) if tables.exists("edits", name) else EDITS.empty_table()
    images = tables.optional("index", name, "dropped.parquet", DROPPED).num_rows
    fallbacks = pl.DataFrame(edits).filter(fell_back())
    counted = {}
    for split, values in metrics.items():
        number = table.of_split(split).height
        fallen, gone = (frame.filter(pl.col("split") == split).height for frame in (fallbacks, dropped))
        counts = {"queries": number, "dropped": gone, "dropped images": images}
        counted[split] = values | counts | {"fallbacks": fallen, "fallback share": 100 * fallen / number}
    return counted


def read_values(name: str, backbone: str, protocol: Protocol) -> pl.DataFrame:
    """The table `per_query` that the stage wrote; raises CvsiError where it is missing or has other metrics."""
    path = paths.folder("scores", name, backbone) / "per_query.parquet"
    table = parquet.read_file(path)
    wanted = per_query(protocol.names(), table.column_names).names
    if missing := [column for column in wanted if column not in table.column_names]:
        raise CvsiError(f"{path}: no column '{missing[0]}'; run the stage scores again (dvc repro)")
    return pl.DataFrame(table.select(wanted))


def print_main_metric(protocol: Protocol, metrics: Metrics) -> None:
    """Print the main metric of each labelled split with its interval."""
    main = protocol.main
    for split, values in metrics.items():
        if main in values:
            low, high = (values[f"{main} {end}"] for end in ("low", "high"))
            info(f"{split}: {main} {values[main]:.2f} ({low:.2f} to {high:.2f})")


def warn_of_dropped(kinds: tuple[Submission, ...], table: QueryTable, dropped: pl.DataFrame) -> None:
    """Warn of hidden splits with dropped queries: the server wants all of them."""
    for split in table.splits if kinds else ():
        number = dropped.filter(pl.col("split") == split).height
        if number and split not in table.labelled:
            warn(f"{split}: {count(number, 'dropped query')} not in the submission; the server wants all of them")
