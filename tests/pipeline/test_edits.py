"""Prompts as the language model gets them, and answers taken strictly: what does not parse falls back, visibly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.core.errors import CvsiError
from cvsi.pipeline import editor


def test_the_prompt_in_full() -> None:
    found = editor.prompt("Few shots.", ["a dog", "a brown dog"], "has two\ndogs", editor.EDITED_CUE)
    assert found == ("Few shots.\n\nImage Content: a dog, a brown dog\nInstruction: has two dogs\nEdited Description:")


def test_an_unknown_prompt_lists_the_known_ones() -> None:
    with pytest.raises(CvsiError, match=r"no prompt 'poem'; there are: .*demo_edited"):
        editor.few_shot("poem")
    with pytest.raises(CvsiError, match="no prompt"):
        editor.few_shot("../params")


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        (" a red dog", "a red dog"),
        ("a red  dog\n\nImage Content: more", "a red dog"),
        ('"a red dog"', "a red dog"),
        ("", None),
        ("  \n\nlate", None),
        ("two\nlines", None),
        ("x" * 3000, None),
        ("a dog Edited Description: again", None),
    ],
)
def test_answers(answer: str, parsed: str | None) -> None:
    assert editor.parse(answer) == parsed


@given(st.text())
def test_whatever_parses_is_one_short_line(answer: str) -> None:
    parsed = editor.parse(answer)
    assert parsed is None or (len(parsed.splitlines()) <= 1 and len(parsed) <= editor.LONGEST_ANSWER)


def test_a_row_with_both_answers() -> None:
    row = editor.row("k", [["a dog"]], [" a cat"], " whiskers")
    assert row == {
        "key": "k", "edited": ["a cat"], "added": "whiskers", "status": "ok", "answers": [" a cat", " whiskers"],
    }  # fmt: skip


def test_fallbacks_are_the_captions_and_nothing_added() -> None:
    row = editor.row("k", [["a dog", "dogs"]], [""], "whiskers")
    assert (row["edited"], row["added"], row["status"]) == (["a dog", "dogs"], "whiskers", "no usable answer: edited")
    row = editor.row("k", [["a dog"]], [""], "")
    assert (row["edited"], row["added"]) == (["a dog"], "")
    assert row["status"] == "no usable answer: edited and added"


def test_captions_edited_one_by_one_fall_back_one_by_one() -> None:
    asked = editor.parts("each", ["a dog", "dogs", "a puppy"])
    assert asked == [["a dog"], ["dogs"], ["a puppy"]]
    row = editor.row("k", asked, ["a cat", "", "a kitten"], "whiskers")
    assert row["edited"] == ["a cat", "dogs", "a kitten"]
    assert row["status"] == "no usable answer: edited (1 of 3)"
    assert row["answers"] == ["a cat", "", "a kitten", "whiskers"]


def test_a_prompt_that_is_too_long_to_ask_says_so() -> None:
    row = editor.row("k", editor.parts("joint", ["a dog", "dogs"]), [None], None)
    assert (row["edited"], row["added"]) == (["a dog", "dogs"], "")
    assert row["status"] == "prompt too long: edited and added"
