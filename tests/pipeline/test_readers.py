"""Readers through the stages: a server that sees the image answers with roles, which become columns and methods."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from cvsi.commands import check, forecast, pack, requirements, search, unpack
from cvsi.core import params, tables
from cvsi.core.errors import CvsiError
from cvsi.datasets import index
from cvsi.evaluation import scores
from cvsi.evaluation.report import build as report
from cvsi.explorer.components import Edit, NewQueries
from cvsi.explorer.images import NewImage
from cvsi.explorer.requests import Answer
from cvsi.models import server_client
from cvsi.models.engines import EDITORS
from cvsi.models.reader_server import KEY
from cvsi.pipeline import edits, vectors
from tests import toy_engines
from tests.conftest import COLOURS, Workspace
from tests.stage_inputs import write_captions, write_index
from tests.vision_server import Reply, Seen, VisionServer, choice, error, serving

ROLES = {"target": 1, "desired": 3, "preserve": 3, "forbidden": 3}
OWN = ["edited", "added", "status", "answer_status", "answers", "finish"]
QUERIES = 3  # of the toy dataset


@pytest.fixture(scope="module")
def server() -> Iterator[VisionServer]:
    with serving() as running:
        yield running


def instruction_of(seen: Seen) -> str:
    """The instruction of a request, which stands beside the image."""
    text = next(part["text"] for part in seen.body["messages"][-1]["content"] if part["type"] == "text")
    return str(text).removeprefix("Instruction: ")


def roles_of(seen: Seen) -> dict[str, list[str]]:
    """What a reader that sees the image answers about the toy pictures."""
    wanted = instruction_of(seen).removeprefix("is ")
    return {
        "target": [f"a {wanted} circle on grey"], "desired": [f"{wanted} circle", f"a disc in {wanted}"],
        "preserve": ["a grey background"], "forbidden": [f"a {seen.colour} circle"],
    }  # fmt: skip


def reading(seen: Seen, before: int = 0) -> Reply:
    return 200, choice(json.dumps(roles_of(seen))), {}


class Case:
    """The toy dataset with captions and edits by a rule, whose reader is the server."""

    def __init__(self, toy: Workspace, server: VisionServer) -> None:
        self.toy, self.server = toy, server
        write_index()
        write_captions()
        toy.params(datasets__toy__editor={"engine": "rule", "ending": "now"})
        self.reader()

    def reader(self, requests: int = 1, **changes: Any) -> None:
        block = {"engine": "server", "address": self.server.address, "model": "m", "roles": ROLES} | changes
        self.toy.params(datasets__toy__reader=block, compute={"device": "cpu", "requests": requests})

    def run(self, script: Callable[[Seen, int], Reply] = reading) -> pl.DataFrame:
        """Run the stage's function against the script; the table that it wrote."""
        self.server.run(script)
        edits.write("toy", params.load())
        return pl.read_parquet("cache/toy/edits/*.parquet")

    def stored(self, kind: str = "readings") -> int:
        files = list((self.toy.path / "cache/store" / kind).rglob("*.parquet"))
        return sum(pl.read_parquet(file).height for file in files)


@pytest.fixture
def case(toy: Workspace, server: VisionServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.0)
    with EDITORS.using("rule", toy_engines.EDITOR):
        yield Case(toy, server)


def test_the_edits_get_a_column_per_role_and_the_server_gets_the_image_and_the_schema(case: Case) -> None:
    table = case.run()
    assert table.columns == ["query_id", "split", *OWN, *ROLES, "reader_status", "reader_answer", "reader_finish"]
    assert table["target"].to_list()[:2] == [["a green circle on grey"], ["a yellow circle on grey"]]
    assert table["forbidden"].to_list()[:2] == [["a red circle"], ["a blue circle"]]
    assert table["desired"][0].to_list() == ["green circle", "a disc in green"]
    assert table["reader_status"].to_list()[:2] == ["ok", "ok"]
    body = case.server.seen[0].body
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["required"] == list(ROLES) and body["temperature"] == 0
    assert schema["schema"]["properties"]["desired"] == {
        "type": "array", "items": {"type": "string", "maxLength": 300}, "maxItems": 3
    }  # fmt: skip
    assert body["messages"][0]["role"] == "system" and "desired (at most 3)" in body["messages"][0]["content"]
    assert case.server.seen[0].image.size == (64, 48)
    assert case.stored() == QUERIES


