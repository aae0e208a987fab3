"""Bytes of a picture to the model's input [3, s, s], compared with a second implementation of the published steps.

Pillow alone resizes here; decoding to RGB, turning, padding, sizes, crop, scale and normalisation are numpy. Where the
published words (pad with zeros, short side to s, centre crop, divide by 255, mean and deviation) leave a choice, this
is what open_clip's transform does, and what is tested here:

- the long side becomes int(s * long / short), cut off, not rounded;
- the crop starts at round((long - s) / 2), and Python rounds a half to the even number;
- values are rounded to whole bytes after the resize, before they are divided by 255;
- pictures are RGB before they are resized and padded (our decode), so a palette's or an alpha's colours are mixed
  as colours.
"""

import io
import math
from fractions import Fraction

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cvsi.core.images import decode
from cvsi.core.params import Backbone, Compute
from cvsi.models.clip_encoder import Encoder
from tests.imports import ROOT

Pixels = NDArray[np.uint8]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
SHAPES = [(1, 1), (1, 20), (20, 1), (7, 140), (64, 64), (65, 64), (81, 64), (80, 64), (79, 64), (64, 149), (333, 500)]


def colours(width: int, height: int, channels: int = 3) -> Pixels:
    """A picture without symmetries: waves and noise, [height, width, channels]."""
    noise = np.random.default_rng(width * 1000 + height).integers(0, 90, (height, width, channels))
    waves = np.arange(height)[:, None, None] * 3 + np.arange(width)[None, :, None] * 5 + 40 * np.arange(channels)
    pixels: Pixels = ((waves % 160) + noise).astype(np.uint8)
    return pixels


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def padded(pixels: Pixels, ratio: Fraction = Fraction(5, 4)) -> Pixels:
    """Zeros around a picture whose sides differ by this ratio or more: the rule of the published code, in fractions."""
    height, width = pixels.shape[:2]
    longest = max(width, height)
    if Fraction(longest, min(width, height)) < ratio:
        return pixels
    across, down = (max(math.trunc((longest / ratio - side) / 2), 0) for side in (width, height))
    return np.pad(pixels, ((down, down), (across, across), (0, 0)))


def resized(pixels: Pixels, size: int) -> Pixels:
    """Short side to `size`, bicubic with antialias, then the middle of the long side."""
    height, width = pixels.shape[:2]
    short = min(width, height)
    tall, wide = size * height // short, size * width // short
    scaled = np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    return scaled[top : top + size, left : left + size]


def expected(pixels: Pixels, size: int, pad: bool) -> NDArray[np.float64]:
    """The model's input from an upright RGB picture."""
    square = resized(padded(pixels) if pad else pixels, size)
    scaled: NDArray[np.float64] = (square / 255 - MEAN) / DEVIATION
    return scaled.transpose(2, 0, 1)


def encoder_of(preprocess: str, large: bool) -> Encoder:
    """The demo's encoder at 64 pixels, or one with the preprocessing of the published ones at 224, without weights."""
    folder = f"local-dir:{ROOT / 'demo/weights/clip'}"
    encoder = Encoder(Backbone(model=folder, phi="none", preprocess=preprocess), Compute(device="cpu"))  # type: ignore[arg-type]
    if large:
        with torch.device("meta"):
            encoder.__dict__["model"] = open_clip.create_model("ViT-B-32-quickgelu", device="meta")
    return encoder


@pytest.fixture(scope="module", params=["target-pad", "plain"])
def pads(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[64, 224])
def encoder(pads: str, request: pytest.FixtureRequest) -> Encoder:
    return encoder_of(pads, request.param == 224)


def check(encoder: Encoder, data: bytes, upright: Pixels) -> None:
    """Our input from these bytes equals the second implementation's, to a thousandth of a byte's step."""
    size = int(encoder.model.visual.image_size[0])
    ours = encoder.prepare(decode(data))
    assert ours.shape == (3, size, size) and ours.dtype == torch.float32
    theirs = expected(upright, size, encoder.backbone.preprocess == "target-pad")
    steps = np.abs(ours.numpy() - theirs) * DEVIATION[:, None, None] * 255
    assert steps.max() <= 1e-3


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_every_shape(encoder: Encoder, shape: tuple[int, int]) -> None:
    pixels = colours(*shape)
    check(encoder, encoded(Image.fromarray(pixels)), pixels)


def test_the_two_preprocessings_differ_where_sides_do() -> None:
    encoders = [encoder_of(preprocess, False) for preprocess in ("target-pad", "plain")]
    for shape, same in (((64, 60), True), ((100, 40), False)):
        ours = [encoder.prepare(Image.fromarray(colours(*shape))) for encoder in encoders]
        assert torch.equal(*ours) == same


def test_grey(encoder: Encoder) -> None:
    grey = colours(50, 30, 1)
    check(encoder, encoded(Image.fromarray(grey[..., 0])), grey.repeat(3, axis=2))


def test_palette(encoder: Encoder) -> None:
    table = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    indices = colours(30, 50, 1)[..., 0]
    image = Image.fromarray(indices).convert("P")
    image.putpalette(table.tobytes())
    image.frombytes(indices.tobytes())
    check(encoder, encoded(image), table[indices])


def test_alpha_is_ignored_not_blended_with_a_background(encoder: Encoder) -> None:
    pixels = colours(70, 33, 4)
    check(encoder, encoded(Image.fromarray(pixels)), pixels[..., :3])
    grey = colours(33, 70, 2)
    check(encoder, encoded(Image.fromarray(grey)), grey[..., :1].repeat(3, axis=2))


def test_cmyk(encoder: Encoder) -> None:
    inks = colours(40, 55, 4)
    data = encoded(Image.fromarray(inks, "CMYK"), "TIFF")
    check(encoder, data, cmyk(inks))


def cmyk(inks: Pixels) -> Pixels:
    """Red, green and blue are what cyan, magenta and yellow leave, times what black leaves."""
    left = 255 - inks.astype(np.float64)
    return np.rint(left[..., :3] * left[..., 3:] / 255).astype(np.uint8)


def test_sixteen_bits_are_scaled_not_clipped(encoder: Encoder) -> None:
    values = (np.arange(40 * 60, dtype=np.uint32).reshape(40, 60) * 27).astype(np.uint16)
    bytes_of = (values // 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    check(encoder, encoded(Image.fromarray(values)), bytes_of)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encoder: Encoder, orientation: int) -> None:
    stored = colours(90, 40)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    check(encoder, encoded(image, exif=exif), np.ascontiguousarray(upright))
