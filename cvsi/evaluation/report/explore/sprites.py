"""Images of an index to sheets of small pictures: JPEG files with a grid of square cells, shown in parts by a page."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, ImageOps

from cvsi.core.console import Meter
from cvsi.core.images import load
from cvsi.evaluation.report.thumbnails import file_of

COLUMNS = 16  # of a sheet
PER_SHEET = COLUMNS * COLUMNS
SIDES = ((1_500, 128), (4_000, 96), (9_000, 64))  # up to so many pictures, the side of a cell in pixels
MOST = SIDES[-1][0]
EMPTY = (128, 128, 128)


def side_for(number: int) -> int:
    """The side of a cell for so many pictures, so that all sheets together take some 10 MB."""
    return next((side for most, side in SIDES if number <= most), SIDES[-1][1])


def sheets(root: Path, images: pl.DataFrame, side: int) -> Iterator[bytes]:
    """The sheets of all images in order, the last one as high as it needs; raises CvsiError for a changed file."""
    with Meter(images.height, "pictures") as meter:
        for start in range(0, images.height, PER_SHEET):
            rows = images[start : start + PER_SHEET]
            lines = -(-rows.height // COLUMNS)
            sheet = Image.new("RGB", (COLUMNS * side, lines * side), EMPTY)
            for number, row in enumerate(rows.iter_rows(named=True)):
                sheet.paste(_cell(root, row, side), (number % COLUMNS * side, number // COLUMNS * side))
            data = io.BytesIO()
            sheet.save(data, "JPEG", quality=80)
            yield data.getvalue()
            meter.advance(rows.height)


def _cell(root: Path, row: dict[str, Any], side: int) -> Image.Image:
    """One picture, whole, as large as a square allows, at its upper left; the page shows that part alone."""
    path, digest, _, *crop = file_of(row, root, side)

    def shrink(image: Image.Image) -> Image.Image:
        cell = Image.new("RGB", (side, side), EMPTY)
        cell.paste(ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC))
        return cell

    return load(path, digest, shrink, *crop)
