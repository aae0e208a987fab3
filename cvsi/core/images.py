"""Opens, checks and pads images: bytes of a file to an RGB picture, upright, of bounded size.

A file may be anything. What it costs is known from its header and bounded before a pixel is decoded, and all threads
together take no more memory than the largest picture alone.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from cvsi.core.errors import CvsiError
from cvsi.core.rooms import Room

T = TypeVar("T")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# What those suffixes promise, told by content. No other reader of Pillow is tried; one of them starts Ghostscript.
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_FILE = 256 << 20  # bytes
MAX_PIXELS = 120_000_000
MAX_SIDE = 16_384  # padding makes such a picture nearly a square, and that has to fit too
MAX_RATIO = 1000  # as does one resized by its shorter side
MAX_SCANNED = 5_000_000_000  # pixels times scans of a progressive JPEG, about 20 seconds
MAX_BLOCKS = 10_000  # before a GIF's picture; Pillow glues them one by one, in quadratic time
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
NEEDS = {"WEBP": 16, "I": 14}  # bytes a pixel while it is decoded and converted, by kind or mode; else 8, or 12
RESIZED = 512**2  # pixels of the largest backbone's input
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION, TILE_WIDTH, TILE_HEIGHT = 0x0112, 322, 323
METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")

_files = Room(MAX_FILE)
_decoded = Room(8 * MAX_PIXELS + (256 << 20))
# Pillow warns of odd metadata, and of pictures above half of what it refuses (frames and crops within a file, too).
warnings.filterwarnings("ignore", module="PIL")
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
# Blocks too large for the heap go back to the system when a picture does; Pillow's own of 16 MB stay with each thread.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]


class Unreadable(Exception):
    """Why a file is not a usable image, in a few words."""


@contextmanager
def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, held while there is room for them; raises Unreadable where they are too many."""
    size = path.stat().st_size
    if size > MAX_FILE:
        raise Unreadable(f"a file of more than {MAX_FILE >> 20} MiB")
    with _files.taken(size), path.open("rb") as file:
        yield file.read(MAX_FILE)


def use(data: bytes, work: Callable[[Image.Image], T]) -> T:
    """What `work` makes of the decoded image, as soon as there is room in memory for both; raises Unreadable."""
    with ExitStack() as held:
        return work(decode(data, lambda need: held.enter_context(_decoded.taken(need))))


def decode(data: bytes, before: Callable[[int], object] = lambda need: None) -> Image.Image:
    """The first frame of an image file as RGB, turned upright by its EXIF orientation; raises Unreadable.

    `before` is told how many bytes the picture will need, before it is decoded.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        if data[:4] == b"GIF8" and _crowded(data):
            raise Unreadable(f"a GIF of more than {MAX_BLOCKS:,} blocks before its picture")
        with Image.open(io.BytesIO(data), formats=KINDS) as image:
            _check(image, data)
            before(_need(image))
            image.load()
            _check(image, data)
            return _upright(image)
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Image.DecompressionBombError:
        raise Unreadable(TOO_LARGE) from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes; all mean the same to us
        raise Unreadable(" ".join(str(error).split())[:120] or type(error).__name__) from None


def load(path: Path, digest: str, work: Callable[[Image.Image], T]) -> T:
    """What `work` makes of a file that the index has seen.

    Raises CvsiError when its bytes are not those any more.
    """
    try:
        with contents(path) as data:
            if hashlib.sha256(data).hexdigest() != digest:
                raise CvsiError(f"{path}: the file changed since it was indexed; run the stage index again (dvc repro)")
            return use(data, work)
    except Unreadable as reason:
        raise CvsiError(f"{path}: {reason}") from None


def _check(image: Image.Image, data: bytes) -> None:
    """Refuse what would take more memory or time than any picture is worth; the header says so."""
    long, short = max(image.size), min(image.size)
    if short < 1:
        raise Unreadable("no pixels")
    if long * short * (2 if image.format == "WEBP" else 1) > MAX_PIXELS:
        raise Unreadable(TOO_LARGE if image.format != "WEBP" else f"a WebP of more than {MAX_PIXELS // 2:,} pixels")
    if long > MAX_SIDE or long > MAX_RATIO * short:
        raise Unreadable(f"{image.width} x {image.height}: a side above {MAX_SIDE:,} or {MAX_RATIO:,} times the other")
    if "progressive" in image.info and data.count(b"\xff\xda") * long * short > MAX_SCANNED:
        raise Unreadable("a progressive JPEG of too many scans")
    tags = getattr(image, "tag_v2", {})
    if tags.get(TILE_WIDTH, 0) * tags.get(TILE_HEIGHT, 0) > MAX_PIXELS:
        raise Unreadable(f"tiles of {TOO_LARGE}")


def _need(image: Image.Image) -> int:
    """Bytes that a picture needs at most: while it is decoded, padded to nearly a square, or resized unpadded."""
    pixels, long, short = image.width * image.height, max(image.size), min(image.size)
    usual = 12 if "progressive" in image.info else 8
    decoding = NEEDS.get(image.format or "", NEEDS.get(image.mode[:1], usual)) * pixels
    return max(decoding, 4 * (pixels + long * long), 4 * (pixels + RESIZED * long // short))


def _crowded(data: bytes) -> bool:
    """Whether a GIF's picture comes after more than so many blocks of metadata or stray bytes."""
    place, blocks = 13 + (6 << (data[10] & 7) if data[10] & 128 else 0), 0
    while place < len(data) and data[place] not in b",;" and blocks <= MAX_BLOCKS:
        blocks += 1
        if data[place] != ord("!"):
            place += 1
            continue
        place += 2
        while place < len(data) and data[place] and blocks <= MAX_BLOCKS:
            place, blocks = place + data[place] + 1, blocks + 1
        place += 1
    return blocks > MAX_BLOCKS


def _upright(image: Image.Image) -> Image.Image:
    """The loaded picture as RGB, turned as its EXIF data say; where these are broken it stays as it was stored."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as many kinds as there are ways to write EXIF wrongly; the picture itself is whole
        turn = None
    picture = _rgb(image if turn is None else image.transpose(turn))
    for name in METADATA if turn is not None else ():
        picture.info.pop(name, None)  # nobody shall turn it again
    return picture


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 when it converts; scale it instead.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode == "RGB" and image.format != "WEBP":
        return image
    return image.convert("RGB")  # a WebP is copied, since the original keeps its decoder's canvases
