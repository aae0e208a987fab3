"""BLIP against a plain loop over transformers' own model without a cache, on random weights of a tiny shape."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, modeling_utils

from cvsi.core import params, tables
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.blip import ENGINE, BlipSettings
from cvsi.models.blip2_model import Blip2
from cvsi.models.blip2_vllm import VllmBlip2, VllmBlip2Settings
from cvsi.models.blip_model import Blip, own_tokens
from cvsi.models.engines import captioner_engine, captioner_settings
from cvsi.models.sampling import uniforms
from cvsi.pipeline import captions as stage
from cvsi.store.rows import Store
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.models import checkpoints, tiny_blip
from tests.models.checkpoints import Change, alternately, prefixed, renamed, reshaped, without
from tests.models.conftest import blip2_settings
from tests.stage_inputs import write_index
from tests.untrusted import CreatesFile

COLOURS = ("red", "blue", "green", "black", "yellow")
DIGESTS = [f"{number:x}" * 64 for number in range(1, 6)]
CPU = Compute(device="cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model; tests read it only."""
    return tiny_blip.save(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Blip:
    return Blip(settings(folder), Compute(device="cpu", caption_batch=len(COLOURS)))


@pytest.fixture
def blip(loaded: Blip) -> Iterator[Blip]:
    """The tiny model, loaded by the real code; a test may change its `settings` and its `batch`."""
    before = loaded.settings, loaded.batch
    yield loaded
    loaded.settings, loaded.batch = before


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    shutil.copytree(folder, tmp_path / "blip")
    return tmp_path / "blip"


def settings(folder: Path | str, **changes: Any) -> BlipSettings:
    return BlipSettings.model_validate({"engine": "blip", "model": str(folder), "precision": "fp32"} | changes)


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (50, 70), "white")
    ImageDraw.Draw(image).ellipse((4, 4, 40, 40), fill=colour)
    return image


def pixels(model: Blip) -> list[torch.Tensor]:
    return [model.prepare(picture(colour)) for colour in COLOURS]


def refusal(settings: BlipSettings) -> str:
    """The single line with which a model is refused."""
    with pytest.raises(CvsiError) as error:
        Blip(settings, CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def drawn(logits: torch.Tensor, top_p: float, uniform: float) -> int:
    """One token by its definition: tokens by falling probability until `top_p` is reached, then the inverse of that."""
    probabilities = torch.softmax(logits.double(), -1)
    kept: list[tuple[int, float]] = []
    for token in probabilities.argsort(descending=True, stable=True).tolist():
        kept.append((token, float(probabilities[token])))
        if sum(mass for _, mass in kept) >= top_p:
            break
    target, mass = uniform * sum(mass for _, mass in kept), 0.0
    for token, share in kept:
        mass += share
        if target < mass:
            return token
    return kept[-1][0]


@torch.inference_mode()
def plain(model: Blip, image: torch.Tensor, digest: str, draw: int = 0) -> list[str]:
    """An image's captions one by one: the whole model over the whole sequence for each token."""
    chosen, captions = model.settings, []
    for numbers in uniforms(chosen.seed, digest, chosen.n, chosen.max_tokens, draw):
        tokens: list[int] = []
        while len(tokens) < chosen.max_tokens and tokens[-1:] != [tiny_blip.END]:
            ids = torch.tensor([[tiny_blip.START, *tokens]])
            logits = model.model(pixel_values=image[None], input_ids=ids).logits[0, -1] / chosen.temperature
            if len(tokens) < chosen.min_tokens:
                logits[tiny_blip.END] = -torch.inf
            tokens.append(drawn(logits, chosen.top_p, float(numbers[len(tokens)])))
        captions.append(" ".join(model.tokenizer.decode(tokens, skip_special_tokens=True).split()))
    return captions


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n": 1},
        {"n": 7, "seed": 3},
        {"top_p": 1.0, "temperature": 1.7},
        {"top_p": 0.3},
        {"min_tokens": 9, "max_tokens": 12},
        {"max_tokens": 1},
        {"max_tokens": tiny_blip.POSITIONS, "min_tokens": tiny_blip.POSITIONS, "n": 2},
    ],
)
def test_captions_are_those_of_a_plain_loop_without_a_cache(changes: dict[str, Any], blip: Blip) -> None:
    blip.settings = settings(blip.settings.model, **{"redraws": 0, "max_tokens": 14} | changes)
    captions = blip.captions(pixels(blip)[:3], DIGESTS[:3])
    for image, digest, lines in zip(pixels(blip), DIGESTS, captions, strict=False):
        assert lines == [line for line in plain(blip, image, digest) if line]
    assert len({tuple(lines) for lines in captions}) > 1


