"""The page of a rerank: its figures, strips, failed pairs, escaped texts, and datasets without labels."""

import random
import re
from pathlib import Path

import polars as pl
import pytest

from cvsi.core import params, tables
from cvsi.core.schema import IMAGES, QUERIES
from cvsi.evaluation import rerank, scores
from cvsi.evaluation.metrics import interval, tally
from cvsi.evaluation.report import thumbnails
from cvsi.pipeline import verdicts as stage
from tests.conftest import Workspace
from tests.rerank_world import make_world, with_rerank, write_verdicts

SCORES, SECOND = Path("cache/toy/tiny/scores"), Path("cache/toy/tiny/rerank/second")


def page() -> str:
    return (SECOND / "index.html").read_text(encoding="utf-8")


def made(toy: Workspace, groups: bool = False, failing: float = 0.0, mix: float = 1, hidden: int = 4) -> str:
    """The page of a rerank by random verdicts."""
    make_world(toy, groups, hidden=hidden)
    with_rerank(toy, "http://localhost:1/v1", top=15, mix=mix)
    chance = random.Random(1)
    write_verdicts(toy, 15, lambda row: None if chance.random() < failing else chance.random())
    rerank.build("second", params.load())
    return page()


def cards(text: str) -> list[str]:
    return text.split('<article class="card">')[1:]


@pytest.mark.parametrize("groups", [False, True], ids=["circo", "cirr"])
def test_the_metrics_have_paired_differences(toy: Workspace, groups: bool) -> None:
    text = made(toy, groups)
    first, second = (pl.read_parquet(folder / "per_query.parquet") for folder in (SCORES, SECOND))
    names = [name for name in first.columns if "@" in name]
    assert len(names) >= 7
    for name in names:
        difference = (second[name] - first[name]).to_numpy()
        low, high = interval(difference)
        cells = [float(table[name].to_numpy().mean()) for table in (first, second)]
        expected = [str(name), *(f"{value:.2f}" for value in cells), f"{difference.mean():+.2f}"]
        expected += [f"{low:+.2f} to {high:+.2f}", *(str(number) for number in tally(difference))]
        (row,) = [line for line in text.splitlines() if f"<td>{name}</td>" in line]
        assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == expected
        assert ('class="best"' in row) == (low > 0 or high < 0)


def test_the_strips_are_the_rankings_before_and_after_with_the_verdicts(toy: Workspace) -> None:
    text = made(toy, failing=0.2)
    shown = cards(text)
    values = {row["query_id"]: row for row in tables.read("index", "toy", "queries.parquet").to_pylist()}
    judged = {row["query_id"]: {} for row in values.values()}  # type: ignore[var-annotated]
    for row in pl.read_parquet("cache/toy/tiny/verdicts/second/part-00000.parquet").iter_rows(named=True):
        judged[row["query_id"]][row["image_id"]] = row["yes"]
    assert 6 < len(shown) <= 12
    for card in shown:
        (query,) = re.findall(r'<span class="tag">val (\d+)</span>', card)
        strips = card.split('<p class="soft">')[1:]
        for strip, folder in zip(strips, (SCORES, SECOND), strict=True):
            ranked = pl.read_parquet(folder / "rankings.parquet").filter(
                pl.col("query_id") == query, pl.col("split") == "val", pl.col("rank") <= 10
            )
            images = re.findall(r'alt="result (\w+)"', strip)
            assert images == ranked.sort("rank")["image_id"].to_list()
            captions = re.findall(r"<figcaption>(.*?)</figcaption>", strip)
            for image, caption in zip(images, captions, strict=True):
                yes = judged[query][image]
                assert caption.startswith('<span class="bad" title="no answer">failed' if yes is None else f"{yes:.2f}")
                assert (" hit" in caption) == (image in values[query]["target_ids"])


def test_queries_that_became_better_come_before_those_that_became_worse(toy: Workspace) -> None:
    text = made(toy)
    first, second = (pl.read_parquet(folder / "per_query.parquet") for folder in (SCORES, SECOND))
    change = dict(zip(first["query_id"], second["mAP@10"] - first["mAP@10"], strict=True))
    shown = [change[query] for query in re.findall(r'<span class="tag">val (\d+)</span>', text)]
    better = sorted((value for value in change.values() if value > 1e-9), reverse=True)[:6]
    worse = sorted(value for value in change.values() if value < -1e-9)[:6]
    assert shown == better + worse and better and worse


def test_failed_pairs_are_counted_in_red(toy: Workspace) -> None:
    text = made(toy, failing=0.3)
    failed = pl.read_parquet("cache/toy/tiny/verdicts/second/part-00000.parquet")["yes"].null_count()
    assert f'<dt>no answer</dt><dd class="bad">{failed}</dd>' in text
    assert f'<p class="box warning">{failed} of 510 pairs have no verdict.' in text


