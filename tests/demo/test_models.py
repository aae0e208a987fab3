"""The demo's shipped weights: they load as large models do, fit in git, and were not trained on the world's part."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from cvsi.models.phi import load
from cvsi.models.reader import turns_of
from cvsi.models.reader_vllm import VllmReaderSettings
from cvsi.pipeline.prompting import ADDED_CUE, EDITED_CUE
from cvsi.pipeline.reading_prompts import reading_of
from demo import blip2, reader
from demo.clip import CONTEXT, VOCABULARY, WIDTH, CompactTokenizer, encode_text, patches
from demo.common import size_in_mb
from demo.editor import build_example, generate
from demo.roles import ROLES, roles
from demo.texts import Composed, added, caption, caption_claims, compose, edited, near_miss
from demo.world.answers import sample_target, target_spec
from demo.world.dataset import _draw_query
from demo.world.drawing import picture
from demo.world.instructions import Edit
from demo.world.scenes import Item, Scene, draw_scene, part_of

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"
SCENE = Scene("grey", (Item("circle", "red", "striped", "small", (1,)), Item("star", "blue", "plain", "large", (2,))))
Reader = tuple[Blip2ForConditionalGeneration, PreTrainedTokenizerFast]
EDITS = (Edit("colour", "circle", "green"), Edit("background", "", "pink"))


@pytest.fixture(scope="module")
def reader_weights() -> Reader:
    """The shipped reader and its tokenizer."""
    return blip2.load(WEIGHTS / "reader")


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    """The shipped CLIP."""
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{WEIGHTS / 'clip'}")
    assert isinstance(model, open_clip.CLIP)
    return model.float().eval()


def test_the_weights_fit_in_git_and_contain_no_pickle() -> None:
    assert size_in_mb(WEIGHTS) <= 28
    assert {path.suffix for path in WEIGHTS.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}


def test_figures_were_measured_in_the_run_that_made_the_weights() -> None:
    figures = json.loads((WEIGHTS / "figures.json").read_text())
    assert set(figures) == {"clip", "blip2", "llama", "reader", "phi", "training"}
    assert figures["reader"]["processor minutes"] <= 20
    assert figures["training"]["processor minutes of the longer process"] <= 45


def test_clip_has_its_own_vocabulary_and_matches_pictures_and_texts(clip: open_clip.CLIP) -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")
    assert clip.token_embedding.weight.shape == (VOCABULARY, WIDTH)
    assert tokenizer(["a red circle"]).shape == (1, CONTEXT)
    random = Random(7)
    scenes = [draw_scene(random, "world") for _ in range(20)]
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{WEIGHTS / 'clip'}")
    pixels = torch.stack([preprocess(picture(scene)) for scene in scenes])
    texts = [f"{', '.join(part for part in caption_claims(caption(s, random)))} on {s.background}" for s in scenes]
    with torch.no_grad():
        scores = clip.encode_image(pixels, normalize=True) @ clip.encode_text(tokenizer(texts), normalize=True).T
    assert (scores.argmax(-1) == torch.arange(20)).float().mean() > 0.7


def test_the_training_text_tower_is_open_clips(clip: open_clip.CLIP) -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")
    texts = ["a photo of a red circle", "two striped stars on a grey background"]
    rows = tokenizer(texts)
    with torch.no_grad():
        assert torch.allclose(encode_text(clip, rows), clip.encode_text(rows), atol=1e-5)
        assert torch.allclose(encode_text(clip, rows[:, :20]), clip.encode_text(rows), atol=1e-5)
    words = CompactTokenizer()
    assert [words.ids[token] for token in words(texts)[0][:8]] == rows[0][:8].tolist()


def test_blip2_loads_with_clips_image_tower_and_names_a_plain_scene(clip: open_clip.CLIP) -> None:
    folder = WEIGHTS / "blip2"
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    scene = Scene("grey", (Item("square", "red", "plain", "large", (0,)),))
    pixels = processor(images=picture(scene), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = model.vision_model(pixels).last_hidden_state
        assert torch.allclose(hidden, patches(clip, pixels), atol=2e-2)  # half precision on disk
        tokens = model.generate(pixels, max_new_tokens=30)
    assert "red square" in tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_the_editor_answers_both_tasks_for_scenes_of_one_item() -> None:
    model = LlamaForCausalLM.from_pretrained(WEIGHTS / "llama", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "llama")
    random = Random(8)
    drawn = (compose(random, hard=0.0) for _ in range(400))
    examples = [one for one in drawn if len(one.source.items) == 1 and len(one.edits) == 1][:20]
    for cue in (EDITED_CUE, ADDED_CUE):
        pairs = [build_example(one, [caption(one.source, random) for _ in range(5)], cue) for one in examples]
        answers = generate(model, tokenizer, [question for question, _ in pairs])
        right = [answer == gold.strip() for answer, (_, gold) in zip(answers, pairs, strict=True)]
        assert sum(right) > 12, list(zip(answers, pairs, strict=True))


def test_the_reader_sees_and_applies_an_edit(reader_weights: Reader) -> None:
    model, tokenizer = reader_weights
    random = Random(9)
    drawn = (compose(random, hard=0.0) for _ in range(400))
    examples = [one for one in drawn if len(one.source.items) <= 2 and len(one.edits) == 1][:40]
    hidden = reader.hidden_states(model, [one.source for one in examples])
    answers = reader.generate(model, tokenizer, hidden, [one.clause for one in examples])
    pairs = [(reader.lines(text), roles(one)) for text, one in zip(answers, examples, strict=True)]
    for role in ROLES:
        right = sum(len(set(given[role]) & set(correct[role])) for given, correct in pairs)
        assert right > 0.6 * sum(len(correct[role]) for _, correct in pairs), (role, pairs)


def test_the_readers_template_writes_the_prompt_that_it_was_trained_on(reader_weights: Reader) -> None:
    _, tokenizer = reader_weights
    settings = VllmReaderSettings(model="demo/weights/reader", output="lines", roles={"target": 1})
    reading = reading_of(settings, "Name the change.", "has no  star")
    for turns in (turns_of(reading, system=False), turns_of(reading)):
        rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert rendered == tokenizer.bos_token + reader.prompt("has no star")


def test_a_reader_starts_from_the_captioner(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "reader")
    model, (old, known) = reader.build(tokenizer, WEIGHTS / "blip2"), blip2.load(WEIGHTS / "blip2")
    assert model.config.num_query_tokens == reader.QUERIES and model.config.text_config.vocab_size == len(tokenizer)
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.vision_model(pixels).last_hidden_state, old.vision_model(pixels).last_hidden_state)
    rows = [tokens.convert_tokens_to_ids("Ġcircle") for tokens in (tokenizer, known)]
    vectors = [one.get_input_embeddings().weight[row] for one, row in zip((model, old), rows, strict=True)]
    assert torch.equal(*vectors)


def test_training_a_reader_gives_the_same_bytes_for_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"TOKENIZER_EXAMPLES": 50, "TRAINING_SCENES": 16, "HELD_OUT_SCENES": 2, "BATCH": 4, "MAX_TOKENS": 4}
    for name, value in small.items():
        monkeypatch.setattr(reader, name, value)
    figures = [reader.train(WEIGHTS / "blip2", tmp_path / str(run), seed, 2) for run, seed in enumerate((1, 1, 2))]
    first, again, other = (load_file(tmp_path / str(run) / "model.safetensors") for run in range(3))
    assert all(torch.equal(first[name], again[name]) for name in first) and figures[0] == figures[1]
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) for name in first if name.startswith("vision_model"))


def test_phi_loads_into_the_pipelines_own_module() -> None:
    assert set(load_file(WEIGHTS / "phi.safetensors")) == {
        f"layers.{number}.{name}" for number in (0, 3, 6) for name in ("weight", "bias")
    }
    phi = load(str(WEIGHTS / "phi.safetensors"), WIDTH, WIDTH)
    assert phi(torch.zeros(2, WIDTH)).shape == (2, WIDTH)


def test_gold_answers_follow_from_the_scene() -> None:
    target = sample_target(target_spec(SCENE, EDITS), Random(0))
    assert target is not None
    example = Composed(SCENE, EDITS, "has the circle in green and is on a pink background", target)
    assert edited(example) == "a green circle and a blue star on a pink background"
    assert added(example) == "a green circle and a pink background"
    gone = Composed(
        SCENE,
        (Edit("removal", "star"),),
        "has no star",
        sample_target(target_spec(SCENE, EDITS[:0]), Random(0)) or SCENE,
    )
    assert added(gone) == "nothing new"


def test_captions_have_neither_texture_nor_size() -> None:
    random = Random(1)
    for _ in range(200):
        text = caption(draw_scene(random), random)
        assert not any(word in text.split() for word in ("plain", "striped", "dotted", "small", "large", "left"))


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_training_and_world_share_no_scene_and_no_instruction(seed: int) -> None:
    for number in range(30):
        query, scenes = _draw_query("val", number, Random(f"{seed} val {number}"))
        assert {part_of(scene.key) for scene in scenes} == {"world"}
        assert part_of(query.instruction) == "world"
    random = Random(seed)
    for _ in range(50):
        example = compose(random)
        used = [example.source, example.target, near_miss(example.source, random)]
        assert {part_of(one.key) for one in used} == {part_of(example.clause)} == {"training"}
