"""A sample of the gallery, each image with a caption: what the page shows of a dataset without queries.

The number of images, their bytes and the lengths of texts are bounded, so that the page stays small for any gallery.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import tables
from cvsi.evaluation.report.thumbnails import file_of, thumbnail

SAMPLE = 48  # images
SIDE = 320  # pixels
MOST_BYTES = 3 << 20  # of all pictures together, as they are in the page
LONGEST = 160  # characters of a caption
RATIOS = (0.6, 2.4)  # of width to height; a picture beyond is cropped by the page
CHANGES = ("the same place at night", "with two people in front of it")  # instructions of the example


def gallery_cards(name: str, root: Path) -> list[dict[str, Any]]:
    """The cards of up to 48 gallery images, evenly spaced through the index; images are `data:` addresses.

    Where their pictures have too many bytes for a page, every second image is left out until they fit.
    """
    images = pl.DataFrame(tables.read("index", name, "images.parquet")).filter("in_gallery")
    number = min(SAMPLE, images.height)
    images = images[[index * images.height // number for index in range(number)]]
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    images = images.join(captions, on="image_id", how="left", maintain_order="left")
    cards = [_card(row, root) for row in images.iter_rows(named=True)]
    while sum(len(card["picture"]) for card in cards) > MOST_BYTES:
        cards = cards[::2]
    return cards


def example(cards: Sequence[dict[str, Any]]) -> list[str]:
    """Two lines for a file of queries, with names of shown images; the second has a right answer."""
    names = [card["id"] for card in cards]
    queries = [{"reference": names[0], "instruction": CHANGES[0]}]
    if len(names) > 1:
        queries.append({"reference": names[0], "instruction": CHANGES[1], "targets": names[-1:]})
    return [json.dumps(query, ensure_ascii=False) for query in queries]


def _card(row: dict[str, Any], root: Path) -> dict[str, Any]:
    caption = next(iter(row["captions"] or []), "")
    ratio = row["width"] / max(row["height"], 1)
    return {
        "id": row["image_id"],
        "picture": thumbnail(*file_of(row, root, SIDE)),
        "caption": caption if len(caption) <= LONGEST else f"{caption[:LONGEST].rstrip()}…",
        "ratio": round(min(max(ratio, RATIOS[0]), RATIOS[1]), 2),
    }
