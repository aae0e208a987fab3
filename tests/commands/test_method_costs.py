"""`cvsi check --methods`: calls that each method uses, exact or at most; stored rows, times, what a run lacks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cvsi.commands import method_costs, requirements
from cvsi.commands.main import app
from cvsi.commands.method_costs import ALL, CAPTIONS, EDITS, IMAGES, NEW_READINGS, PSEUDO, READINGS, TEXTS, RunCosts
from cvsi.commands.times import rates
from cvsi.core import params
from cvsi.core.digest import digest
from cvsi.evaluation.methods import _builtin
from cvsi.models.engines import EDITORS
from cvsi.pipeline import edits
from cvsi.pipeline.edits import edit_job
from tests import toy_engines
from tests.conftest import Workspace, draw_pictures, project_params
from tests.rerank_world import make_world, with_rerank
from tests.stage_inputs import write_captions, write_edits, write_index, write_vectors

METHODS = (
    "cvsi", "edited", "pseudo", "image", "text", "image+text", "product", "pdv", "adast", "seize", "soft", "osrcir",
    "sdr", "roles",
)  # fmt: skip
FURTHER = set(_builtin()) - set(METHODS)  # methods for which other tests are made
SERVER = {"engine": "server", "address": "http://localhost:1/v1", "model": "m"}
ROLES = {"target": 1, "desired": 3, "preserve": 3, "forbidden": 3}
QUERIES, PICTURES, N = 3, 8, 5  # of the toy dataset


@pytest.fixture(autouse=True)
def no_known_rates() -> Iterator[None]:
    """Forget the rates that a test before this one has read."""
    rates.cache_clear()
    yield
    rates.cache_clear()


def costs(run: str = "toy-tiny") -> dict[str, method_costs.Cost]:
    settings = params.load()
    every = {cost.method: cost for cost in RunCosts(run, settings, requirements.collect(settings)).costs()}
    return {method: cost for method, cost in every.items() if method not in FURTHER}


def numbers(cost: method_costs.Cost) -> dict[str, Any]:
    """The numbers by kind: total, to do, and whether they are exact."""
    return {
        kind: None if number is None else (number.total, number.todo, number.exact)
        for kind, number in cost.numbers.items()
    }


def printed(*options: str, code: int = 0) -> str:
    rates.cache_clear()
    result = CliRunner().invoke(app, ["check", *options], env={"COLUMNS": "80"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_before_anything_is_computed_the_numbers_are_the_most_there_can_be(toy: Workspace) -> None:
    of = costs()
    assert tuple(of) == (*METHODS, ALL)
    assert numbers(of["edited"]) == {
        CAPTIONS: (6, 6, False), EDITS: (3, 3, False), TEXTS: (15, 15, False), IMAGES: (8, 8, False)
    }  # fmt: skip
    assert numbers(of["image"]) == {IMAGES: (8, 8, False)}
    assert numbers(of["text"]) == {TEXTS: (3, 3, False), IMAGES: (8, 8, False)}
    assert numbers(of["cvsi"])[CAPTIONS] == (8, 8, False) and numbers(of["cvsi"])[PSEUDO] == (3, 3, False)
    assert numbers(of["cvsi"])[TEXTS] == (15 + 40, 15 + 40, False)


def test_with_tables_each_row_is_counted_once(toy: Workspace) -> None:
    write_index()
    write_captions()
    write_edits()
    of = costs()
    assert numbers(of["image"]) == {IMAGES: (8, 8, True)}
    assert numbers(of["edited"]) == {
        CAPTIONS: (3, 3, True), EDITS: (3, 3, True), TEXTS: (3, 3, True), IMAGES: (8, 8, True)
    }  # fmt: skip
    assert numbers(of["cvsi"])[CAPTIONS] == (8, 8, True)  # of references and gallery, which overlap
    assert numbers(of["cvsi"])[TEXTS] == (3 + PICTURES * N, 3 + PICTURES * N, True)
    assert numbers(of["pdv"])[TEXTS] == (3 + QUERIES * N, 3 + QUERIES * N, True)
    assert numbers(of[ALL])[CAPTIONS] == (8, 8, True)
    assert numbers(of[ALL])[EDITS] == (3, 3, True)


def test_stored_rows_count_as_done(toy: Workspace) -> None:
    write_index()
    write_captions()
    with EDITORS.using("rule", toy_engines.EDITOR):
        toy.params(datasets__toy__editor={"engine": "rule", "ending": "now"})
        edits.write("toy", params.load())
        assert {numbers(costs()[method])[EDITS] for method in ("cvsi", "edited", "pseudo", ALL)} == {(3, 0, True)}
        toy.params(datasets__toy__editor={"engine": "rule", "ending": "then"})
        assert numbers(costs()["edited"])[EDITS] == (3, 3, True)


@pytest.mark.parametrize(
    ("editor", "answers"),
    [
        ({}, 2),
        ({"mode": "each"}, 1 + N),
        ({"mode": "each", "style": "chat"}, 1 + 2),
        ({"mode": "each", "captions": 3}, 1 + 3),
        ({"mode": "each", "captions": "all"}, 1 + N),
        ({"mode": "each", "captions": 99}, 1 + N),
        ({"output": "json", "style": "chat"}, 1),
        ({"output": "json", "style": "chat", "captions": 4}, 1),
    ],
)
def test_the_answers_of_an_edit_follow_the_editors_settings(
    toy: Workspace, editor: dict[str, Any], answers: int
) -> None:
    toy.params(datasets__toy__editor=SERVER | editor, datasets__toy__prompts={"edited": "chat_general"})
    line = next(line for line in printed("--methods").splitlines() if line.startswith("edited "))
    assert f"  <= {QUERIES * answers}  " in line


@pytest.mark.parametrize(
    ("reader", "lacks"),
    [
        (None, {"soft", "osrcir", "sdr", "roles"}),
        (SERVER | {"roles": ROLES}, set()),
        (SERVER | {"roles": {"target": 1}}, {"soft", "roles"}),
        (SERVER | {"roles": {"desired": 2, "forbidden": 2}}, {"osrcir", "sdr", "roles"}),
        (SERVER | {"roles": ROLES, "sees": "captions"}, set()),
    ],
)
def test_a_method_whose_roles_no_reader_gives_lacks_them(
    toy: Workspace, reader: dict[str, Any] | None, lacks: set[str]
) -> None:
    toy.params(datasets__toy__reader=reader)
    of = costs()
    assert {method for method, cost in of.items() if cost.lacks} == lacks
    for method in lacks:
        assert numbers(of[method])[NEW_READINGS] == (3, 3, False) and not of[method].complete
    for method in {"soft", "osrcir", "sdr", "roles"} - lacks:
        assert numbers(of[method])[READINGS] == (3, 3, False)
    if reader is not None and "target" in reader["roles"]:
        assert (CAPTIONS in of["osrcir"].numbers) == (reader.get("sees") == "captions")
        assert numbers(of["osrcir"])[TEXTS] == (3, 3, False)
    text = printed("--methods")
    below = text.partition("Methods share")[0].partition("all of them")[2]
    assert ("a reader with" in below) == bool(
        lacks
    ) and "composed: needs a backbone that makes composed vectors" in below
    possible = sum(not what for what in method_costs.lacking(params.load().run("toy-tiny"), params.load()).values())
    line = f"{possible} of {len(_builtin())} methods possible"
    assert line in " ".join(printed(code=1 if reader else 0).split()) and possible >= 14 - len(lacks)


def test_a_role_that_no_reader_of_the_file_has_is_unknown(toy: Workspace) -> None:
    mood = {"query": {"mood": 1.0}, "gallery": {"image": 1.0}}
    toy.params(methods={"moody": mood}, readers={})
    with pytest.raises(Exception, match="mood"):  # a weight of a component that does not exist
        CliRunner().invoke(app, ["check", "--methods"], catch_exceptions=False)
    assert costs()["moody"].numbers[TEXTS] is None
    toy.params(readers={"r": SERVER | {"roles": {"mood": 4}}})
    assert numbers(costs()["moody"])[TEXTS] == (12, 12, False)
    assert "moody: needs a reader with the role mood." in printed("--methods")


def test_a_method_of_ones_own_is_listed_and_its_columns_are_counted(toy: Workspace) -> None:
    toy.params(methods={"mine": {"query": {"reference": 1.0}, "gallery": {"image": 0.5, "caption": 0.5}}})
    assert set(numbers(costs()["mine"])) == {IMAGES, CAPTIONS, TEXTS}
    assert any(line.startswith("mine ") for line in printed("--methods").splitlines())


def test_a_backbone_without_phi_is_named(toy: Workspace) -> None:
    content = toy.params()
    tower = {key: value for key, value in content["backbones"]["tiny"].items() if key != "phi"}
    plain = {"query": {"edited": 1.0}, "gallery": {"image": 1.0}}
    toy.params(backbones=content["backbones"] | {"tiny": tower}, datasets__toy__fusion=plain)
    assert {method for method, cost in costs().items() if "phi" in cost.lacks} == {"pseudo"}
    assert "pseudo: needs a phi of the backbone." in printed("--methods")


def test_columns_of_another_program_need_no_reader(toy: Workspace) -> None:
    write_index()
    write_vectors(["edited", "pseudo", "reference", "source", "instruction", "target"])
    of = costs()
    assert not of["osrcir"].lacks and READINGS not in of["osrcir"].numbers and of["roles"].lacks
    assert "target" not in of["roles"].lacks


def measured(folder: Path, kind: str, recipe: str, computed: int, seconds: float) -> None:
    step = {"kind": kind, "recipe": recipe, "computed": computed, "load_seconds": 5.0, "seconds": 5.0 + seconds}
    record = {"stage": kind, "arguments": ["toy"], "began": "2026", "seconds": 99.0, "outcome": "done", "steps": [step]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.json").write_text(json.dumps(record), encoding="utf-8")


def test_times_come_from_measured_rates_and_are_unknown_without(toy: Workspace) -> None:
    write_index()
    write_captions()
    toy.params(datasets__toy__editor=SERVER | {"captions": 2})
    before = costs()["edited"]
    assert (before.seconds, before.complete, method_costs._time(before)) == (0, False, "unknown")
    measured(toy.path / "cache/.runs", EDITS, digest(edit_job("toy", params.load()).recipe()), 100, 200.0)
    rates.cache_clear()
    of = costs()
    assert of["edited"].seconds == pytest.approx(6.0) and method_costs._time(of["edited"]) == "over 6.0 s"
    assert of["image"].seconds == 0  # makes no edits


def test_a_rerank_adds_its_pairs_to_the_runs_own_fusion(toy: Workspace) -> None:
    make_world(toy)
    with_rerank(toy, "http://localhost:1/v1", top=6)
    of = costs()
    assert numbers(of["rerank second"])["verdicts second"] == (204, 204, True)
    assert set(of["rerank second"].numbers) - {"verdicts second"} == set(of["cvsi"].numbers)
    text = printed("--methods")
    assert "rerank second" in [line.split("  ")[0] for line in text.splitlines()] and "judged" in text


def test_the_pairs_of_a_run_that_is_not_ranked_are_the_most_there_can_be(toy: Workspace) -> None:
    with_rerank(toy, "http://localhost:1/v1", top=6)
    assert numbers(costs()["rerank second"])["verdicts second"] == (18, 18, False)


def test_all_benchmarks_fit_a_terminal_of_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("circo", "cirr-val", "fashioniq-dress")
    runs = {f"{name}-l": {"dataset": name, "backbone": "vit-l-14"} for name in names}
    content = project_params() | {"active": list(names), "runs": runs}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    text = printed("--methods")
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line for line in text.partition("cirr-val-l")[0].splitlines() if line.startswith("cvsi ")]
    assert "<= 123,403" in line and "<= 2,040" in line
    assert text.count("model calls that each method uses") == 3


def test_what_cannot_be_counted_is_one_line(toy: Workspace) -> None:
    content = toy.params()
    nothing = content["datasets"]["toy"] | {"root": "nowhere"}
    runs = content["runs"] | {"none": {"dataset": "nothing", "backbone": "tiny"}}
    toy.params(datasets=content["datasets"] | {"nothing": nothing}, runs=runs, active=["toy", "nothing"])
    text = printed("--methods")
    assert "none: cannot be counted" in text and "all of them" in text


def test_a_folder_without_queries_has_no_methods(toy: Workspace) -> None:
    (toy.path / "photos/queries.jsonl").unlink()
    assert "toy has no queries, so no method is evaluated" in printed("--methods")
    assert "methods possible" not in printed()


def test_a_folder_that_changed_since_the_index_is_named(toy: Workspace) -> None:
    write_index()
    draw_pictures(toy.path / "photos" / "more")
    assert "The folder of toy changed since its index was made" in " ".join(printed("--methods").split())


def test_without_runs_there_is_a_line(toy: Workspace) -> None:
    toy.params(runs={})
    assert "No run in params.yaml" in printed("--methods")


def test_the_default_output_has_one_line_per_run(toy: Workspace) -> None:
    text = " ".join(printed().split())
    assert text.count("cvsi check --methods") == 1
    assert "methods possible; what each costs and what the others lack: cvsi check --methods" in text


def test_methods_and_download_together_are_refused(toy: Workspace) -> None:
    result = CliRunner().invoke(app, ["check", "--methods", "--download"])
    assert result.exit_code == 1 and "give one of the two" in str(result.exception)
