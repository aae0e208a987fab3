"""A tiny Qwen2.5-VL as captioner in vLLM: greedy as in transformers, the other captions drawn by seed and image."""

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from PIL import Image

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.blip2_vllm import VllmBlip2, VllmBlip2Settings
from cvsi.models.captioner_vllm import ENGINE, VllmCaptioner, VllmCaptionerSettings
from cvsi.models.editor import CUT, STOPPED, TOO_LONG, Answer
from cvsi.models.engines import captioner_engine, captioner_settings
from cvsi.models.image_data import data_url
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.models import checkpoints, tiny_qwen
from tests.stage_inputs import write_index

COLOURS = ("red", "blue", "green", "white")
DIGESTS = [letter * 64 for letter in "abcd"]
BLOCK: dict[str, Any] = {
    "engine": "vllm", "precision": "fp32", "prompt": "Describe this image.", "max_tokens": 12, "context": 512,
}  # fmt: skip
CPU = Compute(device="cpu")


def settings(**changes: object) -> VllmCaptionerSettings:
    return VllmCaptionerSettings.model_validate({"model": "a/b"} | BLOCK | changes)


def refusal(model: str, **changes: object) -> str:
    """The line by which the engine refuses a model."""
    with pytest.raises(CvsiError) as error:
        VllmCaptioner(settings(model=model, **changes), CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_key_prompt_decides_which_models_the_engine_takes() -> None:
    prompted = captioner_settings(BLOCK | {"model": "a/b"}, "captioner")
    plain = captioner_settings({"engine": "vllm", "model": "a/b"}, "captioner")
    assert isinstance(prompted, VllmCaptionerSettings) and isinstance(plain, VllmBlip2Settings)
    assert captioner_engine(prompted).answers and not captioner_engine(plain).answers
    assert captioner_settings(prompted.model_dump(), "captioner") == prompted
    assert captioner_settings(plain.model_dump(), "captioner") == plain
    given = VllmCaptionerSettings.model_validate({"engine": "vllm", "model": "a/b", "prompt": " Describe it. "})
    assert (given.prompt, given.n, given.temperature, given.top_p, given.max_tokens) == ("Describe it.", 3, 1, 0.9, 128)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"decoding": "beam-sample"}, ": decoding is for a BLIP-2, which takes no prompt; leave decoding out, or pro"),
        ({"beams": 5}, ": beams is for a BLIP-2"),
        ({"min_tokens": 5}, ": min_tokens is for a BLIP-2"),
        ({"redraws": 5}, ": redraws is for a BLIP-2"),
        ({"prompt": None}, ".prompt: Input should be a valid string (got None)"),
        ({"prompt": "  "}, ".prompt: String should have at least 1 character"),
        ({"prompt": 3}, ".prompt: Input should be a valid string (got 3)"),
        ({"prompt": "a" * 5000}, ".prompt: String should have at most 4096 characters"),
        ({"n": 0}, ".n: Input should be greater than or equal to 1 (got 0)"),
        ({"n": 65}, ".n: Input should be less than or equal to 64 (got 65)"),
        ({"temperature": 0}, ": temperature is 0, so all 3 captions would be equal; set n: 1 or a temperature"),
        ({"temperature": 0.005}, ": temperature is 0.005, which vLLM raises; set 0.01 or more, or 0"),
        ({"temperature": 2.5}, ".temperature: Input should be less than or equal to 2 (got 2.5)"),
        ({"temperature": float("nan")}, ".temperature: Input should be"),
        ({"top_p": 0}, ".top_p: Input should be greater than 0 (got 0)"),
        ({"seed": -1}, ".seed: Input should be greater than or equal to 0 (got -1)"),
        ({"image_size": 16}, ".image_size: Input should be greater than or equal to 32 (got 16)"),
        ({"context": 0}, ".context: Input should be greater than 0 (got 0)"),
        ({"context": 100, "max_tokens": 100}, ": max_tokens is 100, which leaves no space for image and prompt in co"),
        ({"address": "http://localhost/v1"}, ".address: unknown key"),
        ({"promt": "a"}, ".promt: unknown key"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_line(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CvsiError) as error:
        captioner_settings({"model": "a/b"} | BLOCK | changes, "captioners.qwen")
    assert str(error.value).startswith(f"params.yaml: captioners.qwen{expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["image_size", "context", "chat_template_kwargs"])
def test_a_key_of_a_prompted_model_without_a_prompt_is_one_line(key: str) -> None:
    with pytest.raises(CvsiError, match=f"{key} is for a vision-language model .*; add prompt, or leave {key} out$"):
        captioner_settings({"engine": "vllm", "model": "a/b", key: 512}, "captioners.qwen")


@pytest.mark.parametrize("block", [{}, {"engine": "transformers"}, {"engine": "blip"}, {"decoding": "beam-sample"}])
def test_a_prompt_for_an_engine_without_one_is_one_line(block: dict[str, Any]) -> None:
    with pytest.raises(CvsiError) as error:
        captioner_settings({"model": "a/b", "prompt": "Describe it."} | block, "captioners.qwen")
    assert str(error.value) == (
        "params.yaml: captioners.qwen: prompt is for a vision-language model with a chat template; set engine: vllm or "
        "server, or leave prompt out"
    )


def test_the_recipe_has_everything_that_decides_a_caption(tmp_path: Path) -> None:
    from cvsi.core.digest import digest
    from cvsi.store.rows import Store

    def recipe(**changes: object) -> str:
        return digest(ENGINE.recipe(settings(**changes), "fp32", Store(tmp_path)))

    changes: list[dict[str, object]] = [
        {"prompt": "What is it?"}, {"n": 2}, {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 13},
        {"image_size": 64}, {"context": 513}, {"chat_template_kwargs": {"a": 1}}, {"revision": "b"}, {"model": "a/c"},
    ]  # fmt: skip
    assert len({recipe(), *(recipe(**change) for change in changes)}) == len(changes) + 1
    assert recipe() == recipe()


@pytest.mark.parametrize(("name", "engine"), [("blip", "blip"), ("blip-2", "")])
def test_a_model_that_takes_no_prompt_is_refused_before_it_is_loaded(name: str, engine: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo/weights/blip2", tmp_path / "model")
    checkpoints.configure(tmp_path / "model", model_type=name)
    line = refusal(str(tmp_path / "model"))
    assert line.endswith("which takes no prompt; leave prompt out" + (f" and set engine: {engine}" if engine else ""))


def test_a_vision_language_model_without_a_prompt_is_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo/weights/blip2", tmp_path / "model")
    checkpoints.configure(tmp_path / "model", model_type="qwen2_5_vl", architectures=["Qwen2_5_VLForX"])
    plain = VllmBlip2Settings.model_validate({"engine": "vllm", "model": str(tmp_path / "model")})
    with pytest.raises(
        CvsiError, match=r"name another model, or, if it has a chat template, set engine: vllm and a prompt$"
    ):
        VllmBlip2(plain, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save(tmp_path_factory.mktemp("model") / "tiny-qwen")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> VllmCaptioner:
    return VllmCaptioner(settings(model=str(folder)), CPU)


@pytest.fixture
def captioner(loaded: VllmCaptioner) -> Iterator[VllmCaptioner]:
    """The loaded engine; a test may change its `settings`."""
    kept = loaded.settings
    yield loaded
    loaded.settings = kept


def prepared(captioner: VllmCaptioner) -> list[str]:
    return [captioner.prepare(Image.new("RGB", (300, 200), colour)) for colour in COLOURS]


@pytest.mark.slow  # each of these loads vLLM, or reads what another one loaded
@pytest.mark.xdist_group("vllm")
class TestInVllm:
    def test_captions_are_drawn_by_seed_and_image(self, captioner: VllmCaptioner) -> None:
        images, n = prepared(captioner), 3
        answers = captioner.answers(images, DIGESTS)
        assert len({answer.text for answer in answers}) == len(answers) == n * len(images)
        assert {answer.finish for answer in answers} <= {STOPPED, CUT} and captioner.answers(images, DIGESTS) == answers
        backwards = captioner.answers(images[::-1], DIGESTS[::-1])
        assert [backwards[n * at : n * at + n] for at in range(4)] == [
            answers[n * at : n * at + n] for at in (3, 2, 1, 0)
        ]
        assert captioner.answers(images[1:2], DIGESTS[1:2]) == answers[n : 2 * n]
        assert captioner.answers(images, DIGESTS[::-1]) != answers
        captioner.settings = captioner.settings.model_copy(update={"seed": 1})
        assert not {answer.text for answer in captioner.answers(images, DIGESTS)} & {answer.text for answer in answers}

    def test_the_most_likely_caption_is_that_of_transformers(self, captioner: VllmCaptioner, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        captioner.settings = captioner.settings.model_copy(update={"n": 1, "temperature": 0.0, "max_tokens": 6})
        answers = captioner.answers(prepared(captioner), DIGESTS)
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        for image, answer in zip(prepared(captioner), answers, strict=True):
            seen = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2])))
            content = [{"type": "text", "text": "Describe this image."}, {"type": "image", "image": seen}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )  # fmt: skip
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
            text = processor.decode(tokens, skip_special_tokens=True)
            assert text.rstrip("\ufffd") == answer.text  # vLLM leaves out a last character that is not complete
        assert len({answer.text for answer in answers}) > 1

    def test_images_go_in_at_the_prepared_size(self, captioner: VllmCaptioner) -> None:
        captioner.settings = captioner.settings.model_copy(update={"image_size": 60})
        image = Image.new("RGB", (300, 200), "red")
        assert captioner.prepare(image) == data_url(image, 60) != data_url(image, 61)

    def test_a_prompt_longer_than_the_context_is_too_long(self, captioner: VllmCaptioner) -> None:
        images = prepared(captioner)
        captioner.settings = captioner.settings.model_copy(update={"prompt": "word " * 700})
        assert captioner.answers(images[:3], DIGESTS[:3]) == [Answer("", TOO_LONG)] * 9

    def test_a_failure_of_the_engine_is_one_line(
        self, captioner: VllmCaptioner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise ValueError("the engine is dead\nmore")

        monkeypatch.setattr(captioner.engine, "chat", fail)
        with pytest.raises(CvsiError, match=r"^params\.yaml: captioner model '.*' fails on an image \(") as error:
            captioner.answers(prepared(captioner), DIGESTS)
        assert "\n" not in str(error.value)

    def test_a_model_that_takes_no_images_is_one_line(self) -> None:
        assert refusal(str(ROOT / "demo/weights/llama")).endswith("takes no images; name a vision-language model")

    def test_a_model_without_a_chat_template_is_one_line(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").unlink()
        base = VllmCaptioner(settings(model=str(tmp_path / "model")), CPU)
        with pytest.raises(
            CvsiError, match=r"no chat template, or one that refuses .*; name an instruct model$"
        ) as error:
            base.answers(prepared(base)[:1], DIGESTS[:1])
        assert "\n" not in str(error.value)

    def test_the_stage_writes_captions_with_statuses(self, toy: Workspace, folder: Path, tmp_path: Path) -> None:
        """A model that mostly says words and ends its answers."""
        shutil.copytree(folder, tmp_path / "model")
        _make_it_talk(tmp_path / "model")
        write_index()
        block = BLOCK | {"model": str(tmp_path / "model"), "n": 4, "max_tokens": 40}
        toy.params(datasets__toy__captioner=block, compute={"device": "cpu"})
        toy.run("captions", "toy")
        table = pl.read_parquet("cache/toy/captions/*.parquet")
        assert table.select(pl.col("answer_status").list.len().unique()).to_series().to_list() == [4]
        assert table["captions"].list.len().sum() > 0 and "captions" in table.columns and "status" in table.columns
        toy.run("captions", "toy")
        assert pl.read_parquet("cache/toy/captions/*.parquet").equals(table)


def _make_it_talk(folder: Path) -> None:
    """Make words of letters and the end far more likely than other tokens."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    tokenizer, file = AutoTokenizer.from_pretrained(folder), folder / "model.safetensors"
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    likely = torch.tensor([text == "<|im_end|>" or (text[:1] == " " and text[1:].isalpha()) for text in texts])
    state = load_file(file)
    state["lm_head.weight"] = torch.where(likely.unsqueeze(1), state["lm_head.weight"], 0).contiguous()
    save_file(state, file, metadata={"format": "pt"})
