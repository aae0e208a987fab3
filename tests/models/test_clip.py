"""The demo's CLIP through the code that loads any: pseudo tokens, trimming, batches, and open_clip's own features."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute
from cvsi.models import phi
from cvsi.models.batching import length_batches
from cvsi.models.clip import embedding_dims, template
from cvsi.models.clip_checkpoint import locate
from cvsi.models.clip_encoder import Encoder
from cvsi.models.model_id import content_digest
from cvsi.pipeline.vectors import write_gallery
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.models.conftest import IMAGE_BATCH, TEXT_BATCH
from tests.stage_inputs import write_captions, write_index
from tests.untrusted import CreatesFile

WORDS = ("dog", "circle", "red")


@pytest.fixture
def with_words(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """The encoder with a phi that returns its input, so that a test can give word embeddings in place of images."""
    monkeypatch.setattr(encoder, "pseudo_tokens", lambda embeddings: embeddings)
    return encoder


def embedding_of(encoder: Encoder, word: str) -> torch.Tensor:
    (token,) = encoder.tokenizer.encode(word)
    return encoder.model.token_embedding.weight[token]  # type: ignore[no-any-return]


def vectors(encoder: Encoder, *texts: str, words: torch.Tensor | None = None) -> torch.Tensor:
    return encoder.text_vectors(encoder.tokens(texts), words)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("instruction", ["is red and large", "costs $5, not $10", "$ is shown"])
def test_a_pseudo_token_with_a_words_embedding_is_that_word(with_words: Encoder, word: str, instruction: str) -> None:
    sentence = template(instruction, "a blue star")
    plain = sentence.replace("$", word, 1)
    assert plain.count("$") == instruction.count("$")
    replaced = vectors(with_words, sentence, words=embedding_of(with_words, word).unsqueeze(0))
    assert torch.allclose(replaced, vectors(with_words, plain), atol=1e-5)
    assert not torch.allclose(replaced, vectors(with_words, sentence), atol=1e-3)


def test_pseudo_tokens_differ_row_by_row(with_words: Encoder) -> None:
    rows = torch.stack([embedding_of(with_words, word) for word in WORDS])
    together = vectors(with_words, *["a photo of $ that is red."] * 3, words=rows)
    separate = vectors(with_words, *[f"a photo of {word} that is red." for word in WORDS])
    assert torch.allclose(together, separate, atol=1e-5)


def test_pseudo_tokens_keep_their_rows_when_texts_are_sorted_by_length(with_words: Encoder) -> None:
    """More texts than a batch has, of several lengths, not in order."""
    texts = [f"a photo of $ that is {'very ' * (7 * number % 11)}red." for number in range(11)]
    words = [WORDS[number % len(WORDS)] for number in range(11)]
    rows = torch.stack([embedding_of(with_words, word) for word in words])
    plain = [text.replace("$", word) for text, word in zip(texts, words, strict=True)]
    assert torch.allclose(vectors(with_words, *texts, words=rows), vectors(with_words, *plain), atol=1e-5)


def test_a_text_without_the_token_is_refused(with_words: Encoder) -> None:
    with pytest.raises(CvsiError, match="no '\\$' within the context"):
        vectors(with_words, "a photo", words=torch.zeros(1, with_words.token_width))


def test_a_long_text_is_cut_with_its_end_token_kept(with_words: Encoder) -> None:
    long = template("is red " * 200, "a star")
    assert with_words.lengths(with_words.tokens([long])) == [with_words.model.context_length]
    plain = vectors(with_words, long.replace("$", "dog", 1))
    word = embedding_of(with_words, "dog").unsqueeze(0)
    assert torch.allclose(vectors(with_words, long, words=word), plain, atol=1e-5)


def test_trimmed_texts_equal_open_clips_full_context(encoder: Encoder) -> None:
    texts = ["a red circle", "a photo of two blue squares and a small green star on a white background", "x"]
    with torch.inference_mode():
        whole = encoder.model.encode_text(encoder.tokenizer(texts, context_length=encoder.model.context_length))
    assert torch.allclose(vectors(encoder, *texts), torch.nn.functional.normalize(whole, dim=-1), atol=1e-5)


def test_a_texts_bits_do_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    texts = ["a red circle", "a blue square", "a green star", "a pink cross", "a ring", "a photo of two small stars"]
    together = vectors(encoder, *texts)
    for number, text in enumerate(texts):
        assert torch.equal(vectors(encoder, text)[0], together[number])
        assert torch.equal(vectors(encoder, "a white ring", text)[1], together[number])
    images = torch.randn(len(texts), encoder.width, generator=torch.Generator().manual_seed(1))
    sentences = [f"a photo of $ that is {text}" for text in texts]
    together = vectors(encoder, *sentences, words=images)
    for number, text in enumerate(sentences):
        assert torch.equal(vectors(encoder, text, words=images[number : number + 1])[0], together[number])


def test_every_batch_of_texts_is_full(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    embed = encoder.embed

    def record(tokens: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        rows.append(len(tokens))
        return embed(tokens, *arguments, **options)

    monkeypatch.setattr(encoder, "embed", record)
    assert vectors(encoder, *["a ring"] * 5, "a photo of two small stars").shape == (6, encoder.width)
    assert rows == [TEXT_BATCH] * 3


def test_no_text_gives_no_vectors(encoder: Encoder) -> None:
    assert vectors(encoder).shape == (0, encoder.width)


def test_image_vectors_are_not_normalised_and_phi_reads_them_so(encoder: Encoder) -> None:
    images = [encoder.prepare(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")]
    embeddings = encoder.image_embeddings(images)
    assert len(images) == IMAGE_BATCH
    with torch.inference_mode():
        assert torch.equal(embeddings, encoder.model.encode_image(torch.stack(images)))
        assert torch.equal(encoder.pseudo_tokens(embeddings), encoder.phi.layers(embeddings))
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-2)


def test_an_images_bits_do_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    images = [encoder.prepare(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")]
    together = encoder.image_embeddings(images)
    for number, image in enumerate(images):
        assert torch.equal(encoder.image_embeddings([image])[0], together[number])


def test_texts_of_like_length_go_together() -> None:
    batches = list(length_batches([5, 17, 8, 3, 24, 9, 2], 3))
    assert [[3, 6], [0, 2], [5], [1], [4]] == batches


def test_widths_come_from_the_configuration(encoder: Encoder) -> None:
    assert embedding_dims(encoder.backbone) == (encoder.width, encoder.model.token_embedding.weight.shape[1])
    assert embedding_dims(Backbone(model="ViT-L-14", phi="x")) == (768, 768)
    with pytest.raises(CvsiError, match="open_clip knows no model 'ViT-Z'"):
        embedding_dims(Backbone(model="ViT-Z", phi="x"))
    with pytest.raises(CvsiError, match="no readable open_clip configuration"):
        embedding_dims(Backbone(model="local-dir:/nowhere", phi="x"))


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


def test_an_untrusted_phi_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"Phi": CreatesFile(mark)}, tmp_path / "phi.pt")
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
    """A hub cache that has a file of weights for each revision, and no network."""
    cached = folder / "hub" / f"models--{repository.replace('/', '--')}"
    for revision, file in files.items():
        commit = revision[0] * 40
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "open_clip_model.safetensors").symlink_to(file)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / revision).write_text(commit)
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
    images = list(torch.randn(2, 3, 32, 32))
    embeddings = {}
    for revision in (None, "a1", "a" * 40):
        ours = encoder_of(model="Little", pretrained="ours", revision=revision)
        embeddings[revision] = ours.image_embeddings(images)
        by_tag = open_clip.create_model("Little", pretrained="ours", load_weights=False)
        assert ours.model.visual.preprocess_cfg == by_tag.visual.preprocess_cfg
        assert ours.model.visual.preprocess_cfg["mean"] == (0.5, 0.4, 0.3)
    expected = {
        file: encoder_of(model="Little", pretrained=str(file)).image_embeddings(images) for file in (little, newer)
    }
    assert torch.equal(embeddings[None], expected[newer])
    assert torch.equal(embeddings["a1"], expected[little]) and torch.equal(embeddings["a" * 40], expected[little])
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
        used = build(pretrained=file, force_preprocess_cfg=preprocess).visual.preprocess_cfg
        assert used == build(pretrained=backbone.pretrained).visual.preprocess_cfg
    assert (used["mean"], used["std"]) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert used | {"size": (224, 224), "interpolation": "bicubic", "resize_mode": "shortest"} == used


def test_the_error_for_missing_weights_names_what_to_download(
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
        recipe = encoder_of(model="Little", **changes).recipe("text")
        return {key: value for key, value in recipe.items() if key not in ("kind", "code", "precision")}

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
    assert encoder.recipe("text") == kept  # as in the first release, so that its rows are still used


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
    paths = {"FILE": str(little), "FOLDER": f"local-dir:{ROOT / 'demo/weights/clip'}"}
    with pytest.raises(CvsiError, match=message):
        encoder_of(**{key: paths.get(value, value) for key, value in facts.items()}).recipe("image")


def test_weights_in_a_pickle_run_no_code(little: Path, tmp_path: Path) -> None:
    state = open_clip.create_model("Little").state_dict()
    torch.save(state, tmp_path / "good.pt")
    assert torch.equal(
        encoder_of(model="Little", pretrained=str(tmp_path / "good.pt")).model.visual.proj, state["visual.proj"]
    )
    mark = tmp_path / "ran"
    torch.save(state | {"more": CreatesFile(mark)}, tmp_path / "bad.pt")
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


def test_the_gallery_stage_refuses_a_phi_that_does_not_fit(toy: Workspace) -> None:
    write_index()
    write_captions()
    save_file(phi.Phi(8, 8).state_dict(), toy.path / "phi.safetensors")
    toy.params(backbones__tiny__phi="phi.safetensors")
    with pytest.raises(CvsiError, match=r"phi\.safetensors: layers\.0\.bias is \(32,\), the backbone needs \(512,\)"):
        write_gallery("toy", "tiny", params.load())
    assert not (toy.path / "cache/store/image_vectors").exists()


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.02), ("fp16", 0.002)])
def test_lower_precisions_come_near_the_full_one(encoder: Encoder, precision: str, near: float) -> None:
    lower = Encoder(encoder.backbone.model_copy(update={"precision": precision}), encoder.compute)
    images = [lower.prepare(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")]
    embeddings = encoder.image_embeddings(images)
    assert torch.allclose(lower.image_embeddings(images), embeddings, atol=near * float(embeddings.norm(dim=1).min()))
    texts = ["a red circle", "a photo of two blue squares on a white background"]
    assert torch.allclose(vectors(lower, *texts), vectors(encoder, *texts), atol=near)
    sentences = [template("is green", "")] * 2
    assert torch.allclose(
        vectors(lower, *sentences, words=embeddings), vectors(encoder, *sentences, words=embeddings), atol=near
    )
    assert not torch.equal(vectors(lower, *texts), vectors(encoder, *texts))
