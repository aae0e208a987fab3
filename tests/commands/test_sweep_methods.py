"""`cvsi sweep --method`: every point as `scores` computes it, ties included; requests; what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

from cvsi.commands import sweep, sweep_forms, sweep_plots, sweep_ranks
from cvsi.commands.sweep_findings import findings
from cvsi.commands.sweep_request import Numbers, Request, request
from cvsi.commands.sweep_values import Inputs, Wanted
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.evaluation import methods, scores
from cvsi.evaluation.fusion import Form, read_fusion
from cvsi.evaluation.parts import Part
from cvsi.evaluation.ranking import group_ranks, rank
from tests.commands.conftest import IMAGES, WIDTH, World, column, units
from tests.commands.test_sweep import command
from tests.conftest import Workspace

ONE, TWO = {"image": 1.0}, {"image": [0.5, 0.9, 1.0], "caption": [0.0, 0.3]}
CASES: dict[str, dict[str, Any]] = {
    "sum": {"query": {"edited": [0.2, 0.6, 1.0], "pseudo": [0.0, 0.4], "source": [-0.5, 0.0]}, "gallery": TWO},
    "gate": {
        "parts": {
            "text": {"unit": {"edited": 1.0}},
            "proxy": {"shift": {"from": "reference", "along": {"edited": 1.0, "source": -1.0}, "toward": "text"}},
        },
        "forms": {
            "edited": {"query": {"edited": 1.0}, "gallery": ONE, "unit": True},
            "source": {"query": {"source": 1.0}, "gallery": ONE, "unit": True},
            "proxy": {"query": {"proxy": 1.0}, "gallery": ONE, "unit": True},
        },
        "score": {"kind": "gate", "scale": [0.0, 1.0, 4.0], "margin": [-0.1, 0.0, 0.1]},
    },
    "soft": {
        "forms": {
            "base": {"query": {"edited": 1.0, "pseudo": [0.0, 0.5]}, "gallery": TWO, "unit": True},
            "desired": {"query": {"desired": 1.0}, "gallery": ONE, "unit": True},
            "forbidden": {"query": {"forbidden": 1.0}, "gallery": ONE, "unit": True},
        },
        "score": {"kind": "soft", "scale": [0.2, 1.0]},
    },
    "slope": {
        "forms": {
            "after": {"query": {"edited": 1.0, "reference": [0.0, 0.2]}, "gallery": TWO, "unit": True},
            "before": {"query": {"source": 1.0}, "gallery": {"image": 1.0, "caption": 0.5}},
        },
        "score": {"kind": "slope", "neg": [1.0, 2.1], "pos": 0.13},
    },
    "product": {
        "forms": {
            "left": {"query": {"reference": 1.0}, "gallery": {"image": 1.0, "caption": [-1.0, 0.2]}, "unit": True},
            "right": {"query": {"instruction": 1.0}, "gallery": ONE, "unit": True},
        },
        "score": {"kind": "product", "low": [[0.0, -0.2, 0.1], [-0.1, 0.0]], "harris": [0.0, 0.1]},
    },
    "unit": {
        "parts": {"anchored": {"unit": {"target": [0.5, 0.85, 1.0], "reference": [0.0, 0.15]}}},
        "query": {"anchored": 1.35, "target": [-0.35, 0.0], "instruction": 0.35},
        "gallery": {"image": 1.0},
    },
    "mean": {
        "parts": {"kept": {"mean": {"target": [0.5, 1.0, 2.0], "reference": [0.0, 1.0], "forbidden": 0.5}}},
        "query": {"kept": [0.25, 0.5], "edited": 1.0},
        "gallery": {"image": 1.0, "caption": 0.5},
    },
    "shift": {
        "parts": {
            "proxy": {
                "shift": {
                    "from": {"reference": [0.5, 1.0]},
                    "along": {"edited": 1.0, "source": [-1.0, -0.5, 0.0]},
                    "toward": {"edited": 1.0, "reference": [-0.25, 0.5]},
                }
            }
        },
        "query": {"proxy": 1.0, "edited": 0.5},
        "gallery": {"image": 1.0},
    },
    "slerp": {
        "parts": {"between": {"slerp": {"from": "reference", "to": {"edited": 1.0}, "at": [0.0, 0.3, 0.5, 1.0]}}},
        "query": {"between": 1.0, "source": [0.0, 0.1]},
        "gallery": {"image": [0.8, 1.0], "caption": 0.2},
    },
}


@pytest.fixture
def roles(world: World) -> World:
    """The world with roles, of which some queries have none, and with edits equal to their sources for some."""

    def make(form: str) -> Workspace:
        workspace, random = world(form), np.random.default_rng(5)
        file = workspace.path / "cache/toy/tiny/query_vectors/all.parquet"
        table = pq.read_table(file)
        matrices = {name: np.array(table[name].to_pylist()) for name in ("edited", "source")}
        matrices["source"][::5] = matrices["edited"][::5]
        table = table.set_column(table.column_names.index("source"), "source", column(matrices["source"]))
        for place, role in enumerate(("target", "desired", "forbidden")):
            matrix = matrices["edited"] + units(random, table.num_rows)
            matrix[place::4] = 0
            table = table.append_column(role, column(matrix))
        pq.write_table(table, file)
        return workspace

    return make


def write(block: dict[str, Any], name: str = "mine") -> str:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(block, sort_keys=False), encoding="utf-8")
    return f"{name}.yaml"


def asked(block: dict[str, Any], *settings: str) -> Request:
    return request(params.load(), "toy", write(block), settings)


def points_of(found: Inputs, block: dict[str, Any]) -> sweep_forms.FormPoints:
    return sweep_forms.form_points(found, asked(block).fusions)


@pytest.mark.parametrize("form", ["circo", "cirr"])
@pytest.mark.parametrize("case", CASES)
def test_every_point_ranks_as_the_stage_scores(roles: World, case: str, form: str) -> None:
    roles(form)
    found = sweep.read("toy", "tiny", params.load())
    points, named, table = points_of(found, CASES[case]), found.table.named, found.table
    rows = table.labelled_rows()
    order = rows[np.argsort(-(named.targets[rows] >= 0).sum(axis=1), kind="stable")]
    row_of = np.full(table.frame.height, -1)
    row_of[order] = np.arange(len(order))
    pairs = np.stack([row_of[named.excluded[:, 0]], named.excluded[:, 1]], axis=1)
    arrays = (named.targets[order], named.groups[order], pairs[pairs[:, 0] >= 0])
    wanted, seen, distinct = Wanted(*(torch.from_numpy(array) for array in arrays)), set(), set()
    for run, ahead, groups in points.of_group(order, wanted):
        for place, number in enumerate(run):
            fusion = points.fusions[number]
            stage = rank(*found.vectors.fused(fusion), named, scorer=fusion.scorer)
            computed = np.where(ahead[:, place] < 1000, ahead[:, place] + 1, 0)
            assert (computed == stage.target_ranks[order]).all(), fusion.describe()
            score = groups[:, place].numpy()
            assert np.allclose(score, stage.group_scores[order], atol=1e-5), fusion.describe()
            ranks = (group_ranks(one, named.groups[order], named.targets[order, 0]) for one in (
                score, stage.group_scores[order]
            ))  # fmt: skip
            assert (next(ranks) == next(ranks)).all()
            seen.add(number)
            distinct.add(computed.tobytes())
    assert seen == set(range(len(points))) and len(points) > 5
    assert len(distinct) > len(points) / 3, "the numbers change nothing, so the comparison is empty"


@pytest.mark.parametrize("case", ["gate", "soft", "mean", "product"])
def test_every_metric_is_that_of_the_stage(roles: World, case: str) -> None:
    roles("circo")
    outcome = sweep.build_method("toy", "tiny", params.load(), write(CASES[case]), ())
    found, names = sweep.read("toy", "tiny", params.load()), outcome.protocol.names()
    assert set(outcome.splits) == {"val", "dev"} == set(outcome.frame["split"])
    chosen = outcome.frame.sort("split", *outcome.components.names)[::5].to_dicts()
    for row in chosen:
        fusion = read_fusion(outcome.components.form_of(row), "test")
        stage = rank(*found.vectors.fused(fusion), found.table.named, scorer=fusion.scorer)
        wanted = scores.evaluate(outcome.protocol, found.table, stage.target_ranks, stage.group_scores)
        values = wanted.metrics[row["split"]]
        assert {name: row[name] for name in names} == pytest.approx({name: values[name] for name in names}, abs=1e-9)
    best = outcome.frame.filter(split="val")["mAP@10"].to_list()
    assert best == sorted(best, reverse=True) and best[0] > best[-1]


@pytest.mark.parametrize("case", ["sum", "soft", "shift"])
def test_little_memory_changes_no_number(roles: World, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    roles("circo")
    whole = sweep.build_method("toy", "tiny", params.load(), write(CASES[case]), ())
    for module, name, value in ((sweep_ranks, "BLOCK", 64), (sweep_forms, "BLOCK", 64), (sweep_forms, "HELD", 1)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sweep_forms, "BATCH", 3)
    small = sweep.build_method("toy", "tiny", params.load(), write(CASES[case]), (), memory=1)
    keys = ["split", *whole.components.names]
    first, second = (outcome.frame.sort(keys).drop("name") for outcome in (whole, small))
    assert first.select(keys).equals(second.select(keys))
    assert np.abs(first.drop(keys).to_numpy() - second.drop(keys).to_numpy()).max() < 1e-9


def test_products_of_a_few_columns_are_taken_once(roles: World) -> None:
    """Many weights, parts and sides take the products of their columns; numbers of the score form take none more."""
    roles("circo")
    found = sweep.read("toy", "tiny", params.load())
    images = found.vectors.gallery.size
    for case, pairs in {"sum": 3 * 2, "gate": 3, "unit": 3, "shift": 3, "product": 2 * 2}.items():
        assert points_of(found, CASES[case]).bytes_of(16) == 4 * 16 * pairs * images, case
    many = {"sum": [0.1 * number for number in range(1, 30)]}
    block = {"query": {"edited": many["sum"], "pseudo": [0.5, 1.0]}, "gallery": {"image": 1.0}}
    assert points_of(found, block).bytes_of(17) == 4 * 32 * 2 * images


def test_too_many_columns_for_the_memory(roles: World, monkeypatch: pytest.MonkeyPatch) -> None:
    roles("circo")
    monkeypatch.setattr(sweep_forms, "LARGEST", 4 * 16 * 6 * IMAGES - 1)
    refused("the products of 16 queries take 0.0 GiB", write(CASES["sum"]))


def test_a_projection_that_loses_something() -> None:
    basis = torch.eye(4, dtype=torch.float64)[None, :, :2].expand(3, -1, -1)
    inside = np.array([[1, 2, 0, 0], [0, 0, 0, 0], [0, -1, 0, 0]], dtype=np.float32)
    assert (sweep_forms.projected(inside, basis, "here") == inside[:, :2]).all()
    with pytest.raises(CvsiError, match="here: a part is no weighted sum of columns"):
        sweep_forms.projected(inside + np.array([0, 0, 0.01, 0], dtype=np.float32), basis, "here")


def test_lengths_of_sums_of_columns() -> None:
    random = np.random.default_rng(2)
    shard = random.normal(size=(50, 3, WIDTH)).astype(np.float32)
    shard[7, 1], shard[9] = shard[7, 0], 0
    lengths = sweep_forms.lengths_of(shard)
    for weights in ([1.0, -1.0, 0.0], [0.5, 0.2, -0.7], [0.0, 0.0, 2.0]):
        wanted = np.linalg.norm(np.einsum("mcd,c->md", shard.astype(np.float64), weights), axis=1)
        scales = sweep_forms.scales_of(lengths, weights).numpy()
        assert scales == pytest.approx(np.where(wanted > 0, 1 / np.where(wanted > 0, wanted, 1), 0), rel=1e-6)


def test_only_the_parts_that_a_form_uses_tell_its_vectors_apart() -> None:
    parts = {name: Part(unit={used: 1.0}) for name, used in (("a", "edited"), ("b", "a"), ("c", "source"))}
    used = sweep_forms._used(Form(query={"b": 1.0}, gallery={"image": 1.0}), parts)
    assert list(used) == ["a", "b"]


def test_a_method_by_name_with_lists_from_the_command(roles: World) -> None:
    workspace = roles("circo")
    done = command(
        workspace, "toy", "tiny", "--method", "adast", "--set", "scale=1,4,8", "--set", "score.margin=[0, 0.05, 1e-1]"
    )
    assert done.returncode == 0, done.stderr
    assert "9 points of adast on val, dev, 700 images; products of" in done.stdout
    assert "adast" in done.stdout and "scale" in done.stdout and "margin" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "│" in line or "──" in line) <= 80
    assert "Honest less adast:" in done.stdout.replace("\n", " ")
    frame = pl.read_parquet(workspace.path / "cache/toy/tiny/sweep/points.parquet")
    assert frame.columns[:4] == ["split", "name", "score.scale", "score.margin"] and frame.height == 2 * 9
    own = frame.filter(name="adast")
    assert own.height == 2 and own["score.scale"].to_list() == [4, 4] and own["score.margin"].to_list() == [0, 0]
    assert {file.name for file in (workspace.path / "cache/toy/tiny/sweep").iterdir()} == {
        "points.parquet", "plot.json", "template.json", "sweep.png", "provenance.json",
    }  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("dvc plots show")]
    assert " -x value -y mAP@10 " in line
    points = json.loads((workspace.path / "cache/toy/tiny/sweep/plot.json").read_text())
    assert {point["part"] for point in points} == {"score.scale", "score.margin"}
    assert {point["value"] for point in points if point["kind"] == sweep_plots.ITS_OWN} == {0.0, 4.0}
    recipe = json.loads((workspace.path / "cache/toy/tiny/sweep/provenance.json").read_text())
    assert "score.scale" in json.dumps(recipe)


def test_what_is_pasted_is_the_best_point(roles: World) -> None:
    workspace = roles("circo")
    outcome = sweep.build_method("toy", "tiny", params.load(), "adast", ["scale=1,2", "toward.reference=-0.5,0.5"])
    texts = [finding for finding in findings(outcome, "toy") if isinstance(finding, str)]
    pasted = next(text for text in texts if text.startswith("    fusion:"))
    best = outcome.frame.row(0, named=True)
    fusion = yaml.safe_load(pasted)["fusion"]
    assert fusion == outcome.components.form_of(best)
    assert fusion["score"]["scale"] == best["score.scale"]
    workspace.params(datasets__toy__fusion=fusion)
    workspace.run("scores", "toy", "tiny")
    stage = json.loads((workspace.path / "cache/toy/tiny/scores/metrics.json").read_text())
    assert stage[best["split"]]["mAP@10"] == pytest.approx(best["mAP@10"], abs=1e-9)


@pytest.mark.parametrize("lists", [1, 2, 3])
@pytest.mark.parametrize("width", [80, 160])
def test_tables_and_pictures_of_any_number_of_lists(roles: World, lists: int, width: int) -> None:
    workspace = roles("cirr")
    settings = ["scale=0.5,1,2,8", "margin=0,0.1", "along.source=-1,-0.5"][:lists]
    outcome = sweep.build_method("toy", "tiny", params.load(), "adast", settings)
    assert (workspace.path / "cache/toy/tiny/sweep/sweep.png").stat().st_size > 10_000
    console = Console(width=width)
    with console.capture() as capture:
        for table in sweep_plots.tables(outcome, 3):
            console.print(table)
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    assert "adast" in text and all(end in text for end in ("scale", "margin", "source")[:lists])


def test_the_datasets_own_fusion_and_the_users_methods(roles: World) -> None:
    workspace = roles("circo")
    outcome = sweep.build_method("toy", "tiny", params.load(), "", ["gallery.caption=0,0.2,0.4"])
    assert outcome.own == "cvsi" and outcome.frame.filter(name="cvsi", split="val").height == 1
    mine = {"mine": CASES["slerp"], "other": {"query": {"edited": 1.0}, "gallery": {"image": 1.0}}}
    workspace.params(methods=mine)
    assert sweep.build_method("toy", "tiny", params.load(), "mine", ()).number == 4 * 2 * 2
    assert sweep.build_method("toy", "tiny", params.load(), "other", ["query.source=-0.5,0"]).own == "other"
    with pytest.raises(CvsiError, match=r"methods\.mine\.\S+: one value, not the list .*; only cvsi sweep takes lists"):
        methods.methods(params.load())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"query": {"edited": [0.5, 1.0]}, "gallery": {"image": 1.0}}, "query.edited"),
        (CASES["gate"], "score.scale"),
        (CASES["product"], "forms.left.gallery.caption"),
        (CASES["shift"], "parts.proxy.shift.from.reference"),
        ({"query": {"edited": []}, "gallery": {"image": 1.0}}, "query.edited"),
    ],
)
def test_lists_outside_a_sweep(toy: Workspace, change: dict[str, Any], key: str) -> None:
    pattern = re.escape(f"{key}: one value, not the list") + ".*only cvsi sweep takes lists"
    with pytest.raises(CvsiError, match=r"params.yaml: methods\.x\." + pattern) as caught:
        methods.read_method("x", change)
    assert "\n" not in str(caught.value)
    toy.params(datasets__toy__fusion=change)
    with pytest.raises(CvsiError, match=r"params.yaml: datasets\.toy\.fusion\." + pattern):
        methods.fusion_of(params.load(), "toy")
    plain = {"query": {"edited": 1.0}, "gallery": {"image": 1.0}}
    with pytest.raises(CvsiError, match=r"constants\.circo.*only cvsi sweep takes lists"):
        methods.read_method("x", plain | {"constants": {"circo": {"query": {"edited": [1.0]}}}})


def test_constants_of_the_format_and_files_of_three_shapes(toy: Workspace) -> None:
    block = CASES["gate"] | {"known_as": "mine", "constants": {"cirr": {"score": {"scale": [7.0], "margin": 0.5}}}}
    for shape in (block, {"name": block}, {"methods": {"name": block}}):
        assert len(asked(shape).fusions) == 9
        toy.params(datasets__toy__format="cirr")
        found = asked(shape)
        assert [(dict(f.scorer)["scale"], dict(f.scorer)["margin"]) for f in found.fusions] == [(7.0, 0.5)]
        assert found.method == ("mine" if shape is block else "name")
        toy.params(datasets__toy__format="circo")


def test_points_without_any_weight_are_left_out(toy: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked({"query": {"edited": [0.0, 0.5], "pseudo": [0, 1]}, "gallery": {"image": 1.0}})
    assert found.table.tolist() == [[0, 1], [0.5, 0], [0.5, 1]]
    assert "1 point left out, at which all weights of a form are zero" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "key", "values"),
    [
        ("scale=1,", "score.scale", [1.0]), ("score.scale = [1, 2]", "score.scale", [1.0, 2.0]),
        ("scale=1e-5,.5,-2", "score.scale", [1e-5, 0.5, -2.0]),
        ("query.edited=1,2", "forms.edited.query.edited", [1.0, 2.0]),
        ("proxy.gallery.caption=0,0.5", "forms.proxy.gallery.caption", [0.0, 0.5]),
        ("forms.proxy.gallery.caption=0,0.5", "forms.proxy.gallery.caption", [0.0, 0.5]),
        ("parts.proxy.shift.toward.source=0.5", "parts.proxy.shift.toward.source", [0.5]),
    ],
)  # fmt: skip
def test_ways_to_write_a_setting(toy: Workspace, setting: str, key: str, values: list[float]) -> None:
    found = request(params.load(), "toy", "adast", [setting])
    assert [".".join(map(str, path)) for path in found.keys] == [key] and found.lists == (tuple(values),)


def test_a_pair_is_written_as_a_pair(toy: Workspace) -> None:
    found = request(params.load(), "toy", "product", ["low=[[0, -0.1], 0]", "harris=0.1,0.2"])
    assert found.keys == (("score", "low", 0), ("score", "harris")) and len(found.fusions) == 4
    alone = request(params.load(), "toy", "product", ["low.1=-0.5,0"])
    assert [dict(fusion.scorer)["low"] for fusion in alone.fusions] == [(0, -0.5), (0, 0)] and alone.own == 1


def test_short_names_tell_numbers_apart() -> None:
    keys = (("forms", "a", "query", "edited"), ("forms", "b", "query", "edited"), ("score", "scale"))
    assert Numbers({}, keys).short == ["a.query.edited", "b.query.edited", "scale"]
    assert Numbers({}, (("query", "edited"), ("parts", "p", "query", "edited"))).short[1] == "p.query.edited"


def refused(match: str, method: str = "", *settings: str) -> None:
    with pytest.raises(CvsiError, match=match) as caught:
        sweep.build_method("toy", "tiny", params.load(), method, settings)
    assert "\n" not in str(caught.value)
    assert not Path("cache/toy/tiny/sweep").exists()


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("adast", [], "adast: no number is a list.*--set KEY=VALUE,VALUE.*score.scale"),
        ("adast", ["scale"], "--set scale: write KEY=VALUE,VALUE"),
        ("adast", ["=1,2"], "--set =1,2: write KEY=VALUE,VALUE"),
        ("adast", ["scale="], "adast.score.scale: the list is empty"),
        ("adast", ["scale=[]"], "adast.score.scale: the list is empty"),
        ("adast", ["scale=a,b"], "adast.score.scale: 'a' is not a finite number"),
        ("adast", ["scale=1,.nan"], "adast.score.scale: nan is not a finite number"),
        ("adast", ["scale=1,nan"], "adast.score.scale: 'nan' is not a finite number"),
        ("adast", ["scale=.inf"], "adast.score.scale: inf is not a finite number"),
        ("adast", ["scale=true,false"], "adast.score.scale: True is not a finite number"),
        ("adast", ["scale=1,,2"], "--set scale=1,,2: the values must be numbers|not a finite number"),
        ("adast", ["scale=[1, 2"], "--set scale=.*the values must be numbers"),
        ("adast", ["scale={a: 1}"], "is not a finite number"),
        ("adast", ["scale=1,2,1.0"], "adast.score.scale: 1 is in the list twice"),
        ("adast", ["scal=1,2"], "--set scal: adast has no such number; there are: .*score.scale"),
        ("adast", ["score.nothing=1,2"], "--set score.nothing: adast has no such number"),
        ("adast", ["edited=1,2"], "--set edited: adast has .*write one of them in full"),
        ("adast", ["gallery.caption=1,2"], "--set gallery.caption: adast has several such places: forms"),
        ("adast", ["unit=0,1"], "--set unit: adast has no such number"),
        ("cvsi", ["query.nothing=1,2"], "no column 'nothing', which cvsi needs"),
        ("cvsi", ["gallery.nothing=1,2"], "gallery_vectors: no column 'nothing', which cvsi needs"),
        ("osrcir", ["query.target=1,2"], "no column 'target', which osrcir needs"),
        ("soft", ["scale=0,1"], "no column 'desired', which soft needs"),
        ("nobody", ["scale=0,1"], "--method: unknown method 'nobody'; there are: cvsi, edited"),
        ("gone.yaml", [], "gone.yaml: no such file"),
        ("product", ["low=0,-0.1,-0.2"], "no number is a list|product.score.low"),
        ("product", ["low=[[0, -0.1], 0, 0]"], "product.score.low"),
        ("cvsi", ["query.edited=0", "query.pseudo=0"], "all weights of a form are zero at every point"),
        ("adast", ["scale=" + ",".join(map(str, range(150))), "margin=" + ",".join(map(str, range(150)))],
         "adast: 22,500 points of 2 lists, more than 20,000; shorten a list"),
    ],
)  # fmt: skip
def test_requests_that_are_refused(world: World, method: str, settings: list[str], match: str) -> None:
    world("circo")
    refused(match, method, *settings)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("query: {edited: [1, 2]}\ngallery: {image: x}", "mine.gallery.image: Input should be a valid number"),
        ("query: {edited: [a]}\ngallery: {image: 1}", "mine.query.edited: 'a' is not a finite number"),
        ("query: {edited: [1, [2, 3]]}\ngallery: {image: 1}", r"mine.query.edited: \[2, 3\] is not a finite number"),
        ("query: {edited: [null]}\ngallery: {image: 1}", "mine.query.edited: None is not a finite number"),
        ("query: {edited: [1, 2]}\ngallery: {image: 1}\nextra: 1", "mine.extra: unknown key"),
        ("query: {edited: [1, 2]}\ngallery: {image: 1}\nknown_as: [1]", "known_as: Input should be a valid string"),
        ("query: {edited: 1}\ngallery: {image: 1}\nscore: {kind: [1, 2]}", "score"),
        ("parts: {m: {slerp: {from: edited, to: source, at: [0, 2]}}}\nquery: {m: 1}\ngallery: {image: 1}",
         "mine.parts.m.slerp.at: Input should be less than or equal to 1"),
        ("parts: {m: {unit: {later: [1, 2]}}, later: {unit: {edited: 1}}}\nquery: {m: 1}\ngallery: {image: 1}",
         "mine.parts.m: uses 'later'"),
        ("parts: {m: {unit: [1, 2]}}\nquery: {m: 1}\ngallery: {image: 1}", "mine.parts.m.unit"),
        ("[1, 2]", "mine.yaml: must have the data of one method"),
        ("", "mine.yaml: must have the data of one method"),
        ("just words", "mine.yaml: must have the data of one method"),
        ("a: [1", "mine.yaml: not YAML"),
        ("a: &a {b: *a, c: 1}", "mine.yaml: nested too deeply"),
        ("a: {query: {edited: [1, 2]}}\nb: {query: {edited: [1, 2]}}", "unknown key|key is missing"),
    ],
)  # fmt: skip
def test_files_that_are_refused(world: World, text: str, match: str) -> None:
    world("circo")
    Path("mine.yaml").write_text(text, encoding="utf-8")
    refused(match, "mine.yaml")


def test_files_that_cannot_be_read(world: World) -> None:
    world("circo")
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00")
    refused("mine.yaml: not YAML", "mine.yaml")
    Path("folder.yaml").mkdir()
    refused("folder.yaml: cannot be read", "folder.yaml")


def test_a_dataset_without_labels(roles: World) -> None:
    workspace = roles("circo")
    file = workspace.path / "cache/toy/index/queries.parquet"
    table = pq.read_table(file)
    rows = [row | {"target_ids": []} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, table.schema), file)
    refused("toy: no split has labels", "adast", "scale=1,2")


def test_a_score_form_without_weights_says_what_to_do(world: World) -> None:
    workspace = world("circo")
    workspace.params(datasets__toy__fusion="adast")
    done = command(workspace, "toy", "tiny")
    assert done.returncode == 1
    assert "score form 'gate' has no single weights; vary its numbers with --set KEY=VALUE,VALUE" in done.stderr
    assert command(workspace, "toy", "tiny", "--set", "scale=1,2").returncode == 0


def test_a_run_in_place_of_dataset_and_backbone(world: World) -> None:
    workspace = world("circo")
    workspace.params(runs={"here": {"dataset": "toy", "backbone": "tiny"}})
    done = command(workspace, "here", "--method", "edited", "--set", "gallery.caption=0,0.5")
    assert done.returncode == 0 and "2 points of edited" in done.stdout, done.stderr
    mixed = command(workspace, "here", "--method", "edited", "--step", "0.5")
    assert mixed.returncode == 1 and "--parts and --step are for weightings" in mixed.stderr.strip()
    gone = command(workspace, "nowhere")
    assert gone.returncode == 1 and len(gone.stderr.strip().splitlines()) == 1 and "nowhere" in gone.stderr
