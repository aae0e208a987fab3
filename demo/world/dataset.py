"""The demo's folder in CIRCO's layout, made from a seed and sizes: pictures, their list, and annotated queries.

Each query brings its own pictures: the reference, its right answers, and near misses that differ from a right answer
in one colour, background or texture. Filler scenes, one random generator each, make up the rest of the gallery, so
that a larger gallery leaves earlier pictures and all annotations as they were.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol

from cvsi.core.errors import CvsiError
from demo.world.answers import Wish, answer, answers, wish
from demo.world.drawing import SIDE, picture
from demo.world.instructions import LEARNABLE, Edit, aspects_of, draw_edits, phrase, word
from demo.world.scenes import BACKGROUNDS, COLOURS, TEXTURES, Scene, draw_scene, part_of, variant

# Queries take these kinds of edit in turn; a pair of empty names stands for two learnable kinds drawn at random.
TURN: tuple[tuple[str, ...], ...] = (
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
ANSWERS = {"val": (2, 2, 2, 2, 3, 4), "test": (1, 1, 2)}  # right answers that a query brings, drawn from these
MISSES = {"val": ("texture", "texture", "colour", "background"), "test": ("texture",)}
IMAGES = "COCO2017_unlabeled/unlabeled2017"


class Sizes(Protocol):
    """The parameters of the world: its seed, and how many gallery pictures and queries it has."""

    @property
    def seed(self) -> int:
        """Seeds every draw."""

    @property
    def gallery(self) -> int:
        """Pictures in all."""

    @property
    def val(self) -> int:
        """Labelled queries."""

    @property
    def test(self) -> int:
        """Queries whose answers stay hidden."""


@dataclass(frozen=True)
class Query:
    """One query: its reference, one right answer as the main target, the edits and their wording, and the rule."""

    reference: Scene
    target: Scene
    edits: tuple[Edit, ...]
    text: str
    wanted: Wish


def draw(root: Path, settings: Sizes) -> None:
    """Write the world below `root`; raises CvsiError where the gallery is too small to hold the queries' pictures."""
    queries: dict[str, list[Query]] = {"val": [], "test": []}
    scenes: list[Scene] = []
    for split, number in (("val", settings.val), ("test", settings.test)):
        for place in range(number):
            query, pictures = _draw_query(split, place, Random(f"{settings.seed} {split} {place}"))
            queries[split].append(query)
            scenes += pictures
    if settings.gallery < len(scenes):
        raise CvsiError(
            f"world.gallery is {settings.gallery}, but the pictures of these queries alone are {len(scenes)}: raise it"
        )
    Random(f"{settings.seed} order").shuffle(scenes)
    wishes = [query.wanted for split in queries.values() for query in split]
    scenes += _fillers(scenes, wishes, settings)
    ids = _ids(settings.seed, len(scenes))
    _write_images(root, scenes, ids)
    for split, drawn in queries.items():
        _write_queries(root, split, drawn, scenes, ids)


def _draw_query(split: str, place: int, random: Random) -> tuple[Query, list[Scene]]:
    """One query and the scenes that it brings: the reference, the right answers, the near misses."""
    kinds = TURN[place % len(TURN)]
    while True:
        reference = draw_scene(random, "world")
        drawn = tuple(random.sample(LEARNABLE, 2)) if kinds == ("", "") else kinds
        edits = draw_edits(drawn, reference, random)
        if edits is None:
            continue
        wanted = wish(reference, edits)
        right = [scene for _ in range(random.choice(ANSWERS[split])) if (scene := _right(wanted, random))]
        text = word(edits, reference, "world", random)
        if right and text and not answers(wanted, reference):
            break
    query = Query(reference, right[0], edits, text, wanted)
    near = [_near(right[0], how, wanted, random) for how in MISSES[split]]
    return query, [reference, *right, *(scene for scene in near if scene)]


def _right(wanted: Wish, random: Random) -> Scene | None:
    """A right answer that belongs to the world's part of all scenes."""
    scene = answer(wanted, random)
    return scene if scene and part_of(scene.key) == "world" else None


def _near(right: Scene, how: str, wanted: Wish, random: Random) -> Scene | None:
    """A scene of the world that differs from a right answer in one colour, texture or the background."""
    for _ in range(20):
        scene = variant(right, random)
        at = random.randrange(len(scene.items))
        item = scene.items[at]
        if how == "background":
            scene = replace(scene, background=random.choice(BACKGROUNDS))
        elif how == "colour":
            item = replace(item, colour=random.choice(COLOURS))
        else:
            item = replace(item, texture=random.choice(TEXTURES))
        scene = replace(scene, items=(*scene.items[:at], item, *scene.items[at + 1 :]))
        if part_of(scene.key) == "world" and scene.key != right.key and not answers(wanted, scene):
            return scene
    return None


def _fillers(scenes: list[Scene], wishes: list[Wish], settings: Sizes) -> list[Scene]:
    """Scenes that make up the gallery: the i-th depends on the seed and i alone, and answers no query."""
    taken = {scene.key for scene in scenes}
    fillers = []
    for number in range(settings.gallery - len(scenes)):
        random = Random(f"{settings.seed} filler {number}")
        scene = draw_scene(random, "world")
        while scene.key in taken or any(answers(wanted, scene) for wanted in wishes):
            scene = draw_scene(random, "world")
        fillers.append(scene)
    return fillers


def _ids(seed: int, number: int) -> list[int]:
    """Rising image ids with gaps, as CIRCO has them."""
    return [1000 + 50 * place + Random(f"{seed} id {place}").randrange(50) for place in range(number)]


def _write_images(root: Path, scenes: list[Scene], ids: list[int]) -> None:
    """The pictures as PNG files, and the list of them in COCO's format."""
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
    """One split's annotations, in CIRCO's format; those of `test` without the answers."""
    of = dict(zip(scenes, ids, strict=True))
    rows = []
    for place, query in enumerate(queries):
        kept = query.reference.items[0]
        row: dict[str, object] = {
            "reference_img_id": of[query.reference],
            "relative_caption": query.text,
            "shared_concept": phrase(kept.count, kept.colour, kept.shape),
            "id": place,
        }
        if split != "test":
            right = [of[scene] for scene in scenes if answers(query.wanted, scene)]
            target = of[query.target]
            row["target_img_id"] = target
            row["gt_img_ids"] = [target, *(image for image in right if image != target)]
            row["semantic_aspects"] = aspects_of(query.edits, query.text)
        rows.append(row)
    path = root / "annotations" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
