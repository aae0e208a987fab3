"""Rankings and a judge's verdicts to rankings in another order, with metrics, submissions and a page.

The first `top` images of a query, and its group by itself, are ordered by `mix * yes + (1 - mix) * score`, the score
scaled to 0..1 within them. All other images stay where they were. Nothing is scored again: the ranks of the targets
within the first `top` change as the ranking does.
"""

import polars as pl
import pyarrow as pa

from cvsi.core import parquet, paths, provenance, tables
from cvsi.core.console import count, info
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import (
    DROPPED_QUERIES,
    GROUP_RANKINGS,
    OPTIONAL_RANKS,
    RANKINGS,
    RANKS,
    SCORED_GROUP_RANKINGS,
    VERDICTS,
    per_query,
)
from cvsi.datasets.formats import format_of
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation import queries
from cvsi.evaluation.metrics import by_query
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.report import rerank_page
from cvsi.evaluation.scores import (
    Metrics,
    metrics_of,
    print_main_metric,
    read_values,
    submission_texts,
    warn_of_dropped,
    with_counts,
)

KEY = ["split", "query_id"]
LISTS = ("target_ranks", "negative_ranks")  # columns of ranks; the second one is optional


def build(rerank: str, params: Params) -> None:
    """Write `cache/<dataset>/<backbone>/rerank/<rerank>`: rankings, values per query, metrics, submissions, a page."""
    settings = params.rerank(rerank)
    name, backbone = settings.run.dataset, settings.run.backbone
    dataset_format = format_of(params.dataset(name), name)
    table, _ = queries.read(name)
    verdicts = read_verdicts(name, backbone, rerank)
    rankings, groups = _rankings(name, backbone), _group_rankings(name, backbone)
    ranked = reordered(rankings, verdicts, settings.top, settings.mix)
    in_groups = reordered(groups, verdicts, None, settings.mix)
    _require_verdicts(ranked, in_groups, settings.top, rerank)
    protocol = dataset_format.protocol
    per_query_table = values(protocol, table, _ranks(name, backbone), ranked, in_groups)
    metrics, before = metrics_of(protocol, table, per_query_table), read_values(name, backbone, protocol)
    page = rerank_page.render(
        rerank, params, protocol, table.frame, (before, per_query_table),
        (metrics_of(protocol, table, before), metrics), ranked, verdicts,
    )  # fmt: skip
    dropped = pl.DataFrame(tables.optional("index", name, "dropped_queries.parquet", DROPPED_QUERIES))
    recipe = {"top": settings.top, "mix": settings.mix, "format": params.dataset(name).format}
    recipe |= {"from": provenance.digests({"scores": None, "verdicts": rerank}, name, backbone)}
    ordered, of_groups = in_order(ranked, RANKINGS.names), in_order(in_groups, GROUP_RANKINGS.names)
    with tables.output("rerank", name, backbone, recipe, rerank) as out:
        out.table("rankings.parquet", ordered.to_arrow(), RANKINGS)
        out.table(
            "per_query.parquet",
            per_query_table.to_arrow(),
            per_query(protocol.names(), per_query_table.columns),
        )
        out.json("metrics.json", with_judged(with_counts(name, metrics, table, dropped), verdicts))
        out.folder("submissions")
        for file, text in submission_texts(dataset_format.submissions, table, ordered, of_groups).items():
            out.file(f"submissions/{file}").write_text(text, encoding="utf-8")
        out.file("index.html").write_text(page, encoding="utf-8")
    failed = verdicts["yes"].null_count()
    info(f"{count(table.frame.height, 'query')}, {count(verdicts.height - failed, 'verdict')}, {failed:,} failed")
    info(f"page: {paths.folder('rerank', name, backbone, rerank) / 'index.html'}")
    print_main_metric(protocol, metrics)
    warn_of_dropped(dataset_format.submissions, table, dropped)


