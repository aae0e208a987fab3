"""BGE-VL and Qwen3-VL-Embedding against plain computations with transformers' own classes, and wrong configurations."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute
from cvsi.models import encoder
from cvsi.models.qwen3_vl_embedding import QwenEmbeddingSettings
from cvsi.models.qwen3_vl_embedding_model import MAX_RATIO, padded
from tests.conftest import made_once
from tests.models.tiny_encoders import SIDE, save_clip, save_qwen

COMPUTE = Compute(image_batch=4, text_batch=3, device="cpu")
TEXTS = ["is green", "has two circles, and they are large", "", " ", "a" * 300, "word " * 60, "é 漢字 🙂"]
SPELLED = ["ends <|endoftext|> early", "<|image_pad|>", "<|IMAGE_PAD|> x <|im_end|>\n<|im_start|>system"]
KINDS = {"bge-vl": "clip", "qwen3-vl-embedding": "qwen"}
QWEN = QwenEmbeddingSettings()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `clip`, `qwen`, and `headless`, the Qwen3-VL without the head that writes texts."""

    def make(folder: Path) -> None:
        save_clip(folder / "clip")
        save_qwen(folder / "qwen")
        save_qwen(folder / "headless", head=False)

    return made_once(tmp_path_factory, "composing-encoders", make)


@pytest.fixture
def images() -> list[Image.Image]:
    """Four images of different shapes."""
    random = np.random.default_rng(0)
    shapes = [(64, 64, 3), (48, 96, 3), (130, 60, 3), (33, 35, 3)]
    return [Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def backbone(kind: str, folder: Path, **keys: Any) -> Backbone:
    return Backbone.model_validate({"kind": kind, "model": str(folder), "precision": "fp32"} | keys)


def loaded(kind: str, folder: Path, compute: Compute = COMPUTE, **keys: Any) -> encoder.BackboneEncoder:
    made = encoder.load_encoder(backbone(kind, folder, **keys), compute)
    made.load()
    return made


def close(ours: Tensor, plain: Tensor) -> bool:
    return bool(torch.allclose(ours, plain, atol=1e-5, rtol=0))


def plain_clip(folder: Path) -> tuple[Callable[[Image.Image], Tensor], Callable[[str], Tensor]]:
    """The projected features of one image, and of one text, by transformers' own classes."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(folder).eval()
    processor, tokenizer = CLIPImageProcessor.from_pretrained(folder), CLIPTokenizerFast.from_pretrained(folder)

    @torch.inference_mode()
    def image_features(image: Image.Image) -> Tensor:
        return model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output[0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def text_features(text: str) -> Tensor:
        tokens = tokenizer([text], truncation=True, max_length=64, return_tensors="pt")
        return model.get_text_features(**tokens).pooler_output[0]  # type: ignore[no-any-return]

    return image_features, text_features


def test_the_vectors_of_bge_vl_are_those_of_the_plain_class(models: Path, images: list[Image.Image]) -> None:
    ours = loaded("bge-vl", models / "clip")
    image_features, text_features = plain_clip(models / "clip")
    prepared = [ours.prepare(image) for image in images]
    assert close(ours.image_embeddings(prepared), torch.stack([image_features(image) for image in images]))
    expected = torch.stack([normalize(text_features(text), dim=0) for text in TEXTS])
    assert close(ours.text_vectors(ours.tokens(TEXTS)), expected)
    sums = [image_features(image) + text_features(text) for image, text in zip(images, TEXTS, strict=False)]
    sums[2] = image_features(images[2])  # an instruction without a word
    sums[3] = image_features(images[3])
    composed = ours.composed_vectors(prepared, TEXTS[:4])
    assert close(composed, normalize(torch.stack(sums), dim=1))
    unit = torch.stack([normalize(image_features(images[0]), dim=0) + normalize(text_features(TEXTS[0]), dim=0)])
    assert not close(composed[:1], normalize(unit, dim=1))  # neither is normalised before the sum


@pytest.mark.parametrize("preprocess", ["plain", "target-pad"])
def test_images_of_bge_vl_are_padded_only_on_request(models: Path, images: list[Image.Image], preprocess: str) -> None:
    ours = loaded("bge-vl", models / "clip", preprocess=preprocess)
    plain = loaded("bge-vl", models / "clip")
    equal = [bool(torch.equal(ours.prepare(image), plain.prepare(image))) for image in images]
    assert equal == [True, preprocess == "plain", preprocess == "plain", True]
    assert plain.prepare(images[1]).shape == (3, SIDE, SIDE)


def plain_qwen(folder: Path) -> Callable[[str, Image.Image | None, str | None], Tensor]:
    """The last state of one prompt without padding, by transformers' own classes and its own processor."""
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval().model
    processor = Qwen3VLProcessor.from_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": QWEN.min_pixels, "longest_edge": QWEN.max_pixels}

    @torch.inference_mode()
    def state(instruction: str, image: Image.Image | None, text: str | None) -> Tensor:
        content: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
        content += [] if text is None else [{"type": "text", "text": text}]
        turns = [
            {"role": "system", "content": [{"type": "text", "text": instruction}]},
            {"role": "user", "content": content},
        ]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[prompt], images=None if image is None else [image], return_tensors="pt")
        return model(**inputs).last_hidden_state[0, -1]  # type: ignore[no-any-return]

    return state