def test_without_a_reader_there_is_no_such_column(case: Case) -> None:
    case.toy.params(datasets__toy__reader=None)
    assert case.run().columns == ["query_id", "split", *OWN] and case.stored() == 0
    assert "reader" not in tables.provenance(Path("cache/toy/edits"))


def test_a_reader_added_later_recomputes_no_edit_and_a_second_run_asks_for_nothing(case: Case) -> None:
    case.toy.params(datasets__toy__reader=None)
    case.run()
    before = case.stored("edits")
    case.reader()
    first = case.run()
    assert case.stored("edits") == before and len(case.server.seen) == QUERIES
    assert case.run().equals(first) and case.server.seen == []


def test_the_query_vectors_get_the_mean_of_each_roles_unit_vectors_and_zeros_without_one(case: Case) -> None:
    def some(seen: Seen, before: int) -> Reply:
        answer = roles_of(seen) | ({"desired": [], "forbidden": []} if seen.colour == "blue" else {})
        return 200, choice(json.dumps(answer)), {}

    case.run(some)
    vectors.write_queries("toy", "tiny", params.load())
    table = pl.read_parquet("cache/toy/tiny/query_vectors/*.parquet")
    assert table.columns == ["query_id", "split", "edited", "pseudo", "reference", "source", "instruction", *ROLES]
    matrices = {role: np.stack(table[role].to_list()) for role in ROLES}
    assert np.allclose(np.linalg.norm(matrices["target"][:2], axis=1), 1, atol=1e-5)
    assert not matrices["desired"][1].any() and not matrices["forbidden"][1].any() and matrices["preserve"][1].any()
    # The same texts as instructions have the unit vectors that the mean is made of.
    case.reader(roles={"one": 1, "two": 1})
    case.run(
        lambda seen, _: (
            200,
            choice(json.dumps({"one": roles_of(seen)["desired"][:1], "two": roles_of(seen)["desired"][1:]})),
            {},
        )
    )
    vectors.write_queries("toy", "tiny", params.load())
    parts = pl.read_parquet("cache/toy/tiny/query_vectors/*.parquet")
    assert parts.columns[-2:] == ["one", "two"]
    one, two = (np.stack(parts[role].to_list()) for role in ("one", "two"))
    assert np.allclose(matrices["desired"][0], (one[0] + two[0]) / 2, atol=1e-6)


def test_the_methods_of_roles_are_in_the_reports_table_and_can_be_the_fusion(case: Case) -> None:
    case.toy.params(datasets__toy__fusion="sdr")
    case.run()
    vectors.write_gallery("toy", "tiny", params.load())
    vectors.write_queries("toy", "tiny", params.load())
    scores.build("toy", "tiny", params.load())
    report.build("toy", "tiny", params.load())
    content = json.loads(Path("cache/toy/tiny/report/weightings.json").read_text())
    assert content["own"] == "sdr" and {"soft", "osrcir", "sdr", "roles"} <= set(content["splits"]["val"])
    methods = pl.read_parquet("cache/toy/tiny/report/methods.parquet")["method"].unique().to_list()
    assert {"soft", "osrcir", "sdr", "roles"} <= set(methods)
    page = Path("cache/toy/tiny/report/index.html").read_text()
    assert "readings" in page and "2 ok, 1 repaired; queries with texts: target 2" in page


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ((200, choice("", "content_filter"), {}), "refused: content filter"),
        ((200, choice(None, refusal="I will not"), {}), "refused: I will not"),
        ((200, choice('{"target": ["a gre', "length"), {}), "cut: max_tokens reached"),
        (
            (200, choice("I see a circle."), {}),
            "refused: no JSON object with target or desired or preserve or forbidden",
        ),
        (error(400, "maximum context length is 4096 tokens"), "too long"),
    ],
)
def test_an_answer_without_roles_has_empty_lists_and_a_status(case: Case, reply: Reply, status: str) -> None:
    table = case.run(lambda seen, before: reply if seen.colour == "red" else reading(seen))
    assert table["reader_status"][0] == status and table["reader_status"][1] == "ok"
    assert all(table[role][0].to_list() == [] for role in ROLES)
    assert case.stored() == QUERIES  # it will not pass, so it is stored