def reordered(rankings: pl.DataFrame, verdicts: pl.DataFrame, top: int | None, mix: float) -> pl.DataFrame:
    """Rankings (`split`, `query_id`, `rank`, `image_id`, `score`) with a column `new`, the rank after reordering.

    The first `top` images of each query (all: None) are ordered by `mix * yes + (1 - mix) * (score - min) / (max -
    min)` of these images, ties by `rank`. A verdict that failed is the mean of its query; without any, the order of the
    scores applies. The others keep their ranks.
    """
    first = pl.lit(True) if top is None else pl.col("rank") <= top
    means = verdicts.group_by(KEY).agg(mean=pl.col("yes").mean())
    joined = rankings.join(verdicts.select(*KEY, "image_id", "yes", "status"), on=[*KEY, "image_id"], how="left")
    joined = joined.join(means, on=KEY, how="left").with_columns(first=first)
    score, group = pl.col("score"), [*KEY, "first"]
    low, high = score.min().over(group), score.max().over(group)
    scaled = pl.when(high > low).then((score - low) / (high - low)).otherwise(0.0)
    value = mix * pl.coalesce("yes", "mean") + (1 - mix) * scaled
    # Where no verdict of a query is there, all values are equal, and ranks decide.
    joined = joined.with_columns(value=pl.when("first").then(value).fill_null(0.0))
    joined = joined.sort(*KEY, "first", "value", "rank", descending=[False, False, True, True, False])
    place = pl.int_range(1, pl.len() + 1).over(group)
    return joined.with_columns(new=pl.when("first").then(place).otherwise("rank").cast(pl.Int32)).sort("row")


