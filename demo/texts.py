"""Sentences for training, made from scenes and edits of the training part: captions, descriptions and gold edits.

Captions say colour, shape, number and at times the background, as a coarse captioner would; descriptions, which only
CLIP reads, may say everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from demo.world.answers import answer, answers, wish
from demo.world.instructions import LEARNABLE, NUMBERS, Edit, draw_edits, phrase, word
from demo.world.scenes import COLOURS, SHAPES, SIDES, TEXTURES, Item, Scene, draw_scene, part_of, variant

OTHER_KINDS = ("number", "amount", "size", "place")
OPENINGS = ("", "", "a photo of ", "a picture of ", "there is ")


@dataclass(frozen=True)
class Composed:
    """One training example of a composed query: a source, its edits worded, and one scene that answers."""

    source: Scene
    edits: tuple[Edit, ...]
    clause: str
    target: Scene


def join(phrases: Sequence[str]) -> str:
    """Noun phrases as a list in words."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def reading_order(scene: Scene) -> list[Item]:
    """The items by their first cell, row by row."""
    return sorted(scene.items, key=lambda item: item.cells)


def caption(scene: Scene, random: Random) -> str:
    """What the captioner learns to say: number, colour and shape, four times in ten the background, nothing else."""
    text = random.choice(OPENINGS) + join([phrase(i.count, i.colour, i.shape) for i in reading_order(scene)])
    return f"{text} on a {scene.background} background" if random.random() < 0.4 else text


def describe(scene: Scene, random: Random, *, sure: bool = False) -> str:
    """What CLIP reads: the items in any order, each property said or left out at random; `sure` says the main ones."""
    items = random.sample(scene.items, len(scene.items))
    textured = sure or random.random() < 0.6
    sized, placed = random.random() < 0.2, random.random() < 0.15
    plain = random.random() < 0.3
    text = join([_name(item, random, textured, sized, placed, plain) for item in items])
    if sure or random.random() < 0.7:
        text += random.choice((" on a {} background", " on a {} background", " on {}", " with a {} background")).format(
            scene.background
        )
    return text


def _name(item: Item, random: Random, textured: bool, sized: bool, placed: bool, plain: bool) -> str:
    """One item as a noun phrase with the properties asked for."""
    texture = item.texture if textured and (plain or item.texture != "plain") else ""
    text = phrase(item.count, item.size if sized else "", texture, item.colour, item.shape)
    sides = [side for side in SIDES if item.is_on(side)]
    return f"{text} on the {random.choice(sides)}" if placed and sides else text


def relative(scene: Scene, random: Random) -> str:
    """One scene in the form of a composed query: some items, then a clause that names the others or the background."""
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
    """A composed example of the training part; `hard` is the share of edits of the kinds that are hard to learn."""
    given = source
    while True:
        source = given or draw_scene(random, "training")
        kinds = tuple(
            random.choice(OTHER_KINDS if random.random() < hard else LEARNABLE)
            for _ in range(1 if random.random() < 0.65 else 2)
        )
        edits = draw_edits(kinds, source, random) if len(set(kinds)) == len(kinds) else None
        if edits is None:
            continue
        wanted = wish(source, edits)
        clause, target = word(edits, source, "training", random), answer(wanted, random)
        if clause and target and part_of(target.key) == "training" and not answers(wanted, source):
            return Composed(source, edits, clause, target)


def composed_text(example: Composed, random: Random) -> str:
    """The text that the pseudo token completes at search time, with words in the token's place."""
    text = f"a photo of {describe(example.source, random, sure=True)} that {example.clause}"
    if random.random() < 0.3:
        return text
    return f"{text}. And the photo should have {added(example)}."


def edited(example: Composed, *, background: bool = True) -> str:
    """The gold edited description: the captions' items in their order, changed as asked, then the new ones."""
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
    said = background or any(edit.kind == "background" for edit in example.edits)
    return join(names) + (f" on a {example.target.background} background" if said else "")


def _edited_name(item: Item, edit: Edit) -> str:
    """One item that the instruction speaks of, with what it says."""
    texture = item.texture if edit.kind in ("texture", "addition") and item.texture != "plain" else ""
    if edit.kind == "texture":
        texture = item.texture
    if edit.kind == "amount":
        return f"{'several' if edit.value == 'more' else 'few'} {phrase(2, item.colour, item.shape)[4:]}"
    text = phrase(item.count, item.size if edit.kind == "size" else "", texture, item.colour, item.shape)
    return f"{text} on the {edit.value}" if edit.kind == "place" else text


def added(example: Composed) -> str:
    """The gold answer to the second task: what the edits bring into the picture."""
    names = []
    for edit in example.edits:
        if edit.kind == "background":
            names.append(f"a {edit.value} background")
        elif edit.kind != "removal":
            shape = edit.value if edit.kind == "shape" else edit.shape
            names.append(_edited_name(example.target.item(shape), edit))
    return " and ".join(names) or "nothing new"


def near(scene: Scene, random: Random) -> Scene:
    """A scene of the training part that differs in little: colours swapped, or one property of one item changed."""
    while True:
        fresh = variant(scene, random)
        items = list(fresh.items)
        first, second = random.randrange(len(items)), random.randrange(len(items))
        how = random.choice(("swap", "swap", "colour", "texture", "shape"))
        one, two = items[first], items[second]
        if how == "swap":
            items[first] = replace(one, colour=two.colour, texture=two.texture)
            items[second] = replace(two, colour=one.colour, texture=one.texture)
        elif how == "shape":
            items[first] = replace(one, shape=two.shape)
            items[second] = replace(two, shape=one.shape)
            if first == second:
                free = [shape for shape in SHAPES if all(shape != item.shape for item in items)]
                items[first] = replace(one, shape=random.choice(free))
        elif how == "colour":
            items[first] = replace(one, colour=random.choice(COLOURS))
        else:
            items[first] = replace(one, texture=random.choice(TEXTURES))
        fresh = replace(fresh, items=tuple(items))
        if part_of(fresh.key) == "training" and fresh.key != scene.key:
            return fresh
        scene = scene if random.random() < 0.9 else draw_scene(random, "training")


def words_used() -> set[str]:
    """Every word that the sentences of this module and the world's instructions can hold."""
    random = Random(0)
    found = set(NUMBERS) | set("several few . , $ nothing new".split())
    for _ in range(20000):
        example = compose(random, hard=0.5)
        for text in (
            composed_text(example, random),
            caption(example.source, random),
            edited(example),
            describe(example.target, random),
            relative(example.source, random),
        ):
            found |= set(text.replace(",", " ,").replace(".", " .").split())
    return found


def parts_said(text: str) -> list[str]:
    """The claims of a caption: its noun phrases, and the bare name of its background if it states one."""
    for opening in sorted(set(OPENINGS), key=len, reverse=True):
        if opening and text.startswith(opening):
            text = text.removeprefix(opening)
            break
    items, _, ground = text.partition(" on a ")
    parts = items.replace(" and ", ", ").split(", ")
    return parts + ([ground.removesuffix(" background")] if ground else [])
