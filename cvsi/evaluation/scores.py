"""The index and the two kinds of vectors to rankings, metrics and submissions.

Nothing else is read (but the edits' status and the dropped queries, to count them), so vectors may come from any
program. `Judge` ranks and judges one weighting; the stage does so for the dataset's own, the report for all named ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import paths, provenance, tables
from cvsi.core.console import complain, count, say
from cvsi.core.devices import device
from cvsi.core.errors import CvsiError
from cvsi.core.params import Fusion, Params
from cvsi.core.run_log import spending
from cvsi.core.schema import DROPPED, DROPPED_QUERIES, EDITS, GROUP_RANKINGS, QUERIES, RANKINGS
from cvsi.datasets import metrics
from cvsi.evaluation import submissions
from cvsi.evaluation.fusion import fuse, needs, query_order
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.ranking import Ranking, rank

KEPT = 100
NAMING = ("exclude_ids", "group_ids", "target_ids")


@dataclass(frozen=True)
class Judged:
    """One weighting's outcome: the ranking of every query, and the metrics of labelled splits by query and in sum."""

    ranking: Ranking
    by_query: dict[str, dict[str, np.ndarray]]
    summary: dict[str, dict[str, float]]


class Judge:
    """A dataset's index and a backbone's vectors, ready to rank and judge any weighting."""

    def __init__(self, name: str, backbone: str, params: Params) -> None:
        """Read the index and the query vectors; the gallery's vectors are read shard by shard when ranking."""
        self.backbone, self.device = backbone, device(params.compute)
        self.protocol = metrics.PROTOCOLS[params.dataset(name).format]
        self.queries = _queries(name)
        self.gallery = Gallery(name, pl.concat([self.queries[column].explode() for column in NAMING]).drop_nulls())
        self.where = str(paths.folder("query_vectors", name, backbone))
        self.vectors = query_order(self.queries, tables.whole("query_vectors", name, backbone), self.where)
        self.barred = (
            self._pairs("exclude_ids")
            .filter(pl.col("position") >= 0)
            .select("row", "position")
            .to_numpy()
            .astype(np.int64)
        )
        self.groups = self._matrix("group_ids")
        self.targets = self._matrix("target_ids")
        labelled = pl.col("target_ids").list.len().min().over("split") > 0
        self.labelled = self.queries.filter(labelled)["split"].unique(maintain_order=True).to_list()

    def can(self, fusion: Fusion) -> bool:
        """Whether the query vectors hold every part that a weighting needs."""
        return all(part in self.vectors.column_names for part in needs(fusion.query))

    def judge(self, fusion: Fusion) -> Judged:
        """Rank every query by these weights and compute the metrics of the labelled splits."""
        with spending("compute"):
            left = fuse(self.vectors, needs(fusion.query), self.where)
            ranking = rank(left, self._fused(fusion, left.shape[1]), KEPT, self.barred, self.groups, self.device)
            by_query = {split: self.values(split, ranking) for split in self.labelled}
            summary = {
                split: metrics.summarise(self.protocol, values, self.split(split)["aspects"])
                for split, values in by_query.items()
            }
        return Judged(ranking, by_query, summary)

    def rankings(self, ranking: Ranking) -> pl.DataFrame:
        """A ranking as rows of `RANKINGS`, queries in the index's order."""
        rows, ranks = ranking.positions.shape
        frame = pl.DataFrame(
            {
                "row": np.repeat(np.arange(rows), ranks),
                "rank": np.tile(np.arange(1, ranks + 1), rows),
                "position": ranking.positions.numpy().reshape(-1),
                "score": ranking.scores.numpy().reshape(-1),
            }
        ).filter(pl.col("position") >= 0)
        ids = self.gallery.ids(frame["position"].to_numpy())
        asked = self.queries.select("query_id", "split")[frame["row"]]
        return pl.concat([asked, frame.select("rank"), ids.to_frame(), frame.select("score")], how="horizontal")

    def group_rankings(self, ranking: Ranking) -> pl.DataFrame:
        """Each query's group ranked by score, equal scores by position: `query_id`, `split`, `rank`, `image_id`."""
        rows, columns = np.nonzero((self.groups >= 0) & (ranking.probed.numpy() > -np.inf))
        positions = self.groups[rows, columns]
        scores = ranking.probed.numpy()[rows, columns]
        order = np.lexsort((positions, -scores, rows))
        ids = self.gallery.ids(positions[order])
        asked: pl.DataFrame = self.queries.select("query_id", "split")[rows[order]]
        rank = pl.int_range(1, pl.len() + 1).over("split", "query_id").alias("rank")
        return asked.with_columns(rank, image_id=ids)

    def values(self, split: str, ranking: Ranking) -> dict[str, np.ndarray]:
        """Every metric of the protocol for every query of a split, in percent, from a ranking of all queries."""
        rows = (self.queries["split"] == split).to_numpy()
        positions, targets = ranking.positions.numpy()[rows], self.targets[rows]
        hits = np.zeros(positions.shape, dtype=bool)
        for wanted in targets.T:
            hits |= (positions == wanted[:, None]) & (wanted[:, None] >= 0)
        main = (positions == targets[:, :1]) & (targets[:, :1] >= 0)
        numbers = self.queries.filter(pl.col("split") == split)["target_ids"].list.len().to_numpy()
        subset = subset_rank(ranking.probed.numpy()[rows], self.groups[rows], targets[:, 0])
        return metrics.per_query(self.protocol, hits, main, numbers, subset)

    def split(self, split: str) -> pl.DataFrame:
        """The queries of one split, in order."""
        return self.queries.filter(pl.col("split") == split)

    def shards(self) -> Iterator[pa.Table]:
        """The gallery's vectors in order, at most 4,096 rows at a time, checked against the index."""
        return self.gallery.shards(self.backbone)

    def _fused(self, fusion: Fusion, width: int) -> Iterator[np.ndarray]:
        place = paths.folder("gallery_vectors", self.gallery.name, self.backbone)
        for shard in self.shards():
            vectors = fuse(shard, needs(fusion.gallery), str(place))
            if vectors.shape[1] != width:
                raise CvsiError(f"{place}: vectors of {vectors.shape[1]} numbers, the queries have {width}")
            yield vectors

    def _pairs(self, column: str) -> pl.DataFrame:
        """(query row, place in its list, gallery position or -1) of the images that a column of lists names."""
        named = self.queries.select(column).with_row_index("row").explode(column).drop_nulls(column)
        found = named.join(self.gallery.named, left_on=column, right_on="image_id", how="left", maintain_order="left")
        place = pl.int_range(pl.len()).over("row")
        return found.select("row", place.alias("place"), pl.col("position").cast(pl.Int64).fill_null(-1))

    def _matrix(self, column: str) -> np.ndarray:
        """The same as a matrix [queries, longest list] int64, in the lists' order, filled up with -1."""
        pairs = self._pairs(column)
        matrix = np.full((self.queries.height, int(pairs["place"].max() or 0) + 1), -1, dtype=np.int64)  # type: ignore[arg-type]
        matrix[pairs["row"].to_numpy(), pairs["place"].to_numpy()] = pairs["position"].to_numpy()
        return matrix


