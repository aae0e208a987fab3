"""Writes the demo dataset in CIRCO's layout from a seed and sizes: pictures, the list of pictures, annotated queries.

Each query adds its own pictures to the gallery: the reference, its targets, and near misses that differ from a target
in one colour, background or texture. Filler scenes make up the rest. Each filler has its own random generator, so a
larger gallery does not change existing pictures or annotations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol

from cvsi.core.errors import CvsiError
from demo.world.answers import TargetSpec, matches, sample_target, target_spec
from demo.world.drawing import SIDE, picture
from demo.world.instructions import LEARNABLE, Edit, aspects_of, draw_edits, phrase, write_instruction
from demo.world.scenes import BACKGROUNDS, COLOURS, TEXTURES, Scene, draw_scene, part_of, variant

# Query i has the kinds of edit of entry i (modulo the length); two empty names stand for two random learnable kinds.
QUERY_KINDS: tuple[tuple[str, ...], ...] = (
    ("colour",),
    ("removal",),
    ("", ""),
    ("texture",),
    ("background",),
    ("number",),
    ("shape",),
    ("", ""),
    ("addition",),
    ("texture",),
    ("size",),
    ("colour",),
    ("", ""),
    ("background",),
    ("removal",),
    ("amount",),
    ("addition",),
    ("", ""),
    ("shape",),
    ("texture",),
    ("place",),
    ("", ""),
    ("addition",),
    ("colour", "number"),
)
# The number of targets that a query adds to the gallery is drawn from these.
TARGET_COUNTS = {"val": (2, 2, 2, 2, 3, 4), "test": (1, 1, 2)}
NEAR_MISSES = {"val": ("texture", "texture", "colour", "background"), "test": ("texture",)}  # the property that differs
IMAGES = "COCO2017_unlabeled/unlabeled2017"


class WorldSettings(Protocol):
    """The parameters of the world: its seed, the size of the gallery, and the number of queries by split."""

    @property
    def seed(self) -> int:
        """The seed of all random draws."""

    @property
    def gallery(self) -> int:
        """Number of pictures in the gallery."""

    @property
    def val(self) -> int:
        """Number of labelled queries."""

    @property
    def test(self) -> int:
        """Number of queries whose targets are not written."""


@dataclass(frozen=True)
class Query:
    """One query: its reference, its main target, the edits, the instruction, and what a target must show."""

    reference: Scene
    target: Scene
    edits: tuple[Edit, ...]
    instruction: str
    spec: TargetSpec


def draw(root: Path, settings: WorldSettings) -> None:
    """Write the world to `root`; raises CvsiError if the gallery is too small for the queries' pictures."""
    queries: dict[str, list[Query]] = {"val": [], "test": []}
    scenes: list[Scene] = []
    for split, number in (("val", settings.val), ("test", settings.test)):
        for index in range(number):
            query, pictures = _draw_query(split, index, Random(f"{settings.seed} {split} {index}"))
            queries[split].append(query)
            scenes += pictures
    if settings.gallery < len(scenes):
        raise CvsiError(
            f"world.gallery is {settings.gallery}, but the pictures of these queries alone are {len(scenes)}: raise it"
        )
    Random(f"{settings.seed} order").shuffle(scenes)
    specs = [query.spec for split in queries.values() for query in split]
    scenes += _fillers(scenes, specs, settings)
    ids = _ids(settings.seed, len(scenes))
    _write_images(root, scenes, ids)
    for split, split_queries in queries.items():
        _write_queries(root, split, split_queries, scenes, ids)


