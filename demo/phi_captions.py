"""The captions that the demo's phi is trained on: `python -m demo.phi_captions FILE` draws them from the training part.

In three of ten, a description alone, half of these after "a photo of" as the subject; else a composed sentence, as the
search completes it, with the description as its subject. A subject's place is what the pseudo token learns to fill;
where none is given, the keyword spans are (`demo/keywords.txt`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pyarrow as pa

from cvsi.core.paths import whole_file
from cvsi.core.tables import write_parquet
from demo.texts import added, compose, describe
from demo.world.scenes import draw_scene

LINES = 183_200  # 700 batches of 256, those held out, and some to spare
SCHEMA = pa.schema({"caption": pa.string(), "subject": pa.string()})


def draw_lesson(random: Random) -> tuple[str, str | None]:
    """A caption, and its subject if it has one."""
    if random.random() < 0.3:
        description = describe(draw_scene(random, "training"), random)
        return (f"a photo of {description}", description) if random.random() < 0.5 else (description, None)
    example = compose(random)
    description = describe(example.source, random, sure=True)
    rest = f" that {example.clause}"
    if random.random() < 0.7:
        rest += f". And the photo should have {added(example)}."
    return f"a photo of {description}{rest}", description


def draw(path: Path, seed: int = 1, lines: int = LINES) -> None:
    """Write that many lessons as Parquet: `caption`, and `subject` or null."""
    random = Random(f"phi {seed}")
    columns = zip(*(draw_lesson(random) for _ in range(lines)), strict=True)
    table = pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        write_parquet(table, partial)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