def build(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/scores`: the first 100 of every query, metrics and submissions."""
    dataset = params.dataset(name)
    judge = Judge(name, backbone, params)
    say(f"{count(judge.queries.height, 'query')} against {count(judge.gallery.size, 'image')}")
    judged = judge.judge(dataset.fusion)
    rankings, in_groups = judge.rankings(judged.ranking), judge.group_rankings(judged.ranking)
    dropped = pl.DataFrame(tables.optional("index", name, "dropped_queries.parquet", DROPPED_QUERIES))
    recipe = {"fusion": dataset.fusion.model_dump(), "format": dataset.format}
    recipe |= provenance.inputs("scores", name, backbone)
    with tables.output("scores", name, backbone, recipe) as out:
        out.table("rankings.parquet", rankings.to_arrow(), RANKINGS)
        if in_groups.height:
            out.table("group_rankings.parquet", in_groups.to_arrow(), GROUP_RANKINGS)
        out.json("metrics.json", _with_counts(name, judge, judged, dropped))
        for split in judge.queries["split"].unique(maintain_order=True):
            if split in judge.labelled:
                continue
            for form in submissions.SUBMISSIONS[dataset.format]:
                ranked = (in_groups if form.of_group else rankings).filter(pl.col("split") == split)
                text = submissions.build(form, judge.split(split), ranked)
                out.file(f"submissions/{split}.{form.metric}.json").write_text(text, encoding="utf-8")
            lost = dropped.filter(pl.col("split") == split).height
            if lost and submissions.SUBMISSIONS[dataset.format]:
                complain(f"{split}: {count(lost, 'dropped query')} not in the submission; the server wants all of them")
    for split, values in judged.summary.items():
        main = judge.protocol.main
        say(f"{split}: {main} {values[main]:.2f} ({values[f'{main} low']:.2f} to {values[f'{main} high']:.2f})")


def _queries(name: str) -> pl.DataFrame:
    """The queries of the index; raises CvsiError for a key that stands twice."""
    where = paths.folder("index", name) / "queries.parquet"
    frame = pl.DataFrame(tables.fit(tables.read("index", name, where.name), QUERIES, str(where)))
    twice = frame.filter(frame.select("split", "query_id").is_duplicated())
    if twice.height:
        raise CvsiError(f"{where}: query_id {twice['query_id'][0]!r} stands twice; ids must be unique")
    return frame


def _with_counts(name: str, judge: Judge, judged: Judged, dropped: pl.DataFrame) -> dict[str, dict[str, float]]:
    """The metrics of labelled splits with how many queries they stand on, were dropped, and fell back."""
    edits = tables.whole("edits", name) if tables.exists("edits", name) else EDITS.empty_table()
    images = tables.optional("index", name, "dropped.parquet", DROPPED).num_rows
    fallbacks = pl.DataFrame(edits).filter(pl.col("status") != "ok")
    counted = {}
    for split, values in judged.summary.items():
        queries, fell = judge.split(split).height, fallbacks.filter(pl.col("split") == split).height
        lost_here = dropped.filter(pl.col("split") == split).height
        counts = {"queries": queries, "dropped": lost_here, "dropped images": images}
        counted[split] = values | counts | {"fallbacks": fell, "fallback share": 100 * fell / queries}
    return counted


def subset_rank(probed: np.ndarray, groups: np.ndarray, main: np.ndarray) -> np.ndarray:
    """The main target's rank from 1 among its group, by score, equal scores by position; 0 where it is not in it."""
    mine = groups == main[:, None]
    score = np.where(mine, probed, -np.inf).max(axis=1, initial=-np.inf)
    better = (probed > score[:, None]) | ((probed == score[:, None]) & (groups < main[:, None]))
    ahead = (better & (groups >= 0) & (probed > -np.inf)).sum(axis=1)
    return np.where(mine.any(axis=1) & (main >= 0), ahead + 1, 0)
