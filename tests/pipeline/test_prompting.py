"""Prompts as the language model gets them: a text to continue, a conversation, or one conversation for both answers."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from cvsi.core.errors import CvsiError
from cvsi.models.conversations import JSON_SCHEMA, merged
from cvsi.models.editor import EditorSettings, Turn
from cvsi.pipeline import prompting
from cvsi.pipeline.prompting import ADDED_CUE, EDITED_CUE

SHOTS = "Few shots,\nin two lines.\n\nImage Content: a cat\nInstruction: is black\nEdited Description: a black cat"
CHAT_PROMPTS = ("chat_general", "chat_structural", "chat_fashion")


def settings(**changes: Any) -> EditorSettings:
    return EditorSettings.model_validate({"engine": "any", "model": "m"} | changes)


def test_the_text_to_continue_in_full() -> None:
    text = prompting.prompt("Few shots.", ["a dog", "a brown dog"], "has two\ndogs", EDITED_CUE)
    assert text == ("Few shots.\n\nImage Content: a dog, a brown dog\nInstruction: has two dogs\nEdited Description:")


def test_the_conversation_in_full() -> None:
    assert prompting.turns(SHOTS, ["a dog", "a brown dog"], "has two\ndogs", EDITED_CUE) == [
        {"role": "system", "content": "Few shots, in two lines."},
        {"role": "user", "content": "Image Content: a cat\nInstruction: is black"},
        {"role": "assistant", "content": "a black cat"},
        {"role": "user", "content": "Image Content: a dog, a brown dog\nInstruction: has two dogs"},
    ]


def test_a_conversation_without_a_system_role_begins_with_the_task() -> None:
    turns = prompting.turns(SHOTS, ["a dog"], "is red", EDITED_CUE)
    assert merged(turns)[0] == {
        "role": "user", "content": "Few shots, in two lines.\n\nImage Content: a cat\nInstruction: is black",
    }  # fmt: skip
    assert merged(turns)[1:] == turns[2:]
    assert merged(merged(turns)) == merged(turns)


def test_a_prompt_without_examples_is_one_user_turn() -> None:
    assert prompting.turns("The task.", ["a dog"], "is red", EDITED_CUE)[1:] == [
        Turn(role="user", content="Image Content: a dog\nInstruction: is red")
    ]


def test_completion_style_sends_the_text_unchanged_and_all_captions() -> None:
    texts = {"edited": SHOTS, "added": "Name it."}
    prompts = prompting.prompts_of(settings(), texts, ["a dog", "a dog", "dogs"], "is red")
    assert prompts == [
        f"{SHOTS}\n\nImage Content: a dog, a dog, dogs\nInstruction: is red\n{EDITED_CUE}",
        f"Name it.\n\nImage Content: a dog, a dog, dogs\nInstruction: is red\n{ADDED_CUE}",
    ]


@pytest.mark.parametrize(
    ("number", "chosen"),
    [("all", ["A dog", "a  dog", "dogs", "a pup"]), (1, ["A dog"]), (2, ["A dog", "dogs"]),
     (9, ["A dog", "dogs", "a pup"])],
)  # fmt: skip
def test_the_number_of_distinct_captions(number: Any, chosen: Sequence[str]) -> None:
    assert prompting.distinct(["A dog", "a  dog", "dogs", "a pup"], number) == chosen


def test_captions_edited_one_by_one() -> None:
    texts = {"edited": "E.", "added": "A."}
    prompts = prompting.prompts_of(settings(mode="each", captions=2), texts, ["a dog", "a dog", "dogs", "x"], "is red")
    assert [str(prompt).splitlines()[2] for prompt in prompts] == [
        "Image Content: a dog", "Image Content: dogs", "Image Content: a dog, dogs",
    ]  # fmt: skip


def test_the_defaults_of_both_styles() -> None:
    plain, chat = settings(), settings(style="chat")
    assert (plain.max_tokens, plain.captions) == (700, "all")
    assert (chat.max_tokens, chat.captions) == (128, 2)
    assert settings(style="chat", output="json").max_tokens == 256
    assert settings(style="chat", max_tokens=9, captions="all").captions == "all"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"output": "json"}, "needs style: chat"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "needs style: chat"),
        ({"style": "chat", "output": "json", "mode": "each"}, "needs mode: joint"),
        ({"captions": 0}, "captions"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**wrong)


@pytest.mark.parametrize("name", CHAT_PROMPTS)
def test_both_answers_in_one_conversation(name: str) -> None:
    texts = {"edited": prompting.few_shot(name), "added": prompting.few_shot("chat_added")}
    (prompt,) = prompting.prompts_of(settings(style="chat", output="json"), texts, ["a dog"], "is red")
    assert not isinstance(prompt, str)
    answers = [json.loads(turn["content"]) for turn in prompt if turn["role"] == "assistant"]
    assert len(answers) >= 2 and "" in [answer["added"] for answer in answers]
    assert all(list(answer) == list(JSON_SCHEMA["properties"]) for answer in answers)  # type: ignore[call-overload]
    assert "JSON" in prompt[0]["content"]


@pytest.mark.parametrize("name", [*CHAT_PROMPTS, "chat_added"])
def test_prompts_of_conversations_have_the_examples_that_are_needed(name: str) -> None:
    text = prompting.few_shot(name)
    task = prompting.task_of(text)
    assert "overlap and contradict" in task and "at most" in task
    examples = prompting.examples_of(text, ADDED_CUE if name == "chat_added" else EDITED_CUE)
    instructions = " | ".join(example.instruction for example in examples)
    assert "remove" in instructions or "without" in instructions or "no bib" in instructions
    assert "from straight above" in instructions or "from the back" in instructions
    if name == "chat_added":
        assert "none" in [example.answer for example in examples]


@pytest.mark.parametrize("name", ["general", "structural", "fashion"])
def test_every_prompt_of_completions_can_be_a_conversation(name: str) -> None:
    assert len(prompting.examples_of(prompting.few_shot(name), EDITED_CUE)) >= 4
    assert len(prompting.examples_of(prompting.few_shot("added"), ADDED_CUE)) >= 4


@pytest.mark.parametrize(
    "block",
    ["Image Content: a\nInstruction: b", "Instruction: b\nImage Content: a\nEdited Description: c",
     "Image Content: a\nInstruction: b\nObjects most likely added: c", "just a paragraph"],
)  # fmt: skip
def test_an_example_block_of_another_form_is_one_line_in_chat_style(block: str) -> None:
    with pytest.raises(CvsiError, match="an example block needs three lines"):
        prompting.check_prompts(settings(style="chat"), {"edited": f"Task.\n\n{block}", "added": "A."})
    prompting.check_prompts(settings(), {"edited": f"Task.\n\n{block}", "added": "A."})


def test_an_unknown_prompt_lists_the_known_ones() -> None:
    with pytest.raises(CvsiError, match=r"no prompt 'poem'; there are: .*demo_edited"):
        prompting.few_shot("poem")
    with pytest.raises(CvsiError, match="no prompt"):
        prompting.few_shot("../params")
