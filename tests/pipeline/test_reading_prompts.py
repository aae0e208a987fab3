"""The conversation of a reader: its task, the examples with the roles it has, and the reference."""

import json
from pathlib import Path
from typing import Any

import pytest

from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.editor import Answer
from cvsi.models.engines import reader_settings
from cvsi.models.reader import ReaderSettings, schema_of, turns_of
from cvsi.pipeline import role_answers
from cvsi.pipeline.answers import Query
from cvsi.pipeline.prompting import few_shot
from cvsi.pipeline.reading_prompts import CUE, example_texts, examples, reading_of
from cvsi.pipeline.readings import ReadingJob
from cvsi.store.rows import Store

ALL = {"target": 1, "desired": 8, "preserve": 8, "forbidden": 8}
TEXT = few_shot("roles")


def settings(**changes: Any) -> ReaderSettings:
    block = {"engine": "server", "address": "http://localhost/v1", "model": "m", "roles": ALL}
    return reader_settings(block | changes, "reader")


@pytest.mark.parametrize("output", ["schema", "json", "lines"])
@pytest.mark.parametrize("roles", [ALL, {"target": 1}, {"forbidden": 1, "desired": 2}, ALL | {"mood": 2}])
def test_each_example_is_an_answer_of_the_asked_form(output: str, roles: dict[str, int]) -> None:
    chosen = settings(output=output, roles=roles)
    pairs = examples(chosen, TEXT)
    assert len(pairs) == TEXT.count(CUE)
    for request, answer in pairs:
        assert request.startswith("Image Content: ") and "\nInstruction: " in request
        read = role_answers.parse(Answer(answer, "stop"), roles, Query([], ""), output == "lines")
        assert read.status in ("ok", "no answer: no texts")
        if output != "lines":
            assert list(json.loads(answer)) == list(roles)
            assert all(len(texts) <= roles[role] for role, texts in json.loads(answer).items())


def test_an_example_without_any_of_the_roles_is_left_out() -> None:
    assert examples(settings(roles={"mood": 2}), TEXT) == []


def test_the_task_names_the_roles_and_their_numbers() -> None:
    reading = reading_of(settings(roles={"target": 1, "forbidden": 5}), TEXT, " make\nit blue ", "data:,x")
    assert "target (at most 1), forbidden (at most 5)" in reading.task and "JSON" in reading.task
    assert "a colon" in reading_of(settings(output="lines"), TEXT, "x").task
    turns = turns_of(reading)
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 4, "user"]
    assert turns[-1]["content"][0]["image_url"]["url"] == "data:,x"
    assert turns[-1]["content"][1]["text"] == "Instruction: make it blue"


def test_without_a_system_role_the_task_begins_the_first_user_message() -> None:
    with_examples = turns_of(reading_of(settings(), TEXT, "x", "data:,x"), system=False)
    assert with_examples[0]["role"] == "user" and with_examples[0]["content"].startswith("The user sends one photo")
    alone = turns_of(reading_of(settings(roles={"mood": 1}), TEXT, "x", "data:,x"), system=False)
    assert len(alone) == 1 and alone[0]["content"][1]["text"].startswith("The user sends one photo")


def test_the_schema_is_strict_and_bounded() -> None:
    schema = schema_of(settings())
    assert schema["additionalProperties"] is False and schema["required"] == list(ALL)
    assert {role: part["maxItems"] for role, part in schema["properties"].items()} == ALL


@pytest.mark.parametrize("answer", ["a cat", '["a"]', '{"target": "a"}', '{"target": [1]}', "{", ""])
def test_an_example_whose_answer_is_no_json_of_lists_is_one_line(answer: str) -> None:
    text = f"The task.\n\nImage Content: a dog\nInstruction: a cat\nAnswer: {answer}"
    with pytest.raises(CvsiError, match="an example's Answer: line needs a JSON object") as raised:
        examples(settings(), text)
    assert "\n" not in str(raised.value)


def test_the_texts_of_the_examples_are_known() -> None:
    assert "a barbed fence" in example_texts(TEXT) and all(isinstance(text, str) for text in example_texts(TEXT))


CHANGES: dict[str, Any] = {
    "model": "n", "revision": "r", "prompt": "other", "roles": {"target": 1}, "output": "json", "max_tokens": 9,
    "image_size": 64, "chat_template_kwargs": {"enable_thinking": False}, "send_temperature": False,
    "sees": "captions",
}  # fmt: skip


def recipe(**changes: Any) -> dict[str, Any]:
    chosen = settings(**changes)
    return ReadingJob(Compute(device="cpu"), Store(Path("none")), "toy", Path(), chosen, chosen.prompt).recipe()


def test_each_setting_is_in_the_recipe_but_those_that_change_no_answer() -> None:
    neutral: dict[str, Any] = {
        "address": "http://b/v1", "max_tokens_as": "max_completion_tokens", "precision": "bf16", "context": 9,
        "captions": 7,
    }  # fmt: skip
    assert {*CHANGES, *neutral, "engine"} == set(type(settings()).model_fields)
    digests = [digest(recipe(**{name: value})) for name, value in CHANGES.items()]
    assert len({*digests, digest(recipe())}) == len(CHANGES) + 1
    assert recipe(**neutral) == recipe()
    assert recipe(sees="captions", captions=7) != recipe(sees="captions")
    assert recipe(roles={"target": 1, "desired": 2}) != recipe(roles={"desired": 2, "target": 1})  # another schema
    flat = {name: value for name, value in recipe(**CHANGES).items() if name != "prompts"}
    assert all(isinstance(value, str | int | float | bool | None) for value in flat.values())
