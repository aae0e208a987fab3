"""The demo world: the rule for right answers, the layout on disk, and what a seed and a size leave as they were."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from cvsi.core.errors import CvsiError
from demo.world.answers import matches, sample_target, target_spec
from demo.world.dataset import IMAGES, draw
from demo.world.drawing import picture
from demo.world.instructions import ASPECTS, LEARNABLE, Edit, aspects_of, draw_edits, phrase, write_instruction
from demo.world.scenes import Item, Scene, draw_scene, part_of, variant


@dataclass(frozen=True)
class Sizes:
    """A small world."""

    seed: int = 1
    gallery: int = 330
    val: int = 36
    test: int = 12


SCENE = Scene(
    "grey",
    (Item("circle", "red", "striped", "small", (1,)), Item("star", "blue", "plain", "large", (2, 3))),
)


def digests(root: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(root: Path, split: str = "val") -> list[dict[str, object]]:
    """One split's annotations."""
    queries: list[dict[str, object]] = json.loads((root / "annotations" / f"{split}.json").read_text())
    return queries


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world on disk."""
    root = tmp_path_factory.mktemp("world")
    draw(root, Sizes())
    return root


def changed(**looks: str) -> Scene:
    """The scene with its circle changed."""
    return replace(SCENE, items=(replace(SCENE.items[0], **looks), SCENE.items[1]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "right"),
    [
        (Edit("colour", "circle", "green"), changed(colour="green")),
        (Edit("shape", "circle", "ring"), changed(shape="ring")),
        (Edit("texture", "circle", "plain"), changed(texture="plain")),
        (Edit("background", "", "pink"), replace(SCENE, background="pink")),
        (Edit("removal", "circle"), replace(SCENE, items=SCENE.items[1:])),
        (
            Edit("addition", "cross", "cyan dotted"),
            replace(SCENE, items=(*SCENE.items, Item("cross", "cyan", "dotted", "small", (0,)))),
        ),
        (Edit("number", "star", "one"), replace(SCENE, items=(SCENE.items[0], replace(SCENE.items[1], cells=(0,))))),
        (Edit("amount", "star", "fewer"), replace(SCENE, items=(SCENE.items[0], replace(SCENE.items[1], cells=(2,))))),
        (Edit("size", "circle", "bigger"), changed(size="large")),
        (Edit("place", "circle", "left"), replace(SCENE, items=(replace(SCENE.items[0], cells=(0,)), SCENE.items[1]))),
    ],
)
def test_each_kind_of_edit_has_its_right_answer_and_the_reference_is_none(edit: Edit, right: Scene) -> None:
    spec = target_spec(SCENE, (edit,))
    assert matches(spec, right)
    assert not matches(spec, SCENE)
    assert edit.kind in ASPECTS


def test_size_and_place_are_free_and_nothing_else_is() -> None:
    spec = target_spec(SCENE, (Edit("background", "", "pink"),))
    right = replace(SCENE, background="pink")
    assert all(matches(spec, variant(right, Random(seed))) for seed in range(10))
    extra = replace(right, items=(*right.items, Item("ring", "red", "plain", "small", (0,))))
    fewer = replace(right, items=right.items[:1])
    for wrong in (changed(colour="blue"), changed(texture="dotted"), changed(shape="ring"), extra, fewer):
        assert not matches(spec, replace(wrong, background="pink"))


def test_sampled_targets_match_and_two_edits_are_about_different_shapes() -> None:
    random = Random(3)
    kinds = sorted(ASPECTS)
    drawn = 0
    for _ in range(2000):
        reference = draw_scene(random)
        edits = draw_edits(tuple(random.sample(kinds, 2)), reference, random)
        if edits is None:
            continue
        spec = target_spec(reference, edits)
        target = sample_target(spec, random)
        drawn += 1
        assert target is None or matches(spec, target)
        assert not matches(spec, reference)
        assert len({edit.shape for edit in edits}) == 2
    assert drawn > 500


def test_texts_are_relative_clauses_of_their_part() -> None:
    random = Random(4)
    edits = (Edit("colour", "circle", "green"), Edit("background", "", "pink"))
    for part in ("world", "training"):
        texts = {write_instruction(edits, SCENE, part, random) for _ in range(50)}
        assert len(texts) > 10
        assert all(text and part_of(text) == part and "green" in text and "pink" in text for text in texts)
    assert aspects_of(edits, "is green") == [
        "compare_change", "colour", "spatial_relations_background", "background",
        "statement_with_conjunction", "direct_addressing", "learnable",
    ]  # fmt: skip
    assert "learnable" not in aspects_of((edits[0], Edit("number", "star", "one")), "has")
    assert set(LEARNABLE) < set(ASPECTS)


def test_phrases_agree_in_number() -> None:
    assert phrase(1, "", "orange", "ring") == "an orange ring"
    assert phrase(2, "striped", "red", "cross") == "two striped red crosses"


def test_pictures_show_what_differs() -> None:
    shown = {looks: np.asarray(picture(changed(**dict([looks])))) for looks in (
        ("colour", "red"), ("colour", "green"), ("shape", "ring"), ("texture", "plain"), ("texture", "dotted"),
        ("size", "large"),
    )}  # fmt: skip
    assert all(pixels.shape == (64, 64, 3) for pixels in shown.values())
    assert len({pixels.tobytes() for pixels in shown.values()}) == len(shown)


def test_the_folder_has_circos_layout(world: Path) -> None:
    info = json.loads((world / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json").read_text())["images"]
    ids = [image["id"] for image in info]
    assert len(ids) == len(set(ids)) == 330
    assert ids == sorted(ids) and ids[-1] - ids[0] > 330
    assert all(Image.open(world / IMAGES / image["file_name"]).size == (64, 64) for image in info)
    for split, number in (("val", 36), ("test", 12)):
        queries = rows(world, split)
        assert [query["id"] for query in queries] == list(range(number))
        assert all(query["reference_img_id"] in ids for query in queries)
    for query in rows(world):
        right = query["gt_img_ids"]
        assert isinstance(right, list) and right[0] == query["target_img_id"]
        assert set(right) <= set(ids) and query["reference_img_id"] not in right
    assert not {"gt_img_ids", "target_img_id", "semantic_aspects"} & set(rows(world, "test")[0])
    aspects = {aspect for query in rows(world) for aspect in query["semantic_aspects"]}  # type: ignore[attr-defined]
    assert aspects >= {name for names in ASPECTS.values() for name in names}


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(world: Path, tmp_path: Path) -> None:
    draw(tmp_path / "again", Sizes())
    draw(tmp_path / "other", Sizes(seed=2))
    assert digests(tmp_path / "again") == digests(world)
    captions = [{query["relative_caption"] for query in rows(root)} for root in (world, tmp_path / "other")]
    assert len(captions[0] & captions[1]) < len(captions[0]) / 2


def test_a_larger_gallery_leaves_pictures_and_annotations_as_they_were(world: Path, tmp_path: Path) -> None:
    draw(tmp_path, Sizes(gallery=340))
    before, after = digests(world), digests(tmp_path)
    new = set(after) - set(before)
    assert len(new) == 10 and all(name.startswith(IMAGES) for name in new)
    same = [name for name in before if "image_info" not in name]
    assert all(after[name] == before[name] for name in same)


def test_a_gallery_too_small_for_its_queries_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CvsiError, match=r"world\.gallery is 50, but .* alone are \d+"):
        draw(tmp_path, Sizes(gallery=50))