@pytest.mark.parametrize(
    "reply", [error(429, "slow down"), error(503, "busy"), (200, b"<html>", {}), (200, {"choices": []}, {})]
)
def test_a_failure_that_may_pass_is_not_stored_and_asked_again(
    case: Case, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_client, "RETRIES", 1)
    table = case.run(lambda seen, before: reply if seen.colour == "red" else reading(seen))
    assert table["reader_status"][0].startswith("no answer: ") and case.stored() == QUERIES - 1
    assert case.run()["reader_status"].to_list()[:2] == ["ok", "ok"] and len(case.server.seen) == 1


def test_a_server_that_answers_nothing_usable_ends_the_stage_with_one_line(case: Case) -> None:
    with pytest.raises(CvsiError, match=r"datasets\.toy\.reader: none of 3 readings is usable; most frequent: refused"):
        case.run(lambda seen, before: (200, choice("no"), {}))


def test_a_refused_schema_names_the_setting_that_avoids_it_and_a_refused_key_its_variable(case: Case) -> None:
    with pytest.raises(CvsiError, match="set output: json for the reader"):
        case.run(lambda seen, before: error(400, "response_format is not supported"))
    with pytest.raises(CvsiError, match=KEY):
        case.run(lambda seen, before: error(401, "wrong key"))
    with pytest.raises(CvsiError, match="name a vision model for the reader"):
        case.run(lambda seen, before: error(400, "this model does not support images"))


def test_a_model_without_a_system_role_gets_the_task_in_the_first_user_message(case: Case) -> None:
    def script(seen: Seen, before: int) -> Reply:
        if seen.body["messages"][0]["role"] == "system":
            return error(400, "System role not supported")
        return reading(seen)

    assert case.run(script)["reader_status"].to_list()[:2] == ["ok", "ok"]
    assert "The user sends one photo" in case.server.seen[-1].body["messages"][0]["content"]


def test_the_answer_is_the_same_whatever_the_number_of_requests_at_once(case: Case) -> None:
    first = case.run()
    for file in (case.toy.path / "cache/store/readings").rglob("*.parquet"):
        file.unlink()
    case.reader(requests=8)
    assert case.run().equals(first)


@pytest.mark.parametrize(
    "role", ["edited", "source", "query_id", "captions", "path", "image", "status", "reader_status", "split"]
)
def test_a_role_with_the_name_of_a_component_or_column_is_one_line(case: Case, role: str) -> None:
    case.reader(roles={"target": 1, role: 2})
    with pytest.raises(CvsiError, match=rf"datasets\.toy\.reader\.roles\.{role}: the name of a component or column"):
        case.run()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"roles": {}}, "reader.roles: "),
        ({"roles": {"Target": 1}}, "reader.roles.Target"),
        ({"roles": {"target 2": 1}}, "reader.roles.target 2"),
        ({"roles": {"target": 0}}, "reader.roles.target: "),
        ({"roles": {"target": 1000}}, "reader.roles.target: "),
        ({"roles": {"target": "one"}}, "reader.roles.target: "),
        ({"roles": ["target"]}, "reader.roles: "),
        ({"sees": "video"}, "reader.sees: "),
        ({"output": "xml"}, "reader.output: "),
        ({"prompt": "no-such"}, "no prompt 'no-such'"),
        ({"prompt": "structural"}, "needs three lines that begin with Image Content:, Instruction:, Answer:"),
        ({"address": "localhost"}, "reader.address: "),
        ({"engine": "no"}, "unknown reader engine 'no'"),
        ({"temperature": 1}, "reader.temperature: unknown key"),
    ],
)
def test_a_wrong_reader_is_one_line(case: Case, changes: dict[str, Any], line: str) -> None:
    case.reader(**changes)
    with pytest.raises(CvsiError) as raised:
        case.run()
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_text_model_reads_captions_and_sends_no_image(case: Case) -> None:
    case.reader(sees="captions", captions=2)
    table = case.run(lambda seen, _: (200, choice(json.dumps({role: ["a green circle"] for role in ROLES})), {}))
    assert table["reader_status"].to_list() == ["ok"] * 3 and table["target"].to_list() == [["a green circle"]] * 3
    contents = [seen.body["messages"][-1]["content"] for seen in case.server.seen]
    assert contents[0] == "Image Content: a red circle on a grey background, a red circle\nInstruction: is green"


