"""Opening of images of every mode, orientation and state."""

import io
import random
import struct
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cvsi.core.av1 import coded_sizes
from cvsi.core.errors import CvsiError
from cvsi.core.images import Unreadable, decode, load
from tests.core import malformed_images


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


HEIC = Path(__file__).parent / "data"


def corners(image: Image.Image) -> list[str]:
    """The colours of the corners, clockwise from the upper left."""
    wide, high = image.width - 4, image.height - 4
    names = {"100": "red", "010": "green", "001": "blue", "111": "white"}
    pixels = np.asarray(image) // 128
    return [names["".join(map(str, pixels[y, x]))] for x, y in ((3, 3), (wide, 3), (wide, high), (3, high))]


def test_heic_is_read_and_turned_once() -> None:
    upright, turned = (decode((HEIC / f"{name}.heic").read_bytes()) for name in ("upright", "turned"))
    assert (upright.mode, upright.size) == (turned.mode, turned.size[::-1]) == ("RGB", (96, 64))
    assert corners(upright) == ["red", "green", "white", "blue"]
    assert corners(turned) == ["blue", "red", "green", "white"]
    assert turned.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("turn", range(1, 9))
def test_avif_is_turned_as_heic_is(turn: int) -> None:
    upright = decode((HEIC / "upright.heic").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = decode(encoded(upright, "AVIF", exif=exif.tobytes(), quality=95))
    upright.info["exif"] = exif.tobytes()
    assert corners(turned) == corners(ImageOps.exif_transpose(upright))


def test_alpha_grey_and_animated_avif() -> None:
    for mode in ("RGBA", "L", "LA"):
        assert decode(encoded(Image.new("RGB", (40, 30), "red").convert(mode), "AVIF")).mode == "RGB"
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:]))
    assert np.asarray(image)[9, 9].argmax() == 0


@pytest.mark.parametrize("brand", [b"mif1", b"heix", b"msf1"])
def test_heic_by_its_brands(brand: bytes) -> None:
    data = (HEIC / "upright.heic").read_bytes()
    assert decode(data[:8] + brand + data[12:]).size == (96, 64)


def test_avif_by_its_brands() -> None:
    data = encoded(Image.new("RGB", (40, 30)), "AVIF")
    assert decode(data[:8] + b"mif1" + data[12:]).size == (40, 30)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("60000x60000.heic", "more than 120,000,000 pixels"), ("8000x8000.heic", "a HEIC of more than 60,000,000 pixels"),
     ("7900x7500.heic", "size"), ("16x16.heic", "size"), ("12000x12000.avif", "more than 120,000,000 pixels"),
     ("8000x8000.avif", "an AVIF of more than 60,000,000 pixels")],
)  # fmt: skip
def test_a_container_that_states_another_size_is_refused(name: str, reason: str) -> None:
    size, _, kind = name.partition(".")
    data = (HEIC / "upright.heic").read_bytes() if kind == "heic" else encoded(Image.new("L", (99, 66)), "AVIF")
    wide, high = map(int, size.split("x"))
    with pytest.raises(Unreadable, match=reason):
        decode(malformed_images.resized(data, wide, high))


def test_an_avif_whose_coded_picture_is_larger_than_stated_is_refused_undecoded() -> None:
    data = encoded(Image.new("L", (16_000, 8_000), 99), "AVIF", quality=10, speed=10)
    with pytest.raises(Unreadable, match="an AVIF with coded pictures of more than 120,000,000 pixels"):
        decode(malformed_images.resized(data, 64, 64))


def test_coded_sizes_of_pictures_masks_and_sequences() -> None:
    assert coded_sizes(encoded(Image.new("RGBA", (300, 200)), "AVIF")) == [(300, 200)] * 2
    frames = [Image.effect_noise((300, 200), 20 + number).convert("RGB") for number in range(3)]
    sequence = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert set(coded_sizes(sequence)) == {(512, 256)}  # as many bits as the size takes
    assert coded_sizes((HEIC / "upright.heic").read_bytes()) == []


def test_broken_containers_of_coded_sizes_end_quickly() -> None:
    data = encoded(Image.new("RGB", (300, 200)), "AVIF")
    dice = random.Random(1)
    for _ in range(2000):
        broken = bytearray(data[: dice.randrange(1, len(data))])
        for _ in range(dice.randrange(4)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        with suppress(ValueError, IndexError, struct.error):
            coded_sizes(bytes(broken))
    began = time.process_time()
    for bomb in (b"\0\0\0\x08free" * 2_000_000, data + b"\0\0\0\0moov" + b"\0\0\0\x08trak" * 1_000_000):
        with suppress(ValueError):
            coded_sizes(bomb)
    assert time.process_time() - began < 3


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
