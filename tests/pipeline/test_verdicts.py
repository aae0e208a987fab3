"""The stage verdicts: which pairs are judged, what is stored and asked again, and the table."""

import pickle
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cvsi.commands.store import survey
from cvsi.core import params, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import IMAGES, QUERIES, STORED_VERDICTS, VERDICTS
from cvsi.evaluation import scores
from cvsi.models import server_client
from cvsi.models.engines import judge_engine, judge_settings
from cvsi.pipeline import verdicts as stage
from cvsi.pipeline.prompting import few_shot
from cvsi.store.rows import Store
from tests.conftest import Workspace
from tests.rerank_world import IDS, Distribution, first_token, judging, make_world, oracle, pair_of, with_rerank
from tests.vision_server import Reply, Seen, error, serving

BLOCK = {"engine": "server", "address": "http://localhost:1/v1", "model": "m"}


def fair(reference: str, candidate: str, instruction: str) -> Distribution:
    return [("yes", 0.6), ("no", 0.2)]


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry once, at once."""
    monkeypatch.setattr(server_client, "RETRIES", 1)
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.01)


def table() -> pl.DataFrame:
    return pl.DataFrame(tables.whole("verdicts", "toy", "tiny", "second"))


def files() -> dict[str, bytes]:
    folder = Path("cache/toy/tiny/verdicts/second")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_the_first_images_of_each_query_are_judged_in_the_order_of_the_contract(toy: Workspace) -> None:
    make_world(toy)
    with serving(judging(fair)) as server:
        stage.write("second", with_rerank(toy, server.address, top=7))
    made, rankings = table(), pl.read_parquet("cache/toy/tiny/scores/rankings.parquet")
    assert (
        made.to_arrow().schema.equals(VERDICTS) or tables.whole("verdicts", "toy", "tiny", "second").schema == VERDICTS
    )
    columns = ["query_id", "split", "image_id", "rank"]
    assert made.select(columns).equals(rankings.filter(pl.col("rank") <= 7).select(columns))
    assert set(made["status"]) == {"ok"} and made["yes"].to_list() == pytest.approx([0.75] * made.height)


def test_members_of_a_group_follow_in_its_order_with_rank_0_and_without_the_reference(toy: Workspace) -> None:
    make_world(toy, groups=True)
    with serving(judging(fair)) as server:
        stage.write("second", with_rerank(toy, server.address, top=9))
    rankings = pl.read_parquet("cache/toy/tiny/scores/rankings.parquet").filter(pl.col("rank") <= 9)
    expected = []
    for query in tables.read("index", "toy", "queries.parquet").to_pylist():
        own = rankings.filter((pl.col("query_id") == query["query_id"]) & (pl.col("split") == query["split"]))
        first = list(own.sort("rank").select("image_id", "rank").iter_rows())
        listed = [image for image, _ in first]
        rest = [(image, 0) for image in query["group_ids"] if image not in [*listed, query["reference_id"]]]
        expected += [(query["query_id"], query["split"], image, rank) for image, rank in [*first, *rest]]
    assert list(table().select("query_id", "split", "image_id", "rank").iter_rows()) == expected
    assert 0 in table()["rank"]


def test_each_request_has_both_images_with_the_candidate_last_and_wants_one_token(toy: Workspace) -> None:
    make_world(toy, queries=3, hidden=0)
    with serving(judging(fair)) as server:
        stage.write("second", with_rerank(toy, server.address, top=4))
        bodies, pairs = [seen.body for seen in server.seen], {pair_of(seen) for seen in server.seen}
    queries = {row["query_id"]: row for row in tables.read("index", "toy", "queries.parquet").to_pylist()}
    assert pairs == {
        (queries[query]["reference_id"], image, queries[query]["instruction"])
        for query, image in table().select("query_id", "image_id").iter_rows()
    }
    for body in bodies:
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, 20, 1, 0)
        assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url", "text", "image_url"]
    starts = {str(body["messages"][0]["content"][:3]) for body in bodies}
    assert len(starts) == 3  # the prompts of a query differ in the candidate alone


def test_another_weighting_judges_only_pairs_that_were_never_judged(toy: Workspace) -> None:
    make_world(toy)
    with serving(judging(fair)) as server:
        stage.write("second", with_rerank(toy, server.address, top=5))
        assert len(server.seen) == 5 * 34
        stage.write("second", with_rerank(toy, server.address, top=8))
        assert len(server.seen) == 8 * 34
        before = files()
        stage.write("second", with_rerank(toy, server.address, top=8, mix=0.5))
        assert len(server.seen) == 8 * 34 and files() == before
    toy.params(datasets__toy__fusion={"query": {"edited": 1}, "gallery": {"image": 1}})
    scores.build("toy", "tiny", params.load())
    with serving(judging(fair)) as server:
        judged = set(table().select("query_id", "image_id").iter_rows())
        stage.write("second", with_rerank(toy, server.address, top=8))
        new = set(table().select("query_id", "image_id").iter_rows()) - judged
        assert len(server.seen) == len(new) > 0
    stage.write("second", with_rerank(toy, "http://127.0.0.1:9/v1", top=8))  # no server is needed


def test_the_pairs_of_one_reference_are_together(toy: Workspace) -> None:
    make_world(toy, queries=20)
    queries = pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    shared = queries.with_columns(pl.col("reference_id").gather(pl.int_range(pl.len()) % 5))
    images = tables.read("index", "toy", "images.parquet")
    with tables.output("index", "toy") as out:
        out.table("images.parquet", images, IMAGES)
        out.table("queries.parquet", shared.to_arrow(), QUERIES)
    job = stage.verdict_job("second", with_rerank(toy, BLOCK["address"], top=6))
    wanted = job.wanted()
    assert wanted["reference"].rle().len() == wanted["reference"].n_unique() < 6
    pairs = wanted.select(pl.struct("reference", "instruction").alias("pair"))["pair"]
    assert pairs.rle().len() == pairs.n_unique() == 24
    assert set(wanted["key"]) == set(job.candidates()["key"])


@pytest.mark.parametrize(
    ("alternatives", "yes", "status"),
    [
        ([("yes", 0.5), ("no", 0.5)], 0.5, "ok"),
        ([("Yes", 0.2), (" yes", 0.2), ("YES\n", 0.1), ("No", 0.1), ("maybe", 0.4)], 5 / 6, "ok"),
        ([("no", 1.0)], 0.0, "ok"),
        ([(" YES ", 0.001), ("well", 0.9)], 1.0, "ok"),
        ([("yes.", 0.5), ("yesterday", 0.3), ("nope", 0.2)], None, "no answer"),
        ([("The", 0.9), ("I", 0.1)], None, "no answer"),
        ([("yes", 0.0), ("no", 0.0), ("x", 1.0)], None, "no answer"),
        ([("", 1.0)], None, "no answer"),
    ],
)
def test_yes_is_the_share_of_the_positive_answer(
    toy: Workspace, alternatives: Distribution, yes: float | None, status: str
) -> None:
    make_world(toy, queries=1, hidden=0)
    with serving(judging(lambda *pair: alternatives)) as server:
        stage.write("second", with_rerank(toy, server.address, top=2))
    made = table()
    assert made["status"].to_list() == [status] * 2
    assert made["yes"].to_list() == ([None] * 2 if yes is None else pytest.approx([yes] * 2))


def test_other_words_as_answers_give_other_rows(toy: Workspace) -> None:
    make_world(toy, queries=2, hidden=0)
    with serving(judging(lambda *pair: [("A", 0.3), ("B", 0.1), ("yes", 0.6)])) as server:
        stage.write("second", with_rerank(toy, server.address, top=2, answers=["a", "b"]))
        assert table()["yes"].to_list() == pytest.approx([0.75] * 4)
        assert "Answer with one word, a or b." in str(server.seen[0].body)
        stage.write("second", with_rerank(toy, server.address, top=2))
        assert len(server.seen) == 8 and table()["yes"].to_list() == [1.0] * 4


REFUSALS: list[tuple[Reply, str]] = [
    (error(400, "your request was rejected by our safety system"), "refused: content filter"),
    (error(400, "maximum context length is 100 tokens"), "too long"),
    ((200, first_token([("yes", 1.0)], "content_filter"), {}), "refused: content filter"),
]


@pytest.mark.parametrize(("reply", "status"), REFUSALS, ids=["filter", "context", "finish"])
def test_a_pair_that_the_model_refuses_is_stored_without_yes(toy: Workspace, reply: Reply, status: str) -> None:
    make_world(toy, queries=4, hidden=0)
    refused = IDS[::3]

    def script(seen: Seen, before: int) -> Reply:
        return reply if pair_of(seen)[1] in refused else (200, first_token([("yes", 1.0)]), {})

    with serving(script) as server:
        stage.write("second", with_rerank(toy, server.address, top=12))
        made, sent = table(), len(server.seen)
        stage.write("second", params.load())
        assert len(server.seen) == sent
    expected = [status if image in refused else "ok" for image in made["image_id"]]
    assert made["status"].to_list() == expected and status in expected
    assert made["yes"].is_null().to_list() == [one != "ok" for one in expected]


BROKEN = {
    "500": error(500, "busy"), "429": error(429, "slow down"), "no choices": (200, {"choices": []}, {}),
    "html": (200, b"<html>", {}), "no tokens": (200, first_token([("x", 1)]) | {"choices": []}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_failure_that_may_pass_is_null_in_the_table_and_asked_again(
    toy: Workspace, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    impatient(monkeypatch)
    make_world(toy, queries=4, hidden=0)
    failing = IDS[::5]

    def script(seen: Seen, before: int) -> Reply:
        return BROKEN[kind] if pair_of(seen)[1] in failing else (200, first_token([("yes", 1.0)]), {})

    with serving(script) as server:
        stage.write("second", with_rerank(toy, server.address, top=12))
        made = table()
        server.run(judging(fair))
        stage.write("second", params.load())
        again = {pair_of(seen)[1] for seen in server.seen}
    failed = made.filter(pl.col("status") != "ok")
    assert failed.height and failed["status"].str.starts_with("no answer: ").all() and failed["yes"].is_null().all()
    assert set(failed["image_id"]) == again <= set(failing)
    assert "dvc repro --force --single-item verdicts@second" in capsys.readouterr().err
    assert set(table()["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (error(401, "bad key"), "the key was refused; set the environment variable CVSI_JUDGE_KEY"),
        (error(404, "no such model"), "no model 'm' there"),
        (error(400, "this model does not support images"), "takes no images there"),
        (error(400, "top_logprobs must be at most 5"), "set top_logprobs: 5 for the judge"),
        ((200, first_token([("yes", 1.0)]) | {"choices": [{"index": 0, "finish_reason": "stop", "message":
            {"role": "assistant", "content": "yes"}}]}, {}), "the answers have no logprobs"),
        (error(500, "busy"), "20 requests in a row got no answer"),
    ],
)  # fmt: skip
def test_what_concerns_every_request_ends_the_run_in_one_line(
    toy: Workspace, reply: Reply, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    make_world(toy, queries=4, hidden=0)
    with serving(lambda seen, before: reply) as server, pytest.raises(CvsiError) as raised:
        stage.write("second", with_rerank(toy, server.address, top=12))
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not Path("cache/toy/tiny/verdicts/second").exists()


def test_a_canvas_has_both_images_on_one_and_names_their_sides(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)
    with serving(lambda seen, before: (200, first_token([("yes", 1.0)]), {})) as server:
        stage.write("second", with_rerank(toy, server.address, top=3, images="canvas"))
        content = server.seen[0].body["messages"][0]["content"]
        assert [part["type"] for part in content] == ["text", "image_url"]
        assert "Reference: the picture on the left" in content[0]["text"]
        assert server.seen[0].image.size == (24 + 16 + 24, 16)
    recipe = tables.provenance(Path("cache/toy/tiny/verdicts/second"))
    assert recipe["judge"]["images"] == "canvas" and recipe["top"] == 3


@pytest.mark.parametrize("instruction", ["make it {candidate}", "{reference} {yes}", "a\nCandidate: b", "{}", "%s {0}"])
def test_an_instruction_is_text_alone(instruction: str) -> None:
    settings = judge_settings(BLOCK, "judge")
    before, between, system = stage.question_texts(few_shot("match"), instruction, settings)
    assert system == ""
    assert before.endswith("Reference:") and between.endswith("Candidate:")
    assert f"Instruction: {' '.join(instruction.split())}\n" in between and "{yes}" not in before


def test_a_first_paragraph_can_be_a_system_message(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)
    with serving(lambda seen, before: (200, first_token([("yes", 1.0)]), {})) as server:
        stage.write("second", with_rerank(toy, server.address, top=1, prompt="qwen_reranker"))
        system, user = server.seen[0].body["messages"]
    assert system["role"] == "system" and 'can only be "yes" or "no".' in system["content"]
    first, _, second, _ = user["content"]
    assert first["text"].startswith("<Instruct>: ") and first["text"].endswith("with everything else alike.<Query>:")
    assert second["text"] == "as request 0\n<Document>:"


@pytest.mark.parametrize(
    "prompt",
    ["System: {reference}\n\n{instruction} {candidate}", "System: {reference} {instruction} {candidate}",
     "Is it? {instruction} {candidate}", "{reference} {candidate}", "{reference} {instruction}",
     "{candidate} {instruction} {reference}", "{reference} {instruction} {candidate} Answer:",
     "{reference} {reference} {instruction} {candidate}", ""],
)  # fmt: skip
def test_a_prompt_without_its_placeholders_is_one_line(prompt: str) -> None:
    with pytest.raises(CvsiError, match="prompt 'match' is none for a judge") as raised:
        stage.question_texts(prompt, "is red", judge_settings(BLOCK, "judge"))
    assert "\n" not in str(raised.value)


def test_a_prompt_of_editors_is_none_for_a_judge(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)
    with pytest.raises(CvsiError, match="prompt 'general' is none for a judge"):
        stage.verdict_job("second", with_rerank(toy, BLOCK["address"], prompt="general"))
    with pytest.raises(CvsiError, match="no prompt 'nothing'; there are: "):
        stage.verdict_job("second", with_rerank(toy, BLOCK["address"], prompt="nothing"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"engine": "magic"}, "judge.engine: unknown judge engine 'magic'; there are: vllm, server"),
        ({"answers": ["yes"]}, "judge.answers"),
        ({"answers": ["yes", "YES "]}, "judge: answers are both 'yes'"),
        ({"answers": ["yes", " "]}, "judge.answers.1"),
        ({"answers": "yes"}, "judge.answers"),
        ({"images": "three"}, "judge.images"),
        ({"image_size": 1}, "judge.image_size"),
        ({"top_logprobs": 21}, "judge.top_logprobs"),
        ({"address": "localhost"}, "judge.address"),
        ({"temperature": 1}, "judge.temperature: unknown key"),
        ({"prompt": "../x"}, "judge.prompt"),
    ],
)
def test_a_wrong_block_is_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(CvsiError) as raised:
        judge_settings(BLOCK | change, "judge")
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_each_setting_is_in_the_recipe_but_those_that_change_no_verdict(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)

    def recipe(**change: Any) -> dict[str, Any]:
        return stage.verdict_job("second", with_rerank(toy, BLOCK["address"], **change)).recipe()

    same: list[dict[str, Any]] = [
        {"top": 3},
        {"mix": 0.5},
        {"max_tokens_as": "max_completion_tokens"},
        {"precision": "bf16"},
    ]
    other: list[dict[str, Any]] = [
        {"model": "n"}, {"revision": "r"}, {"answers": ["ja", "nein"]}, {"images": "canvas"}, {"image_size": 64},
        {"top_logprobs": 5}, {"send_temperature": False}, {"chat_template_kwargs": {"a": 1}},
    ]  # fmt: skip
    assert all(recipe(**change) == recipe() for change in same)
    recipes = [str(recipe(**change)) for change in other]
    assert len({*recipes, str(recipe())}) == len(other) + 1
    flat = recipe(chat_template_kwargs={"enable_thinking": False})
    assert all(isinstance(value, str | int | float | bool | dict | None) for value in flat.values())
    assert [name for name, value in flat.items() if isinstance(value, dict)] == ["answers"]


def test_the_store_knows_which_output_uses_the_verdicts(toy: Workspace) -> None:
    make_world(toy, queries=2, hidden=0)
    with serving(judging(fair)) as server:
        stage.write("second", with_rerank(toy, server.address, top=2))
    (part,) = [part for part in survey(Path("cache/store")) if part.kind == "verdicts"]
    assert part.by == ("toy/tiny/verdicts/second",) and not part.unused(0)


def test_rankings_of_other_queries_are_one_line(toy: Workspace) -> None:
    make_world(toy, queries=2, hidden=0)
    path = Path("cache/toy/tiny/scores/rankings.parquet")
    pl.read_parquet(path).with_columns(query_id=pl.lit("999")).write_parquet(path)
    with pytest.raises(CvsiError, match="rankings of other queries than the index has"):
        stage.write("second", with_rerank(toy, BLOCK["address"]))
    with pytest.raises(CvsiError, match="no rerank 'third'; there are: second"):
        stage.write("third", params.load())


def test_without_rankings_nothing_is_judged(toy: Workspace) -> None:
    make_world(toy, queries=2, hidden=0)
    path = Path("cache/toy/tiny/scores/rankings.parquet")
    pl.read_parquet(path).clear().write_parquet(path)
    stage.write("second", with_rerank(toy, BLOCK["address"]))
    assert table().height == 0
    assert not list(Store(Path("cache/store")).path.glob("verdicts/*"))


def test_a_run_that_was_stopped_keeps_its_verdicts(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    make_world(toy, queries=6, hidden=0)
    toy.params(compute={"device": "cpu", "verdict_batch": 8, "requests": 1})
    known = oracle()
    with serving(judging(known)) as server:
        stage.write("second", with_rerank(toy, server.address, top=6))
        expected = files()
    with serving(
        lambda seen, before: judging(known)(seen, before) if len(server.seen) < 20 else error(401, "x")
    ) as server:
        toy.params(store="cache/other")
        with pytest.raises(CvsiError, match="the key was refused"):
            stage.write("second", with_rerank(toy, server.address, top=6))
        stored = Store(Path("cache/other")).rows(
            "verdicts", stage.verdict_job("second", params.load()).recipe(), STORED_VERDICTS
        )
        assert len(stored.keys()) == 19
        server.run(judging(known))
        stage.write("second", params.load())
        assert len(server.seen) == 36 - 19
    assert files() == expected


def test_a_pickled_job_is_the_same(toy: Workspace) -> None:
    make_world(toy, groups=True, queries=3, hidden=0)
    job = stage.verdict_job("second", with_rerank(toy, BLOCK["address"], top=3))
    copy = pickle.loads(pickle.dumps(job))
    assert copy == job and copy is not job
    assert copy.recipe() == job.recipe() and copy.wanted().equals(job.wanted()) and copy.schema.equals(job.schema)


def test_the_recipe_of_a_model_on_this_machine() -> None:
    def recipe(**change: Any) -> str:
        settings = judge_settings({"engine": "vllm", "model": "a/b"} | change, "judge")
        return str(judge_engine(settings).recipe(settings, "fp32", Store(Path("none"))))

    changes: list[dict[str, Any]] = [
        {"model": "a/c"}, {"revision": "r"}, {"answers": ["a", "b"]}, {"images": "canvas"}, {"image_size": 64},
        {"context": 512},
    ]  # fmt: skip
    assert len({recipe(), *(recipe(**change) for change in changes)}) == len(changes) + 1
    assert recipe(prompt="qwen_reranker") == recipe()  # the job adds the text
