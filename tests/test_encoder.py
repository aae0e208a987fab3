"""The demo's CLIP through the code that loads any: pseudo tokens, trimming, batches, and open_clip's own features."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cvsi import params, phi
from cvsi.batches import full, length_batches
from cvsi.encoder import Encoder, sizes, template
from cvsi.errors import CvsiError
from cvsi.params import Backbone, Compute
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
    found = encoder.pseudo([sentence], embedding)
    assert torch.allclose(found, encoder.texts([plain]), atol=1e-5)
    assert not torch.allclose(found, encoder.texts([sentence]), atol=1e-3)


def test_pseudo_tokens_differ_row_by_row(encoder: Encoder) -> None:
    rows = torch.stack([encoder.model.token_embedding.weight[encoder.tokenizer.encode(word)[0]] for word in WORDS])
    together = encoder.pseudo(["a photo of $ that is red."] * 3, rows)
    alone = torch.cat([encoder.texts([f"a photo of {word} that is red."]) for word in WORDS])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_text_without_the_token_is_refused(encoder: Encoder) -> None:
    with pytest.raises(CvsiError, match="no '\\$' within the context"):
        encoder.pseudo(["a photo"], torch.zeros(1, encoder.token_width))


def test_a_long_text_is_cut_with_its_end_token_kept(encoder: Encoder) -> None:
    long = template("is red " * 200, "a star")
    assert encoder.lengths([long]) == [encoder.model.context_length]
    word = encoder.model.token_embedding.weight[encoder.tokenizer.encode("dog")[0]].unsqueeze(0)
    assert torch.allclose(encoder.pseudo([long], word), encoder.texts([long.replace("$", "dog", 1)]), atol=1e-5)


def test_trimmed_texts_equal_open_clips_full_context(encoder: Encoder) -> None:
    texts = ["a red circle", "a photo of two blue squares and a small green star on a white background", "x"]
    with torch.inference_mode():
        whole = encoder.model.encode_text(encoder.tokenizer(texts, context_length=encoder.model.context_length))
    assert torch.allclose(encoder.texts(texts), torch.nn.functional.normalize(whole, dim=-1), atol=1e-5)


def test_a_rows_bits_do_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    texts = ["a red circle", "a blue square", "a green star", "a cross"]
    size = 4
    together = encoder.texts(full(texts, size))
    for number, text in enumerate(texts):
        assert torch.equal(encoder.texts(full([text], size))[0], together[number])


def test_image_vectors_are_not_normalised_and_phi_reads_them_so(encoder: Encoder) -> None:
    pixels = torch.stack([encoder.prepare(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")])
    embeddings = encoder.images(pixels)
    with torch.inference_mode():
        assert torch.equal(embeddings, encoder.model.encode_image(pixels))
        assert torch.equal(encoder.words(embeddings), encoder.phi.layers(embeddings))
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-2)


def test_texts_of_like_length_go_together() -> None:
    batches = list(length_batches([5, 17, 8, 3, 24, 9, 2], 3))
    assert [[0, 2, 3], [6], [5], [1, 4]] == batches


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
