"""Training answers of the reader from scenes and edits: what goes, what is new, what stays, and the whole target.

An answer has one line per role, `role: text; text`. Unlike captions, its texts name textures, because a reader sees the
picture. Size and place are named only where an edit changes them.
"""

from __future__ import annotations

from demo.texts import Composed, join, reading_order
from demo.world.instructions import Edit, phrase
from demo.world.scenes import Item

ROLES = ("forbidden", "desired", "preserve", "target")  # in the order of the lines: the last one repeats the others
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
OTHER_SIZE = {"bigger": ("small", "large"), "smaller": ("large", "small")}  # before and after


def roles(example: Composed) -> dict[str, list[str]]:
    """The correct texts by role, in the order of `ROLES`."""
    edits = {edit.shape: edit for edit in example.edits}
    items = reading_order(example.source)
    kept = [_name(item) for item in items if item.shape not in edits]
    new = [_after(example, edit) for edit in example.edits if edit.kind not in ("removal", "background")]
    old = [_before(example.source.item(edit.shape), edit) for edit in example.edits if _has_before(edit)]
    before, after = (f"a {scene.background} background" for scene in (example.source, example.target))
    changed = "" in edits  # the background
    target = f"{join([*kept, *new])} on {after}" if kept or new else after
    return {
        "forbidden": [*old, *([before] if changed else [])],
        "desired": [*new, *([after] if changed else [])],
        "preserve": [*kept, *([] if changed else [before])],
        "target": [target],
    }


def answer(example: Composed) -> str:
    """The correct answer, as `output: lines` asks for it."""
    return "\n".join(f"{role}: {'; '.join(texts)}".rstrip() for role, texts in roles(example).items())


def _has_before(edit: Edit) -> bool:
    """Whether an edit changes or removes an item of the source."""
    return edit.kind not in ("addition", "background")


def _before(item: Item, edit: Edit) -> str:
    """What an edit makes untrue of an item."""
    if edit.kind == "size":
        return _name(item, size=OTHER_SIZE[edit.value][0])
    if edit.kind == "place":
        return f"{_name(item)} on the {OPPOSITE[edit.value]}"
    return _name(item, plain=edit.kind == "texture")


def _after(example: Composed, edit: Edit) -> str:
    """What an edit makes true of the item that it changes or adds."""
    item = example.target.item(edit.value if edit.kind == "shape" else edit.shape)
    if edit.kind == "size":
        return _name(item, size=OTHER_SIZE[edit.value][1])
    if edit.kind == "place":
        return f"{_name(item)} on the {edit.value}"
    if edit.kind == "amount":  # the instruction does not say which number
        return _name(item, number="several" if edit.value == "more" else "few")
    return _name(item, plain=edit.kind == "texture")


def _name(item: Item, *, size: str = "", number: str = "", plain: bool = False) -> str:
    """An item as a noun phrase with its texture; `plain` says so of an item without one, `number` replaces its own."""
    texture = item.texture if plain or item.texture != "plain" else ""
    if number:
        return f"{number} {phrase(2, texture, item.colour, item.shape).removeprefix('two ')}"
    return phrase(item.count, size, texture, item.colour, item.shape)
