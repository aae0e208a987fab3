"""Image files to small pictures that a page carries in itself, as `data:` addresses."""

import base64
import io
from functools import cache, partial
from pathlib import Path

from PIL import Image

from cvsi.core.images import load

SIDE = 144


@cache
def thumbnail(path: Path, digest: str, side: int = SIDE) -> str:
    """A `data:` address of the image, at most `side` pixels a side: PNG where it is small already, else JPEG."""
    return load(path, digest, partial(address, side=side))


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
