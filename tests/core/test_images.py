"""Opening of images of every mode, orientation and state."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvsi.core.errors import CvsiError
from cvsi.core.images import Unreadable, decode, load


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode(encoded(Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode)))
    assert image.mode == "RGB" and image.size == (5, 4)


def test_cmyk_and_sixteen_bit() -> None:
    assert decode(encoded(Image.new("CMYK", (5, 4)), "JPEG")).mode == "RGB"
    grey = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    values = np.asarray(decode(encoded(Image.fromarray(grey))))[..., 0].reshape(-1).astype(int)
    assert values.tolist() == pytest.approx(list(range(256)), abs=1)


def test_an_image_is_turned_by_its_exif_orientation() -> None:
    image = Image.new("RGB", (8, 4), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG", exif=exif)).size == (4, 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"hello", "not an image"), (encoded(Image.new("RGB", (64, 64)), "JPEG")[:300], "Truncated")],
    ids=["empty", "text", "cut"],
)
def test_unreadable_bytes_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(data)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = encoded(Image.new("1", (1, 1)))
    huge = header.replace((1).to_bytes(4, "big") * 2, (50_000).to_bytes(4, "big") * 2, 1)
    import struct
    import zlib

    start = huge.index(b"IHDR")
    crc = zlib.crc32(huge[start : start + 17])
    huge = huge[: start + 17] + struct.pack(">I", crc) + huge[start + 21 :]
    with pytest.raises(Unreadable, match="pixels"):
        decode(huge)


def test_a_file_that_changed_since_it_was_indexed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.new("RGB", (2, 2))))
    with pytest.raises(CvsiError, match=r"a\.png: the file changed since it was indexed"):
        load(file, "0" * 64, lambda image: image)