def _draw_query(split: str, index: int, random: Random) -> tuple[Query, list[Scene]]:
    """One query and the scenes that it adds to the gallery: the reference, the targets, the near misses."""
    kinds = QUERY_KINDS[index % len(QUERY_KINDS)]
    while True:
        reference = draw_scene(random, "world")
        edit_kinds = tuple(random.sample(LEARNABLE, 2)) if kinds == ("", "") else kinds
        edits = draw_edits(edit_kinds, reference, random)
        if edits is None:
            continue
        spec = target_spec(reference, edits)
        targets = [scene for _ in range(random.choice(TARGET_COUNTS[split])) if (scene := _draw_target(spec, random))]
        instruction = write_instruction(edits, reference, "world", random)
        if targets and instruction and not matches(spec, reference):
            break
    query = Query(reference, targets[0], edits, instruction, spec)
    near_misses = [_near_miss(targets[0], changed, spec, random) for changed in NEAR_MISSES[split]]
    return query, [reference, *targets, *(scene for scene in near_misses if scene)]


def _draw_target(spec: TargetSpec, random: Random) -> Scene | None:
    """A random target, or None if it does not belong to the world's part of all scenes."""
    scene = sample_target(spec, random)
    return scene if scene and part_of(scene.key) == "world" else None


def _near_miss(target: Scene, changed: str, spec: TargetSpec, random: Random) -> Scene | None:
    """A scene of the world's part that differs from a target in one colour, one texture or the background."""
    for _ in range(20):
        scene = variant(target, random)
        at = random.randrange(len(scene.items))
        item = scene.items[at]
        if changed == "background":
            scene = replace(scene, background=random.choice(BACKGROUNDS))
        elif changed == "colour":
            item = replace(item, colour=random.choice(COLOURS))
        else:
            item = replace(item, texture=random.choice(TEXTURES))
        scene = replace(scene, items=(*scene.items[:at], item, *scene.items[at + 1 :]))
        if part_of(scene.key) == "world" and scene.key != target.key and not matches(spec, scene):
            return scene
    return None


def _fillers(scenes: list[Scene], specs: list[TargetSpec], settings: WorldSettings) -> list[Scene]:
    """Scenes that complete the gallery and are no target of any query. Only the seed and i determine the i-th draw."""
    taken = {scene.key for scene in scenes}
    fillers = []
    for number in range(settings.gallery - len(scenes)):
        random = Random(f"{settings.seed} filler {number}")
        scene = draw_scene(random, "world")
        while scene.key in taken or any(matches(spec, scene) for spec in specs):
            scene = draw_scene(random, "world")
        fillers.append(scene)
    return fillers


def _ids(seed: int, number: int) -> list[int]:
    """Increasing image ids with gaps, as in CIRCO."""
    return [1000 + 50 * index + Random(f"{seed} id {index}").randrange(50) for index in range(number)]


def _write_images(root: Path, scenes: list[Scene], ids: list[int]) -> None:
    """Write the pictures as PNG files, and the list of them in COCO's format."""
    folder = root / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for image_id, scene in zip(ids, scenes, strict=True):
        name = f"{image_id:012d}.png"
        picture(scene).save(folder / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
    info = root / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    info.parent.mkdir(parents=True, exist_ok=True)
    info.write_text(json.dumps({"images": images}, indent=1) + "\n")


def _write_queries(root: Path, split: str, queries: list[Query], scenes: list[Scene], ids: list[int]) -> None:
    """Write one split's annotations in CIRCO's format; for `test` without the targets."""
    id_of = dict(zip(scenes, ids, strict=True))
    rows = []
    for index, query in enumerate(queries):
        kept = query.reference.items[0]
        row: dict[str, object] = {
            "reference_img_id": id_of[query.reference],
            "relative_caption": query.instruction,
            "shared_concept": phrase(kept.count, kept.colour, kept.shape),
            "id": index,
        }
        if split != "test":
            targets = [id_of[scene] for scene in scenes if matches(query.spec, scene)]
            target = id_of[query.target]
            row["target_img_id"] = target
            row["gt_img_ids"] = [target, *(image for image in targets if image != target)]
            row["semantic_aspects"] = aspects_of(query.edits, query.instruction)
        rows.append(row)
    path = root / "annotations" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