def test_without_failures_there_is_no_warning(toy: Workspace) -> None:
    text = made(toy)
    assert "box warning" not in text and "failed" not in text and '<dd class="bad"' not in text


def test_an_image_past_the_judged_ones_has_a_dash(toy: Workspace) -> None:
    make_world(toy, queries=5, hidden=0)
    with_rerank(toy, "http://localhost:1/v1", top=4)
    write_verdicts(toy, 4, lambda row: (row * 7 % 5) / 5)
    rerank.build("second", params.load())
    for card in cards(page()):
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", card)
        assert [("not among the first 4" in caption) for caption in captions] == ([False] * 4 + [True] * 6) * 2


def test_mix_0_shows_queries_that_did_not_change(toy: Workspace) -> None:
    text = made(toy, mix=0)
    assert "Queries evenly spaced through the index" in text and len(cards(text)) == 6
    assert "+0.00 to +0.00" in text and 'class="best"' not in text


def test_a_dataset_without_labels_has_strips_and_no_metrics(toy: Workspace) -> None:
    make_world(toy)
    images = tables.read("index", "toy", "images.parquet")
    hidden = pl.DataFrame(tables.read("index", "toy", "queries.parquet")).filter(pl.col("split") == "test")
    with tables.output("index", "toy") as out:
        out.table("images.parquet", images, IMAGES)
        out.table("queries.parquet", hidden.to_arrow(), QUERIES)
    vectors = pl.read_parquet("cache/toy/tiny/query_vectors/*.parquet").filter(pl.col("split") == "test")
    with tables.output("query_vectors", "toy", "tiny") as out:
        out.shards(vectors.to_arrow(), vectors.to_arrow().schema)
    settings = with_rerank(toy, "http://localhost:1/v1", top=5)
    scores.build("toy", "tiny", settings)
    write_verdicts(toy, 5, lambda row: 0.5)
    rerank.build("second", settings)
    assert "No split has labels, so there are no metrics." in page() and len(cards(page())) == 4


def test_texts_are_escaped_and_nothing_is_fetched(toy: Workspace) -> None:
    make_world(toy, queries=3, hidden=0)
    text = '<script>alert(1)</script> & "more"'
    images, queries = (tables.read("index", "toy", f"{name}.parquet") for name in ("images", "queries"))
    changed = pl.DataFrame(queries).with_columns(instruction=pl.lit(text))
    with tables.output("index", "toy") as out:
        out.table("images.parquet", images, IMAGES)
        out.table("queries.parquet", changed.to_arrow(), QUERIES)
    settings = with_rerank(toy, "http://secret.example/v1", top=5, model="<b>m</b>")
    write_verdicts(toy, 5, lambda row: row % 2)
    rerank.build("second", settings)
    assert "<script" not in page() and "&lt;script&gt;" in page() and "<b>m" not in page()
    assert not re.findall(r'(?:src|href)="(?!data:|\.\./\.\./report/index\.html")', page())
    assert "secret.example" not in page()  # an address may be a machine of the team


def test_the_same_rows_give_the_same_page(toy: Workspace) -> None:
    text = made(toy, failing=0.1)
    rerank.build("second", params.load())
    assert page() == text


def test_an_image_that_is_gone_leaves_the_old_output(toy: Workspace) -> None:
    text = made(toy)
    for file in Path("plain").glob("*.png"):
        file.unlink()
    thumbnails.thumbnail.cache_clear()
    assert "100.png" in toy.error("rerank", "second") and page() == text


def test_a_dataset_without_queries_has_a_page_too(toy: Workspace) -> None:
    make_world(toy)
    images = tables.read("index", "toy", "images.parquet")
    with tables.output("index", "toy") as out:
        out.table("images.parquet", images, IMAGES)
        out.table("queries.parquet", QUERIES.empty_table(), QUERIES)
    vectors = pl.read_parquet("cache/toy/tiny/query_vectors/*.parquet").clear().to_arrow()
    with tables.output("query_vectors", "toy", "tiny") as out:
        out.shards(vectors, vectors.schema)
    settings = with_rerank(toy, "http://localhost:1/v1", top=5)
    scores.build("toy", "tiny", settings)
    stage.write("second", settings)
    rerank.build("second", settings)
    assert cards(page()) == [] and "No split has labels" in page()


def test_a_short_gallery_has_short_strips(toy: Workspace) -> None:
    make_world(toy, queries=4, hidden=0)
    path = SCORES / "rankings.parquet"
    table = pl.read_parquet(path)
    table.filter(pl.col("rank") <= 3).write_parquet(path)
    settings = with_rerank(toy, "http://localhost:1/v1", top=50)
    write_verdicts(toy, 50, lambda row: row % 2)
    rerank.build("second", settings)
    assert all(card.count("<figcaption>") == 6 for card in cards(page())) and cards(page())
