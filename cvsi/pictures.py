"""Opens, checks and pads images: bytes of a file to an RGB picture, upright, of bounded size."""

import hashlib
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from cvsi.errors import CvsiError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 200_000_000
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
# Pillow warns of odd metadata, and of pictures above its own limit; ours is checked below.
warnings.filterwarnings("ignore", module="PIL")


class Unreadable(Exception):
    """Why the bytes of a file are not a usable image, in a few words."""


def decode(data: bytes) -> Image.Image:
    """The first frame of an image file as RGB, turned upright by its EXIF orientation; raises Unreadable."""
    if not data:
        raise Unreadable("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(TOO_LARGE)
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Image.DecompressionBombError:
        raise Unreadable(TOO_LARGE) from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes; all mean the same to us
        raise Unreadable(" ".join(str(error).split())[:120] or type(error).__name__) from None


def load(path: Path, digest: str) -> Image.Image:
    """Decode a file that the index has seen; raises CvsiError when its bytes are not those any more."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise CvsiError(f"{path}: the file changed since it was indexed; run the stage index again (dvc repro)")
    try:
        return decode(data)
    except Unreadable as reason:
        raise CvsiError(f"{path}: {reason}") from None


def target_pad(image: Image.Image, ratio: float = 1.25) -> Image.Image:
    """Pad with zeros so that no side exceeds `ratio` times the other (the published preprocessing).

    With r = max(w, h) / min(w, h) >= ratio, left and right get max(int((max(w, h) / ratio - w) / 2), 0) pixels each,
    top and bottom the same with h.
    """
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    scaled = max(width, height) / ratio
    across, down = max(int((scaled - width) / 2), 0), max(int((scaled - height) / 2), 0)
    return ImageOps.expand(image, (across, down, across, down), fill=0)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 when it converts; scale it instead.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")
