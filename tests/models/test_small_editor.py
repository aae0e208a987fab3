"""A real small language model as editor: SmolLM2-135M on real instructions, in vLLM, as docs/editors.md measures it."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import editors
from cvsi.core.params import Compute
from cvsi.core.statuses import kind, usable
from cvsi.models.llm_vllm import VllmEditor, VllmEditorSettings
from cvsi.pipeline import answers, prompting

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]
AT_LEAST = {"CIRCO": 50, "CIRR": 50, "FashionIQ": 42}  # usable descriptions of 60; docs/editors.md has the figures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return editors.small_model(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def queries() -> list[editors.Case]:
    if not editors.ANNOTATIONS.is_dir():
        pytest.skip(f"no annotation files in {editors.ANNOTATIONS}")
    return editors.cases()


def settings(model: str, **changes: object) -> VllmEditorSettings:
    block = {"model": model, "style": "chat", "precision": "fp32", "context": 4096} | changes
    return VllmEditorSettings.model_validate(block)


def test_most_answers_of_a_small_model_are_usable_and_no_bad_one_is_accepted(
    model: str, queries: list[editors.Case]
) -> None:
    chat = settings(model)
    rows = editors.evaluate(chat, VllmEditor(chat, Compute(device="cpu")), queries)
    assert len(rows) == 2 * len(queries) == 360
    for row in rows:
        assert usable(row.status) == (row.text is not None)
        if row.text:
            assert not row.text.endswith(":") and "<" not in row.text and "\n" not in row.text
            examples = editors.prompt_texts(row.benchmark, chat=True).values()
            lines = [line for text in examples for line in prompting.example_texts(text)]
            assert row.text not in lines
    for name, number in AT_LEAST.items():
        edited = [row for row in rows if (row.benchmark, row.task) == (name, "edited")]
        assert sum(row.usable for row in edited) >= number, Counter(row.status for row in edited)
        accepted = [row for row in edited if usable(row.status)]
        assert sum(row.usable for row in accepted) >= 0.95 * len(accepted)


def test_json_of_a_real_model_follows_the_schema(model: str, queries: list[editors.Case]) -> None:
    both = settings(model, output="json")
    few = queries[::15]
    rows = editors.evaluate(both, VllmEditor(both, Compute(device="cpu")), few)
    assert len(rows) == 2 * len(few)
    for row in rows[::2]:
        if kind(row.status) != "cut":
            content = json.loads(row.raw)
            assert list(content) == ["edited", "added"] and len(content["edited"]) <= 400
            assert re.sub(r'"(?:[^"\\]|\\.)*"', '""', row.raw) == '{"":"","":""}'  # no white space between strings
    assert sum(usable(row.status) for row in rows) >= len(rows) // 2


def test_the_written_captions_are_fifteen_per_query(queries: list[editors.Case]) -> None:
    assert Counter(case.benchmark for case in queries) == {"CIRCO": 60, "CIRR": 60, "FashionIQ": 60}
    assert all(len(case.captions) == 15 and len(set(case.captions)) >= 8 for case in queries)
    assert all(Path(editors.CAPTIONS / f"{name}.json").is_file() for name in ("circo-val", "cirr-test1"))


def test_the_rule_refuses_what_the_docs_name() -> None:
    query = answers.Query(["a dog on a sofa"], "make it a cat", ["a turquoise kettle beside a kitten"])
    assert editors.rule("a cat on a sofa", "stop", query) and editors.rule("", "stop", query)
    wrong = ("A cat. It sits.", "the edited image shows a cat", "a turquoise kettle beside a sofa", "a cat a cat a cat",
             "a cat:", "<b>a cat")  # fmt: skip
    for text in wrong:
        assert not editors.rule(text, "stop", query), text
    assert not editors.rule("a cat", "length", query)
