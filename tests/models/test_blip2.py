"""Sampling against its definition, the demo's BLIP-2 against transformers' own generation."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Captioner
from cvsi.core.params import Compute
from cvsi.models.blip2 import Blip2
from cvsi.models.sampling import Noise, nucleus, uniforms
from tests.imports import ROOT
from tests.models.test_clip import Hostile

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


def plain_beam_sample(
    model: Blip2, prefix: torch.Tensor, noises: list[torch.Tensor], width: int, n: int
) -> list[list[int]]:
    """Beam-sample of one image written a second time: lists of tokens, the whole sequence read anew for each step."""
    end = int(model.ends[0])
    running: list[tuple[float, list[int]]] = [(0.0, [])] * width
    finished: list[tuple[float, list[int]]] = []
    language = model.model.language_model
    for step, noise in enumerate(noises):
        candidates = []
        for beam, (score, tokens) in enumerate(running):
            words = model.model.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
            logits = language(inputs_embeds=torch.cat([prefix, words], dim=1)).logits[0, -1]
            logits = logits / model.settings.temperature
            if step < model.settings.min_tokens:
                logits[end] = -torch.inf
            chances = torch.log_softmax(logits, -1)
            mass = 0.0
            for place, token in enumerate(chances.argsort(descending=True, stable=True).tolist()):
                if mass >= model.settings.top_p and place >= 2:
                    break
                mass += float(chances[token].exp())
                total = score + float(chances[token])
                candidates.append((total + float(noise[beam * len(chances) + token]), total, [*tokens, token]))
        drawn = sorted(candidates, key=lambda one: -one[0])[: 2 * width]
        drawn.sort(key=lambda one: -one[1])
        for _, total, tokens in drawn[:width]:
            if tokens[-1] == end:
                finished.append((total / len(tokens), tokens))
        finished = sorted(finished, key=lambda one: -one[0])[:width]
        running = [(total, tokens) for _, total, tokens in drawn if tokens[-1] != end][:width]
        if len(finished) == width and finished[-1][0] >= running[0][0] / (step + 1):
            return [tokens for _, tokens in finished[:n]]
    finished += [(total / len(tokens), tokens) for total, tokens in running]
    return [tokens for _, tokens in sorted(finished, key=lambda one: -one[0])[:n]]


@pytest.mark.parametrize(
    "changes", [{}, {"top_p": 1.0, "temperature": 1.7}, {"min_tokens": 9}, {"max_tokens": 4}, {"n": 2, "beams": 7}]
)
def test_beam_sample_equals_a_second_writing_of_it(changes: dict[str, Any]) -> None:
    model = Blip2(settings(**{"decoding": "beam-sample", "max_tokens": 16} | changes), Compute(device="cpu"))
    width, vocabulary = model.settings.beams or model.settings.n, model.model.config.text_config.vocab_size
    inputs = pixels(model)
    with torch.inference_mode():
        prefix = model._prefix(inputs)
        found = model._beam_sample(prefix, DIGESTS, 0)
        for place, digest in enumerate(DIGESTS):
            source = Noise(0, [digest], 0, torch.device("cpu"))
            noises = [source.gumbel(width * vocabulary)[0] for _ in range(model.settings.max_tokens)]
            wanted = plain_beam_sample(model, prefix[place : place + 1], noises, width, model.settings.n)
            ours = found.view(len(DIGESTS), model.settings.n, -1)[place].tolist()
            assert [without_end(tokens, model) for tokens in ours] == [without_end(tokens, model) for tokens in wanted]


def without_end(tokens: list[int], model: Blip2) -> list[int]:
    return [token for token in tokens if token != int(model.ends[0])]


def test_beam_sampled_captions_depend_on_neither_batch_nor_order() -> None:
    model = Blip2(settings(decoding="beam-sample"), Compute(device="cpu"))
    inputs = pixels(model)
    together = model.captions(inputs, DIGESTS)
    assert model.captions(inputs.flip(0), DIGESTS[::-1])[::-1] == together
    assert model.captions(torch.stack([inputs[1]] * 3), [DIGESTS[1]] * 3) == [together[1]] * 3
    other = Blip2(settings(decoding="beam-sample", seed=5, temperature=2.0), Compute(device="cpu"))
    assert other.captions(inputs, DIGESTS) != together


def test_the_noise_is_gumbels() -> None:
    numbers = Noise(0, ["ab" * 32], 0, torch.device("cpu")).gumbel(200_000)
    assert float(numbers.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(numbers.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_empty_captions_are_drawn_again_and_left_out_in_the_end() -> None:
    """An end token that is nearly as likely as not makes empty captions; each draw has numbers of its own."""
    model = Blip2(settings(n=5, redraws=0, temperature=1.0), Compute(device="cpu"))
    inputs, digests = pixels(model).repeat(8, 1, 1, 1), [f"{number:064x}" for number in range(24)]
    head = model.model.language_model.get_output_embeddings()

    def make_ends_likely(module: object, arguments: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., model.ends] = logits.max()
        return logits

    with head.register_forward_hook(make_ends_likely):
        without = model.captions(inputs, digests)
        counts = {sum(map(len, without))}
        for redraws in (1, 4):
            model.settings = model.settings.model_copy(update={"redraws": redraws})
            again = model.captions(inputs, digests)
            kept = [all(line in new for line in old) for old, new in zip(without, again, strict=True)]
            assert all(kept)
            counts.add(sum(map(len, again)))
    assert all(line for lines in again for line in lines)
    assert len(counts) == 3 and max(counts) <= 5 * 24
    longer = Blip2(settings(min_tokens=4), Compute(device="cpu")).captions(pixels(model), DIGESTS)
    assert all(len(line.split()) >= 2 for lines in longer for line in lines)


def test_hostile_weights_run_no_code(tmp_path: Path) -> None:
    folder = tmp_path / "blip2"
    shutil.copytree(ROOT / "demo/weights/blip2", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"query_tokens": Hostile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CvsiError, match="does not load: the file holds more than tensors; it was not opened"):
        Blip2(settings(model=str(folder)), Compute(device="cpu"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("decoding", ["nucleus", "beam-sample"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_caption_too(precision: str, decoding: str) -> None:
    model = Blip2(settings(precision=precision, decoding=decoding), Compute(device="cpu"))
    lines = model.captions(pixels(model), DIGESTS)
    assert [len(captions) for captions in lines] == [5, 5, 5]
    assert sum("red" in caption for caption in lines[0]) >= 3