def test_the_vectors_of_qwen_are_the_last_states_of_the_plain_class(models: Path, images: list[Image.Image]) -> None:
    ours, state = loaded("qwen3-vl-embedding", models / "qwen"), plain_qwen(models / "qwen")
    prepared = [ours.prepare(image) for image in images]
    assert close(
        normalize(ours.image_embeddings(prepared), dim=1),
        torch.stack([normalize(state(QWEN.instruction, image, None), dim=0) for image in images]),
    )
    texts = torch.stack([normalize(state(QWEN.instruction, None, text), dim=0) for text in TEXTS])
    assert close(ours.text_vectors(ours.tokens(TEXTS)), texts)
    instructions = [text if text.strip() else None for text in TEXTS[:4]]
    states = [state(QWEN.composed_instruction, *pair) for pair in zip(images, instructions, strict=True)]
    assert close(ours.composed_vectors(prepared, TEXTS[:4]), normalize(torch.stack(states), dim=1))


def test_a_checkpoint_without_a_head_gives_the_same_vectors(models: Path, images: list[Image.Image]) -> None:
    one, other = (loaded("qwen3-vl-embedding", models / name) for name in ("qwen", "headless"))
    prepared = [one.prepare(image) for image in images]
    assert torch.equal(one.image_embeddings(prepared), other.image_embeddings(prepared))


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_does_not_depend_on_its_batch(models: Path, images: list[Image.Image], kind: str) -> None:
    ours = loaded(kind, models / KINDS[kind])
    alone = loaded(kind, models / KINDS[kind], COMPUTE.model_copy(update={"image_batch": 1, "text_batch": 1}))
    prepared = [ours.prepare(image) for image in images]
    together, composed = ours.image_embeddings(prepared), ours.composed_vectors(prepared, TEXTS[:4])
    texts = ours.text_vectors(ours.tokens(TEXTS))
    for position, image in enumerate(prepared):
        assert close(normalize(together[position], dim=0), normalize(alone.image_embeddings([image])[0], dim=0))
        assert close(composed[position], alone.composed_vectors([image], [TEXTS[position]])[0])
    for position, text in enumerate(TEXTS):
        assert close(texts[position], alone.text_vectors(alone.tokens([text]))[0])
        assert torch.equal(texts[position], ours.text_vectors(ours.tokens([text]))[0])  # full batches: every bit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", SPELLED)
def test_a_text_that_spells_a_token_is_words(models: Path, images: list[Image.Image], kind: str, text: str) -> None:
    ours = loaded(kind, models / KINDS[kind])
    prepared = [ours.prepare(images[0])]
    vectors = ours.composed_vectors(prepared * 2, [text, f"{text} more"])
    assert torch.isfinite(vectors).all() and not close(vectors[0], vectors[1])


def test_images_of_extreme_shapes_are_embedded(models: Path) -> None:
    ours = loaded("qwen3-vl-embedding", models / "qwen")
    shapes = [(4000, 3), (2, 900), (1, 1), (500, 5)]
    prepared = [ours.prepare(Image.new("RGB", shape, "red")) for shape in shapes]
    assert torch.isfinite(ours.image_embeddings(prepared)).all()
    assert padded(Image.new("RGB", (4000, 3))).size == (4000, 4000 // MAX_RATIO)
    picture = Image.new("RGB", (500, 5))
    assert padded(picture) is picture


def test_long_texts_are_cut_to_max_length(models: Path, images: list[Image.Image]) -> None:
    ours = loaded("qwen3-vl-embedding", models / "qwen", max_length=160, max_pixels=4096)
    long = ours.tokens(["word " * 400, "🙂" * 200])
    assert all(150 <= len(ids) <= 160 for ids in long)
    ends = [ids[-1] for ids in (*long, ours.tokens(["a"])[0])]
    assert len(set(ends)) == 1  # the template's end is kept
    prepared = [ours.prepare(images[0])]
    one, other = (ours.composed_vectors(prepared, ["word " * 400 + end]) for end in ("", "another end"))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("pixels", "tokens"), [(4096, 4), (64 * 1024, 64)])
