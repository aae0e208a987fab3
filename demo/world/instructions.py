"""Random instructions for a reference scene: one or two edits, expressed as a relative clause.

A clause can follow "a photo of $ that", like CIRCO's captions. As for scenes, the hash of a text assigns it to the
world's or the training part, so no instruction of the world was seen in training, independently of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo.world.scenes import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    MAX_COUNT,
    SHAPES,
    SIDES,
    TEXTURES,
    Item,
    Part,
    Scene,
    part_of,
)
from demo.world.templates import CONJUNCTIONS, TEMPLATES

# The semantic aspects of each kind of edit: CIRCO's name first, then this project's finer ones.
ASPECTS = {
    "colour": ("compare_change", "colour"),
    "shape": ("compare_change", "shape"),
    "texture": ("compare_change", "texture"),
    "addition": ("addition",),
    "removal": ("negation",),
    "background": ("spatial_relations_background", "background"),
    "number": ("cardinality",),
    "amount": ("comparative_statement", "amount"),
    "size": ("comparative_statement", "size"),
    "place": ("spatial_relations_background", "place"),
}
LEARNABLE = ("colour", "shape", "texture", "addition", "removal", "background")
MAX_TRIES = 30  # wordings drawn for one instruction
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Edit:
    """One change: its kind, the shape that it changes (empty for the background), and the new value."""

    kind: str
    shape: str = ""
    value: str = ""


def phrase(count: int, *words: str) -> str:
    """A noun phrase such as "a red circle" or "two striped stars"; empty words are left out."""
    text = " ".join(word for word in words if word)
    if count != 1:
        return f"{NUMBERS[count]} {plural(text)}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def plural(noun: str) -> str:
    """The plural of a noun phrase that ends in one of the shapes."""
    return noun + ("es" if noun.endswith("cross") else "s")


def draw_edit(kind: str, scene: Scene, random: Random) -> Edit | None:
    """A random edit of that kind that changes the scene, or None if the scene allows none."""
    item = random.choice(scene.items)
    if kind == "background":
        return Edit(kind, "", _other(BACKGROUNDS, scene.background, random))
    if kind == "addition":
        free = [shape for shape in SHAPES if all(shape != taken.shape for taken in scene.items)]
        texture = random.choice(TEXTURES)
        value = f"{random.choice(COLOURS)} {texture}"
        full = len(scene.items) >= MAX_COUNT or sum(taken.count for taken in scene.items) >= CELLS
        return None if full else Edit(kind, random.choice(free), value)
    if kind == "removal":
        return Edit(kind, item.shape) if len(scene.items) > 1 else None
    value = _value(kind, item, scene, random)
    return Edit(kind, item.shape, value) if value else None


def _value(kind: str, item: Item, scene: Scene, random: Random) -> str:
    """The new value for an edit of one item; empty if there is none."""
    free_cells = CELLS - sum(taken.count for taken in scene.items) + item.count
    numbers = [number for number in range(1, min(MAX_COUNT, free_cells) + 1) if number != item.count]
    if kind == "colour":
        return _other(COLOURS, item.colour, random)
    if kind == "texture":
        return _other(TEXTURES, item.texture, random)
    if kind == "shape":
        return random.choice([shape for shape in SHAPES if all(shape != taken.shape for taken in scene.items)])
    if kind == "number":
        return NUMBERS[random.choice(numbers)] if numbers else ""
    if kind == "amount":
        return random.choice(["more" if number > item.count else "fewer" for number in numbers]) if numbers else ""
    if kind == "size":
        return ("smaller" if item.size == "large" else "bigger") if item.count == 1 else ""
    sides = [side for side in SIDES if not item.is_on(side)]
    return random.choice(sides) if item.count == 1 else ""


def _other(values: tuple[str, ...], old: str, random: Random) -> str:
    """One of the values that is not the old one."""
    return random.choice([value for value in values if value != old])


def draw_edits(kinds: tuple[str, ...], scene: Scene, random: Random) -> tuple[Edit, ...] | None:
    """One edit of each kind, each of a different shape; None if this draw did not succeed."""
    edits: list[Edit] = []
    for kind in kinds:
        edit = draw_edit(kind, scene, random)
        taken = {shape for other in edits for shape in (other.shape, other.value) if shape}
        if edit is None or (edit.shape and edit.shape in taken) or edit.value in taken:
            return None
        edits.append(edit)
    return tuple(edits)


def write_instruction(edits: tuple[Edit, ...], scene: Scene, part: Part, random: Random) -> str | None:
    """The edits as one randomly worded relative clause; None if no wording that was tried belongs to the part."""
    for _ in range(MAX_TRIES):
        clauses = [
            random.choice(TEMPLATES[edit.kind]).format(**_template_values(edit, scene, random)) for edit in edits
        ]
        text = random.choice(CONJUNCTIONS).join(clauses)
        if part_of(text) == part:
            return text
    return None


def _clause(edit: Edit, scene: Scene, random: Random) -> str:
    """One edit in a random wording."""
    return random.choice(TEMPLATES[edit.kind]).format(**_template_values(edit, scene, random))


def _template_values(edit: Edit, scene: Scene, random: Random) -> dict[str, str]:
    """The values for the fields of an edit's templates."""
    if edit.kind == "background":
        return {"value": edit.value}
    if edit.kind == "addition":
        colour, texture = edit.value.split()
        return {"new": phrase(1, texture if texture != "plain" else "", colour, edit.shape)}
    item = scene.item(edit.shape)
    colour = random.choice((item.colour, ""))  # an item is named by its shape, with or without its colour
    plural_name = plural(f"{colour} {edit.shape}".strip())
    old = {"colour": item.colour, "texture": item.texture}.get(edit.kind, colour)
    count = NUMBERS.index(edit.value) if edit.kind == "number" else item.count
    new_words = {
        "colour": (edit.value, edit.shape),
        "shape": (random.choice((item.colour, "")), edit.value),
        "texture": (edit.value, colour, edit.shape),
    }.get(edit.kind, (colour, edit.shape))
    return {
        "old": phrase(item.count, old, edit.shape),
        "new": phrase(count, *new_words),
        "it": plural_name if item.count > 1 else f"{colour} {edit.shape}".strip(),
        "its": plural_name,
        "value": edit.value,
    }


def aspects_of(edits: tuple[Edit, ...], text: str) -> list[str]:
    """The semantic aspects of a query: CIRCO's names, finer ones, and `learnable` if all its kinds are learnable."""
    names = [name for edit in edits for name in ASPECTS[edit.kind]]
    if len(edits) > 1:
        names.append("statement_with_conjunction")
    if text.startswith("is "):
        names.append("direct_addressing")
    if all(edit.kind in LEARNABLE for edit in edits):
        names.append("learnable")
    return list(dict.fromkeys(names))
