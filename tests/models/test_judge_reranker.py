"""A tiny Qwen3-VL with random weights as judge with the prompt of Qwen3-VL-Reranker, in vLLM.

Its score is the published one: the sigmoid of the difference between the logits of `yes` and `no` at the last position.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from cvsi.core.params import Compute
from cvsi.models.engines import judge_settings
from cvsi.models.judge import Question, Verdict
from cvsi.models.judge_vllm import VllmJudge
from cvsi.pipeline.prompting import few_shot
from cvsi.pipeline.verdicts import question_texts
from tests.models.tiny_qwen3_vl import make

# In a process of its own at `make test-slow`: it loads vLLM once more.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]
INSTRUCTION = "make it blue"
# The form in which the model was trained, as its chat template for vLLM writes it: no line break before <Query>.
FORM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {instruct}'
    "<Query>:{image}{instruction}\n<Document>:{image}<|im_end|>\n<|im_start|>assistant\n"
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("qwen3") / "model")


@pytest.fixture(scope="module")
def judge(folder: Path) -> VllmJudge:
    block = {"engine": "vllm", "model": str(folder), "precision": "fp32", "image_size": 64, "context": 768}
    settings: Any = judge_settings(block | {"prompt": "qwen_reranker"}, "judge")
    return VllmJudge(settings, Compute(device="cpu"))


def questions(judge: VllmJudge) -> list[Question[Image.Image]]:
    texts = question_texts(few_shot("qwen_reranker"), INSTRUCTION, judge.settings)
    first, *others = [judge.prepare(picture(colour)) for colour in ("red", "green", "blue", "white", "black")]
    return [Question(texts.before, first, texts.between, other, texts.system) for other in others]


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "grey")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=colour)
    return image


def test_the_probabilities_are_the_published_score_of_transformers(judge: VllmJudge, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    instruct = few_shot("qwen_reranker").partition("<Instruct>: ")[2].partition("<Query>")[0]
    text = FORM.replace("{instruct}", instruct).replace("{image}", IMAGE).replace("{instruction}", INSTRUCTION)
    yes, no = (processor.tokenizer.get_vocab()[word] for word in ("yes", "no"))
    found, expected = [], []
    for question, verdict in zip(questions(judge), judge.verdicts(questions(judge)), strict=True):
        images = [question.reference, question.candidate]
        inputs = processor(text=[text], images=images, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        expected.append((logits[yes] - logits[no]).item())
        assert isinstance(verdict, Verdict)
        logprobs = dict(zip(verdict.tokens, verdict.logprobs, strict=True))
        found.append(logprobs["yes"] - logprobs["no"])
    assert [sigmoid(odds) for odds in found] == pytest.approx([sigmoid(odds) for odds in expected], abs=1e-3)
    assert found == pytest.approx(expected, abs=1e-2)
    assert max(found) - min(found) > 0.2  # the candidate decides


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))
