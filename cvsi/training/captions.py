"""A file of captions to the examples that phi is trained on: `caption`, `masked`, and `subject` where one is given.

`masked` is the caption with `$` in place of the subject, or else of the keyword spans. phi reads the text embedding of
the subject, or else of the caption. A `$` in the caption itself is read as a blank.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import parquet
from cvsi.core.console import count, info
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute, PhiTraining
from cvsi.models.clip import TOKEN
from cvsi.store.rows import Store
from cvsi.training import keywords

LONGEST = 10_000  # characters of a caption
NAMED = 5  # rows that an error or a remark names


def read(settings: PhiTraining, store: Store, compute: Compute) -> pl.DataFrame:
    """The captions file's examples; prints how many captions are blank or have no keyword span, and are left out.

    Raises CvsiError for a file that is missing, empty or malformed, and for a subject that is not in its caption.
    """
    path = Path(settings.captions)
    given = _given(path)
    own = int(given.select(pl.col("caption").str.contains(TOKEN, literal=True).sum()).item())
    if own:
        info(f"{path}: in {count(own, 'caption')} a {TOKEN} is read as a blank; it stands for phi's word")
    given = given.with_columns(pl.col("caption", "subject").str.replace_all(TOKEN, " ", literal=True))
    rows = given.filter(pl.col("caption").str.strip_chars() != "")
    _remark(
        path,
        given.height - rows.height,
        "nothing but blanks",
        given["row"].filter(~given["row"].is_in(rows["row"].implode())),
    )
    _check(path, rows)
    examples = _masked(rows, settings, store, compute)
    bare = ~examples["masked"].str.contains(TOKEN, literal=True)
    _remark(path, int(bare.sum()), "without a keyword span", examples["row"].filter(bare))
    examples = examples.filter(~bare).drop("row")
    if examples.height < settings.batch + settings.held_out:
        raise CvsiError(
            f"{path}: {count(examples.height, 'caption')} to learn from, but a batch of {settings.batch} and "
            f"{settings.held_out} held out need {settings.batch + settings.held_out:,}; lower batch or held_out"
        )
    return examples


def split(examples: pl.DataFrame, settings: PhiTraining) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The examples to train on and those held out for validation, drawn by the seed."""
    order = np.random.default_rng([settings.seed, 0]).permutation(examples.height)
    return examples[order[settings.held_out :]], examples[order[: settings.held_out]]


def batch(step: int, rows: int, settings: PhiTraining) -> np.ndarray:
    """Which of `rows` training examples step `step` (from 0) takes: each epoch in an order of its own."""
    epoch, at = divmod(step, rows // settings.batch)
    return _order(settings.seed, epoch, rows)[at * settings.batch : (at + 1) * settings.batch]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(rows)


def _given(path: Path) -> pl.DataFrame:
    """The file's rows with their numbers from 1: `row`, `caption`, `subject` (null where none is given)."""
    if not path.is_file():
        raise CvsiError(f"{path}: no such file; check the phi's captions in params.yaml")
    if path.suffix == ".parquet":
        table = parquet.read_file(path)
        names = [name for name in ("caption", "subject") if name in table.column_names]
        if "caption" not in names:
            raise CvsiError(f"{path}: no column 'caption'; there are: {', '.join(table.column_names)}")
        wrong = [name for name in names if table.schema.field(name).type not in (pa.string(), pa.null())]
        if wrong:
            raise CvsiError(f"{path}: column '{wrong[0]}' is {table.schema.field(wrong[0]).type}, not string")
        given = pl.DataFrame(table.select(names)).with_columns(pl.col("caption").cast(pl.String).fill_null(""))
    else:
        try:
            with path.open(encoding="utf-8") as lines:
                given = pl.DataFrame({"caption": [line.rstrip("\n") for line in lines]}, schema={"caption": pl.String})
        except UnicodeDecodeError as error:
            raise CvsiError(f"{path}: not UTF-8 text (byte {error.start:,}); write one caption per line") from None
    subject = pl.col("subject").cast(pl.String).replace("", None) if "subject" in given.columns else pl.lit(None)
    return given.with_columns(subject=subject.cast(pl.String)).with_row_index("row", offset=1)


def _check(path: Path, rows: pl.DataFrame) -> None:
    """Refuse an empty file, a caption of absurd length, and a subject that is not in its caption, by its row."""
    if rows.is_empty():
        raise CvsiError(f"{path}: no captions in it; write one per line, or a Parquet column 'caption'")
    long = rows.filter(pl.col("caption").str.len_chars() > LONGEST)
    if long.height:
        raise CvsiError(
            f"{path}: row {long['row'][0]:,} has more than {LONGEST:,} characters; is it one caption per line?"
        )
    held = pl.col("caption").str.contains(pl.col("subject"), literal=True)
    wrong = rows.filter(pl.col("subject").is_not_null() & ~(held & (pl.col("subject").str.strip_chars() != "")))
    if wrong.height:
        row, caption, subject = wrong.row(0)
        raise CvsiError(
            f"{path}: row {row:,}: the subject {subject[:80]!r} is not in its caption {caption[:120]!r}"
            f" ({count(wrong.height, 'such row')})"
        )


def _masked(rows: pl.DataFrame, settings: PhiTraining, store: Store, compute: Compute) -> pl.DataFrame:
    """The rows with `masked`, in their order."""
    part = pl.col("caption").str.splitn(pl.col("subject"), 2).struct
    subject = rows.filter(pl.col("subject").is_not_null()).with_columns(
        masked=part.field("field_0") + f" {TOKEN} " + part.field("field_1")
    )
    plain = rows.filter(pl.col("subject").is_null())
    masked = pl.Series([], dtype=pl.String)
    if plain.height:
        masked = keywords.find(plain["caption"], settings.spans, store, compute)
    return pl.concat([subject, plain.with_columns(masked=masked)]).sort("row")


def _remark(path: Path, number: int, what: str, rows: pl.Series) -> None:
    if number:
        named = ", ".join(f"{row:,}" for row in rows.head(NAMED)) + (", ..." if number > NAMED else "")
        info(f"{path}: {count(number, 'caption')} not trained on, {what}: row {named}")
