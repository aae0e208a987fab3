"""About a thousand odd and broken image files, of the kinds that an image library keeps for its own tests.

The same seed writes the same files. What they are is in their names: mode, format, and what was done to them.
"""

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE = (61, 47)
MODES = tuple("1 L LA P PA RGB RGBA RGBa La RGBX CMYK YCbCr LAB HSV I I;16 I;16B F".split())
KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
# Formats of no suffix that `folder` takes, here under one that it does, as wrongly named files are.
OTHERS = tuple("ICO PPM TGA DDS PCX SGI IM JPEG2000 ICNS EPS QOI MSP XBM SPIDER BLP DIB MPO".split())
SUFFIXES = (*KINDS.values(), "jpeg", "tiff", "PNG", "JPG", "jfif", "heic")
HEIC = Path(__file__).parent / "data"  # drawn and encoded with pillow-heif, since no dependency writes HEIC
CUTS, FLIPS = 30, 84


def make(folder: Path, seed: int = 1) -> None:
    """Write the small files into a folder; `large` and `beside` add those that cost something or are no plain files."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(seed)
    for name, data in [*_formats(dice), *_variants(dice), *_exif(dice), *_damaged(dice), *_bombs(), *_no_images()]:
        (folder / name).write_bytes(data)


def picture(dice: random.Random, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A drawn picture of a mode, no two alike."""
    image = Image.new("RGB", size, tuple(dice.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = dice.randrange(size[0]), dice.randrange(size[1])
        draw.ellipse((x, y, x + dice.randrange(3, 25), y + dice.randrange(3, 25)), fill=tuple(dice.randbytes(3)))
    steps = {"La": ("LA", "La"), "RGBa": ("RGBA", "RGBa"), "PA": ("P", "PA"), "I;16": ("I", "I;16"), "LAB": ()}
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode == "I;16B":
        return Image.frombytes("I;16B", size, dice.randbytes(2 * size[0] * size[1]))
    for step in steps.get(mode, (mode,)):
        image = image.convert(step)
    if mode in ("P", "L"):
        image.info["transparency"] = 3
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file of this kind."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _formats(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    for number, (kind, mode) in enumerate((kind, mode) for kind in (*KINDS, *OTHERS) for mode in MODES):
        try:
            data = encoded(picture(dice, mode), kind)
        except (OSError, ValueError, KeyError, TypeError, SystemError, AttributeError):
            continue  # Pillow does not write this pair
        yield f"{mode.replace(';', '')}-{kind}.{KINDS.get(kind, SUFFIXES[number % len(SUFFIXES)])}", data


def _variants(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"{compression}.tif", encoded(picture(dice), "TIFF", compression=compression)
    yield "group4.tif", encoded(picture(dice, "1"), "TIFF", compression="group4")
    for name, options in (("progressive", {"progressive": True}), ("best", {"quality": 100, "subsampling": 0})):
        yield f"{name}.jpg", encoded(picture(dice), "JPEG", **options)
    yield "progressive-cmyk.jpg", encoded(picture(dice, "CMYK"), "JPEG", progressive=True)
    yield "lossless.webp", encoded(picture(dice, "RGBA"), "WEBP", lossless=True)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        for frames in (2, 40):
            more = {"save_all": True, "append_images": [picture(dice) for _ in range(frames - 1)]}
            yield f"frames-{frames}.{KINDS[kind]}", encoded(picture(dice), kind, **more)
    many = {"save_all": True, "append_images": [picture(dice, "L", (3, 3)) for _ in range(999)]}
    yield "frames-1000.gif", encoded(picture(dice, "L", (3, 3)), "GIF", **many)
    for size in ((1, 1), (1, 2), (3, 1), (1, 10_000), (10_000, 1), (1, 700), (900, 2), (16_385, 17)):
        yield f"{size[0]}x{size[1]}.png", encoded(picture(dice, size=size), "PNG")


def _exif(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        for turn in (*range(1, 9), 0, 9, 65535):
            exif = Image.Exif()
            exif[0x0112] = turn
            yield f"turned-{turn}.{KINDS[kind]}", encoded(picture(dice), kind, exif=exif.tobytes())
    whole = exif.tobytes()
    for number in range(12):
        torn = bytearray(whole[: dice.randrange(6, len(whole))] if number % 2 else whole)
        torn[dice.randrange(6, len(torn)) :] = dice.randbytes(9)
        yield f"torn-exif-{number}.jpg", encoded(picture(dice), "JPEG", exif=bytes(torn))


def _damaged(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    sound = {kind: encoded(picture(dice), kind) for kind in KINDS}
    more = {
        "progressive.jpg": encoded(picture(dice), "JPEG", progressive=True),
        "lzw.tif": encoded(picture(dice), "TIFF", compression="tiff_lzw"),
        "frames.gif": encoded(picture(dice), "GIF", save_all=True, append_images=[picture(dice)]),
    }
    files = {f"x.{KINDS[kind]}": data for kind, data in sound.items()} | more
    files |= {f"x-{file.name}": file.read_bytes() for file in sorted(HEIC.glob("*.heic"))}
    for name, data in files.items():
        for number in range(CUTS if name.startswith("x") else 8):
            yield f"cut-{number}-{name}", data[: 1 + dice.randrange(len(data) - 1)]
        for number in range(FLIPS if name.startswith("x") else 12):
            broken = bytearray(data)
            for _ in range(1 + number % 6):
                broken[dice.randrange(min(len(data), 80 if number % 2 else len(data)))] = dice.randrange(256)
            yield f"flipped-{number}-{name}", bytes(broken)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 1) -> bytes:
    """A PNG whose header says this size, in grey; its pixels are those of one line."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * (1 + width // 8)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def tiff(**tags: tuple[int, int, int]) -> bytes:
    """A TIFF of one tiny strip with changed or further tags: `t<number>=(type, count, value)`."""
    plain = {256: (3, 1, 4), 257: (3, 1, 4), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8),
             277: (3, 1, 1), 278: (3, 1, 4), 279: (4, 1, 16)}  # fmt: skip
    entries = sorted((plain | {int(name[1:]): tag for name, tag in tags.items()}).items())
    listed = b"".join(struct.pack("<HHII", number, *tag) for number, tag in entries)
    return b"II*\0" + struct.pack("<I", 24) + b"\x80" * 16 + struct.pack("<H", len(entries)) + listed + b"\0" * 4


def resized(data: bytes, width: int, height: int) -> bytes:
    """A HEIC or AVIF whose container says another size than its coded pictures."""
    start = data.index(b"ispe") + 8
    old = data[start : start + 8]
    return data.replace(b"ispe\0\0\0\0" + old, b"ispe\0\0\0\0" + struct.pack(">II", width, height))


def _bombs() -> Iterator[tuple[str, bytes]]:
    heic = (HEIC / "upright.heic").read_bytes()
    coded = encoded(Image.new("L", (16_000, 8_000), 99), "AVIF", quality=10, speed=10)
    for name, data in (("heic", heic), ("avif", encoded(Image.new("L", (99, 66)), "AVIF"))):
        yield f"bomb-size.{name}", resized(data, 60_000, 60_000)
        yield f"large-size.{name}", resized(data, 7_900, 7_500)
        yield f"small-size.{name}", resized(data, 16, 16)
    yield "bomb-coded.avif", resized(coded, 64, 64)
    yield "bomb-50000.png", png(50_000, 50_000)
    yield "bomb-millions.png", png(2**31 - 1, 1)
    yield "bomb-20000x9000.png", encoded(Image.new("1", (20_000, 9_000)), "PNG")
    text = zlib.compress(b"a" * (80 << 20))
    yield "bomb-text.png", png(4, 4, chunk(b"zTXt", b"Comment\0\0" + text))
    yield "bomb-profile.png", png(4, 4, chunk(b"iCCP", b"icc\0\0" + text))
    yield "many-texts.png", png(4, 4, *[chunk(b"tEXt", b"k%d\0v" % number) for number in range(20_000)])
    small = encoded(Image.new("L", (4, 4)), "GIF")
    start = small.index(b",")
    yield "bomb-canvas.gif", small[:6] + struct.pack("<HH", 65_535, 65_535) + small[10:]
    yield "bomb-frame.gif", small[: start + 5] + struct.pack("<HH", 65_535, 65_535) + small[start + 9 :]
    yield "bomb-comment.gif", small[:start] + b"!\xfe" + (b"\xff" + b"c" * 255) * 30_000 + b"\0" + small[start:]
    scans = encoded(Image.new("L", (3000, 3000), 99), "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xc4", 0, scans.rindex(b"\xff\xda")) : -2]
    yield "bomb-scans.jpg", scans[:-2] + last * 20_000 + scans[-2:]
    yield "bomb-canvas.bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60_000, -60_000, 1, 24, *[0] * 6)
    yield "bomb-size.tif", tiff(t256=(4, 1, 2**31), t257=(4, 1, 2**31))
    yield "bomb-tile.tif", tiff(t322=(4, 1, 60_000), t323=(4, 1, 60_000), t324=(4, 1, 8), t325=(4, 1, 16))
    yield "bomb-count.tif", tiff(t273=(4, 2**31, 8))
    yield "bomb-samples.tif", tiff(t277=(3, 1, 65_535))
    yield "no-width.tif", tiff(t256=(3, 1, 0))
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xfe\x3f\0" * 2
    yield "bomb-canvas.webp", b"RIFF" + struct.pack("<I", len(vp8x) + 4) + b"WEBP" + vp8x


def _no_images() -> Iterator[tuple[str, bytes]]:
    for suffix in SUFFIXES:
        yield f"empty.{suffix}.{suffix}", b""
        yield f"text.{suffix}.{suffix}", b"<html><script>not an image</script>\n" * 9
    for name, data in (("zip", b"PK\3\4"), ("nulls", b"\0" * 4096), ("script", b"#!/bin/sh\ntouch ran\n")):
        yield f"{name}.png", data
    yield "notes.txt", b"no image suffix: ignored and counted"


def large(folder: Path) -> None:
    """Sound pictures near the limit, a few kilobytes each: what is large is what they become in memory."""
    for name, mode, size, options in (
        ("flat.jpg", "RGB", (10_900, 10_900), {}),
        ("black.png", "1", (10_000, 11_900), {}),
        ("wide.gif", "L", (16_300, 7_000), {}),
        ("grey16.png", "I;16", (9_000, 9_000), {"compress_level": 1}),
        ("canvas.webp", "RGB", (7_900, 7_500), {"method": 0, "quality": 1}),
        ("coded.avif", "RGB", (7_900, 7_500), {"quality": 1, "speed": 10, "subsampling": "4:4:4"}),
        ("print.jpg", "CMYK", (9_000, 9_000), {"progressive": True}),
    ):
        kind = next(kind for kind, suffix in KINDS.items() if name.endswith(f".{suffix}"))
        (folder / f"large-{name}").write_bytes(encoded(Image.new(mode, size), kind, **options))


def beside(folder: Path, outside: Path) -> None:
    """Links, folders and names that no one expects; `outside` is a folder beside the first one."""
    outside.mkdir()
    dice = random.Random(7)
    data = encoded(picture(dice), "PNG")
    (outside / "secret.png").write_bytes(data)
    for name in ("folder.jpg", "folder\udcff.png", "line\nbreak"):
        (folder / name).mkdir()
        (folder / name / "inner.png").write_bytes(encoded(picture(dice), "PNG"))
    for name, target in (
        ("dead", "nowhere.png"),
        ("inside", "1x1.png"),
        ("away", "../out/secret.png"),
    ):
        (folder / f"{name}.png").symlink_to(target)
    (folder / "away").symlink_to(outside, target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    names = [
        "new\nline", "quote\"'", "gr\u00fcn-\u65e5\u672c-\U0001f600", "-rf --help", "\udcff\udcfe", "x" * 200,
        "esc\x1b[31m", "<b>&amp;", "back\\slash", "narrow\u202fspace", "line\u2028end", "$(touch ran)", "%s{0}",
    ]  # fmt: skip
    for name in names:
        (folder / f"{name}.png").write_bytes(encoded(picture(dice), "PNG"))
