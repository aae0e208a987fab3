"""The demo's CLIP through the code that loads any: pseudo tokens, trimming, batches, and open_clip's own features."""

import os
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Backbone
from cvsi.core.params import Compute
from cvsi.models import phi
from cvsi.models.batching import full, length_batches
from cvsi.models.clip import Encoder, sizes, template
from cvsi.models.clip_checkpoint import locate
from cvsi.models.model_id import content_digest
from tests.conftest import Workspace
from tests.imports import ROOT

WORDS = ("dog", "circle", "red")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    backbone = params.load(ROOT / "params.yaml").backbone("tiny")
    there = {"model": f"local-dir:{ROOT / 'demo/weights/clip'}", "phi": str(ROOT / "demo/weights/phi.safetensors")}
    return Encoder(backbone.model_copy(update=there), Compute(device="cpu"))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("instruction", ["is red and large", "costs $5, not $10", "$ is shown"])
def test_a_pseudo_token_with_a_words_embedding_is_that_word(encoder: Encoder, word: str, instruction: str) -> None:
    (token,) = encoder.tokenizer.encode(word)
    embedding = encoder.model.token_embedding.weight[token].unsqueeze(0)
    sentence = template(instruction, "a blue star")
    plain = sentence.replace("$", word, 1)
    assert plain.count("$") == instruction.count("$")
    found = encoder.texts(encoder.tokens([sentence]), embedding)
    assert torch.allclose(found, encoder.texts(encoder.tokens([plain])), atol=1e-5)
    assert not torch.allclose(found, encoder.texts(encoder.tokens([sentence])), atol=1e-3)


def test_pseudo_tokens_differ_row_by_row(encoder: Encoder) -> None:
    rows = torch.stack([encoder.model.token_embedding.weight[encoder.tokenizer.encode(word)[0]] for word in WORDS])
    together = encoder.texts(encoder.tokens(["a photo of $ that is red."] * 3), rows)
    alone = encoder.texts(encoder.tokens([f"a photo of {word} that is red." for word in WORDS]))
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_text_without_the_token_is_refused(encoder: Encoder) -> None:
    with pytest.raises(CvsiError, match="no '\\$' within the context"):
        encoder.texts(encoder.tokens(["a photo"]), torch.zeros(1, encoder.token_width))


def test_a_long_text_is_cut_with_its_end_token_kept(encoder: Encoder) -> None:
    long = template("is red " * 200, "a star")
    assert encoder.lengths(encoder.tokens([long])) == [encoder.model.context_length]
    word = encoder.model.token_embedding.weight[encoder.tokenizer.encode("dog")[0]].unsqueeze(0)
    plain = encoder.texts(encoder.tokens([long.replace("$", "dog", 1)]))
    assert torch.allclose(encoder.texts(encoder.tokens([long]), word), plain, atol=1e-5)


def test_trimmed_texts_equal_open_clips_full_context(encoder: Encoder) -> None:
    texts = ["a red circle", "a photo of two blue squares and a small green star on a white background", "x"]
    with torch.inference_mode():
        whole = encoder.model.encode_text(encoder.tokenizer(texts, context_length=encoder.model.context_length))
    assert torch.allclose(encoder.texts(encoder.tokens(texts)), torch.nn.functional.normalize(whole, dim=-1), atol=1e-5)


def test_a_rows_bits_do_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    texts = ["a red circle", "a blue square", "a green star", "a pink cross"]
    size = 4
    together = encoder.texts(encoder.tokens(full(texts, size)))
    for number, text in enumerate(texts):
        assert torch.equal(encoder.texts(encoder.tokens(full([text], size)))[0], together[number])


