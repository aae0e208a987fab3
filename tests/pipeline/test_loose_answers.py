"""Answers that are nearly JSON, or say the same in another form: used with a status that names it, never in part."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.core.statuses import kind
from cvsi.models.editor import Answer
from cvsi.pipeline.answers import Query
from cvsi.pipeline.loose_json import loose_object
from cvsi.pipeline.role_answers import Roles, parse
from tests.pipeline.test_role_answers import GOOD, QUERY, ROLES, WHOLE, check, with_

INDENTED = json.dumps(GOOD, indent=2)
KEYS = "{target: [a blue ball on grass], desired: [a blue ball], preserve: [grass], forbidden: [red]}"


def read(text: str, finish: str = "stop", lines: bool = False) -> Roles:
    return parse(Answer(text, finish), ROLES, QUERY, lines)


def quoted(opening: str, closing: str) -> str:
    """The good answer with other quotes."""
    members = [
        f"{opening}{role}{closing}: [{', '.join(f'{opening}{text}{closing}' for text in texts)}]"
        for role, texts in GOOD.items()
    ]
    return "{" + ", ".join(members) + "}"


NEARLY = {
    "typographic quotes": quoted("\u201c", "\u201d"),
    "closing quotes alone": quoted("\u201d", "\u201d"),
    "single typographic quotes": quoted("\u2018", "\u2019"),
    "guillemets": quoted("\u00ab", "\u00bb"),
    "backticks": quoted("`", "`"),
    "low quotes": quoted("\u201e", "\u201c"),
    "keys without quotes": WHOLE.replace('"target"', "target").replace('"desired"', "desired"),
    "nothing in quotes": KEYS,
    "equals signs": WHOLE.replace('":', '" ='),
    "arrows": WHOLE.replace('":', '" =>'),
    "full-width signs": WHOLE.replace(":", "\uff1a").replace(",", "\uff0c"),
    "blanks that break no line": WHOLE.replace(", ", ",\u00a0").replace("{", "{\u00a0"),
    "comments to the end of a line": INDENTED.replace("],\n", "], // so\n"),
    "comments with a hash": INDENTED.replace("],\n", "],  # so\n"),
    "comments between signs": WHOLE.replace('"desired"', '/* must be there */ "desired"'),
    "a missing comma": WHOLE.replace('], "desired"', '] "desired"'),
    "missing commas at line ends": INDENTED.replace("],\n", "]\n"),
    "doubled commas": WHOLE.replace("], ", "],, "),
    "semicolons": WHOLE.replace("], ", "]; "),
    "a list that is not ended": WHOLE.replace('["red"]', '["red"'),
    "parentheses": WHOLE.replace("[", "(").replace("]", ")").replace('"', "`"),
    "escaped quotes": WHOLE.replace('"', '\\"'),
    "a JSON text with JSON in it": json.dumps(WHOLE),
    "JSON in a text of JSON": json.dumps({"answer": WHOLE}),
    "in a fence": f"```json5\n{KEYS}\n```",
    "in a fence with a comment": f"```jsonc\n{INDENTED.replace('],', '], // so', 1)}\n```",
    "after thoughts": f"<think>Let {{me}} see.</think>\n{KEYS}",
    "after a sentence": f"Sure, here it is: {quoted('`', '`')} I hope it helps.",
    "inside another object": f"{{answer: {KEYS}}}",
    "after a draft": f"{KEYS.replace('a blue ball on grass', 'a draft')}\nBetter:\n{KEYS}",
    "lists within a list": json.dumps({role: [texts] for role, texts in GOOD.items()}),
    "lists within objects": json.dumps({role: {"texts": texts} for role, texts in GOOD.items()}),
    "plural names": json.dumps({f"{role}s": texts for role, texts in GOOD.items()}),
    "longer names": json.dumps({f"{role} objects": texts for role, texts in GOOD.items()}),
    "some longer names": WHOLE.replace('"target"', '"target_description"'),
    "an object per role": json.dumps([{"role": role, "texts": texts} for role, texts in GOOD.items()]),
    "a line of JSON per role": "\n".join(json.dumps({"key": r, "text": t[0]}) for r, t in GOOD.items()),
    "numbered lines": "\n".join(f"{n}. {role}: {texts[0]}" for n, (role, texts) in enumerate(GOOD.items(), 1)),
    "numbers in parentheses": "\n".join(f"({n}) {role}: {texts[0]}" for n, (role, texts) in enumerate(GOOD.items(), 1)),
    "headings": "\n\n".join(f"## {role.title()}\n\n- {texts[0]}" for role, texts in GOOD.items()),
    "headings without bullets": "\n".join(f"# {role}\n{texts[0]}" for role, texts in GOOD.items()),
    "labels on a line of their own": "\n".join(f"{role}:\n{texts[0]}" for role, texts in GOOD.items()),
    "a table": "| role | text |\n|---|---|\n" + "\n".join(f"| {role} | {texts[0]} |" for role, texts in GOOD.items()),
    "tags": "".join(f"<{role}>{texts[0]}</{role}>" for role, texts in GOOD.items()),
    "tags on lines": "\n".join(f"<{role.title()}>\n{texts[0]}\n</{role.title()}>" for role, texts in GOOD.items()),
    "one line with commas": ", ".join(f"{role}: {texts[0]}" for role, texts in GOOD.items()),
    "one line with semicolons": "; ".join(f"{role}: {texts[0]}" for role, texts in GOOD.items()),
    "one line with stops": ". ".join(f"{role.title()}: {texts[0]}" for role, texts in GOOD.items()),
}


@pytest.mark.parametrize("form", NEARLY)
@pytest.mark.parametrize("finish", ["stop", ""])
def test_an_answer_in_another_form_is_used_and_named(form: str, finish: str) -> None:
    answer = read(NEARLY[form], finish)
    assert answer.texts == GOOD and answer.status.startswith("repaired: ")
    assert read(NEARLY[form], finish, lines=True).texts == GOOD


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('{"target": ["a blue "ball" on grass"], "forbidden": ["red"]}', 'a blue "ball" on grass'),
        ("{'target': ['a child's blue ball'], 'forbidden': ['red']}", "a child's blue ball"),
        ('{"target": ["a 24" screen, on a desk"], "forbidden": ["red"]}', 'a 24" screen, on a desk'),
        ("{target: ['the dogs' ball'], forbidden: ['red']}", "the dogs' ball"),
        ('{"target": ["a sign: \\"stop\\""], forbidden: ["red"]}', 'a sign: "stop"'),
        ('{"target": ["caf\\u00e9 tables"], forbidden: ["red"]}', "caf\u00e9 tables"),
    ],
)
def test_quotes_within_a_text_belong_to_it(text: str, target: str) -> None:
    answer = read(text)
    assert answer.texts["forbidden"] == ["red"] and answer.status.startswith("repaired: ")
    assert answer.texts["target"] == [target]


CUTTABLE = ("typographic quotes", "single typographic quotes", "backticks", "nothing in quotes", "keys without quotes")


@pytest.mark.parametrize("form", CUTTABLE)
def test_of_a_cut_answer_in_another_form_only_whole_texts_are_kept(form: str) -> None:
    whole = [texts[0] for texts in GOOD.values()]
    for end in range(1, len(NEARLY[form])):
        answer = read(NEARLY[form][:end], "length")
        kept = [text for texts in answer.texts.values() for text in texts]
        assert kept == whole[: len(kept)], NEARLY[form][:end]
        assert answer.status.startswith("repaired: ") if kept else kind(answer.status) in ("cut", "refused")


def test_a_sentence_after_an_empty_label_is_no_text() -> None:
    answer = read("target: a blue ball\nforbidden:\n\nI hope this helps.", lines=True)
    assert answer.texts["forbidden"] == [] and answer.texts["target"] == ["a blue ball"]


def test_a_role_that_is_there_is_not_replaced_by_one_with_a_longer_name() -> None:
    answer = read(with_(target_description=["another"]))
    assert answer.texts == GOOD and answer.status == "repaired: other roles (target_description)"
    two = read('{"targets": ["a ball"], "target_text": ["a cube"], "desired": ["x"]}')
    assert two.texts["target"] == [] and "other roles (targets, target_text)" in two.status


@pytest.mark.parametrize(
    "text",
    [
        "{" * 3000, '{"target": ["' * 1500, '{target: "' * 1500, "{target: [" * 1500, '{"a" /*' * 2800, '{"a"//' * 3300,
        '{"target": ["' + '"//' * 6000, "{target: '" + "' " * 9000, "<target>" * 2400, "target:" * 2800,
        "target: " + " " * 19_000 + "|", "#" * 19_000, "{'" + " '" * 9000, "\n# target" * 2000, "| target " * 2000,
        '\\"' * 9000, "{target = " * 1900, '{"target": ["x' + "\\" * 18_000,
    ],
    ids=range(18),
)  # fmt: skip
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_hostile_texts_take_no_time(text: str, finish: str) -> None:
    began = time.process_time()
    check(read(text, finish))
    assert time.process_time() - began < 2


SIGNS = st.sampled_from(
    [*"{}[]()\":,;='`#/*\\ \n|<>", "target", "desired", "a ball", "\u201c", "\u201d", "null", "```"]
)


@given(st.lists(SIGNS, max_size=60).map("".join), st.sampled_from(["stop", "length", ""]), st.booleans())
def test_any_mixture_of_signs_gives_lists_and_a_status(text: str, finish: str, lines: bool) -> None:
    check(read(text, finish, lines))


VALUES = st.recursive(
    st.none() | st.booleans() | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_what_is_json_is_read_as_json(value: dict[str, Any]) -> None:
    """Except quotes within texts before a comma or a bracket, which JSON escapes: these texts are read alike, too."""
    read_value = loose_object(json.dumps(value), 0, dict)
    assert read_value == (value, True)


@pytest.mark.parametrize("text", ["", "no brace", "{", "{]", "{a}", "{:1}", "{1: }", "{" * 50 + "}" * 50])
def test_what_is_no_object_is_none_or_empty(text: str) -> None:
    read_value = loose_object(text, max(text.find("{"), 0), dict)
    assert read_value is None or read_value == ({}, False)


def test_an_own_text_of_the_query_stays() -> None:
    query = Query(["grass"], "make it blue", QUERY.examples)
    assert parse(Answer(KEYS, "stop"), ROLES, query).texts == GOOD
