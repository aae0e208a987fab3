"""Image files to small pictures that a page carries in itself, as `data:` addresses."""

import base64
import io
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import polars as pl
from PIL import Image

from cvsi.core.images import load

SIDE = 144
Box = tuple[float, float, float, float]  # x, y, width, height


def pictures(root: Path, images: pl.DataFrame, picture: Callable[..., str] | None = None) -> dict[str, str]:
    """The pictures of images of an index by their ids, made by `thumbnail` or a function of the same arguments."""
    columns = [name for name in ("path", "digest", "crop") if name in images.columns]
    rows = images.select("image_id", *columns).iter_rows()
    return {
        image: (picture or thumbnail)(root / path, digest, *(box_of(box) for box in crop))
        for image, path, digest, *crop in rows
    }


def box_of(crop: Sequence[float] | None) -> Box | None:
    """A value of the column `crop` as an argument of `thumbnail`."""
    return None if crop is None else (crop[0], crop[1], crop[2], crop[3])


@cache
def thumbnail(path: Path, digest: str, crop: Box | None = None, side: int = SIDE) -> str:
    """A `data:` address of the image, at most `side` pixels a side: PNG where it is small already, else JPEG."""
    return load(path, digest, partial(address, side=side), crop)


def address(image: Image.Image, side: int = SIDE) -> str:
    """The same of a decoded image, which may be changed."""
    data = io.BytesIO()
    if max(image.size) <= side // 2:
        image.save(data, "PNG")
        kind = "png"
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(data, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
