"""Data sets to measure on, made from a seed: pictures and queries in CIRCO's layout, sentences, and parameters.

They are like the demo's in all that decides what a stage costs. The targets of a query are drawn at random.
"""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import yaml

from demo.texts import caption
from demo.world.drawing import SIDE, picture
from demo.world.instructions import LEARNABLE, draw_edits, write_instruction
from demo.world.scenes import Scene, draw_scene

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "COCO2017_unlabeled/unlabeled2017"
ASPECTS = ("addition", "cardinality", "viewpoint")


def parameters(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write the repository's `params.yaml` into a folder, models by full path, with top-level keys changed.

    The demo has no reader there: its model is not what a benchmark measures.
    """
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("demo/weights", str(ROOT / "demo" / "weights"))
    content: dict[str, Any] = yaml.safe_load(text)
    content["datasets"]["demo"].pop("reader", None)
    content |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return content


def scenes(number: int, seed: int) -> list[Scene]:
    """That many of the demo world's scenes; the i-th depends on the seed and i alone."""
    return [draw_scene(Random(f"{seed} scene {index}"), "world") for index in range(number)]


def sentences(scene: Scene, number: int, seed: int) -> list[str]:
    """Captions of a scene such as the demo's captioner writes."""
    random = Random(f"{seed} {scene.key}")
    return [caption(scene, random) for _ in range(number)]


def instruction(scene: Scene, random: Random) -> str:
    """An instruction in words that asks for a change of a scene."""
    while True:
        edits = draw_edits((random.choice(LEARNABLE),), scene, random)
        text = write_instruction(edits, scene, "world", random) if edits else None
        if text:
            return text


def circo(root: Path, images: int, val: int, test: int, seed: int = 1, distinct: int | None = None) -> list[Scene]:
    """Draw a folder in CIRCO's layout and return its scenes, one per image.

    With `distinct`, that many pictures are drawn, and the rest are hard links to them: as many files with the same
    bytes in turn.
    """
    drawn = scenes(min(distinct or images, images), seed)
    folder = root / PICTURES
    folder.mkdir(parents=True)
    names = [f"{number:012d}.png" for number in range(1, images + 1)]
    for name, scene in zip(names, drawn, strict=False):
        picture(scene).save(folder / name, compress_level=1)
    for index, name in enumerate(names[len(drawn) :], start=len(drawn)):
        os.link(folder / names[index % len(drawn)], folder / name)
    listed = [{"id": int(name[:12]), "file_name": name, "width": SIDE, "height": SIDE} for name in names]
    info = root / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    _write(info, {"images": listed})
    all_scenes = [drawn[index % len(drawn)] for index in range(images)]
    for split, number in (("val", val), ("test", test)):
        random = Random(f"{seed} {split}")
        rows = [_query(index, split, all_scenes, random) for index in range(number)]
        _write(root / "annotations" / f"{split}.json", rows)
    return all_scenes


def _query(number: int, split: str, drawn: list[Scene], random: Random) -> dict[str, Any]:
    reference = random.randrange(len(drawn))
    row = {
        "id": number,
        "reference_img_id": reference + 1,
        "relative_caption": instruction(drawn[reference], random),
        "shared_concept": "shapes",
    }
    if split == "test":
        return row
    targets = sorted(random.sample(range(1, len(drawn) + 1), min(4, len(drawn))))
    return row | {
        "target_img_id": targets[0],
        "gt_img_ids": targets,
        "semantic_aspects": [random.choice(ASPECTS)],
    }


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
