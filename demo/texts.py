"""Training sentences from scenes and edits of the training part: captions, descriptions and reference edits.

Captions name number, colour, shape and at times the background, like those of a coarse captioner. Descriptions, which
only CLIP and phi are trained on, may name every property.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from demo.world.answers import matches, sample_target, target_spec
from demo.world.instructions import LEARNABLE, NUMBERS, Edit, draw_edits, phrase, write_instruction
from demo.world.scenes import COLOURS, SHAPES, SIDES, TEXTURES, Item, Scene, draw_scene, part_of, variant

HARD_KINDS = ("number", "amount", "size", "place")
OPENINGS = ("", "", "a photo of ", "a picture of ", "there is ")


@dataclass(frozen=True)
class Composed:
    """One training example of a composed query: the source scene, the edits, the instruction, and one target."""

    source: Scene
    edits: tuple[Edit, ...]
    clause: str
    target: Scene


def join(phrases: Sequence[str]) -> str:
    """Noun phrases as a list in words."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def reading_order(scene: Scene) -> list[Item]:
    """The items in order of their first cell, row by row."""
    return sorted(scene.items, key=lambda item: item.cells)


def caption(scene: Scene, random: Random) -> str:
    """A caption for training the captioner: number, colour and shape, and with probability 0.4 the background."""
    text = random.choice(OPENINGS) + join([phrase(i.count, i.colour, i.shape) for i in reading_order(scene)])
    return f"{text} on a {scene.background} background" if random.random() < 0.4 else text


def describe(scene: Scene, random: Random, *, complete: bool = False) -> str:
    """The items in random order, with properties omitted at random; `complete` keeps textures and the background."""
    items = random.sample(scene.items, len(scene.items))
    textured = complete or random.random() < 0.6
    sized, placed = random.random() < 0.2, random.random() < 0.15
    plain = random.random() < 0.3
    text = join([_name(item, random, textured, sized, placed, plain) for item in items])
    if complete or random.random() < 0.7:
        text += random.choice((" on a {} background", " on a {} background", " on {}", " with a {} background")).format(
            scene.background
        )
    return text


def _name(item: Item, random: Random, textured: bool, sized: bool, placed: bool, plain: bool) -> str:
    """One item as a noun phrase with the chosen properties."""
    texture = item.texture if textured and (plain or item.texture != "plain") else ""
    text = phrase(item.count, item.size if sized else "", texture, item.colour, item.shape)
    sides = [side for side in SIDES if item.is_on(side)]
    return f"{text} on the {random.choice(sides)}" if placed and sides else text


def relative(scene: Scene, random: Random) -> str:
    """One scene in the form of a composed query: some items, then a clause with the other items or the background."""
    items = random.sample(scene.items, len(scene.items))
    cut = random.randint(1, len(items))
    background = f"is on a {scene.background} background"
    names = [_name(item, random, True, False, False, False) for item in items]
    clauses = [f"{random.choice(('has', 'shows', 'has also'))} {join(names[cut:])}"] if cut < len(items) else []
    if not clauses or random.random() < 0.6:
        clauses.append(background)
    text = f"a photo of {join(names[:cut])} that {' and '.join(clauses)}"
    return f"{text}. And the photo should have {random.choice(names)}." if random.random() < 0.4 else text


def compose(random: Random, *, source: Scene | None = None, hard: float = 0.25) -> Composed:
    """A random composed example of the training part; `hard` is the probability of a hard kind of edit."""
    given = source
    while True:
        source = given or draw_scene(random, "training")
        kinds = tuple(
            random.choice(HARD_KINDS if random.random() < hard else LEARNABLE)
            for _ in range(1 if random.random() < 0.65 else 2)
        )
        edits = draw_edits(kinds, source, random) if len(set(kinds)) == len(kinds) else None
        if edits is None:
            continue
        spec = target_spec(source, edits)
        clause, target = write_instruction(edits, source, "training", random), sample_target(spec, random)
        if clause and target and part_of(target.key) == "training" and not matches(spec, source):
            return Composed(source, edits, clause, target)


