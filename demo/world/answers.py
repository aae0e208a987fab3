"""The rule for right answers, made from a reference scene and its edits; no model has a say in it.

A picture is right if it shows the reference as edited and nothing else: the same background, and the same shapes in
the same colour, texture and number. Size and place are free, except where the instruction asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from demo.world.instructions import NUMBERS, Edit
from demo.world.scenes import CELLS, MOST, SIZES, Item, Scene, arrange

TRIES = 200  # arrangements drawn until one has an item where the instruction asks for it


@dataclass(frozen=True)
class Wanted:
    """What one item of a right answer looks like; an empty size or side is free."""

    shape: str
    colour: str
    texture: str
    counts: tuple[int, ...]
    size: str = ""
    side: str = ""

    def fits(self, item: Item) -> bool:
        """Whether the item is the one wanted."""
        return (
            (item.shape, item.colour, item.texture) == (self.shape, self.colour, self.texture)
            and item.count in self.counts
            and self.size in ("", item.size)
            and (not self.side or item.is_on(self.side))
        )


@dataclass(frozen=True)
class Wish:
    """What a right answer shows: its background and all of its items."""

    background: str
    items: tuple[Wanted, ...]


def wish(reference: Scene, edits: tuple[Edit, ...]) -> Wish:
    """What the reference, edited, must show."""
    background = reference.background
    items = {item.shape: Wanted(item.shape, item.colour, item.texture, (item.count,)) for item in reference.items}
    for edit in edits:
        if edit.kind == "background":
            background = edit.value
        elif edit.kind == "removal":
            del items[edit.shape]
        elif edit.kind == "addition":
            colour, texture = edit.value.split()
            items[edit.shape] = Wanted(edit.shape, colour, texture, (1,))
        else:
            items[edit.shape] = _changed(items[edit.shape], edit)
    return Wish(background, tuple(items.values()))


def _changed(item: Wanted, edit: Edit) -> Wanted:
    """One wanted item after an edit that keeps it in the picture."""
    count = item.counts[0]
    changed = {
        "colour": lambda: replace(item, colour=edit.value),
        "shape": lambda: replace(item, shape=edit.value),
        "texture": lambda: replace(item, texture=edit.value),
        "number": lambda: replace(item, counts=(NUMBERS.index(edit.value),)),
        "amount": lambda: replace(
            item, counts=tuple(range(count + 1, MOST + 1) if edit.value == "more" else range(1, count))
        ),
        "size": lambda: replace(item, size="large" if edit.value == "bigger" else "small"),
        "place": lambda: replace(item, side=edit.value),
    }
    return changed[edit.kind]()


def answers(wanted: Wish, scene: Scene) -> bool:
    """Whether the scene is a right answer."""
    if scene.background != wanted.background or len(scene.items) != len(wanted.items):
        return False
    return all(any(want.fits(item) for item in scene.items) for want in wanted.items)


def answer(wanted: Wish, random: Random) -> Scene | None:
    """One right answer, with what is free drawn at random; None where the grid cannot hold it."""
    for _ in range(TRIES):
        items = [
            Item(want.shape, want.colour, want.texture, want.size or random.choice(SIZES), ()) for want in wanted.items
        ]
        counts = [random.choice(want.counts) for want in wanted.items]
        if sum(counts) > CELLS:
            continue
        scene = arrange(wanted.background, items, counts, random)
        if answers(wanted, scene):
            return scene
    return None
