"""BLIP-2 with T5, an encoder-decoder: random weights of a tiny shape, loaded by the real code, against transformers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.blip2_model import Blip2
from cvsi.models.blip2_vllm import VllmBlip2, VllmBlip2Settings
from cvsi.models.sampling import Beams, Noise, uniforms
from tests.conftest import Workspace
from tests.models import checkpoints, tiny_blip2_t5
from tests.models.checkpoints import Change, prefixed, reshaped, without
from tests.models.conftest import CAPTION_BATCH, blip2_settings
from tests.models.test_blip import drawn
from tests.models.test_blip2 import (
    DIGESTS,
    check_beam_sample,
    check_captions_depend_on_the_image_alone,
    pixels,
    with_encoder,
    without_end,
)
from tests.stage_inputs import write_index

CPU = Compute(device="cpu", caption_batch=CAPTION_BATCH)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model; tests read it only."""
    return tiny_blip2_t5.save(tmp_path_factory.mktemp("models") / "blip2-t5")


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Blip2:
    return Blip2(blip2_settings(model=str(folder)), CPU)


@pytest.fixture
def model(loaded: Blip2) -> Iterator[Blip2]:
    """The tiny model in transformers; a test may change its `settings` and its `batch`."""
    settings, batch = loaded.settings, loaded.batch
    yield loaded
    loaded.settings, loaded.batch = settings, batch


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def set_to(model: Blip2, **changes: object) -> None:
    model.settings = blip2_settings(model=model.settings.model, **changes)


def generated(model: Blip2, **options: Any) -> list[list[int]]:
    """What transformers' own generation makes of the images, without the decoder's start and without ends."""
    tokens = model.model.generate(pixel_values=torch.stack(pixels(model)), do_sample=False, **options)
    assert bool((tokens[:, 0] == tiny_blip2_t5.PAD).all())
    return [[token for token in row if token not in (tiny_blip2_t5.PAD, tiny_blip2_t5.END)] for row in tokens.tolist()]


def sequences(model: Blip2) -> list[list[int]]:
    """Our tokens of all images' sequences, without ends."""
    with torch.inference_mode():
        prefix = model._prefix(torch.stack(pixels(model)))
        rows = model._tokens(prefix, DIGESTS, 0).tolist()
    return [[token for token in without_end(row, model) if token != tiny_blip2_t5.PAD] for row in rows]