@pytest.mark.parametrize("sees", ["image", "captions"])
def test_a_reading_is_found_by_what_the_reader_sees(case: Case, sees: str) -> None:
    """Other captions are another reference for a reader of captions, and the same one for a reader of images."""
    case.reader(sees=sees)
    answer = json.dumps({role: ["a green circle"] for role in ROLES})
    case.run(lambda seen, _: (200, choice(answer), {}))
    write_captions({f"{colour}.png": [f"one {colour} disc"] for colour in COLOURS})
    case.run(lambda seen, _: (200, choice(answer), {}))
    assert len(case.server.seen) == (0 if sees == "image" else QUERIES)


def searched(toy: Workspace, colour: str, instruction: str, columns: list[str]) -> Edit:
    content = (toy.path / "photos" / f"{colour}.png").read_bytes()
    queries = NewQueries(params.load().run("toy-tiny"), params.load())
    return queries.vectors(columns, NewImage.of(content), instruction)[1]


def test_a_new_query_asks_the_reader_alone_where_the_fusion_needs_nothing_else(case: Case) -> None:
    case.server.run(reading)
    edit = searched(case.toy, "purple", "is orange", ["target", "forbidden", "reference"])
    assert edit.roles["target"] == ["a orange circle on grey"] and edit.roles["forbidden"] == ["a purple circle"]
    assert (edit.status, edit.reader_status, edit.edited) == ("", "ok", []) and len(case.server.seen) == 1
    assert case.stored() == 0


def test_a_server_of_searches_loads_the_reader_and_neither_captioner_nor_editor(case: Case) -> None:
    queries = NewQueries(params.load().run("toy-tiny"), params.load())
    queries.load(["target", "reference"])
    assert "_reader" in vars(queries) and not {"_captioner", "_editor"} & set(vars(queries))


def test_a_query_of_the_dataset_is_read_from_the_store(case: Case) -> None:
    case.run()
    case.server.run(reading)
    assert searched(case.toy, "red", "is green", ["target"]).roles["forbidden"] == ["a red circle"]
    assert case.server.seen == []


def test_a_search_prints_what_was_read(case: Case) -> None:
    answer = Answer(
        results=(), roles={"target": ("a cat",), "desired": (), "forbidden": ("a", "b")}, reader_status="ok"
    )
    assert next(iter(search.remarks(answer))) == "read: target: a cat; forbidden: a, b"
    none = Answer(results=(), roles={"target": ()}, reader_status="cut: max_tokens reached")
    assert "no usable texts (cut: max_tokens reached)" in next(iter(search.remarks(none)))