def test_the_most_likely_caption_is_transformers_greedy_one(blip: Blip) -> None:
    blip.settings = settings(blip.settings.model, top_p=1e-6, n=3, redraws=0)
    inputs = pixels(blip)
    tokens = blip.model.generate(torch.stack(inputs), do_sample=False, max_new_tokens=blip.settings.max_tokens)
    texts = [" ".join(text.split()) for text in blip.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert blip.captions(inputs, DIGESTS) == [[text] * 3 for text in texts] and all(texts)


def test_the_image_matters(blip: Blip) -> None:
    """Equal digests give equal random numbers, so that what differs comes from the picture."""
    blip.settings = settings(blip.settings.model, temperature=0.2)
    captions = blip.captions(pixels(blip), ["1" * 64] * len(COLOURS))
    assert len({tuple(lines) for lines in captions}) > 1


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_a_caption_depends_on_neither_batch_nor_order(batch: int, blip: Blip) -> None:
    inputs = pixels(blip)
    together = blip.captions(inputs, DIGESTS)
    assert [len(lines) for lines in together] == [5] * len(COLOURS)
    blip.batch = batch
    backwards = list(zip(inputs, DIGESTS, strict=True))[::-1]
    again: list[list[str]] = []
    for start in range(0, len(backwards), batch):
        images, digests = zip(*backwards[start : start + batch], strict=True)
        again += blip.captions(images, digests)
    assert again[::-1] == together


def test_a_second_load_draws_the_same_and_another_seed_draws_others(blip: Blip) -> None:
    first = blip.captions(pixels(blip), DIGESTS)
    second = Blip(blip.settings, Compute(device="cpu", caption_batch=2))
    assert second.captions(pixels(blip)[:2], DIGESTS[:2]) == first[:2]
    for changes in ({"seed": 7}, {"temperature": 3.0}, {"top_p": 0.1}):
        blip.settings = settings(blip.settings.model, **changes)
        assert blip.captions(pixels(blip), DIGESTS) != first


def test_the_tower_runs_once_per_batch_and_sees_each_image_once(blip: Blip) -> None:
    shapes: list[tuple[int, ...]] = []
    encoder = blip.model.vision_model.encoder
    hook = encoder.register_forward_hook(lambda module, given, result: shapes.append(tuple(result[0].shape)))
    keys = blip.model.text_decoder.bert.encoder.layer[0].crossattention.self.key
    read: list[tuple[int, ...]] = []
    second = keys.register_forward_hook(lambda module, given, result: read.append(tuple(result.shape)))
    with hook, second:
        blip.captions(pixels(blip)[:3], DIGESTS[:3])
    positions = (tiny_blip.SIDE // tiny_blip.PATCH) ** 2 + 1
    assert shapes == [(len(COLOURS), positions, 24)] and read[0] == (len(COLOURS), positions, 32)
    assert len(read) <= 1 + blip.settings.redraws  # once per draw, not once per token


def test_the_mask_shows_each_caption_the_start_and_its_own_tokens() -> None:
    seen = own_tokens(3, 7, torch.device("cpu"))[0, 0] == 0
    assert seen.int().tolist() == [[1, 1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0, 1]]


def test_empty_captions_are_drawn_again_and_left_out_in_the_end(blip: Blip) -> None:
    """An end token that is nearly as likely as not makes empty captions; each draw has numbers of its own."""
    blip.settings = settings(blip.settings.model, redraws=0)
    head = blip.model.text_decoder.get_output_embeddings()

    def make_the_end_likely(module: object, arguments: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., tiny_blip.END] = logits.amax(dim=-1)
        return logits

    with head.register_forward_hook(make_the_end_likely):
        without_redraws = blip.captions(pixels(blip), DIGESTS)
        blip.settings = settings(blip.settings.model, redraws=1)
        once = blip.captions(pixels(blip), DIGESTS)
        draws = [
            [plain(blip, image, digest, draw) for draw in (0, 1)]
            for image, digest in zip(pixels(blip), DIGESTS, strict=True)
        ]
        blip.settings = settings(blip.settings.model, redraws=12)
        often = blip.captions(pixels(blip), DIGESTS)
    assert without_redraws == [[line for line in first if line] for first, _ in draws]
    assert once == [[line for one, two in zip(*both, strict=True) if (line := one or two)] for both in draws]
    assert sum(map(len, without_redraws)) < sum(map(len, once)) < sum(map(len, often))
    assert all(line for lines in often for line in lines)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_caption_too(precision: str, folder: Path, blip: Blip) -> None:
    model = Blip(settings(folder, precision=precision), Compute(device="cpu", caption_batch=3))
    assert {tensor.dtype for tensor in model.model.parameters()} == {
        torch.bfloat16 if precision == "bf16" else torch.half
    }
    captions = model.captions(pixels(model)[:3], DIGESTS[:3])
    assert [len(lines) for lines in captions] == [5] * 3
    same = [
        line in lines
        for lines, exact in zip(captions, blip.captions(pixels(blip), DIGESTS), strict=False)
        for line in exact[:1]
    ]
    assert any(same)


def test_images_are_prepared_by_the_models_own_processor(blip: Blip, copy: Path) -> None:
    image = picture("red")
    expected = AutoImageProcessor.from_pretrained(copy)(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(blip.prepare(image), expected) and expected.shape == (3, tiny_blip.SIDE, tiny_blip.SIDE)
    file = copy / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    file.write_text(json.dumps(content))
    other = Blip(settings(copy), CPU)
    assert float(other.prepare(Image.new("RGB", (9, 9), "white")).max()) == pytest.approx(1)
    assert float(other.prepare(image).min()) >= 0


# Broken folders: one line each.


def test_another_image_size_than_the_towers_is_refused(copy: Path) -> None:
    for width, height in ((16, 16), (64, 64), (32, 16)):
        file = copy / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": height, "width": width}}))
        line = refusal(settings(copy))
        assert line.startswith(f"params.yaml: captioner model '{copy}': its image processor makes images of ")
        assert f"{height} x {width}, its config.json needs 32 x 32; take processor_config.json and " in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("vision_model.encoder.layers.1."), r"keys are missing (vision_model.encoder.layers.1."),
        (without("crossattention"), "keys are missing (text_decoder.bert.encoder.layer.0.crossattention."),
        (without("word_embeddings"), "missing (text_decoder.bert.embeddings.word_embeddings.weight"),
        (
            without("vision_model.embeddings.class_embedding"),
            "1 key is missing (vision_model.embeddings.class_embedding)",
        ),
        (checkpoints.with_one_more, "1 key is unknown to the model (head.more)"),
        (alternately("module.", ""), "keys are unknown to the model (module."),
        (renamed("text_decoder", "decoder"), "unknown to the model (decoder."),
        (reshaped("query.weight"), "has shape (3, 5), the model needs (32, 32)"),
        (
            lambda state: prefixed("module.")(without("post_layernorm")(state)),
            "every key begins with 'module.'; without it",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_never_random(change: Change, message: str, copy: Path) -> None:
    file = copy / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(file)).items()}, file, {"format": "pt"})
    line = refusal(settings(copy))
    assert line.startswith(f"{copy}: the checkpoint does not fit its model") and message in line, line


