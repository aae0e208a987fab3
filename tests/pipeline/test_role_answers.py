"""Answers of readers in every form that models give them: each is used, repaired or refused, with a status."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.core.statuses import STATUSES, kind
from cvsi.models.editor import Answer
from cvsi.models.reader import LONGEST_TEXT
from cvsi.pipeline.answers import Query
from cvsi.pipeline.role_answers import Roles, parse

ROLES = {"target": 1, "desired": 3, "preserve": 3, "forbidden": 3}
QUERY = Query(["a red ball on grass"], "make it blue", ["a turquoise kettle steaming on the stove", "two mallards"])
GOOD = {"target": ["a blue ball on grass"], "desired": ["a blue ball"], "preserve": ["grass"], "forbidden": ["red"]}
WHOLE = json.dumps(GOOD)


def read(text: str, finish: str = "stop", roles: dict[str, int] = ROLES, lines: bool = False) -> Roles:
    return parse(Answer(text, finish), roles, QUERY, lines)


def with_(**changes: Any) -> str:
    return json.dumps(GOOD | changes)


def test_an_answer_in_the_asked_form_is_ok() -> None:
    assert read(WHOLE) == Roles(GOOD, "ok")
    assert read(json.dumps(GOOD, indent=4)) == Roles(GOOD, "ok")
    assert read(with_(desired=[])) == Roles(GOOD | {"desired": []}, "ok")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"```json\n{WHOLE}\n```", "code"),
        (f"```\n{WHOLE}\n```", "code"),
        (f"~~~JSON\n{WHOLE}\n~~~", "code"),
        (f"```json\n{WHOLE}", "code"),
        (f"Here you are:\n```json\n{WHOLE}\n```\nLet me know!", "code"),
        (f"<think>The ball is red. {{maybe}} blue?</think>{WHOLE}", "reasoning"),
        (f"It is red, so blue.</think>\n\n{WHOLE}", "reasoning"),
        (f"<think>{with_(target=['a draft'])}</think>{WHOLE}", "reasoning"),
        (f"<|channel|>analysis<|message|>hm<|channel|>final<|message|>{WHOLE}", "reasoning"),
        (f"A draft:\n```json\n{with_(target=['a draft'])}\n```\nThe answer:\n```json\n{WHOLE}\n```", "code"),
        (f"```\nthinking about it\n```\n{WHOLE}", "code"),
        ("\n".join(json.dumps({role: texts}) for role, texts in GOOD.items()), "several objects"),
        (WHOLE.replace('"forbidden": ["red"]', '"forbidden": [], "forbidden": ["red"]'), "a key twice"),
        (WHOLE.replace('"forbidden": ["red"]', '"forbidden": ["red"], "Forbidden": ["red"]'), "a key twice"),
        (f"Thought: the ball is red.\nAnswer: {WHOLE}", "text around the JSON"),
        (f"Sure! {WHOLE}", "text around the JSON"),
        (f"First I look at {{the ball}}. Then: {WHOLE}", "text around the JSON"),
        (f"{with_(target=['a draft of a ball'])}\nBetter:\n{WHOLE}", "text around the JSON"),
        (f"{WHOLE}\nI hope this helps.", "text around the JSON"),
        (f"[{WHOLE}]", "text around the JSON"),
        (str(GOOD), "JSON with other quotes or commas"),
        (WHOLE.replace("]}", "],}"), "JSON with other quotes or commas"),
        (WHOLE[:-1], "JSON without an end"),
        (json.dumps({"answer": GOOD}), "inside another object"),
        (json.dumps({"id": 1, "roles": GOOD}), "inside another object"),
        (with_(mood=["calm"]), "other roles (mood)"),
        (json.dumps({key.title(): texts for key, texts in GOOD.items()}), ""),
        (with_(forbidden=["red", "red"]), "forbidden: duplicates"),
        (with_(forbidden=["red", "RED "]), "forbidden: duplicates"),
        (with_(target="a blue ball on grass"), "target is no list"),
        (WHOLE.replace("a blue ball on grass", "a blue\nball on\tgrass"), ""),
        (with_(desired=["- **a blue ball**"]), "desired: markup"),
        (with_(desired=['"a blue ball"']), "desired: markup"),
        (with_(preserve=["grass", "", "none", "N/A"]), "preserve: nothing"),
        (with_(preserve=["grass", 7, None, ["a"]]), "an entry of preserve is no text"),
        (with_(preserve=[{"text": "grass"}]), ""),
        (with_(preserve=["grass", "\ud800 lone"]), "preserve: control characters"),
        (with_(preserve=["grass", "bell \u0007"]), "preserve: control characters"),
        (with_(preserve=["grass", "see https://example.org"]), "preserve: an error, an address or a placeholder"),
        (with_(preserve=["grass", "I'm sorry, I cannot help"]), "preserve: the model declines"),
        (with_(preserve=["grass", "the dog the dog the dog"]), "preserve: repeats itself"),
        (with_(preserve=["grass", "a turquoise kettle steaming on the stove"]), "preserve: repeats an example"),
        ("**Target:** a blue ball on grass\n- desired: a blue ball\npreserve: grass\nforbidden: red", "lines instead"),
        ("target: a blue ball on grass\ndesired:\n- a blue ball\npreserve: grass\nforbidden: red", "lines instead"),
    ],
)
def test_what_surrounds_an_answer_is_removed_and_named(text: str, reason: str) -> None:
    answer = read(text)
    assert answer.texts == GOOD
    assert answer.status == "ok" if not reason else answer.status.startswith("repaired: ") and reason in answer.status


@pytest.mark.parametrize("number", range(1, len(WHOLE)))
@pytest.mark.parametrize("finish", ["length", "stop", ""])
def test_of_an_answer_that_ends_anywhere_the_whole_texts_are_kept(number: int, finish: str) -> None:
    answer = read(WHOLE[:number], finish)
    kept = [text for texts in answer.texts.values() for text in texts]
    whole = [texts[0] for texts in GOOD.values()]
    assert kept == whole[: len(kept)]
    assert len(kept) == sum(f'"{text}"' in WHOLE[:number] for text in whole)
    if kept:
        assert answer.status.startswith("repaired: ")
    else:
        assert kind(answer.status) in ("cut", "refused", "no answer")


def test_too_many_and_too_long_texts_are_cut_and_named() -> None:
    many = read(with_(desired=[f"ball number {number}" for number in range(100)]))
    assert many.texts["desired"] == ["ball number 0", "ball number 1", "ball number 2"]
    assert many.status == "repaired: desired: the first 3 of 100"
    long = read(with_(target=["a ball. " + "word and " * 200]))
    assert long.texts["target"] == ["a ball."] and "target: shortened" in long.status
    words = read(with_(target=[" ".join(f"w{number}" for number in range(200))]))
    assert len(words.texts["target"][0]) <= LONGEST_TEXT and words.texts["target"][0].startswith("w0 w1 ")
    assert len(read(with_(target=["x" * 5000])).texts["target"][0]) == LONGEST_TEXT
    assert read(with_(target=["x" * 30_000])).status == "refused: more than 20,000 characters"


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        ("", "stop", "no answer: empty"),
        ("  \n", "stop", "no answer: empty"),
        ("I see a ball.", "stop", "refused: no JSON object with target or desired or preserve or forbidden"),
        ("[1, 2]", "stop", "refused: no JSON object with target or desired or preserve or forbidden"),
        ("null", "stop", "refused: no JSON object with target or desired or preserve or forbidden"),
        ('"target"', "stop", "refused: no JSON object with target or desired or preserve or forbidden"),
        ('{"caption": "a ball", "mood": "calm"}', "stop", "refused: other roles alone (caption, mood)"),
        ('{"error": "no image"}', "stop", "refused: other roles alone (error)"),
        ('{"target": [], "desired": [], "preserve": [], "forbidden": []}', "stop", "no answer: no texts"),
        ('{"target": null}', "stop", "no answer: no texts"),
        ('{"target": ["I am unable to see the image"]}', "stop", "refused: target: the model declines"),
        ("<think>the ball", "length", "cut: max_tokens reached while reasoning"),
        ("<think>the ball", "stop", "no answer: reasoning alone"),
        ('{"tar', "length", "cut: max_tokens reached"),
        ("", "length", "cut: max_tokens reached"),
        ("", "content_filter", "refused: content filter"),
        ("", "too long", "too long"),
        ("", "refused: I will not", "refused: I will not"),
        ("", "failed: HTTP 503", "no answer: HTTP 503"),
    ],
)
def test_an_answer_without_a_text_has_a_status(text: str, finish: str, status: str) -> None:
    assert read(text, finish) == Roles({role: [] for role in ROLES}, status)


def test_null_is_no_list() -> None:
    answer = read(with_(forbidden=None))
    assert answer.texts["forbidden"] == [] and answer.status == "repaired: forbidden is no list"


def test_of_a_key_twice_no_text_is_lost() -> None:
    answer = read(
        '{"target": ["a blue ball"], "desired": ["x ray"], "desired": "y axis", "preserve": [], "forbidden": []}'
    )
    assert answer.texts["desired"] == ["x ray", "y axis"] and answer.status == "repaired: a key twice"


def test_a_missing_role_is_named() -> None:
    answer = read('{"target": ["a blue ball"], "desired": ["blue"]}')
    assert answer.texts == {"target": ["a blue ball"], "desired": ["blue"], "preserve": [], "forbidden": []}
    assert answer.status == "repaired: without preserve and forbidden"


def test_lines_are_ok_where_lines_are_asked_for() -> None:
    text = "target: a blue ball on grass\ndesired: a blue ball; blue\npreserve: grass\nforbidden:"
    assert read(text, lines=True) == Roles(
        {
            "target": ["a blue ball on grass"],
            "desired": ["a blue ball", "blue"],
            "preserve": ["grass"],
            "forbidden": [],
        },
        "ok",
    )
    cut = read("target: a blue ball on grass\ndesired: a blue ball; bl", "length", lines=True)
    assert cut.texts["desired"] == ["a blue ball"] and cut.status.startswith("repaired: cut")
    assert read(WHOLE, lines=True).texts == GOOD


def test_a_text_of_an_example_that_the_query_has_itself_is_kept() -> None:
    query = Query(["a turquoise kettle steaming on the stove"], "add a cat", QUERY.examples)
    text = json.dumps({"target": ["a turquoise kettle steaming on the stove"]})
    assert parse(Answer(text, "stop"), {"target": 1}, query).status == "ok"


@pytest.mark.parametrize("depth", [10, 2_000, 9_000])
def test_deep_nesting_and_many_braces_are_refused_in_time(depth: int) -> None:
    for text in ("{" * depth, '{"target": ' * (depth // 8), "[" * depth, '{"target": [' * (depth // 8) + '"a"'):
        assert kind(read(text, "length").status) in STATUSES


@given(st.text(max_size=300), st.sampled_from(["stop", "length", "", "content_filter"]), st.booleans())
def test_any_text_gives_lists_and_a_status(text: str, finish: str, lines: bool) -> None:
    check(read(text, finish, lines=lines))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))


@given(st.dictionaries(st.sampled_from([*ROLES, "Target ", "other"]), VALUES), st.integers(0, 400))
def test_any_json_whole_or_cut_gives_lists_and_a_status(value: dict[str, Any], end: int) -> None:
    text = json.dumps(value)
    check(read(text))
    check(read(text[:end], "length"))


def check(answer: Roles) -> None:
    assert kind(answer.status) in STATUSES and len(answer.status) <= 200 and "\n" not in answer.status
    answer.status.encode()
    for role, most in ROLES.items():
        assert len(answer.texts[role]) <= most
        for text in answer.texts[role]:
            text.encode()
            assert text.strip() == text != "" and len(text) <= LONGEST_TEXT and "\n" not in text
