"""Opens and checks images: bytes of a file to an RGB image, upright, of bounded size.

A file may be anything. Its cost in memory and time is read from its header and bounded before a pixel is decoded. A
budget that all threads share keeps them together within the memory of the largest image alone.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Condition
from typing import TypeVar

import pi_heif
from PIL import Image, UnidentifiedImageError

from cvsi.core.av1 import coded_sizes
from cvsi.core.digest import digest as digest_of
from cvsi.core.errors import ChangedFile, CvsiError

T = TypeVar("T")
SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .heic .heif .hif .avif".split())
# The formats of those suffixes, recognised by content. No other reader of Pillow is tried; one starts Ghostscript.
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Formats in an ISO container, by the brands that its first box names.
BRANDS = {"AVIF": (b"avif", b"avis"), "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")}
CONTAINER_BRANDS = (b"mif1", b"msf1")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
SIGNATURE_BYTES = 64  # of a file's start, enough for `is_image_start`
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
MAX_FILE = 256 << 20  # bytes
MAX_PIXELS = 120_000_000
MAX_SIDE = 16_384  # padding makes such an image nearly a square, which has to fit too
MAX_RATIO = 1000  # as does one resized by its shorter side
MAX_SCANNED = 5_000_000_000  # pixels times scans of a progressive JPEG, about 20 seconds
MAX_BLOCKS = 10_000  # before a GIF's image; Pillow joins them one by one, in quadratic time
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
HALF = {"WEBP": "a WebP", "HEIF": "a HEIC", "AVIF": "an AVIF"}  # formats that take twice the memory, so half the pixels
PIXEL_BYTES = {**dict.fromkeys(HALF, 16), "I": 14}  # per pixel while it is decoded and converted; else 8, or 12
RESIZED = 512**2  # pixels of the largest backbone's input
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION, TILE_WIDTH, TILE_HEIGHT = 0x0112, 322, 323
METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")

# Pillow warns of odd metadata, and of images above half of what it refuses (frames and crops within a file, too).
warnings.filterwarnings("ignore", module="PIL")
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
# Blocks too large for the heap go back to the system with their image; Pillow's own of 16 MB stay with each thread.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]
# Only the picture itself, and by the thread that opened it: threads decode other pictures meanwhile.
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


class Unreadable(Exception):
    """Why a file is not a usable image, in a few words."""


class MemoryBudget:
    """A number of bytes that threads share; `reserve(n)` blocks until n bytes are free.

    A request for more than the whole budget gets all of it, alone.
    """

    def __init__(self, size: int) -> None:
        """A budget of `size` bytes, all free."""
        self.size = self._free = size
        self._changed = Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold this many bytes while the block runs."""
        amount = min(amount, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


_file_memory = MemoryBudget(MAX_FILE)
_image_memory = MemoryBudget(8 * MAX_PIXELS + (256 << 20))


@contextmanager
def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, within the memory budget of files; raises Unreadable where they are too many."""
    size = path.stat().st_size
    if size > MAX_FILE:
        raise Unreadable(f"a file of more than {MAX_FILE >> 20} MiB")
    with _file_memory.reserve(size), path.open("rb") as file:
        yield file.read(MAX_FILE)


def use(data: bytes, work: Callable[[Image.Image], T]) -> T:
    """The result of `work` on the decoded image, both within the memory budget of images; raises Unreadable."""
    with ExitStack() as reserved:
        return work(decode(data, lambda size: reserved.enter_context(_image_memory.reserve(size))))


def decode(data: bytes, before: Callable[[int], object] = lambda size: None) -> Image.Image:
    """The first frame of an image file as RGB, turned upright by its EXIF orientation; raises Unreadable.

    `before` is called with the bytes of memory that the image will take, before it is decoded.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        if data[:4] == b"GIF8" and _too_many_gif_blocks(data):
            raise Unreadable(f"a GIF of more than {MAX_BLOCKS:,} blocks before its picture")
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            _check(image, data)
            if image.format == "AVIF":
                _check_coded(data)
            before(_memory(image))
            image.load()
            _check(image, data)
            return _apply_exif(image)
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Image.DecompressionBombError:
        raise Unreadable(TOO_LARGE) from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes; all mean the same here
        raise Unreadable(" ".join(str(error).split())[:120] or type(error).__name__) from None


def is_image_start(data: bytes) -> bool:
    """Whether a file that begins with these bytes (`SIGNATURE_BYTES` of them) is an image of a kind that is read."""
    if data[:2] == b"BM":
        return data[6:10] == b"\0\0\0\0" and int.from_bytes(data[14:18], "little") in BMP_HEADERS
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith(SIGNATURES) or _formats(data) != KINDS


def _formats(data: bytes) -> tuple[str, ...]:
    """The formats to try: the one that an ISO container's brands name, else all others."""
    if data[4:8] != b"ftyp":
        return KINDS
    brands = [data[start : start + 4] for start in (8, *range(16, min(int.from_bytes(data[:4], "big"), 256), 4))]
    if named := [kind for brand in brands for kind, names in BRANDS.items() if brand in names]:
        return (named[0],)
    return ("AVIF", "HEIF") if brands[0] in CONTAINER_BRANDS else KINDS


def load(path: Path, digest: str, work: Callable[[Image.Image], T], crop: Sequence[float] | None = None) -> T:
    """The result of `work` on an indexed image, a file or a part of it; raises ChangedFile where the file changed."""
    try:
        with contents(path) as data:
            if image_digest(hashlib.sha256(data).hexdigest(), crop) != digest:
                raise ChangedFile(str(path))
            return use(data, work if crop is None else lambda image: work(cropped(image, crop)))
    except Unreadable as reason:
        raise CvsiError(f"{path}: {reason}") from None


def image_digest(content: str, crop: Sequence[float] | None) -> str:
    """The digest of an indexed image: that of the file's content, or that of the content and the part that is used."""
    return content if crop is None else digest_of(content, list(crop))


def cropped(image: Image.Image, crop: Sequence[float]) -> Image.Image:
    """The part x, y, width and height of an image, in the middle of a black square.

    What is outside of the image is left out.
    """
    left, top, width, height = (round(number) for number in crop)
    part = image.crop((max(left, 0), max(top, 0), min(left + width, image.width), min(top + height, image.height)))
    side = max(part.size)
    if part.width == part.height:
        return part
    square = Image.new("RGB", (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square


def _check(image: Image.Image, data: bytes) -> None:
    """Refuse an image that would take too much memory or time by its header."""
    long, short = max(image.size), min(image.size)
    if short < 1:
        raise Unreadable("no pixels")
    half = HALF.get(image.format or "")
    if long * short * (2 if half else 1) > MAX_PIXELS:
        raise Unreadable(f"{half} of more than {MAX_PIXELS // 2:,} pixels" if half else TOO_LARGE)
    if long > MAX_SIDE or long > MAX_RATIO * short:
        raise Unreadable(f"{image.width} x {image.height}: a side above {MAX_SIDE:,} or {MAX_RATIO:,} times the other")
    if "progressive" in image.info and data.count(b"\xff\xda") * long * short > MAX_SCANNED:
        raise Unreadable("a progressive JPEG of too many scans")
    tags = getattr(image, "tag_v2", {})
    if tags.get(TILE_WIDTH, 0) * tags.get(TILE_HEIGHT, 0) > MAX_PIXELS:
        raise Unreadable(f"tiles of {TOO_LARGE}")


def _check_coded(data: bytes) -> None:
    """Refuse an AVIF whose coded pictures are larger than its container says, which is what a decoder allocates."""
    sizes = coded_sizes(data)
    largest, total = max((wide * high for wide, high in sizes), default=0), sum(wide * high for wide, high in sizes)
    if largest > MAX_PIXELS or total > 4 * MAX_PIXELS:
        raise Unreadable(f"an AVIF with coded pictures of {TOO_LARGE}")


def _memory(image: Image.Image) -> int:
    """Bytes that an image takes at most: while it is decoded, padded to nearly a square, or resized unpadded."""
    pixels, long, short = image.width * image.height, max(image.size), min(image.size)
    usual = 12 if "progressive" in image.info else 8
    decoding = PIXEL_BYTES.get(image.format or "", PIXEL_BYTES.get(image.mode[:1], usual)) * pixels
    return max(decoding, 4 * (pixels + long * long), 4 * (pixels + RESIZED * long // short))


def _too_many_gif_blocks(data: bytes) -> bool:
    """Whether more than `MAX_BLOCKS` blocks of metadata or stray bytes precede a GIF's image."""
    offset, blocks = 13 + (6 << (data[10] & 7) if data[10] & 128 else 0), 0
    while offset < len(data) and data[offset] not in b",;" and blocks <= MAX_BLOCKS:
        blocks += 1
        if data[offset] != ord("!"):
            offset += 1
            continue
        offset += 2
        while offset < len(data) and data[offset] and blocks <= MAX_BLOCKS:
            offset, blocks = offset + data[offset] + 1, blocks + 1
        offset += 1
    return blocks > MAX_BLOCKS


def _apply_exif(image: Image.Image) -> Image.Image:
    """The loaded image as RGB, turned by its EXIF orientation; where that is broken it stays as it was stored."""
    try:
        turn = EXIF_TRANSPOSE.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as many kinds as there are ways to write EXIF wrongly; the image itself is whole
        turn = None
    upright = _rgb(image if turn is None else image.transpose(turn))
    for name in METADATA if turn is not None else ():
        upright.info.pop(name, None)  # so that no later code turns it again
    return upright


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 when it converts; scale it instead.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode == "RGB" and image.format not in HALF:
        return image
    return image.convert("RGB")  # a WebP is copied, since the original keeps its decoder's canvases; so are the others
