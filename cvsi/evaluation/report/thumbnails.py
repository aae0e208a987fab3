"""Image files to small pictures that a page carries in itself, as `data:` addresses."""

import base64
import io
from functools import cache
from pathlib import Path

from PIL import Image

from cvsi.core.images import load

SIDE = 144


@cache
def thumbnail(path: Path, digest: str) -> str:
    """A `data:` address of the image, at most 144 pixels a side: PNG where it is small already, else JPEG."""
    return load(path, digest, address)


def address(image: Image.Image) -> str:
    """The same of a decoded image, which may be changed."""
    data = io.BytesIO()
    if max(image.size) <= SIDE // 2:
        image.save(data, "PNG")
        kind = "png"
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(data, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