@pytest.mark.parametrize("sees", ["image", "captions"])
def test_a_pack_brings_the_readings_to_another_folder(
    case: Case, sees: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    case.reader(sees=sees)
    case.run(lambda seen, _: (200, choice(json.dumps({role: ["a circle"] for role in ROLES})), {}))
    table = pl.read_parquet("cache/toy/edits/*.parquet")
    out = tmp_path_factory.mktemp("pack") / "pack"
    pack.write("toy", out, params.load(), ["edits", "readings"])
    assert "**Readings**: 3 answers" in (out / "README.md").read_text()
    shutil.rmtree(case.toy.path / "cache/store")
    unpack.unpack(out, params.load())
    fit = "complete: 3 distinct queries" if sees == "image" else "fit; how many are used is known once all references"
    assert f"readings {fit}" in capsys.readouterr().out
    case.server.run(lambda seen, _: error(500, "down"))
    edits.write("toy", params.load())
    assert case.server.seen == [] and pl.read_parquet("cache/toy/edits/*.parquet").equals(table)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"roles": {"target": 1}},
            "roles is target: 1 here, target: 1, desired: 3, preserve: 3, forbidden: 3 in the pack",
        ),
        ({"model": "other"}, "the reader is other at no revision here, m at no revision in the pack"),
        ({"sees": "captions"}, "sees is captions here, image in the pack: set sees: image for the reader"),
        (None, "datasets.toy: no reader; name one in params.yaml to use readings"),
    ],
)
def test_a_pack_that_does_not_fit_says_what_to_set(
    case: Case, changes: dict[str, Any] | None, line: str, tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    case.run()
    out = tmp_path_factory.mktemp("pack") / "pack"
    pack.write("toy", out, params.load(), ["readings"])
    case.toy.params(datasets__toy__reader=None) if changes is None else case.reader(**changes)
    unpack.unpack(out, params.load())
    assert line in capsys.readouterr().out


def test_check_lists_the_reader_and_what_it_has_to_read(case: Case) -> None:
    case.server.run(reading)
    forecasts = {task.kind: task for task in forecast.tasks(params.load(), requirements.collect(params.load()))}
    assert (forecasts["queries to read"].todo, forecasts["queries to read"].total) == (QUERIES, QUERIES)
    case.reader(address="http://127.0.0.1:9/v1")
    missing = requirements.collect(params.load()).missing
    assert "change the reader's address" in missing["server http://127.0.0.1:9/v1"]
    case.reader()
    case.run()
    forecasts = {task.kind: task for task in forecast.tasks(params.load(), requirements.collect(params.load()))}
    assert forecasts["queries to read"].todo == 0


def test_check_knows_the_roles_of_every_reader(case: Case) -> None:
    case.reader(roles={"mood": 2})
    case.toy.params(datasets__toy__fusion={"query": {"mood": 1.0}, "gallery": {"image": 1.0}})
    check.check_blocks(params.load())
    case.toy.params(datasets__toy__fusion={"query": {"moods": 1.0}, "gallery": {"image": 1.0}})
    with pytest.raises(CvsiError, match="moods"):
        check.check_blocks(params.load())
    case.toy.params(datasets__toy__fusion="sdr", readers={"a": {"engine": "no", "model": "m", "roles": {"target": 1}}})
    with pytest.raises(CvsiError, match=r"readers\.a\.engine: unknown reader engine 'no'"):
        check.check_blocks(params.load())


def test_dvc_sees_the_reader_in_the_options_of_the_index_and_nothing_without_one(toy: Workspace) -> None:
    index.build("toy", params.load())
    options = Path("cache/toy/index/options/edits.json")
    assert json.loads(options.read_text()) == {"prompts": {"edited": "demo_edited", "added": "demo_added"}}
    block = {"engine": "server", "address": "http://localhost/v1", "model": "m", "roles": {"target": 1}}
    toy.params(datasets__toy__reader=block)
    index.build("toy", params.load())
    assert json.loads(options.read_text())["reader"] == block


@pytest.mark.parametrize("fusion", ["sdr", "roles", "soft", {"query": {"target": 1.0}, "gallery": {"image": 1.0}}])
def test_check_names_the_role_that_no_reader_gives(case: Case, fusion: Any) -> None:
    case.toy.params(datasets__toy__fusion=fusion)
    with console_text() as printed:
        check.report(params.load(), printed)
    assert "name a reader" not in printed.export_text()
    case.toy.params(datasets__toy__reader=None)
    with console_text() as printed:
        assert check.report(params.load(), printed) >= 1
    text = " ".join(printed.export_text().split())
    assert "name a reader with this role" in text and "in the fusion of toy" in text


@contextmanager
def console_text() -> Iterator[Console]:
    yield Console(record=True, width=200, file=io.StringIO())


def test_answers_before_a_failure_of_the_server_are_kept(case: Case) -> None:
    def script(seen: Seen, before: int) -> Reply:
        return reading(seen) if len(case.server.seen) <= 2 else error(401, "the key has expired")

    with pytest.raises(CvsiError, match="the key was refused"):
        case.run(script)
    assert case.stored() == 2
    case.run()
    assert len(case.server.seen) == 1 and case.stored() == QUERIES


def test_an_image_that_changed_after_the_index_is_one_line(case: Case) -> None:
    (case.toy.path / "photos" / "red.png").write_bytes((case.toy.path / "photos" / "blue.png").read_bytes())
    with pytest.raises(CvsiError, match=r"red\.png"):
        case.run()
