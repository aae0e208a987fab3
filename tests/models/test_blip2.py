"""Sampling against its definition, the demo's BLIP-2 against transformers' own generation."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.blip2_model import Blip2
from cvsi.models.sampling import Noise, sample_top_p, uniforms
from tests.imports import ROOT
from tests.models.conftest import CAPTION_BATCH, blip2_settings
from tests.untrusted import CreatesFile

DIGESTS = ["1" * 64, "2" * 64, "3" * 64]


def pixels(model: Blip2) -> list[torch.Tensor]:
    pictures = []
    for colour in ("red", "blue", "green"):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((4, 4, 30, 30), fill=colour)
        pictures.append(model.prepare(image))
    return pictures


def test_tokens_are_drawn_with_the_right_frequencies() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]))
    uniform = torch.arange(10_000) / 10_000
    tokens = sample_top_p(logits.expand(len(uniform), -1), 0.8, uniform)
    # The smallest set with mass of at least .8 is tokens 1, 3 and 4; they share .85.
    frequencies = torch.bincount(tokens, minlength=5) / len(uniform)
    assert frequencies.tolist() == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], abs=1e-3)


def test_sampling_from_one_token_and_from_all() -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert sample_top_p(logits, 0.5, torch.tensor([0.999, 0.0])).tolist() == [1, 0]
    assert sample_top_p(logits[1:], 1.0, torch.tensor([0.9999])).tolist() == [2]


def test_uniform_numbers_depend_on_seed_and_digest_alone() -> None:
    assert np.array_equal(uniforms(0, "ab" * 32, 3, 5), uniforms(0, "ab" * 32, 3, 5))
    assert not np.array_equal(uniforms(1, "ab" * 32, 3, 5), uniforms(0, "ab" * 32, 3, 5))
    assert not np.array_equal(uniforms(0, "cd" * 32, 3, 5), uniforms(0, "ab" * 32, 3, 5))
    many = uniforms(0, "ef" * 32, 100, 100)
    assert many.min() >= 0 and many.max() < 1 and many.mean() == pytest.approx(0.5, abs=0.02)


def check_captions_depend_on_the_image_alone(model: Blip2) -> list[list[str]]:
    """In any order, alone, and with other images in a batch filled up with copies; returns the captions."""
    inputs = pixels(model)
    together = model.captions(inputs, DIGESTS)
    assert model.captions(inputs[::-1], DIGESTS[::-1])[::-1] == together
    for index, digest in enumerate(DIGESTS):
        assert model.captions([inputs[index]], [digest]) == [together[index]]
    assert model.captions(inputs[1:], DIGESTS[1:]) == together[1:]
    model.batch = CAPTION_BATCH + 2
    assert model.captions(inputs, DIGESTS) == together
    return together


def test_a_caption_depends_on_neither_batch_nor_order(blip2: Blip2) -> None:
    together = check_captions_depend_on_the_image_alone(blip2)
    assert [len(lines) for lines in together] == [5, 5, 5]


def test_every_batch_has_the_same_shape(blip2: Blip2, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    prefix = blip2._prefix

    def record(images: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(images.shape))
        return prefix(images)

    monkeypatch.setattr(blip2, "_prefix", record)
    inputs = pixels(blip2)
    for number in (1, 2, 3):
        assert len(blip2.captions(inputs[:number], DIGESTS[:number])) == number
    assert shapes == [(CAPTION_BATCH, *inputs[0].shape)] * 3


def test_other_seeds_draw_other_captions(blip2: Blip2) -> None:
    inputs = pixels(blip2)
    first = blip2.captions(inputs, DIGESTS)
    blip2.settings = blip2_settings(seed=7, temperature=2.0)
    assert blip2.captions(inputs, DIGESTS) != first


def test_the_most_likely_caption_is_transformers_greedy_one(blip2: Blip2) -> None:
    blip2.settings = blip2_settings(top_p=1e-6, n=2)
    inputs = pixels(blip2)
    lines = blip2.captions(inputs, DIGESTS)
    tokens = blip2.model.generate(
        pixel_values=torch.stack(inputs), do_sample=False, max_new_tokens=blip2.settings.max_tokens
    )
    texts = blip2.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [line[0] for line in lines] == [" ".join(text.split()) for text in texts]
    assert all(line[0] == line[1] and line[0] for line in lines)


def with_decoder(model: Blip2, prefix: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The logits after a prefix and some tokens, the whole sequence computed by a decoder alone."""
    words = model.model.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
    inputs = torch.cat([prefix, words], dim=1)
    return model.model.language_model(inputs_embeds=inputs).logits[0, -1]  # type: ignore[no-any-return]


