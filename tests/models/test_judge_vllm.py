"""A tiny Qwen2.5-VL with random weights as judge in vLLM: its probabilities are those of transformers."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.editor import TOO_LONG, Answer
from cvsi.models.engines import judge_settings
from cvsi.models.judge import Question, Verdict, normalised
from cvsi.models.judge_vllm import VllmJudge
from tests.imports import ROOT
from tests.models import tiny_qwen

# In processes of their own at `make test-slow`: each setting loads vLLM once more.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save(tmp_path_factory.mktemp("qwen") / "model")


def judge_of(folder: Path, **changes: object) -> VllmJudge:
    block = {"engine": "vllm", "model": str(folder), "precision": "fp32", "image_size": 56, "context": 512}
    return VllmJudge(judge_settings(block | changes, "judge"), Compute(device="cpu"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def judge(folder: Path) -> VllmJudge:
    return judge_of(folder)


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (56, 56), "grey")
    ImageDraw.Draw(image).ellipse((10, 10, 40, 40), fill=colour)
    return image


def questions(judge: VllmJudge, text: str = "make it blue") -> list[Question[Image.Image]]:
    first, *others = [judge.prepare(picture(colour)) for colour in COLOURS]
    return [Question("Is it?\nReference:", first, f"Instruction: {text}\nCandidate:", other) for other in others]


def share(verdict: Answer) -> float:
    """The probability of yes over that of both answers."""
    assert isinstance(verdict, Verdict)
    sums = {"yes": 0.0, "no": 0.0}
    for token, logprob in zip(verdict.tokens, verdict.logprobs, strict=True):
        if normalised(token) in sums:
            sums[normalised(token)] += torch.tensor(logprob, dtype=torch.float64).exp().item()
    return sums["yes"] / (sums["yes"] + sums["no"])


def test_the_verdicts_are_those_of_transformers(judge: VllmJudge, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    found, expected = [], []
    for question, verdict in zip(questions(judge), judge.verdicts(questions(judge)), strict=True):
        content = [
            {"type": "text", "text": question.before}, {"type": "image", "image": question.reference},
            {"type": "text", "text": question.between}, {"type": "image", "image": question.candidate},
        ]  # fmt: skip
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        chosen = {
            answer: [
                n for n in range(len(processor.tokenizer)) if normalised(processor.tokenizer.decode([n])) == answer
            ]
            for answer in ("yes", "no")
        }
        assert {len(tokens) for tokens in chosen.values()} == {3}
        masses = {answer: logits.softmax(0)[tokens].sum().item() for answer, tokens in chosen.items()}
        expected.append(masses["yes"] / (masses["yes"] + masses["no"]))
        found.append(share(verdict))
    assert found == pytest.approx(expected, abs=2e-3)
    assert max(found) - min(found) > 0.02  # the candidate decides


def test_the_order_of_the_two_images_counts(judge: VllmJudge) -> None:
    one = questions(judge)[0]
    other = Question(one.before, one.candidate, one.between, one.reference)
    (first,), (second,) = judge.verdicts([one]), judge.verdicts([other])
    assert abs(share(first) - share(second)) > 1e-3


def test_a_question_longer_than_the_context_is_too_long_and_the_others_are_judged(judge: VllmJudge) -> None:
    short, long = questions(judge), questions(judge, "make it blue " * 200)
    made = judge.verdicts([short[0], long[1], short[2], long[0]])
    assert made[1] == made[3] == Answer("", TOO_LONG)
    alone = judge.verdicts(short)
    assert [share(made[0]), share(made[2])] == pytest.approx([share(alone[0]), share(alone[2])], abs=1e-3)


def test_answers_that_are_no_token_are_one_line(judge: VllmJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    other = judge_settings(judge.settings.model_dump() | {"answers": ("yes", "by no means")}, "judge")
    monkeypatch.setattr(judge, "settings", other)
    with pytest.raises(CvsiError, match="has no token for the answer 'by no means'; name answers"):
        judge._sampling()


def test_a_canvas_is_one_image(judge: VllmJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = judge_settings(judge.settings.model_dump() | {"images": "canvas"}, "judge")
    monkeypatch.setattr(judge, "settings", canvas)
    made = judge.verdicts(questions(judge))
    assert len({round(share(verdict), 6) for verdict in made}) == len(made)


def test_a_failure_of_the_engine_is_one_line(judge: VllmJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("At most 1 image(s) may be provided in one prompt.\nmore")

    monkeypatch.setattr(judge.engine, "chat", fail)
    with pytest.raises(
        CvsiError, match=r"fails on a question .*; if it takes a single image, set images: canvas"
    ) as raised:
        judge.verdicts(questions(judge))
    assert "\n" not in str(raised.value)


def test_blip2_which_takes_one_image_judges_a_canvas() -> None:
    blip2, answers = ROOT / "demo" / "weights" / "blip2", ["blue", "two"]
    with pytest.raises(CvsiError, match="has no chat template, which says where two images go; set images: canvas"):
        judge_of(blip2, context=64, answers=answers)
    judge = judge_of(blip2, context=64, answers=answers, images="canvas", image_size=128)
    made = judge.verdicts([Question("two circles", one, "", other) for one, other in pairs(judge)])
    assert all(isinstance(verdict, Verdict) for verdict in made)
    assert {normalised(token) for verdict in made for token in verdict.tokens} >= set(answers)  # type: ignore[attr-defined]
    assert len({verdict.logprobs for verdict in made}) == len(made)  # type: ignore[attr-defined]


def pairs(judge: VllmJudge) -> list[tuple[Image.Image, Image.Image]]:
    """Pairs of prepared pictures."""
    first, *others = [judge.prepare(picture(colour)) for colour in COLOURS]
    return [(first, other) for other in others]
