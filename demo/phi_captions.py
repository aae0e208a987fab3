"""Draws the captions that the demo's phi is trained on from the training part: `python -m demo.phi_captions FILE`.

Three of ten captions are a description; in half of these, it follows "a photo of" and is the subject. The others are
composed sentences in the form of the query prompt, with the description as the subject. In training the pseudo token
replaces the subject; in a caption without a subject it replaces the keyword spans (`demo/keywords.txt`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pyarrow as pa

from cvsi.core.atomic import atomic_file
from cvsi.core.parquet import write_parquet
from demo.texts import added, compose, describe
from demo.world.scenes import draw_scene

CAPTIONS = 183_200  # 700 batches of 256, twice the number of held-out captions
SCHEMA = pa.schema({"caption": pa.string(), "subject": pa.string()})


def draw_caption(random: Random) -> tuple[str, str | None]:
    """A random caption and its subject, or None if it has no subject."""
    if random.random() < 0.3:
        description = describe(draw_scene(random, "training"), random)
        return (f"a photo of {description}", description) if random.random() < 0.5 else (description, None)
    example = compose(random)
    description = describe(example.source, random, complete=True)
    clause = f" that {example.clause}"
    if random.random() < 0.7:
        clause += f". And the photo should have {added(example)}."
    return f"a photo of {description}{clause}", description


def draw(path: Path, seed: int = 1, number: int = CAPTIONS) -> None:
    """Write `number` captions as Parquet with columns `caption` and `subject` (may be null)."""
    random = Random(f"phi {seed}")
    columns = zip(*(draw_caption(random) for _ in range(number)), strict=True)
    table = pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        write_parquet(table, partial)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