def with_encoder(model: Blip2, prefix: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The same by the decoder of T5, whose encoder has made the prefix."""
    ids = torch.tensor([[model.model.config.text_config.decoder_start_token_id, *tokens]])
    output = model.model.language_model(encoder_outputs=(prefix,), decoder_input_ids=ids, use_cache=False)
    return output.logits[0, -1]  # type: ignore[no-any-return]


def plain_beam_sample(
    model: Blip2, prefix: torch.Tensor, noises: list[torch.Tensor], width: int, n: int
) -> list[list[int]]:
    """A second implementation of beam-sample for one image: token lists, the whole sequence computed at each step."""
    end = int(model.ends[0])
    next_logits = with_encoder if model.encodes else with_decoder
    running: list[tuple[float, list[int]]] = [(0.0, [])] * width
    finished: list[tuple[float, list[int]]] = []
    for step, noise in enumerate(noises):
        candidates = []
        for beam, (score, tokens) in enumerate(running):
            logits = next_logits(model, prefix, tokens) / model.settings.temperature
            if step < model.settings.min_tokens:
                logits[end] = -torch.inf
            log_probs = torch.log_softmax(logits, -1)
            mass = 0.0
            for rank, token in enumerate(log_probs.argsort(descending=True, stable=True).tolist()):
                if mass >= model.settings.top_p and rank >= 2:
                    break
                mass += float(log_probs[token].exp())
                total = score + float(log_probs[token])
                candidates.append((total + float(noise[beam * len(log_probs) + token]), total, [*tokens, token]))
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
def test_beam_sample_equals_a_second_implementation(changes: dict[str, Any], blip2: Blip2) -> None:
    blip2.settings = blip2_settings(**{"decoding": "beam-sample", "max_tokens": 16} | changes)
    check_beam_sample(blip2)


def check_beam_sample(blip2: Blip2) -> None:
    """The sequences of each image are those of the second implementation."""
    settings, vocabulary = blip2.settings, blip2.model.config.text_config.vocab_size
    width = settings.beams or settings.n
    with torch.inference_mode():
        prefix = blip2._prefix(torch.stack(pixels(blip2)))
        sampled = blip2._beam_sample(prefix, DIGESTS, 0).view(len(DIGESTS), settings.n, -1)
        for index, digest in enumerate(DIGESTS):
            source = Noise(0, [digest], 0, torch.device("cpu"))
            noises = [source.gumbel(width * vocabulary)[0] for _ in range(settings.max_tokens)]
            expected = plain_beam_sample(blip2, prefix[index : index + 1], noises, width, settings.n)
            ours = [without_end(tokens, blip2) for tokens in sampled[index].tolist()]
            assert ours == [without_end(tokens, blip2) for tokens in expected]


def without_end(tokens: list[int], model: Blip2) -> list[int]:
    return [token for token in tokens if token != int(model.ends[0])]


def test_beam_sampled_captions_depend_on_neither_batch_nor_order(blip2: Blip2) -> None:
    blip2.settings = blip2_settings(decoding="beam-sample")
    together = check_captions_depend_on_the_image_alone(blip2)
    blip2.settings = blip2_settings(decoding="beam-sample", seed=5, temperature=2.0)
    assert blip2.captions(pixels(blip2), DIGESTS) != together


def test_the_noise_is_gumbels() -> None:
    numbers = Noise(0, ["ab" * 32], 0, torch.device("cpu")).gumbel(200_000)
    assert float(numbers.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(numbers.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_empty_captions_are_drawn_again_and_left_out_in_the_end(blip2: Blip2) -> None:
    """An end token that is nearly as likely as not makes empty captions; each draw has numbers of its own."""
    blip2.settings, blip2.batch = blip2_settings(n=5, redraws=0, temperature=1.0), 24
    inputs, digests = pixels(blip2) * 8, [f"{number:064x}" for number in range(24)]
    head = blip2.model.language_model.get_output_embeddings()

    def make_ends_likely(module: object, arguments: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., blip2.ends] = logits.max()
        return logits

    with head.register_forward_hook(make_ends_likely):
        without = blip2.captions(inputs, digests)
        counts = {sum(map(len, without))}
        for redraws in (1, 4):
            blip2.settings = blip2.settings.model_copy(update={"redraws": redraws})
            again = blip2.captions(inputs, digests)
            kept = [all(line in new for line in old) for old, new in zip(without, again, strict=True)]
            assert all(kept)
            counts.add(sum(map(len, again)))
    assert all(line for lines in again for line in lines)
    assert len(counts) == 3 and max(counts) <= 5 * 24
    blip2.settings = blip2_settings(min_tokens=4)
    longer = blip2.captions(pixels(blip2), DIGESTS)
    assert all(len(line.split()) >= 2 for lines in longer for line in lines)


def test_untrusted_weights_run_no_code(tmp_path: Path) -> None:
    folder = tmp_path / "blip2"
    shutil.copytree(ROOT / "demo/weights/blip2", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"query_tokens": CreatesFile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CvsiError, match="does not load: the file holds more than tensors; it was not opened"):
        Blip2(blip2_settings(model=str(folder)), Compute(device="cpu"))
    assert not (tmp_path / "ran").exists()


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    """An image processor of another size would give wrong positions, and no tokenizer at all empty captions."""
    folder = tmp_path / "blip2"
    shutil.copytree(ROOT / "demo/weights/blip2", folder)
    (folder / "processor_config.json").unlink()  # it would come first
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"size": {"height": 32, "width": 32}}), encoding="utf-8")
    with pytest.raises(CvsiError, match=r"makes images of 32 x 32, its config\.json needs 64 x 64; take"):
        Blip2(blip2_settings(model=str(folder)), Compute(device="cpu"))
    file.write_text(json.dumps(content), encoding="utf-8")
    for tokenizer in folder.glob("tokenizer*"):
        tokenizer.unlink()
    with pytest.raises(CvsiError, match=f"params.yaml: captioner model '{folder}'") as error:
        Blip2(blip2_settings(model=str(folder)), Compute(device="cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_caption_too(precision: str) -> None:
    model = Blip2(blip2_settings(precision=precision), Compute(device="cpu", caption_batch=CAPTION_BATCH))
    for decoding in ("nucleus", "beam-sample"):
        model.settings = blip2_settings(precision=precision, decoding=decoding)
        lines = model.captions(pixels(model), DIGESTS)
        assert [len(captions) for captions in lines] == [5, 5, 5]
        assert sum("red" in caption for caption in lines[0]) >= 3
