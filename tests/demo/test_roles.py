"""The reader's training answers: each role of each kind of edit follows from the scene, and the pipeline reads them."""

from __future__ import annotations

from random import Random

import pytest

from cvsi.models.editor import Answer
from cvsi.pipeline.answers import Query
from cvsi.pipeline.role_answers import parse
from demo.roles import ROLES, answer, roles
from demo.texts import Composed, compose
from demo.world.answers import sample_target, target_spec
from demo.world.instructions import Edit
from demo.world.scenes import COLOURS, Item, Scene, part_of

SCENE = Scene(
    "grey",
    (Item("circle", "red", "striped", "small", (0,)), Item("star", "blue", "plain", "large", (2, 3))),
)
CIRCLE, STARS, GREY = "a striped red circle", "two blue stars", "a grey background"


def made(*edits: Edit) -> dict[str, list[str]]:
    """The roles of the scene with edits."""
    target = sample_target(target_spec(SCENE, edits), Random(0))
    assert target is not None
    return roles(Composed(SCENE, edits, "has a change", target))


@pytest.mark.parametrize(
    ("edit", "old", "new"),
    [
        (Edit("colour", "circle", "green"), [CIRCLE], ["a striped green circle"]),
        (Edit("shape", "circle", "ring"), [CIRCLE], ["a striped red ring"]),
        (Edit("texture", "circle", "dotted"), [CIRCLE], ["a dotted red circle"]),
        (Edit("texture", "circle", "plain"), [CIRCLE], ["a plain red circle"]),
        (Edit("number", "circle", "two"), [CIRCLE], ["two striped red circles"]),
        (Edit("amount", "circle", "more"), [CIRCLE], ["several striped red circles"]),
        (Edit("size", "circle", "bigger"), ["a small striped red circle"], ["a large striped red circle"]),
        (Edit("place", "circle", "right"), [f"{CIRCLE} on the left"], [f"{CIRCLE} on the right"]),
        (Edit("removal", "circle"), [CIRCLE], []),
    ],
    ids=lambda value: value.kind + value.value if isinstance(value, Edit) else "",
)
def test_an_edit_of_an_item_leaves_the_others(edit: Edit, old: list[str], new: list[str]) -> None:
    made_roles = made(edit)
    kept = " and ".join([STARS, *new])
    assert made_roles == {
        "forbidden": old,
        "desired": new,
        "preserve": [STARS, GREY],
        "target": [f"{kept} on {GREY}"],
    }


def test_a_texture_says_plain_of_what_was_plain() -> None:
    made_roles = made(Edit("texture", "star", "dotted"))
    assert (made_roles["forbidden"], made_roles["desired"]) == (["two plain blue stars"], ["two dotted blue stars"])


@pytest.mark.parametrize(("value", "text"), [("cyan plain", "a cyan cross"), ("red dotted", "a dotted red cross")])
def test_an_addition_forbids_nothing(value: str, text: str) -> None:
    assert made(Edit("addition", "cross", value)) == {
        "forbidden": [],
        "desired": [text],
        "preserve": [CIRCLE, STARS, GREY],
        "target": [f"{CIRCLE}, {STARS} and {text} on {GREY}"],
    }


def test_two_edits_and_a_background() -> None:
    assert made(Edit("background", "", "pink"), Edit("removal", "star")) == {
        "forbidden": [STARS, GREY],
        "desired": ["a pink background"],
        "preserve": [CIRCLE],
        "target": [f"{CIRCLE} on a pink background"],
    }


def test_the_pipeline_reads_every_answer_as_it_was_meant() -> None:
    random, most = Random(4), {"forbidden": 2, "desired": 2, "preserve": 4, "target": 1}
    for _ in range(300):
        example = compose(random, hard=0.5)
        read = parse(Answer(answer(example), "stop"), most, Query([], example.clause, []), lines=True)
        assert (read.status, read.texts) == ("ok", roles(example))


def test_texts_are_true_of_source_and_target() -> None:
    random = Random(5)
    for _ in range(300):
        example = compose(random, hard=0.0)
        texts = roles(example)
        assert tuple(texts) == ROLES
        for scene, parts in ((example.source, ("forbidden", "preserve")), (example.target, ("desired", "preserve"))):
            shown = [text for part in parts for text in texts[part]]
            assert len(shown) == len(scene.items) + 1
            for item in scene.items:
                (text,) = [text for text in shown if item.shape in text]
                assert {item.colour} == {colour for colour in COLOURS if colour in text.split()}
                assert item.texture == "plain" or item.texture in text


def test_examples_are_of_the_training_part() -> None:
    random = Random(6)
    for example in (compose(random) for _ in range(50)):
        assert {part_of(example.source.key), part_of(example.target.key), part_of(example.clause)} == {"training"}