def in_order(reordered: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Reordered rankings as a table of their own, queries in the order that they had."""
    ordered = reordered.with_columns(query=pl.col("row").min().over(KEY)).sort("query", "new")
    return ordered.with_columns(rank="new").select(columns)


def values(
    protocol: Protocol, table: QueryTable, ranks: pl.DataFrame, ranked: pl.DataFrame, in_groups: pl.DataFrame
) -> pl.DataFrame:
    """The table `per_query` after reordering, from that of the scores: ranks that are in no ranking stay as they were.

    Raises CvsiError where the ranks are those of other queries than the index has.
    """
    labelled = table.frame[table.labelled_rows()]
    if not labelled.select(KEY).equals(ranks.select(KEY)):
        raise CvsiError(
            "scores/per_query.parquet: not the queries of the index; run the stage scores again (dvc repro)"
        )
    lists = [_moved(ranks, name, ranked) for name in LISTS if name in ranks.columns]
    within = in_groups.select(*KEY, group_rank="rank", new="new")
    group = ranks.select(*KEY, "group_rank").join(within, on=[*KEY, "group_rank"], how="left", maintain_order="left")
    group_rank = group.select(group_rank=pl.coalesce("new", "group_rank")).to_series()
    return by_query(protocol, labelled.with_columns(*lists, group_rank))


def _moved(ranks: pl.DataFrame, column: str, ranked: pl.DataFrame) -> pl.Series:
    """Lists of ranks after reordering; ranks that are in no ranking, and nulls, stay as they are."""
    changed = ranked.select(*KEY, pl.col("rank").alias(column), "new")
    listed = ranks.select(*KEY, column).with_row_index("row").explode(column)
    listed = listed.join(changed, on=[*KEY, column], how="left", maintain_order="left")
    lists = listed.group_by("row", maintain_order=True).agg(pl.coalesce("new", column).alias(column))
    # An empty list became one null.
    empty = (ranks[column].list.len() == 0) if lists.height else pl.Series([], dtype=pl.Boolean)
    none = pl.lit([], dtype=pl.List(pl.Int32))
    return lists.select(pl.when(empty).then(none).otherwise(pl.col(column)).alias(column).cast(pl.List(pl.Int32)))[
        column
    ]


def with_judged(metrics: Metrics, verdicts: pl.DataFrame) -> Metrics:
    """The metrics of each split with the numbers of pairs that have a verdict, and of those whose verdict failed."""
    counted = {}
    for split, numbers in metrics.items():
        yes = verdicts.filter(pl.col("split") == split)["yes"]
        counted[split] = numbers | {"judged": len(yes) - yes.null_count(), "failed": yes.null_count()}
    return counted


def read_verdicts(name: str, backbone: str, rerank: str) -> pl.DataFrame:
    """The table `verdicts` of a rerank, whose `yes` is null where the judge failed.

    Raises CvsiError for other columns, two verdicts on one image, or a `yes` that is no probability: another program
    may have written the table.
    """
    table = tables.whole("verdicts", name, backbone, rerank)
    where = str(paths.folder("verdicts", name, backbone, rerank))
    without_yes = [field for field in VERDICTS if field.name != "yes"]
    if "yes" not in table.column_names:
        raise CvsiError(f"{where}: no column 'yes'; there are: {', '.join(table.column_names)}")
    frame = pl.DataFrame(parquet.fit(table, pa.schema(without_yes), where))
    if (duplicates := frame.filter(frame.select(*KEY, "image_id").is_duplicated())).height:
        raise CvsiError(f"{where}: two verdicts on {duplicates['image_id'][0]!r} of query {duplicates['query_id'][0]}")
    yes = pl.Series("yes", table["yes"]).cast(pl.Float64)
    bad = frame.with_columns(yes).filter(pl.col("yes").is_nan() | ~pl.col("yes").is_between(0, 1))
    if bad.height:
        raise CvsiError(f"{where}: yes of query {bad['query_id'][0]} is {bad['yes'][0]}, not a probability")
    return frame.with_columns(yes)


def _rankings(name: str, backbone: str) -> pl.DataFrame:
    """The rankings of the scores, with the numbers of their rows."""
    path = paths.folder("scores", name, backbone) / "rankings.parquet"
    return _numbered(parquet.fit(parquet.read_file(path), RANKINGS, str(path)))


def _group_rankings(name: str, backbone: str) -> pl.DataFrame:
    """The same for the groups; a run without groups has no rows, and an earlier version wrote no scores."""
    path = paths.folder("scores", name, backbone) / "group_rankings.parquet"
    if not path.exists() or not (table := parquet.read_file(path)).num_rows:
        return _numbered(SCORED_GROUP_RANKINGS.empty_table())
    if "score" not in table.column_names:
        raise CvsiError(
            f"{path}: no column 'score', as earlier versions wrote it; run the stage scores again (dvc repro)"
        )
    return _numbered(parquet.fit(table, SCORED_GROUP_RANKINGS, str(path)))


def _numbered(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(table).with_row_index("row")


def _ranks(name: str, backbone: str) -> pl.DataFrame:
    """The ranks of the targets, and of the first one in its group, from the scores."""
    path = paths.folder("scores", name, backbone) / "per_query.parquet"
    table = parquet.read_file(path)
    if missing := [column for column in RANKS.names if column not in table.column_names]:
        raise CvsiError(f"{path}: no column '{missing[0]}'; run the stage scores again (dvc repro)")
    schema = pa.schema([*RANKS, *(field for field in OPTIONAL_RANKS if field.name in table.column_names)])
    return pl.DataFrame(table.select(schema.names).cast(schema))


def _require_verdicts(ranked: pl.DataFrame, in_groups: pl.DataFrame, top: int, rerank: str) -> None:
    """Raise CvsiError where an image that is to be ordered was not judged."""
    wanted = pl.concat([ranked.filter(pl.col("rank") <= top), in_groups])
    if (without := wanted.filter(pl.col("status").is_null())).height:
        image, query = without.select("image_id", "query_id").row(0)
        raise CvsiError(
            f"rerank {rerank}: no verdict on {count(without.height, 'image')}, the first is {image!r} of query "
            f"{query}; the rankings are newer than the verdicts, run dvc repro verdicts@{rerank}"
        )