def composed_text(example: Composed, random: Random) -> str:
    """The query prompt that holds the pseudo token at search time, with a description instead of the token."""
    text = f"a photo of {describe(example.source, random, complete=True)} that {example.clause}"
    if random.random() < 0.3:
        return text
    return f"{text}. And the photo should have {added(example)}."


def edited(example: Composed, *, background: bool = True) -> str:
    """The reference answer of the first task: the captions' items in order with the edits applied, then new items."""
    edits = {edit.shape: edit for edit in example.edits}
    names = []
    for item in reading_order(example.source):
        edit = edits.pop(item.shape, None)
        if edit is None:
            names.append(phrase(item.count, item.colour, item.shape))
        elif edit.kind != "removal":
            shape = edit.value if edit.kind == "shape" else edit.shape
            names.append(_edited_name(example.target.item(shape), edit))
    names += [_edited_name(example.target.item(edit.shape), edit) for edit in edits.values() if edit.shape]
    with_background = background or any(edit.kind == "background" for edit in example.edits)
    return join(names) + (f" on a {example.target.background} background" if with_background else "")


def _edited_name(item: Item, edit: Edit) -> str:
    """One edited item as a noun phrase with the properties that the instruction names."""
    texture = item.texture if edit.kind in ("texture", "addition") and item.texture != "plain" else ""
    if edit.kind == "texture":
        texture = item.texture
    if edit.kind == "amount":
        return f"{'several' if edit.value == 'more' else 'few'} {phrase(2, item.colour, item.shape)[4:]}"
    text = phrase(item.count, item.size if edit.kind == "size" else "", texture, item.colour, item.shape)
    return f"{text} on the {edit.value}" if edit.kind == "place" else text


def added(example: Composed) -> str:
    """The reference answer of the second task: what the edits add to the picture."""
    names = []
    for edit in example.edits:
        if edit.kind == "background":
            names.append(f"a {edit.value} background")
        elif edit.kind != "removal":
            shape = edit.value if edit.kind == "shape" else edit.shape
            names.append(_edited_name(example.target.item(shape), edit))
    return " and ".join(names) or "nothing new"


def near_miss(scene: Scene, random: Random) -> Scene:
    """A scene of the training part that differs slightly: colours swapped, or one property of one item changed."""
    while True:
        changed = variant(scene, random)
        items = list(changed.items)
        first, second = random.randrange(len(items)), random.randrange(len(items))
        change = random.choice(("swap", "swap", "colour", "texture", "shape"))
        one, two = items[first], items[second]
        if change == "swap":
            items[first] = replace(one, colour=two.colour, texture=two.texture)
            items[second] = replace(two, colour=one.colour, texture=one.texture)
        elif change == "shape":
            items[first] = replace(one, shape=two.shape)
            items[second] = replace(two, shape=one.shape)
            if first == second:
                free = [shape for shape in SHAPES if all(shape != item.shape for item in items)]
                items[first] = replace(one, shape=random.choice(free))
        elif change == "colour":
            items[first] = replace(one, colour=random.choice(COLOURS))
        else:
            items[first] = replace(one, texture=random.choice(TEXTURES))
        changed = replace(changed, items=tuple(items))
        if part_of(changed.key) == "training" and changed.key != scene.key:
            return changed
        scene = scene if random.random() < 0.9 else draw_scene(random, "training")


def vocabulary() -> set[str]:
    """All words of the sentences of this module and of the world's instructions, collected from random examples."""
    random = Random(0)
    words = set(NUMBERS) | set("several few . , $ nothing new".split())
    for _ in range(20000):
        example = compose(random, hard=0.5)
        for text in (
            composed_text(example, random),
            caption(example.source, random),
            edited(example),
            describe(example.target, random),
            relative(example.source, random),
        ):
            words |= set(text.replace(",", " ,").replace(".", " .").split())
    return words


def caption_claims(text: str) -> list[str]:
    """The claims of a caption: its noun phrases, and the bare name of its background if it names one."""
    for opening in sorted(set(OPENINGS), key=len, reverse=True):
        if opening and text.startswith(opening):
            text = text.removeprefix(opening)
            break
    items, _, background = text.partition(" on a ")
    claims = items.replace(" and ", ", ").split(", ")
    return claims + ([background.removesuffix(" background")] if background else [])