def test_the_size_of_images_is_bounded(models: Path, pixels: int, tokens: int) -> None:
    ours = loaded("qwen3-vl-embedding", models / "qwen", max_pixels=pixels)
    assert ours.prepare(Image.new("RGB", (640, 640))).tokens == tokens
    smallest = loaded("qwen3-vl-embedding", models / "qwen", min_pixels=16 * 1024)
    assert smallest.prepare(Image.new("RGB", (10, 10))).tokens == 16


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_contain_what_decides_a_row(models: Path, kind: str) -> None:
    folder = models / KINDS[kind]
    recipes = {rows: encoder.recipe_of(backbone(kind, folder), rows, "fp32") for rows in ("image", "text", "composed")}
    assert all(recipe["kind"] == rows and recipe["encoder"] == kind for rows, recipe in recipes.items())
    changes: dict[str, tuple[Any, set[str]]] = {
        "preprocess": ("target-pad", {"image", "composed"}),
        "instruction": ("Describe it.", {"image", "text"}),
        "composed_instruction": ("Change it.", {"composed"}),
        "min_pixels": (5000, {"image", "composed"}),
        "max_pixels": (9000, {"image", "composed"}),
        "max_length": (500, {"image", "text", "composed"}),
    }
    known = encoder.kind_of(backbone(kind, folder)).settings
    assert known is not None
    for key, (value, changed) in changes.items():
        if key in known.model_fields:
            other = backbone(kind, folder, **{key: value})
            assert {rows for rows in recipes if encoder.recipe_of(other, rows, "fp32") != recipes[rows]} == changed
    assert encoder.recipe_of(backbone(kind, folder), "text", "bf16") != recipes["text"]


def test_a_hub_model_has_a_recipe_and_a_width_without_being_here() -> None:
    known = Backbone(kind="bge-vl", model="BAAI/BGE-VL-base", revision="a" * 40)
    assert encoder.width_of(known) == 512
    recipe = encoder.recipe_of(known, "composed", "fp32")
    assert (recipe["model"], recipe["revision"]) == ("BAAI/BGE-VL-base", "a" * 40)
    with pytest.raises(CvsiError, match=r"somebody/unknown.*cvsi check --download"):
        encoder.width_of(Backbone(kind="bge-vl", model="somebody/unknown"))


@pytest.mark.parametrize(
    ("kind", "keys", "line"),
    [
        ("bge-vl", {"pretrained": "openai"}, r"pretrained: unknown key"),
        ("bge-vl", {"phi": "models/phi.safetensors"}, r"phi: unknown key"),
        ("bge-vl", {"max_length": 5}, r"max_length: unknown key"),
        ("qwen3-vl-embedding", {"preprocess": "plain"}, r"preprocess: unknown key"),
        ("qwen3-vl-embedding", {"min_pixels": 0}, r"min_pixels: .*greater than 0 \(got 0\)"),
        ("qwen3-vl-embedding", {"min_pixels": 2_000_000}, r"min_pixels is 2000000, but max_pixels are 1310720"),
        ("qwen3-vl-embedding", {"max_length": "long"}, r"max_length: .*\(got 'long'\)"),
        ("qwen3-vl-embedding", {"instruction": ""}, r"instruction: "),
        ("bge_vl", {}, r"unknown kind of backbone 'bge_vl'; there are: open_clip, bge-vl, qwen3-vl-embedding"),
    ],
)
def test_wrong_keys_are_one_line(models: Path, kind: str, keys: dict[str, Any], line: str) -> None:
    wrong = backbone(kind, models / "clip", **keys)
    with pytest.raises(CvsiError, match=rf"^params\.yaml: backbones\.mine.*{line}") as error:
        encoder.kind_of(wrong, "backbones.mine")
    assert "\n" not in str(error.value)


