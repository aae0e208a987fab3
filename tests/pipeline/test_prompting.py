"""Prompts as the language model gets them, and strict parsing: an answer that does not parse becomes a fallback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.core.errors import CvsiError
from cvsi.pipeline import prompting


def test_the_prompt_in_full() -> None:
    text = prompting.prompt("Few shots.", ["a dog", "a brown dog"], "has two\ndogs", prompting.EDITED_CUE)
    assert text == ("Few shots.\n\nImage Content: a dog, a brown dog\nInstruction: has two dogs\nEdited Description:")


def test_an_unknown_prompt_lists_the_known_ones() -> None:
    with pytest.raises(CvsiError, match=r"no prompt 'poem'; there are: .*demo_edited"):
        prompting.few_shot("poem")
    with pytest.raises(CvsiError, match="no prompt"):
        prompting.few_shot("../params")


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
def test_parsing(answer: str, parsed: str | None) -> None:
    assert prompting.parse(answer) == parsed


@given(st.text())
def test_whatever_parses_is_one_short_line(answer: str) -> None:
    parsed = prompting.parse(answer)
    assert parsed is None or (len(parsed.splitlines()) <= 1 and len(parsed) <= prompting.LONGEST_ANSWER)


def test_a_row_with_both_answers() -> None:
    row = prompting.parse_answers("k", [["a dog"]], [" a cat"], " whiskers")
    assert row == {
        "key": "k", "edited": ["a cat"], "added": "whiskers", "status": "ok", "answers": [" a cat", " whiskers"],
    }  # fmt: skip


def test_fallbacks_are_the_captions_and_nothing_added() -> None:
    row = prompting.parse_answers("k", [["a dog", "dogs"]], [""], "whiskers")
    assert (row["edited"], row["added"], row["status"]) == (["a dog", "dogs"], "whiskers", "no usable answer: edited")
    row = prompting.parse_answers("k", [["a dog"]], [""], "")
    assert (row["edited"], row["added"]) == (["a dog"], "")
    assert row["status"] == "no usable answer: edited and added"


def test_captions_edited_one_by_one_fall_back_one_by_one() -> None:
    groups = prompting.caption_groups("each", ["a dog", "dogs", "a puppy"])
    assert groups == [["a dog"], ["dogs"], ["a puppy"]]
    row = prompting.parse_answers("k", groups, ["a cat", "", "a kitten"], "whiskers")
    assert row["edited"] == ["a cat", "dogs", "a kitten"]
    assert row["status"] == "no usable answer: edited (1 of 3)"
    assert row["answers"] == ["a cat", "", "a kitten", "whiskers"]


def test_a_prompt_that_was_too_long_to_send_has_a_status() -> None:
    row = prompting.parse_answers("k", prompting.caption_groups("joint", ["a dog", "dogs"]), [None], None)
    assert (row["edited"], row["added"]) == (["a dog", "dogs"], "")
    assert row["status"] == "prompt too long: edited and added"
