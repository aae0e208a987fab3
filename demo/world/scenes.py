"""Random scenes of coloured shapes: what the pictures of the demo world show.

A scene is a background and one to three items on a grid of two by two cells. An item is one shape with a colour, a
texture and a size, drawn once in each of its cells; no two items of a scene share a shape. A hash of
what a scene shows assigns it to one of two parts, independently of the seed: the world draws its scenes from one
part, training from the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Literal

Part = Literal["world", "training"]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black", "pink", "brown")
CELLS = 4  # top left, top right, bottom left, bottom right
SIDES = {"left": (0, 2), "right": (1, 3), "top": (0, 1), "bottom": (2, 3)}
MAX_COUNT = 3  # items in a scene, and copies of one item


@dataclass(frozen=True)
class Item:
    """One shape with its colour, texture and size, and the cells of the grid that hold a copy of it."""

    shape: str
    colour: str
    texture: str
    size: str
    cells: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many copies the scene shows."""
        return len(self.cells)

    def is_on(self, side: str) -> bool:
        """Whether all copies lie on one side (`left`, `right`, `top` or `bottom`) of the picture."""
        return all(cell in SIDES[side] for cell in self.cells)


@dataclass(frozen=True)
class Scene:
    """A background and its items; `jitter_seed` seeds small shifts, by which pictures of equal scenes differ."""

    background: str
    items: tuple[Item, ...]
    jitter_seed: int = 0

    def item(self, shape: str) -> Item:
        """The item of that shape; raises StopIteration if there is none."""
        return next(item for item in self.items if item.shape == shape)

    @property
    def key(self) -> str:
        """The content as a canonical text: background, shapes, colours, textures, counts; without sizes and cells."""
        items = sorted(f"{item.count} {item.texture} {item.colour} {item.shape}" for item in self.items)
        return f"{self.background}: {', '.join(items)}"


def part_of(text: str) -> Part:
    """The part, world or training, that a scene's key or an instruction belongs to; only the text's hash decides."""
    return "world" if hashlib.sha256(text.encode()).digest()[0] % 2 else "training"


def arrange(background: str, items: list[Item], counts: list[int], random: Random) -> Scene:
    """A scene of these items in random cells, `counts[i]` for item i; raises ValueError if there are too few cells."""
    free = random.sample(range(CELLS), sum(counts))
    placed = []
    for item, count in zip(items, counts, strict=True):
        cells, free = tuple(sorted(free[:count])), free[count:]
        placed.append(Item(item.shape, item.colour, item.texture, item.size, cells))
    return Scene(background, tuple(placed), random.getrandbits(32))


def draw_scene(random: Random, part: Part | None = None) -> Scene:
    """One random scene, restricted to a part of all scenes if one is given."""
    while True:
        number = random.choice((1, 2, 2, 3, 3))
        items = [
            Item(shape, random.choice(COLOURS), random.choice(TEXTURES), random.choice(SIZES), ())
            for shape in random.sample(SHAPES, number)
        ]
        counts = draw_counts(number, random)
        scene = arrange(random.choice(BACKGROUNDS), items, counts, random)
        if part is None or part_of(scene.key) == part:
            return scene


def draw_counts(number: int, random: Random) -> list[int]:
    """How many copies each of `number` items has: mostly one; together never more than the grid has cells."""
    counts = [1] * number
    if random.random() < 0.25:
        counts[random.randrange(number)] = random.randint(2, min(MAX_COUNT, CELLS + 1 - number))
    return counts


def variant(scene: Scene, random: Random) -> Scene:
    """The same background, items and counts with new random cells and sizes."""
    items = [Item(item.shape, item.colour, item.texture, random.choice(SIZES), ()) for item in scene.items]
    return arrange(scene.background, items, [item.count for item in scene.items], random)