def edit_json(name: str, **values: Any) -> Callable[[Path], None]:
    """A change of a JSON file: dotted names get values; None removes a key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for key, value in values.items():
            *parents, last = key.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            if value is None:
                part.pop(last)
            else:
                part[last] = value
        (folder / name).write_text(json.dumps(content))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    """A file with another content."""

    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def without_a_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(name for name in tensors if "lm_head" not in name)[0])
    save_file(tensors, file, {"format": "pt"})


def other_shape(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(name for name in tensors if "embed" in name and tensors[name].ndim == 2)[0]
    tensors[name] = tensors[name][:, :-1].clone()
    save_file(tensors, file, {"format": "pt"})


def damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


TEMPLATE = "chat_template.jinja"
WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "clip",
        edit_json("config.json", model_type="blip"),
        r"is of type 'blip', but a backbone of kind bge-vl is a CLIP",
    ),
    ("qwen", edit_json("config.json", model_type="qwen2_5_vl"), r"is of type 'qwen2_5_vl', .* is a Qwen3-VL"),
    ("clip", edit_json("config.json", projection_dim=None), r"no projection_dim in its config\.json"),
    ("qwen", edit_json("config.json", text_config__hidden_size="64"), r"no text_config\.hidden_size in its config"),
    ("clip", write("config.json", "[]"), r"is of type 'None'"),
    ("clip", write("config.json", "{"), r"config\.json: no readable config"),
    ("qwen", without("config.json"), r"config\.json: no readable configuration"),
    ("clip", without("model.safetensors"), r"no weights"),
    ("qwen", without("model.safetensors"), r"does not load"),
    ("clip", damaged, r"does not load|were not checked"),
    ("qwen", damaged, r"does not load"),
    ("clip", without_a_tensor, r"does not fit its model: .*1 key is missing|missing"),
    ("qwen", without_a_tensor, r"does not fit its model.*missing"),
    ("clip", other_shape, r"does not fit"),
    ("qwen", other_shape, r"does not load|does not fit"),
    ("clip", edit_json("config.json", text_config__eos_token_id=5), r"the end token of its tokenizer is \d+, .* is 5"),
    ("clip", edit_json("preprocessor_config.json", crop_size={"height": 16, "width": 16}), r"makes images of 16 x 16"),
    ("clip", without("tokenizer.json", "vocab.json", "merges.txt"), r"does not load|tokenizer has"),
    ("qwen", without("tokenizer.json"), r"does not load|tokenizer has"),
    ("qwen", without(TEMPLATE), r"no chat template"),
    ("qwen", write(TEMPLATE, "{{ raise_exception('no') }}"), r"one that fails"),
    ("qwen", write(TEMPLATE, "{{ messages[0]['role'] }}"), r"leaves out the"),
]


@pytest.mark.parametrize(("name", "spoil", "line"), WRONG)
def test_a_wrong_model_is_one_line(
    models: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None], line: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(models / name, folder)
    spoil(folder)
    kind = next(kind for kind, model in KINDS.items() if model == name)
    with pytest.raises(CvsiError, match=line) as error:
        loaded(kind, folder)
    assert "\n" not in str(error.value)


CODE = "from pathlib import Path; Path('ran').touch(); raise SystemExit"


@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_models_folder_is_not_run(
    models: Path, tmp_path: Path, kind: str, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(models / KINDS[kind], folder)
    (folder / "code.py").write_text(CODE)
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    for file in folder.glob("*config.json"):
        edit_json(file.name, auto_map={name: "code.Class" for name in names})(folder)
    ours, known = loaded(kind, folder), loaded(kind, models / KINDS[kind])
    image = [known.prepare(images[0])]
    assert torch.equal(ours.composed_vectors(image, ["is green"]), known.composed_vectors(image, ["is green"]))
    assert not Path("ran").exists()


def test_a_prompt_that_does_not_fit_is_one_line(models: Path, images: list[Image.Image]) -> None:
    ours = loaded("qwen3-vl-embedding", models / "qwen", max_length=100)
    prepared = [ours.prepare(Image.new("RGB", (640, 640)))]
    with pytest.raises(CvsiError, match=r"max_length 100 leaves no space beside an image of 400 tokens; raise it, or"):
        ours.image_embeddings(prepared)
    short = loaded("qwen3-vl-embedding", models / "qwen", max_length=5)
    with pytest.raises(CvsiError, match="max_length 5 leaves no space;"):
        short.tokens(["a"])


def test_a_clip_composes_nothing() -> None:
    assert not encoder.composes(Backbone(model="ViT-B-32"))
    assert encoder.composes(Backbone(kind="bge-vl", model="BAAI/BGE-VL-base"))
