"""Nucleus sampling against its definition, and the demo's BLIP-2 against transformers' own generation."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cvsi import params
from cvsi.captioner import Blip2, nucleus, uniforms
from cvsi.params import Captioner, Compute
from tests.imports import ROOT

DIGESTS = ["1" * 64, "2" * 64, "3" * 64]


def settings(**changes: object) -> Captioner:
    captioner = params.load(ROOT / "params.yaml").captioners["tiny"]
    return captioner.model_copy(update={"model": str(ROOT / "demo/weights/blip2")} | changes)


def pixels(model: Blip2) -> torch.Tensor:
    pictures = []
    for colour in ("red", "blue", "green"):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((4, 4, 30, 30), fill=colour)
        pictures.append(model.prepare(image))
    return torch.stack(pictures)


@pytest.fixture(scope="module")
def model() -> Blip2:
    return Blip2(settings(), Compute(device="cpu"))


def test_nucleus_draws_with_the_right_frequencies() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]))
    chances = torch.arange(10_000) / 10_000
    drawn = nucleus(logits.expand(len(chances), -1), 0.8, chances)
    # The smallest set with mass of at least .8 is tokens 1, 3 and 4; they share .85.
    found = torch.bincount(drawn, minlength=5) / len(chances)
    assert found.tolist() == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], abs=1e-3)


def test_nucleus_of_one_token_and_of_all() -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert nucleus(logits, 0.5, torch.tensor([0.999, 0.0])).tolist() == [1, 0]
    assert nucleus(logits[1:], 1.0, torch.tensor([0.9999])).tolist() == [2]


def test_uniform_numbers_depend_on_seed_and_digest_alone() -> None:
    assert np.array_equal(uniforms(0, "ab" * 32, 3, 5), uniforms(0, "ab" * 32, 3, 5))
    assert not np.array_equal(uniforms(1, "ab" * 32, 3, 5), uniforms(0, "ab" * 32, 3, 5))
    assert not np.array_equal(uniforms(0, "cd" * 32, 3, 5), uniforms(0, "ab" * 32, 3, 5))
    many = uniforms(0, "ef" * 32, 100, 100)
    assert many.min() >= 0 and many.max() < 1 and many.mean() == pytest.approx(0.5, abs=0.02)


def test_a_caption_depends_on_neither_batch_nor_order(model: Blip2) -> None:
    inputs = pixels(model)
    together = model.captions(inputs, DIGESTS)
    assert [len(lines) for lines in together] == [5, 5, 5]
    turned = model.captions(inputs.flip(0), DIGESTS[::-1])
    assert turned[::-1] == together
    filled = model.captions(torch.stack([inputs[1]] * 3), [DIGESTS[1]] * 3)
    assert filled == [together[1]] * 3


def test_other_seeds_draw_other_captions(model: Blip2) -> None:
    inputs = pixels(model)
    other = Blip2(settings(seed=7, temperature=2.0), Compute(device="cpu")).captions(inputs, DIGESTS)
    assert other != model.captions(inputs, DIGESTS)


def test_the_most_likely_caption_is_transformers_greedy_one() -> None:
    greedy = Blip2(settings(top_p=1e-6, n=2), Compute(device="cpu"))
    inputs = pixels(greedy)
    lines = greedy.captions(inputs, DIGESTS)
    tokens = greedy.model.generate(pixel_values=inputs, do_sample=False, max_new_tokens=greedy.settings.max_tokens)
    texts = greedy.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [line[0] for line in lines] == [" ".join(text.split()) for text in texts]
    assert all(line[0] == line[1] and line[0] for line in lines)