def as_published(copy: Path, blip: Blip) -> None:
    """The weights as one pickle of tensors, with the tied ones and the constant that older versions saved."""
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    words = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    bias = blip.model.text_decoder.cls.predictions.bias.clone()
    state |= {
        "text_decoder.cls.predictions.decoder.weight": words.clone(),
        "text_decoder.cls.predictions.decoder.bias": bias,
        "text_decoder.cls.predictions.bias": bias.clone(),
        "text_decoder.bert.embeddings.position_ids": torch.arange(tiny_blip.POSITIONS)[None],
    }
    torch.save(state, copy / "pytorch_model.bin")


def test_a_pickle_of_tensors_as_published_captions_as_the_safetensors(blip: Blip, copy: Path) -> None:
    as_published(copy, blip)
    model = Blip(settings(copy), Compute(device="cpu", caption_batch=blip.batch))
    assert model.captions(pixels(blip), DIGESTS) == blip.captions(pixels(blip), DIGESTS)


def test_a_prefix_that_all_keys_share_is_removed(blip: Blip, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "model.safetensors"
    save_file(prefixed("module.")(load_file(file)), file, {"format": "pt"})
    model = Blip(settings(copy), Compute(device="cpu", caption_batch=blip.batch))
    assert f"{copy}: every key begins with 'module.'; loaded without it" in capsys.readouterr().err
    assert model.captions(pixels(blip), DIGESTS) == blip.captions(pixels(blip), DIGESTS)


def test_no_service_is_asked_to_convert_a_pickle(copy: Path, blip: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a hub model without safetensors, transformers would start a thread that does, and download the result."""
    as_published(copy, blip)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    asked: list[object] = []
    monkeypatch.setattr(modeling_utils, "auto_conversion", lambda *model, **options: asked.append(model))
    monkeypatch.setattr(modeling_utils, "has_file", lambda *model, **options: False)
    monkeypatch.setattr(
        modeling_utils,
        "cached_file",
        lambda model, file, **options: str(copy / file) if (copy / file).is_file() else None,
    )
    monkeypatch.setattr(modeling_utils, "is_offline_mode", lambda: False)
    for number in (1, 0):  # the second time after this project's own loading
        modeling_utils._get_resolved_checkpoint_files("people/blip", None, None, None, {}, False)
        for thread in threading.enumerate():
            if thread.name == "Thread-auto_conversion":
                thread.join()
        assert len(asked) == number
        asked.clear()
        Blip(settings(copy), CPU)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "pytorch_model-1-of-1.bin"])
def test_a_pickle_that_holds_more_than_tensors_is_not_opened(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"text_decoder": CreatesFile(tmp_path / "ran")}, copy / name)
    assert "the file holds more than tensors; it was not opened" in refusal(settings(copy))
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert refusal(settings(copy)).startswith(f"{copy}: no weights (*.safetensors or *.bin) in this folder")


@pytest.mark.parametrize("lost", ["config.json", "preprocessor_config.json", "tokenizer"])
def test_a_folder_without_one_of_its_files_is_one_line(lost: str, copy: Path) -> None:
    for file in [*copy.glob(f"{lost}*"), *(copy.glob("vocab.txt") if lost == "tokenizer" else ())]:
        file.unlink()
    assert refusal(settings(copy)).startswith(f"params.yaml: captioner model '{copy}'")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "blip-2"}, "is a BLIP-2, not a BLIP; set engine: transformers or vllm, or name another model"),
        ({"model_type": "llama"}, "is a llama, not a BLIP; name another model"),
        ({"model_type": "instructblip"}, "is a instructblip, not a BLIP; name another model"),
        (
            {"architectures": ["BlipForQuestionAnswering"]},
            "is a BlipForQuestionAnswering, which writes no captions; name",
        ),
        ({"architectures": ["BlipForImageTextRetrieval"]}, "is a BlipForImageTextRetrieval, which writes no captions"),
        ({"text_config": {"bos_token_id": None}}, "names no bos_token_id; complete text_config in its config.json"),
        ({"text_config": {"sep_token_id": None}}, "names no sep_token_id; complete text_config in its config.json"),
        ({"text_config": {"max_position_embeddings": 20}}, "has space for 20 tokens; lower max_tokens (now 30)"),
    ],
)
def test_configurations_that_the_engine_cannot_run_are_one_line(
    changes: dict[str, Any], message: str, copy: Path
) -> None:
    old = json.loads((copy / "config.json").read_text())
    if "text_config" in changes:
        changes = {"text_config": old["text_config"] | changes["text_config"]}
    checkpoints.configure(copy, **changes)
    line = refusal(settings(copy))
    assert line.startswith(f"params.yaml: captioner model '{copy}' {message}"), line


def test_each_engine_names_the_right_one_for_the_other_model(folder: Path) -> None:
    blip2 = ROOT / "demo/weights/blip2"
    assert refusal(settings(blip2)).endswith(
        "is a BLIP-2, not a BLIP; set engine: transformers or vllm, or name another model"
    )
    vllm = VllmBlip2Settings.model_validate(blip2_settings().model_dump() | {"engine": "vllm", "model": str(folder)})
    loads: tuple[Callable[[], object], ...] = (
        lambda: Blip2(blip2_settings(model=str(folder)), CPU),
        lambda: VllmBlip2(vllm, CPU),
    )
    for load in loads:
        with pytest.raises(CvsiError, match="is a BLIP, not a BLIP-2; set engine: blip, or name another model"):
            load()


# Settings and recipe.


def test_the_settings_are_those_of_sampling_with_five_captions(folder: Path) -> None:
    block = captioner_settings({"engine": "blip", "model": str(folder)}, "captioner")
    assert isinstance(block, BlipSettings) and captioner_engine(block) is ENGINE
    assert (block.n, block.top_p, block.temperature, block.max_tokens, block.redraws) == (5, 0.9, 1.0, 30, 3)
    (model,) = ENGINE.requirements(block).models
    assert model.name == str(folder) and model.family == "blip"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"n": 0}, ".n: Input should be greater than 0 (got 0)"),
        ({"min_tokens": 31}, ": min_tokens is 31, above max_tokens 30"),
        ({"decoding": "beam-sample"}, ".decoding: unknown key"),
        ({"beams": 5}, ".beams: unknown key"),
        ({"temperature": 0}, ".temperature: Input should be greater than 0 (got 0)"),
        ({"top_p": "high"}, ".top_p: Input should be a valid number"),
    ],
)
def test_wrong_settings_are_one_line(block: dict[str, Any], message: str) -> None:
    with pytest.raises(CvsiError) as error:
        captioner_settings({"engine": "blip", "model": "a/b"} | block, "datasets.toy.captioner")
    assert str(error.value).startswith(f"params.yaml: datasets.toy.captioner{message}"), str(error.value)
    assert "\n" not in str(error.value)


def test_every_setting_but_the_models_place_is_part_of_the_recipe(folder: Path, copy: Path, tmp_path: Path) -> None:
    def recipe(at: Path = folder, precision: str = "fp32", **changes: Any) -> dict[str, Any]:
        return ENGINE.recipe(settings(at, **changes), precision, Store(tmp_path))

    assert recipe() == recipe(copy) and recipe()["engine"] == "blip" and "model" not in recipe()
    changed: list[dict[str, Any]] = [
        {"n": 6},
        {"top_p": 0.8},
        {"temperature": 2.0},
        {"min_tokens": 1},
        {"max_tokens": 29},
        {"redraws": 0},
        {"seed": 1},
    ]
    others = [recipe(**changes) for changes in changed] + [recipe(precision="bf16")]
    assert len({json.dumps(one, sort_keys=True) for one in [recipe(), *others]}) == len(others) + 1
    (copy / "model.safetensors").write_bytes(b"other")
    assert recipe() != recipe(copy)


# The stage.


def test_the_captions_stage_on_ten_drawn_images(
    toy: Workspace, folder: Path, blip: Blip, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, colour in enumerate(("pink", "brown")):
        picture(colour).resize((80 + number, 60)).save(toy.path / "photos" / f"{colour}.png")
    write_index()
    block = {"engine": "blip", "model": str(folder), "precision": "fp32"}
    toy.params(datasets__toy__captioner=block, compute={"device": "cpu", "caption_batch": 3, "block_batches": 2})
    stage.write("toy", params.load())
    assert "10 images: 0 in the store, 10 to caption" in capsys.readouterr().out
    table = pl.DataFrame(tables.whole("captions", "toy"))
    assert table.height == 10 and table["captions"].list.len().to_list() == [5] * 10
    for row in table.to_dicts():
        image = blip.prepare(Image.open(toy.path / "photos" / row["image_id"]).convert("RGB"))
        assert blip.captions([image], [row["digest"]]) == [row["captions"]]
    before = toy.bytes_below("toy/captions")
    stage.write("toy", params.load())
    assert "10 in the store, 0 to caption" in capsys.readouterr().out
    assert toy.bytes_below("toy/captions") == before


def test_the_stage_names_the_right_engine_for_a_blip2(toy: Workspace) -> None:
    write_index()
    blip2 = str(ROOT / "demo/weights/blip2")
    toy.params(datasets__toy__captioner={"engine": "blip", "model": blip2})
    assert toy.error("captions", "toy") == (
        f"captions toy: params.yaml: captioner model '{blip2}' is a BLIP-2, not a BLIP; "
        "set engine: transformers or vllm, or name another model"
    )
