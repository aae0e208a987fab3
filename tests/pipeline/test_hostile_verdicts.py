"""Answers of a judge's server that are no verdicts: each gives its pair a status, and the other pairs are judged."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cvsi.core import params, tables
from cvsi.core.schema import STORED_VERDICTS
from cvsi.evaluation import rerank
from cvsi.models.judge_server import ServerJudge
from cvsi.pipeline import verdicts as stage
from tests.conftest import Workspace
from tests.pipeline.test_verdicts import fair, impatient, table
from tests.rerank_world import IDS, first_token, judging, make_world, pair_of, with_rerank
from tests.vision_server import Reply, Seen, choice, serving

FORMAT, WITHOUT = "no answer: an answer that is not in OpenAI's format", "no answer: an answer without logprobs"


def reported(*alternatives: tuple[Any, Any]) -> dict[str, Any]:
    """A chat completion with these tokens and numbers, as they are."""
    answer = choice("yes", "length")
    listed = [{"token": token, "logprob": number, "bytes": []} for token, number in alternatives]
    answer["choices"][0]["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    return answer


def logprobs(content: Any) -> dict[str, Any]:
    """A chat completion with this in place of its logprobs."""
    answer = choice("yes", "length")
    answer["choices"][0]["logprobs"] = content
    return answer


HOSTILE: dict[str, tuple[Any, str]] = {
    "no logprobs": (choice("yes"), WITHOUT),
    "no key": (
        choice("yes") | {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]},
        WITHOUT,
    ),
    "null content": (logprobs({"content": None}), WITHOUT),
    "empty content": (logprobs({"content": []}), FORMAT),
    "a list": (logprobs([]), FORMAT),
    "a text": (logprobs("yes"), FORMAT),
    "no alternatives": (logprobs({"content": [{"token": "maybe", "logprob": -0.1, "top_logprobs": []}]}), "no answer"),
    "null alternatives": (logprobs({"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": None}]}), FORMAT),
    "other words": (reported(("maybe", -0.1), ("The", -3.0)), "no answer"),
    "NaN": (reported(("yes", math.nan), ("no", -1.0)), FORMAT),
    "NaN beside": (reported(("yes", -0.1), ("other", math.nan)), FORMAT),
    "infinite": (reported(("yes", math.inf), ("no", -1.0)), FORMAT),
    "too large": (reported(("yes", 10**400), ("no", -1.0)), FORMAT),
    "positive": (reported(("yes", 0.7), ("no", -1.0)), FORMAT),
    "a probability in per cent": (reported(("yes", 93.0), ("no", 7.0)), FORMAT),
    "a number as text": (reported(("yes", "a lot"), ("no", -1.0)), FORMAT),
    "null number": (reported(("yes", None), ("no", -1.0)), FORMAT),
    "a list as number": (reported(("yes", [1]), ("no", -1.0)), FORMAT),
    "two thousand alternatives": (reported(*(("yes", -8.0),) * 2000), FORMAT),
    "no probability at all": (reported(("yes", -1e9), ("no", -1e9)), "no answer"),
    "parts without text": (
        {"choices": [{"index": 0, "message": {"content": [{"type": "text"}]}, "finish_reason": "stop"}]},
        FORMAT,
    ),
    "a million brackets": (b"[" * 1_000_000, FORMAT),
    "a huge answer that is cut": (b'{"choices": ["' + b"x" * 5_000_000, FORMAT),
    "a huge token": (reported(("yes" + "!" * 1_000_000, -0.1), ("well", -3.0)), "no answer"),
    "half a character": (reported(("\ud83d", -0.1), ("well", -3.0)), "no answer"),
}
SPELLINGS = [" Yes", "YES", "yes\n", "\tyEs ", " yes", " " * 150 + "yes"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_each_has_a_status_and_the_other_pairs_are_judged(
    toy: Workspace, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    make_world(toy, queries=4, hidden=0)
    reply, status = HOSTILE[kind]
    hostile = IDS[::6]

    def script(seen: Seen, before: int) -> Reply:
        bad = pair_of(seen)[1] in hostile
        return 200, reply if bad else first_token([("yes", 0.6), ("no", 0.2)]), {}

    with serving(script) as server:
        stage.write("second", with_rerank(toy, server.address, top=12))
        made, sent = table(), len(server.seen)
        bad = made.filter(pl.col("image_id").is_in(hostile))
        assert 2 < bad.height < 20 and bad["yes"].is_null().all()
        assert bad["status"].str.starts_with(status).all() and (":" in status) == (":" in bad["status"][0])
        others = made.filter(~pl.col("image_id").is_in(hostile))
        assert set(others["status"]) == {"ok"} and others["yes"].to_list() == pytest.approx([0.75] * others.height)
        stage.write("second", params.load())
        again = {pair_of(seen)[1] for seen in server.seen[sent:]}
        assert again == (set(bad["image_id"]) if ":" in status else set())  # what may pass is sent again, and no other
    rerank.build("second", params.load())


@pytest.mark.parametrize("word", SPELLINGS)
def test_other_spellings_are_the_answer(toy: Workspace, word: str) -> None:
    make_world(toy, queries=1, hidden=0)
    with serving(judging(lambda *pair: [(word, 0.3), (word.upper(), 0.3), ("no", 0.2)])) as server:
        stage.write("second", with_rerank(toy, server.address, top=2))
    assert table()["yes"].to_list() == pytest.approx([0.75] * 2)


def test_a_huge_text_after_a_verdict_is_not_read(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)
    answer = first_token([("yes", 0.5), ("no", 0.5)])
    answer["choices"][0]["message"]["content"] = "yes " * 1_000_000
    with serving(lambda seen, before: (200, answer, {})) as server:
        stage.write("second", with_rerank(toy, server.address, top=2))
    assert table()["yes"].to_list() == [0.5, 0.5]
    assert sum(file.stat().st_size for file in Path("cache/store/verdicts").rglob("*.parquet")) < 10_000


def test_a_number_that_rounding_put_above_0_is_a_probability(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)
    with serving(lambda seen, before: (200, reported(("yes", 1e-7), ("no", -20.0)), {})) as server:
        stage.write("second", with_rerank(toy, server.address, top=2))
    assert table()["yes"].to_list() == pytest.approx([1.0] * 2)


def test_a_first_pair_without_logprobs_does_not_end_the_run(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    make_world(toy, queries=3, hidden=0)
    toy.params(compute={"device": "cpu", "requests": 1})

    def script(seen: Seen, before: int) -> Reply:
        return (200, choice("yes"), {}) if len(server.seen) <= 2 else (200, first_token([("yes", 1.0)]), {})

    with serving(script) as server:
        stage.write("second", with_rerank(toy, server.address, top=5))
    assert table()["status"].to_list().count(WITHOUT) == 2 and table()["yes"].null_count() == 2


@pytest.mark.parametrize("numbers", [[math.nan, -1.0], [-1.0, math.nan], [math.inf, -1.0], [3.0, -1.0]])
def test_stored_numbers_that_are_no_probabilities_give_no_answer(toy: Workspace, numbers: list[float]) -> None:
    """As a model with infinite activations returns them, or an earlier version stored them."""
    stored = pl.DataFrame(
        {"key": ["a", "b", "c"], "tokens": [["yes", "no"], ["yes", "no"], []],
         "logprobs": [numbers, [-1.0, -1.0], []], "finish": "length"}
    )  # fmt: skip
    made = stage.verdicts(pl.DataFrame(stored.to_arrow().cast(STORED_VERDICTS)), ("yes", "no"))
    assert made["status"].to_list() == ["no answer", "ok", "no answer"]
    assert made["yes"].to_list() == [None, 0.5, None]


def test_a_number_that_is_none_of_an_answer_changes_nothing() -> None:
    stored = pl.DataFrame(
        {"key": ["a"], "tokens": [["yes", "x", "no"]], "logprobs": [[-1.0, math.nan, -1.0]], "finish": "length"}
    )
    assert stage.verdicts(pl.DataFrame(stored.to_arrow().cast(STORED_VERDICTS)), ("yes", "no"))["yes"].to_list() == [
        0.5
    ]


def test_an_image_is_prepared_once_for_all_pairs_of_a_block(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    make_world(toy, queries=20, hidden=0)
    toy.params(compute={"device": "cpu", "requests": 4, "verdict_batch": 400})
    prepared, prepare = list[Any](), ServerJudge.prepare

    def counted(judge: ServerJudge, image: Any) -> Any:
        prepared.append(image.getpixel((0, 0)))
        return prepare(judge, image)

    monkeypatch.setattr(ServerJudge, "prepare", counted)
    with serving(judging(fair)) as server:
        stage.write("second", with_rerank(toy, server.address, top=20))
        assert len(server.seen) == 400
    queries = pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    assert len(prepared) == len(set(prepared)) == len({*table()["image_id"], *queries["reference_id"]})


def prefixes(bodies: list[Any]) -> int:
    """How many prompts begin otherwise than the one before them, up to the candidate."""
    starts = [str(body["messages"][-1]["content"][:-1]) for body in bodies]
    return 1 + sum(one != two for one, two in itertools.pairwise(starts))


@pytest.mark.parametrize("prompt", ["match", "qwen_reranker"])
def test_a_prefix_cache_computes_a_query_once(toy: Workspace, prompt: str) -> None:
    """The requests of a query follow one another, and differ in their last part alone."""
    make_world(toy, queries=12, hidden=0)
    toy.params(compute={"device": "cpu", "requests": 1})
    with serving(lambda seen, before: (200, first_token([("yes", 1.0)]), {})) as server:
        stage.write("second", with_rerank(toy, server.address, top=10, prompt=prompt))
        assert len(server.seen) == 120 and prefixes([seen.body for seen in server.seen]) == 12


Verdict = Callable[[str, str, str], Any]


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("groups", [False, True], ids=["circo", "cirr"])
@pytest.mark.parametrize("kind", ["constant", "never a verdict"])
def test_a_judge_on_a_server_that_says_nothing_leaves_the_ranking(
    toy: Workspace, kind: str, groups: bool, mix: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    make_world(toy, groups, queries=6, hidden=2)
    words = [("yes", 0.3), ("no", 0.6)] if kind == "constant" else [("perhaps", 1.0)]
    with serving(judging(lambda *pair: words)) as server:
        settings = with_rerank(toy, server.address, top=8, mix=mix)
        stage.write("second", settings)
    rerank.build("second", settings)
    scores, second = Path("cache/toy/tiny/scores"), Path("cache/toy/tiny/rerank/second")
    for name in ("rankings.parquet", "per_query.parquet"):
        assert (second / name).read_bytes() == (scores / name).read_bytes()
    pairs = table().filter(pl.col("split") == "val").height
    counts = pl.read_json(second / "metrics.json")["val"].struct.unnest().row(0, named=True)
    assert (counts["judged"], counts["failed"]) == ((pairs, 0) if kind == "constant" else (0, pairs))
