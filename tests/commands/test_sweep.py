"""`cvsi sweep`: every weighting against the definition, whatever the memory; files, pictures, and what is refused."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvsi.commands import sweep, sweep_grid, sweep_ranks
from cvsi.core import params, schema
from cvsi.core.errors import CvsiError
from cvsi.datasets.formats import FORMATS
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation.fusion import Form
from tests.commands.conftest import IMAGES, SPLITS, WIDTH, Row, World, column
from tests.conftest import Workspace, environment
from tests.imports import ROOT

OWN = {"edited": 0.6, "pseudo": 0.4}
COMPONENTS = sweep_grid.Components(schema.QUERY_PARTS, schema.GALLERY_PARTS)


class Truth:
    """All metrics of one weighting by the definition, in float64, equal scores by position."""

    def __init__(self, workspace: Workspace, form: str) -> None:
        cache, self.form = workspace.path / "cache/toy", form
        gallery = pa.concat_tables(pq.read_table(file) for file in sorted((cache / "tiny/gallery_vectors").glob("*")))
        queries = pq.read_table(cache / "tiny/query_vectors/all.parquet")
        self.queries = pq.read_table(cache / "index/queries.parquet").to_pylist()
        self.ids = gallery["image_id"].to_pylist()
        self.query_parts = {part: np.array(queries[part].to_pylist()) for part in schema.QUERY_PARTS}
        self.gallery = {part: np.array(gallery[part].to_pylist()) for part in schema.GALLERY_PARTS}

    def metrics(self, split: str, weights: Row) -> dict[str, float]:
        left = np.sum([weights[part] * matrix for part, matrix in self.query_parts.items()], axis=0)
        right = np.sum([weights[part] * matrix for part, matrix in self.gallery.items()], axis=0)
        values_of: dict[str, list[float]] = {}
        for row, values in zip(self.queries, np.round(left @ right.T, 12), strict=True):
            if row["split"] == split:
                order = [self.ids[index] for index in np.argsort(-values, kind="stable")]
                ranked = [image for image in order if image not in row["exclude_ids"]]
                group = [image for image in ranked if image in row["group_ids"]]
                for metric, value in evaluate_one(self.form, row["target_ids"], ranked, group).items():
                    values_of.setdefault(metric, []).append(100 * value)
        return {metric: float(np.mean(values)) for metric, values in values_of.items()}


def protocol_of(form: str) -> Protocol:
    return FORMATS.get(form, "test").protocol


def evaluate_one(form: str, targets: list[str], order: list[str], group: list[str]) -> dict[str, float]:
    values = {}
    for name in protocol_of(form).names():
        kind, _, cut = name.partition("@")
        k = int(cut)
        if kind == "mAP":
            hits = [rank for rank, image in enumerate(order[:k], start=1) if image in targets]
            values[name] = sum((n + 1) / rank for n, rank in enumerate(hits)) / min(len(targets), k)
        else:
            values[name] = float(targets[0] in (group if kind == "Recall_subset" else order)[:k])
    return values


def frame_of(workspace: Workspace) -> pl.DataFrame:
    return pl.read_parquet(workspace.path / "cache/toy/tiny/sweep/weightings.parquet")


def command(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cvsi", "sweep", *arguments], cwd=workspace.path, env=environment(workspace.path), text=True,
        capture_output=True,
    )  # fmt: skip


def refused(match: str, name: str = "toy", backbone: str = "tiny", **how: Any) -> None:
    with pytest.raises(CvsiError, match=match) as caught:
        sweep.build(name, backbone, params.load(), **how)
    assert "\n" not in str(caught.value)
    assert not Path("cache/toy/tiny/sweep").exists()


@pytest.mark.parametrize("form", ["circo", "cirr", "fashioniq", "folder"])
def test_every_weighting_has_the_metrics_of_the_definition(world: World, form: str) -> None:
    workspace = world(form)
    sweep.build("toy", "tiny", params.load(), step=0.5)
    frame = frame_of(workspace)
    metrics, known = protocol_of(form).names(), Truth(workspace, form)
    assert frame.columns == ["split", "name", *COMPONENTS.names, *metrics, *sweep_grid.NOISE]
    assert frame["split"].unique(maintain_order=True).to_list() == ["dev", "val"]
    # Six mixes of three query parts times three of the gallery's; edited, pseudo and image are among them.
    assert frame.height == 2 * (18 + 4)
    distinct = set()
    for row in frame.to_dicts():
        wanted = known.metrics(row["split"], row)
        assert {metric: row[metric] for metric in metrics} == pytest.approx(wanted, abs=1e-9), row
        distinct.add(round(row[protocol_of(form).main], 6))
    assert len(distinct) > 10 and 0 < min(frame["Recall@50"]), "the vectors make the comparison empty"


@pytest.mark.parametrize("form", ["circo", "cirr"])
def test_the_published_weights_score_as_in_the_stage(world: World, form: str) -> None:
    workspace = world(form)
    workspace.run("scores", "toy", "tiny")
    stage = json.loads((workspace.path / "cache/toy/tiny/scores/metrics.json").read_text())
    sweep.build("toy", "tiny", params.load())
    for split, values in stage.items():
        own = frame_of(workspace).filter(pl.col("split") == split, pl.col("name") == "cvsi").to_dicts()[0]
        assert {part: own[part] for part in ("edited", "pseudo", "image", "caption")} == OWN | {
            "image": 0.8,
            "caption": 0.2,
        }
        names = protocol_of(form).names()
        assert {name: own[name] for name in names} == pytest.approx({name: values[name] for name in names}, abs=1e-9)


def test_little_memory_changes_no_number(world: World) -> None:
    world("circo")
    settings = params.load()
    whole = sweep.build("toy", "tiny", settings, step=0.5)
    parts = 5 * 2
    assert sweep_ranks.group_size(parts, IMAGES, 1) == sweep_ranks.QUERIES < SPLITS["dev"]
    assert sweep_ranks.group_size(parts, IMAGES, sweep.MEMORY) > max(SPLITS.values())
    small = sweep.build("toy", "tiny", settings, step=0.5, memory=1)
    keys = ["split", *COMPONENTS.names]
    first, second = (outcome.frame.sort(keys).select(pl.exclude("name")) for outcome in (whole, small))
    assert first.select(keys).equals(second.select(keys))
    assert np.abs(first.drop(keys).to_numpy() - second.drop(keys).to_numpy()).max() < 1e-9


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 20),
    images=st.integers(1, 40),
    excluded=st.integers(0, 8),
    block=st.integers(1, 16),
)
def test_ranks_equal_a_stable_sort(seed: int, queries: int, images: int, excluded: int, block: int) -> None:
    random = np.random.default_rng(seed)
    # Small integers: exact in float32, and full of ties.
    parts = random.integers(-2, 3, (queries, 3, 2, images)).astype(np.float32)
    left, right = random.integers(-2, 3, 3).astype(np.float32), random.integers(-2, 3, (4, 2)).astype(np.float32)
    targets = random.integers(-1, images, (queries, 3))
    pairs = np.stack([random.integers(queries, size=excluded), random.integers(images, size=excluded)], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_ranks, "BLOCK", block)
        arrays = (torch.from_numpy(array) for array in (parts, left, right, targets, pairs))
        computed = sweep_ranks.ranks(*arrays).numpy()
    scores = np.einsum("qasn,a,ws->qwn", parts, left, right)
    scores[pairs[:, 0], :, pairs[:, 1]] = -np.inf
    order = np.argsort(-scores, axis=2, kind="stable")
    ranks = np.argsort(order, axis=2)
    for query, weighting, index in np.ndindex(queries, 4, 3):
        target = targets[query, index]
        ranked = target >= 0 and scores[query, weighting, target] > -np.inf
        wanted = ranks[query, weighting, target] if ranked else sweep_ranks.UNRANKED
        assert computed[query, weighting, index] == wanted


def test_the_grid_is_the_simplex_times_the_gallery() -> None:
    table = sweep_grid.points(COMPONENTS, ["edited", "pseudo", "reference"], 0.1)
    assert table.shape == (66 * 11, 7) == np.unique(table, axis=0).shape
    assert np.allclose(table[:, :5].sum(axis=1), 1) and np.allclose(table[:, 5:].sum(axis=1), 1)
    assert (table >= 0).all() and not table[:, 3:5].any()
    assert 0.6 in table and 0.3 in table, "weights are not those that one writes"
    assert sweep_grid.points(COMPONENTS, ["edited"], 1.0).tolist() == [[1, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1, 0]]


def test_a_name_is_put_on_the_grid_or_gets_a_row() -> None:
    def weighting(query: dict[str, float]) -> Form:
        return Form(query=query, gallery={"image": 1.0})

    table = sweep_grid.points(COMPONENTS, ["edited", "pseudo"], 0.5)
    named = {"cvsi": weighting({"edited": 0.5, "pseudo": 0.5}), "same": weighting({"pseudo": 0.5, "edited": 0.5})}
    names, rows = sweep_grid.with_named(COMPONENTS, table, named | {"other": weighting({"source": -0.3})})
    assert len(rows) == len(table) + 1 and sorted(filter(None, names)) == ["cvsi, same", "other"]
    assert rows[names.index("cvsi, same")].tolist() == [0.5, 0.5, 0, 0, 0, 1, 0]
    assert rows[-1].tolist() == [0, 0, 0, -0.3, 0, 1, 0]


@pytest.mark.parametrize("step", [0.3, 0.0, -0.1, 2.0, float("nan"), 1e-9])
def test_a_step_that_does_not_divide_one(step: float) -> None:
    with pytest.raises(CvsiError, match="must divide 1"):
        sweep_grid.points(COMPONENTS, ["edited"], step)


def test_a_step_that_is_too_fine_is_refused_before_anything_is_read(toy: Workspace) -> None:
    done = command(toy, "toy", "tiny", "--step", "0.01")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "520,251 weightings of 3 query parts, more than 200,000; take a larger step or fewer --parts" in line


def test_parts_that_do_not_exist_or_are_not_there(world: World) -> None:
    workspace = world("circo")
    refused("no query component 'caption'; there are: edited, pseudo", parts=["caption"])
    folder = workspace.path / "cache/toy/tiny"
    table = pq.read_table(folder / "query_vectors/all.parquet")
    pq.write_table(table.drop_columns(["reference"]), folder / "query_vectors/all.parquet")
    refused("--parts: no query component 'reference'; there are: edited, pseudo", step=0.5)
    for file in (folder / "gallery_vectors").glob("*"):
        pq.write_table(pq.read_table(file).drop_columns(["caption"]), file)
    refused("gallery_vectors: no column 'caption'", parts=["edited"], step=0.5)


def test_a_method_that_needs_a_missing_column_is_left_out(world: World) -> None:
    workspace = world("circo")
    file = workspace.path / "cache/toy/tiny/query_vectors/all.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["source", "instruction"]), file)
    outcome = sweep.build("toy", "tiny", params.load(), step=0.5)
    assert set(outcome.frame["name"]) == {"", "cvsi", "edited", "pseudo", "image"}


def test_numbers_that_are_not_finite(world: World) -> None:
    workspace = world("circo")
    file = workspace.path / "cache/toy/tiny/query_vectors/all.parquet"
    table = pq.read_table(file)
    bad = column(np.full((table.num_rows, WIDTH), np.inf))
    pq.write_table(table.set_column(table.column_names.index("pseudo"), "pseudo", bad), file)
    refused("query_vectors: vectors with numbers that are not finite", step=0.5)


def test_a_dataset_without_labels(world: World) -> None:
    workspace = world("circo")
    file = workspace.path / "cache/toy/index/queries.parquet"
    rows = [row | {"target_ids": []} for row in pq.read_table(file).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema.QUERIES), file)
    refused("toy: no split has labels", step=0.5)


def test_unknown_names(toy: Workspace) -> None:
    refused("no dataset 'nobody'", "nobody")
    refused("no backbone 'nothing'", backbone="nothing")
    refused("index/queries.parquet: no such file")


def test_the_command_prints_the_best_the_published_the_rate_and_the_warning(world: World) -> None:
    workspace = world("cirr")
    done = command(workspace, "toy", "tiny", "--step", "0.25", "--top", "3", "--parts", "edited, reference")
    assert done.returncode == 0, done.stderr
    assert "weights chosen on the split they are reported on are no result" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert frame_of(workspace).filter(split="dev", name="cvsi")["in_noise"].to_list() == [True]
    assert done.stderr.splitlines()[1] == "next: dvc repro", "weights that are as good need no change"
    for split in ("dev", "val"):
        rows = frame_of(workspace).filter(pl.col("split") == split)
        assert f"{split}, {rows.height} weightings, percent" in done.stdout
        best = rows["Recall@5"].to_list()
        assert best == sorted(best, reverse=True)
        own = rows.filter(pl.col("name") == "cvsi")["Recall@5"][0]
        rank = 1 + sum(value > own for value in best)
        assert any(line.split()[:2] == [str(rank), "cvsi"] for line in done.stdout.splitlines())
    assert "a minute" in done.stdout
    assert "cache/toy/tiny/sweep/weightings.parquet" in done.stdout


def test_files_are_whole_and_the_same_each_time(world: World) -> None:
    workspace = world("circo")
    sweep.build("toy", "tiny", params.load(), step=0.25)
    first = workspace.bytes_below("toy/tiny/sweep")
    names = {Path(name).name for name in first}
    assert names == {"weightings.parquet", "plot.json", "template.json", "sweep.png", "provenance.json"}
    sweep.build("toy", "tiny", params.load(), step=0.25)
    assert workspace.bytes_below("toy/tiny/sweep") == first
    with Image.open(workspace.path / "cache/toy/tiny/sweep/sweep.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = (abs(pixels - [0xD6, 0x27, 0x28]).sum(axis=2) < 40).sum()
    assert pixels.shape[1] > 1000 and red > 200, "the published weights are not marked"


@pytest.mark.parametrize("parts", [["edited"], ["edited", "pseudo"], list(schema.QUERY_PARTS)])
def test_pictures_of_any_number_of_parts(world: World, parts: list[str]) -> None:
    workspace = world("circo")
    workspace.params(datasets__toy__fusion={"query": {"edited": 1.0}, "gallery": {"image": 1.0}})
    outcome = sweep.build("toy", "tiny", params.load(), parts, 0.5)
    assert (workspace.path / "cache/toy/tiny/sweep/sweep.png").stat().st_size > 10_000
    assert "cvsi, edited" in set(outcome.frame["name"])


def test_dvc_draws_the_plot(world: World) -> None:
    workspace = world("circo")
    for call in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        subprocess.run(call, cwd=workspace.path, check=True, env=environment(workspace.path), capture_output=True)
    done = command(workspace, "toy", "tiny", "--step", "0.25")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("dvc plots show")]
    subprocess.run(line.split(), cwd=workspace.path, check=True, env=environment(workspace.path), capture_output=True)
    page = (workspace.path / "cache/toy/tiny/sweep/page/index.html").read_text(encoding="utf-8")
    spec = json.loads(page.split("var spec = ")[1].split(";\n")[0])
    points = spec["data"]["values"]
    assert {point["part"] for point in points} == {"edited", "pseudo", "reference", "image"}
    marked = [point for point in points if point["kind"] == "cvsi, as in params.yaml" and point["split"] == "val"]
    own = frame_of(workspace).filter(pl.col("split") == "val", pl.col("name") == "cvsi").to_dicts()[0]
    assert {point["part"]: point["weight"] for point in marked} == {
        part: own[part] for part in ("edited", "pseudo", "reference", "image")
    }
    assert all(point["mAP@10"] == own["mAP@10"] for point in marked)
    assert "<DVC_METRIC" not in json.dumps(spec)
    assert "cvsi, as in params.yaml" in spec["spec"]["encoding"]["color"]["scale"]["domain"]
    edges = [point for point in points if point["kind"] == "best at this weight" and point["part"] == "image"]
    assert sorted({point["weight"] for point in edges}) == [0, 0.25, 0.5, 0.75, 1]


def test_no_stage_knows_the_folder() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    outs = [out for stage in yaml.safe_load(text)["stages"].values() for out in stage.get("do", stage)["outs"]]
    assert "sweep" not in text and not [out for out in outs if "/sweep".startswith(str(out).removeprefix("cache"))]
