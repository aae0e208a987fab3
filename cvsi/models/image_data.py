"""Images to what requests to a server carry: data URLs of JPEGs, for every engine that sends images."""

import base64
import io

from PIL import Image

QUALITY = 90  # of the JPEGs that are sent, with colours at full size; part of the recipes
ENCODING = f"JPEG {QUALITY}"


def data_url(image: Image.Image, size: int) -> str:
    """An image (RGB) as the data URL of a JPEG: scaled down to `size` pixels on its longer side, without metadata."""
    scale = min(1.0, size / max(image.size))
    wide, high = (max(1, round(side * scale)) for side in image.size)
    picture = image.resize((wide, high), Image.Resampling.LANCZOS)  # a copy, also at the same size
    picture.info = {}  # Pillow would write comments and the like
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