def refusal(path: Path) -> str:
    """The single line by which a model is refused."""
    with pytest.raises(CvsiError) as error:
        Blip2(blip2_settings(model=str(path)), CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_most_likely_caption_is_transformers_greedy_one(model: Blip2) -> None:
    set_to(model, top_p=1e-6, n=2)
    assert sequences(model)[::2] == sequences(model)[1::2] == generated(model, max_new_tokens=30)
    lines = model.captions(pixels(model), DIGESTS)
    texts = model.tokenizer.batch_decode(generated(model, max_new_tokens=30), skip_special_tokens=True)
    assert [line[0] for line in lines] == texts and len(set(texts)) == 3 and all(texts)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_beams_without_noise_are_transformers_beam_search(
    model: Blip2, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of beams that start with one alone, as in beam search, and draw the most likely continuations."""
    begin = Beams.start

    def one(images: int, width: int, steps: int, ends: torch.Tensor) -> Beams:
        made = begin(images, width, steps, ends)
        made.scores[:, 1:] = -1e9
        return made

    monkeypatch.setattr(Beams, "start", one)
    monkeypatch.setattr(Noise, "gumbel", lambda self, size: torch.zeros(len(DIGESTS), size))
    set_to(model, decoding="beam-sample", n=beams, top_p=1.0, max_tokens=12)
    assert sequences(model) == generated(model, num_beams=beams, num_return_sequences=beams, max_new_tokens=12)


@pytest.mark.parametrize("changes", [{}, {"top_p": 1.0, "temperature": 1.7}, {"min_tokens": 9}, {"n": 2, "beams": 7}])
def test_beam_sample_equals_a_second_implementation(changes: dict[str, Any], model: Blip2) -> None:
    set_to(model, **{"decoding": "beam-sample", "max_tokens": 16} | changes)
    check_beam_sample(model)


@pytest.mark.parametrize("changes", [{}, {"top_p": 1.0, "temperature": 2.0}, {"min_tokens": 9}])
def test_sampled_tokens_are_those_of_the_whole_sequence_computed_at_each_step(
    changes: dict[str, Any], model: Blip2
) -> None:
    set_to(model, **{"n": 3, "max_tokens": 12, "top_p": 0.8} | changes)
    chosen, ours = model.settings, sequences(model)
    with torch.inference_mode():
        prefix = model._prefix(torch.stack(pixels(model)))
        for image, digest in enumerate(DIGESTS):
            for number, numbers in enumerate(uniforms(chosen.seed, digest, chosen.n, chosen.max_tokens)):
                tokens: list[int] = []
                while len(tokens) < chosen.max_tokens and tokens[-1:] != [tiny_blip2_t5.END]:
                    logits = with_encoder(model, prefix[image : image + 1], tokens) / chosen.temperature
                    if len(tokens) < chosen.min_tokens:
                        logits[tiny_blip2_t5.END] = -torch.inf
                    tokens.append(drawn(logits, chosen.top_p, float(numbers[len(tokens)])))
                expected = [token for token in without_end(tokens, model) if token != tiny_blip2_t5.PAD]
                assert ours[image * chosen.n + number] == expected


@pytest.mark.parametrize("decoding", ["nucleus", "beam-sample"])
def test_captions_depend_on_seed_and_image_alone(decoding: str, model: Blip2) -> None:
    set_to(model, decoding=decoding)
    together = check_captions_depend_on_the_image_alone(model)
    assert [len(lines) for lines in together] == [5, 5, 5] and len({tuple(lines) for lines in together}) == 3
    model.batch = CAPTION_BATCH
    assert model.captions(pixels(model), DIGESTS) == together
    set_to(model, decoding=decoding, seed=5, temperature=2.0)
    assert model.captions(pixels(model), DIGESTS) != together


def test_the_encoder_reads_an_image_once_for_all_captions_and_draws(
    model: Blip2, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    hook = model.model.language_model.encoder.register_forward_hook(
        lambda module, arguments, output: shapes.append(output.last_hidden_state.shape)
    )
    set_to(model, redraws=3)
    model.captions(pixels(model)[:2], DIGESTS[:2])
    hook.remove()
    assert shapes == [(CAPTION_BATCH, tiny_blip2_t5.QUERIES + 1, 32)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("decoding", ["nucleus", "beam-sample"])
def test_lower_precisions_caption_too(precision: str, decoding: str, folder: Path) -> None:
    model = Blip2(blip2_settings(model=str(folder), precision=precision, decoding=decoding), CPU)
    assert [len(captions) for captions in model.captions(pixels(model), DIGESTS)] == [5, 5, 5]


def test_the_head_is_the_checkpoints_own(loaded: Blip2, folder: Path) -> None:
    state, language = load_file(folder / "model.safetensors"), loaded.model.language_model
    assert torch.equal(language.lm_head.weight, state["language_model.lm_head.weight"])
    assert torch.equal(language.encoder.embed_tokens.weight, state["language_model.shared.weight"])
    assert not torch.equal(language.lm_head.weight, language.shared.weight)


def test_a_head_that_is_tied_to_the_embeddings_is_scaled(tmp_path: Path) -> None:
    """As in the first T5."""
    path = tiny_blip2_t5.save(tmp_path / "tied", tie_word_embeddings=True)
    assert "language_model.lm_head.weight" not in load_file(path / "model.safetensors")
    model = Blip2(blip2_settings(model=str(path), top_p=1e-6, n=1), CPU)
    assert sequences(model) == generated(model, max_new_tokens=30)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {
            f"language_model.{part}.embed_tokens.weight": state["language_model.shared.weight"].clone()
            for part in ("encoder", "decoder")
        },
        prefixed("module."),
    ],
    ids=["with copies of the embeddings", "with a prefix"],
)  # fmt: skip
def test_other_forms_of_the_checkpoint_give_the_same_captions(change: Change, copy: Path, model: Blip2) -> None:
    file = copy / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    other = Blip2(blip2_settings(model=str(copy)), CPU)
    assert other.captions(pixels(other), DIGESTS) == model.captions(pixels(model), DIGESTS)


def test_a_configuration_of_an_earlier_transformers_gives_the_same_captions(copy: Path, model: Blip2) -> None:
    """The published ones were written so: without the scale, with a head of its own, without an image token."""
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    text = {key: value for key, value in config["text_config"].items() if key != "scale_decoder_outputs"}
    text |= {"tie_word_embeddings": False, "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}
    checkpoints.configure(copy, text_config=text, image_token_index=None, use_decoder_only_language_model=False)
    other = Blip2(blip2_settings(model=str(copy)), CPU)
    assert other.captions(pixels(other), DIGESTS) == model.captions(pixels(model), DIGESTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("decoder.block.1.layer.1.EncDecAttention.q"), "1 key is missing (language_model.decoder.block.1"),
        (without("language_model.encoder."), "keys are missing (language_model.encoder.block.0."),
        (without("language_projection"), "2 keys are missing (language_projection.bias, language_projection.weight)"),
        (checkpoints.with_one_more, "1 key is unknown to the model (head.more)"),
        (reshaped("lm_head.weight"), "language_model.lm_head.weight has shape (3, 5), the model needs (27, 32)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(change: Change, message: str, copy: Path) -> None:
    file = copy / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    assert message in refusal(copy)


@pytest.mark.parametrize("key", ["bos_token_id", "decoder_start_token_id"])
def test_a_configuration_without_a_start_is_one_line(key: str, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    checkpoints.configure(copy, text_config=config["text_config"] | {key: None})
    assert refusal(copy).endswith(f"names no {key}; complete its config.json")


def test_the_end_is_the_language_models_where_the_generation_configuration_names_none(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"_from_model_config": true}', encoding="utf-8")
    assert Blip2(blip2_settings(model=str(copy)), CPU).ends.tolist() == [tiny_blip2_t5.END]


def test_vllm_has_no_encoder_decoder_and_the_line_says_what_to_do(folder: Path) -> None:
    settings = VllmBlip2Settings.model_validate({"engine": "vllm", "model": str(folder)})
    with pytest.raises(CvsiError) as error:
        VllmBlip2(settings, CPU)
    assert str(error.value) == (
        f"params.yaml: captioner model '{folder}' is a BLIP-2 with t5, an encoder-decoder, which vLLM does not have; "
        "set engine: transformers, or use one with OPT, e.g. Salesforce/blip2-opt-2.7b-coco or blip2-opt-6.7b-coco"
    )


def test_the_stage_captions_with_t5(toy: Workspace, folder: Path) -> None:
    write_index()
    toy.params(datasets__toy__captioner={"model": str(folder), "precision": "fp32", "n": 2}, compute={"device": "cpu"})
    toy.run("captions", "toy")
    table = pl.read_parquet("cache/toy/captions/*.parquet")
    assert table["captions"].list.len().max() == 2 and table["captions"].n_unique() == table["digest"].n_unique()
