"""The rule that decides which scenes are targets of a query, given the reference and the edits; no model is involved.

A picture is correct if it shows the reference with the edits applied and nothing else: the same background, and the
same shapes in the same colour, texture and number. Size and position may be anything, unless the instruction
specifies them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from demo.world.instructions import NUMBERS, Edit
from demo.world.scenes import CELLS, MAX_COUNT, SIZES, Item, Scene, arrange

MAX_TRIES = 200  # arrangements drawn before giving up on a side that the instruction specifies


@dataclass(frozen=True)
class ItemSpec:
    """What one item of a target must look like; an empty `size` or `side` allows any."""

    shape: str
    colour: str
    texture: str
    counts: tuple[int, ...]
    size: str = ""
    side: str = ""

    def matches(self, item: Item) -> bool:
        """Whether the item satisfies this specification."""
        return (
            (item.shape, item.colour, item.texture) == (self.shape, self.colour, self.texture)
            and item.count in self.counts
            and self.size in ("", item.size)
            and (not self.side or item.is_on(self.side))
        )


@dataclass(frozen=True)
class TargetSpec:
    """What a target must show: its background and all of its items."""

    background: str
    items: tuple[ItemSpec, ...]


def target_spec(reference: Scene, edits: tuple[Edit, ...]) -> TargetSpec:
    """The specification of the targets: the reference with the edits applied."""
    background = reference.background
    items = {item.shape: ItemSpec(item.shape, item.colour, item.texture, (item.count,)) for item in reference.items}
    for edit in edits:
        if edit.kind == "background":
            background = edit.value
        elif edit.kind == "removal":
            del items[edit.shape]
        elif edit.kind == "addition":
            colour, texture = edit.value.split()
            items[edit.shape] = ItemSpec(edit.shape, colour, texture, (1,))
        else:
            items[edit.shape] = _changed(items[edit.shape], edit)
    return TargetSpec(background, tuple(items.values()))


def _changed(item: ItemSpec, edit: Edit) -> ItemSpec:
    """One item's specification after an edit that keeps the item in the picture."""
    count = item.counts[0]
    changed = {
        "colour": lambda: replace(item, colour=edit.value),
        "shape": lambda: replace(item, shape=edit.value),
        "texture": lambda: replace(item, texture=edit.value),
        "number": lambda: replace(item, counts=(NUMBERS.index(edit.value),)),
        "amount": lambda: replace(
            item, counts=tuple(range(count + 1, MAX_COUNT + 1) if edit.value == "more" else range(1, count))
        ),
        "size": lambda: replace(item, size="large" if edit.value == "bigger" else "small"),
        "place": lambda: replace(item, side=edit.value),
    }
    return changed[edit.kind]()


def matches(spec: TargetSpec, scene: Scene) -> bool:
    """Whether the scene is a correct target."""
    if scene.background != spec.background or len(scene.items) != len(spec.items):
        return False
    return all(any(item_spec.matches(item) for item in scene.items) for item_spec in spec.items)


def sample_target(spec: TargetSpec, random: Random) -> Scene | None:
    """A random scene that matches; None if no arrangement that was drawn does."""
    for _ in range(MAX_TRIES):
        items = [
            Item(item.shape, item.colour, item.texture, item.size or random.choice(SIZES), ()) for item in spec.items
        ]
        counts = [random.choice(item.counts) for item in spec.items]
        if sum(counts) > CELLS:
            continue
        scene = arrange(spec.background, items, counts, random)
        if matches(spec, scene):
            return scene
    return None
