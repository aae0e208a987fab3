"""Image files to small pictures that a page carries in itself, as `data:` addresses."""

import base64
import io
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from cvsi.core.images import load

SIDE = 144
Box = tuple[float, float, float, float]  # x, y, width, height


def pictures(root: Path, images: pl.DataFrame, picture: Callable[..., str] | None = None) -> dict[str, str]:
    """The pictures of images of an index by their ids, made by `thumbnail` or a function of the same arguments."""
    return {row["image_id"]: (picture or thumbnail)(*file_of(row, root)) for row in images.iter_rows(named=True)}


def file_of(row: Mapping[str, Any], root: Path, side: int = SIDE) -> tuple[Any, ...]:
    """The arguments of `thumbnail` for a row of an index's images."""
    crop = row.get("crop")
    return (root / row["path"], row["digest"], side, *(() if crop is None else (tuple(crop),)))


@cache
def thumbnail(path: Path, digest: str, side: int = SIDE, crop: Box | None = None) -> str:
    """A `data:` address of the image, at most `side` pixels a side: PNG where it is small already, else JPEG."""
    return load(path, digest, partial(address, side=side), crop)


def address(image: Image.Image, side: int = SIDE) -> str:
    """The same of a decoded image, which may be changed."""
    data, kind = encoded(image, side)
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def encoded(image: Image.Image, side: int) -> tuple[bytes, str]:
    """The bytes of a small picture of a decoded image, which may be changed, and their media type."""
    data = io.BytesIO()
    if max(image.size) <= side // 2:
        image.save(data, "PNG")
        return data.getvalue(), "image/png"
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(data, "JPEG", quality=82)
    return data.getvalue(), "image/jpeg"