def test_image_vectors_are_not_normalised_and_phi_reads_them_so(encoder: Encoder) -> None:
    pixels = torch.stack([encoder.prepare(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")])
    embeddings = encoder.images(pixels)
    with torch.inference_mode():
        assert torch.equal(embeddings, encoder.model.encode_image(pixels))
        assert torch.equal(encoder.words(embeddings), encoder.phi.layers(embeddings))
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-2)


def test_texts_of_like_length_go_together() -> None:
    batches = list(length_batches([5, 17, 8, 3, 24, 9, 2], 3))
    assert [[3, 6], [0, 2], [5], [1], [4]] == batches


def test_sizes_come_from_the_configuration(encoder: Encoder) -> None:
    assert sizes(encoder.backbone) == (encoder.width, encoder.model.token_embedding.weight.shape[1])
    assert sizes(Backbone(model="ViT-L-14", phi="x")) == (768, 768)
    with pytest.raises(CvsiError, match="open_clip knows no model 'ViT-Z'"):
        sizes(Backbone(model="ViT-Z", phi="x"))
    with pytest.raises(CvsiError, match="no readable open_clip configuration"):
        sizes(Backbone(model="local-dir:/nowhere", phi="x"))


def test_a_phi_of_another_width_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "phi.safetensors"
    save_file(phi.Phi(8, 8).state_dict(), file)
    assert phi.load(str(file), 8, 8)(torch.ones(2, 8)).shape == (2, 8)
    with pytest.raises(CvsiError, match=r"phi\.safetensors: layers\.0\.bias is \(32,\), the backbone needs \(64,\)"):
        phi.load(str(file), 16, 8)
    torch.save({"Phi": phi.Phi(8, 8).state_dict()}, tmp_path / "phi.pt")
    assert phi.load(str(tmp_path / "phi.pt"), 8, 8)(torch.ones(2, 8)).shape == (2, 8)
    torch.save({"phi": 1}, tmp_path / "phi.pt")
    with pytest.raises(CvsiError, match="no state dict under the key 'Phi'"):
        phi.load(str(tmp_path / "phi.pt"), 8, 8)
    file.write_bytes(b"junk")
    with pytest.raises(CvsiError, match="not a safetensors file"):
        phi.load(str(file), 8, 8)
    with pytest.raises(CvsiError, match="no such file"):
        phi.load(str(tmp_path / "none"), 8, 8)


class Hostile:
    """A value whose pickle runs a command when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_checkpoint_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"Phi": Hostile(mark)}, tmp_path / "phi.pt")
    with pytest.raises(CvsiError, match=r"phi\.pt: not a checkpoint of tensors alone \(UnpicklingError\)"):
        phi.load(str(tmp_path / "phi.pt"), 8, 8)
    assert not mark.exists()


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A named model of a few thousand weights, `Little`, with a tag `ours` in a hub repository; a file of weights."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    other = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bilinear", "resize_mode": "squash"}
    tags = {"ours": {"hf_hub": "people/little/"} | other, "address": {"url": "https://example.invalid/little.pt"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Little", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Little", tags)
    torch.manual_seed(5)
    file = tmp_path / "little.safetensors"
    save_file(open_clip.create_model("Little").state_dict(), file)
    return file


def hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, repository: str, **files: Path) -> None:
    """A hub cache that holds a file of weights for each revision, and no network."""
    place = folder / "hub" / f"models--{repository.replace('/', '--')}"
    for revision, file in files.items():
        commit = revision[0] * 40
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "open_clip_model.safetensors").symlink_to(file)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def encoder_of(**facts: str | None) -> Encoder:
    return Encoder(Backbone(phi="none", **facts), Compute(device="cpu"))  # type: ignore[arg-type]


def test_a_tags_weights_are_those_of_its_revision(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    newer = tmp_path / "newer.safetensors"
    save_file(open_clip.create_model("Little").state_dict(), newer)
    hub_cache(tmp_path, monkeypatch, "people/little", main=newer, a1=little)
    pixels = torch.randn(2, 3, 32, 32)
    vectors = {}
    for revision in (None, "a1", "a" * 40):
        ours = encoder_of(model="Little", pretrained="ours", revision=revision)
        vectors[revision] = ours.images(pixels)
        by_tag = open_clip.create_model("Little", pretrained="ours", load_weights=False)
        assert ours.model.visual.preprocess_cfg == by_tag.visual.preprocess_cfg
        assert ours.model.visual.preprocess_cfg["mean"] == (0.5, 0.4, 0.3)
    expected = {name: encoder_of(model="Little", pretrained=str(name)).images(pixels) for name in (little, newer)}
    assert torch.equal(vectors[None], expected[newer])
    assert torch.equal(vectors["a1"], expected[little]) and torch.equal(vectors["a" * 40], expected[little])
    assert not torch.allclose(expected[little], expected[newer], atol=1e-3)


@pytest.mark.parametrize("name", ["vit-b-32", "vit-l-14", "vit-bigg-14"])
def test_preprocessing_of_the_published_backbones_survives_the_way_by_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = params.load(ROOT / "params.yaml").backbone(name).model_copy(update={"revision": None})
    cfg = open_clip.get_pretrained_cfg(backbone.model, backbone.pretrained)
    hub_cache(tmp_path, monkeypatch, cfg["hf_hub"].rstrip("/"), main=tmp_path / "weights")
    (tmp_path / "weights").touch()
    file, preprocess = locate(backbone)
    assert file is not None and Path(file).samefile(tmp_path / "weights")
    with torch.device("meta"):
        build = partial(open_clip.create_model, backbone.model, load_weights=False, device="meta")
        found = build(pretrained=file, force_preprocess_cfg=preprocess).visual.preprocess_cfg
        assert found == build(pretrained=backbone.pretrained).visual.preprocess_cfg
    assert (found["mean"], found["std"]) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert found | {"size": (224, 224), "interpolation": "bicubic", "resize_mode": "shortest"} == found


def test_weights_that_are_nowhere_say_what_to_download(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path, monkeypatch, "people/little", main=little)
    (tmp_path / "hub/models--people--little/snapshots" / ("m" * 40) / "open_clip_model.safetensors").unlink()
    with pytest.raises(CvsiError) as error:
        _ = encoder_of(model="Little", pretrained="ours", revision="a1").model
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("params.yaml: pretrained 'ours' of Little is not here and was not downloaded (")
    assert "(or open_clip_pytorch_model.bin) of the hub's people/little at revision a1 and set its pre" in text
    assert text.endswith("pretrained to the file, without revision")


def test_a_recipe_names_what_decides_the_weights(little: Path, encoder: Encoder) -> None:
    def facts(**changes: str | None) -> dict[str, object]:
        found = encoder_of(model="Little", **changes).recipe("text")
        return {key: value for key, value in found.items() if key not in ("kind", "code", "precision")}

    assert facts(pretrained="ours") == {"model": "Little", "pretrained": "ours"}
    assert facts(pretrained="ours", revision="a1") == {"model": "Little", "pretrained": "ours", "revision": "a1"}
    by_content = {"model": "Little", "pretrained": {"weights": content_digest(little)}}
    assert facts(pretrained=str(little)) == by_content
    moved = little.rename(little.with_name("moved.safetensors"))
    assert facts(pretrained=str(moved)) == by_content
    moved.write_bytes(moved.read_bytes() + b" ")
    assert facts(pretrained=str(moved)) != by_content
    folder = ROOT / "demo/weights/clip"
    kept = {"kind": "text", "code": 1, "precision": "fp32", "weights": content_digest(folder), "pretrained": None}
    assert encoder.recipe("text") == kept  # as it was in the first release: its rows are found


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"model": "Little", "pretrained": "their"},
            r"'their' is no file and no tag of Little \(tags: ours, address\)",
        ),
        ({"model": "Little", "pretrained": "address", "revision": "a1"}, "is in no hub repository; leave out revision"),
        ({"model": "Little", "pretrained": "FILE", "revision": "a1"}, "is a file; leave out revision a1"),
        ({"model": "Little"}, "backbone model 'Little' has no pretrained; set a tag or a file"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, "set this backbone's model to ViT-B-32-quickgelu"),
        (
            {"model": "hf-hub:people/little"},
            "knows no model 'hf-hub:people/little'; take one of its names, or local-dir",
        ),
        ({"model": "FOLDER", "pretrained": "openai"}, "holds its weights; leave out pretrained and revision"),
        ({"model": "FOLDER", "revision": "a1"}, "holds its weights; leave out pretrained and revision"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:24],
)
def test_weights_that_do_not_fit_are_refused_before_any_work(little: Path, facts: dict[str, str], message: str) -> None:
    places = {"FILE": str(little), "FOLDER": f"local-dir:{ROOT / 'demo/weights/clip'}"}
    with pytest.raises(CvsiError, match=message):
        encoder_of(**{key: places.get(value, value) for key, value in facts.items()}).recipe("image")


def test_weights_in_a_pickle_run_no_code(little: Path, tmp_path: Path) -> None:
    state = open_clip.create_model("Little").state_dict()
    torch.save(state, tmp_path / "good.pt")
    assert torch.equal(
        encoder_of(model="Little", pretrained=str(tmp_path / "good.pt")).model.visual.proj, state["visual.proj"]
    )
    mark = tmp_path / "ran"
    torch.save(state | {"more": Hostile(mark)}, tmp_path / "bad.pt")
    with pytest.raises(
        CvsiError, match=r"model 'Little' does not load .*bad\.pt: the file holds more than tensors; it was not opened"
    ) as error:
        _ = encoder_of(model="Little", pretrained=str(tmp_path / "bad.pt")).model
    assert not mark.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\0\0\0\0\0\0\0{}      "], ids=["empty", "junk", "no tensors"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_broken_weights_are_one_line(little: Path, content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)
    with pytest.raises(CvsiError, match=r"backbone model 'Little' does not load .*broken\.") as error:
        _ = encoder_of(model="Little", pretrained=str(file)).model
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    shutil.copy(ROOT / "demo/weights/clip/open_clip_config.json", tmp_path)
    with pytest.raises(CvsiError, match=r"does not load: Required pretrained weights"):
        _ = encoder_of(model=f"local-dir:{tmp_path}").model


def test_the_gallery_stage_finds_a_phi_that_does_not_fit(toy: Workspace) -> None:
    toy.run("index", "toy")
    toy.run("captions", "toy")
    save_file(phi.Phi(8, 8).state_dict(), toy.path / "phi.safetensors")
    toy.params(backbones__tiny__phi="phi.safetensors")
    line = toy.error("gallery_vectors", "toy", "tiny")
    assert "phi.safetensors: layers.0.bias is (32,), the backbone needs (512,)" in line
    assert not (toy.path / "cache/store/image_vectors").exists()


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.02), ("fp16", 0.002)])
def test_lower_precisions_come_near_the_full_one(encoder: Encoder, precision: str, near: float) -> None:
    lower = Encoder(encoder.backbone.model_copy(update={"precision": precision}), Compute(device="cpu"))
    pixels = torch.stack([lower.prepare(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")])
    images = encoder.images(pixels)
    assert torch.allclose(lower.images(pixels), images, atol=near * float(images.norm(dim=1).min()))
    texts = ["a red circle", "a photo of two blue squares on a white background"]
    tokens = encoder.tokens(texts)
    assert torch.allclose(lower.texts(tokens), encoder.texts(tokens), atol=near)
    sentences = encoder.tokens([template("is green", "")] * 2)
    found = lower.texts(sentences, lower.words(images))
    assert torch.allclose(found, encoder.texts(sentences, encoder.words(images)), atol=near)
    assert not torch.equal(lower.texts(tokens), encoder.texts(tokens))
