"""The published padding of images that are much longer than wide, or wider than long."""

import numpy as np
import pytest
from PIL import Image

from cvsi.models.clip_encoder import target_pad


def padded_size(width: int, height: int) -> tuple[int, int]:
    """The published rule, written a second time."""
    longest, shortest = max(width, height), min(width, height)
    if longest / shortest < 1.25:
        return width, height
    sides = [max(int((longest / 1.25 - side) / 2), 0) for side in (width, height)]
    return width + 2 * sides[0], height + 2 * sides[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (20, 1), (64, 64), (100, 81), (100, 80), (100, 79), (640, 427)])
def test_target_pad_follows_the_published_rule(size: tuple[int, int]) -> None:
    padded = target_pad(Image.new("RGB", size, "white"))
    assert padded.size == padded_size(*size)
    pixels = np.asarray(padded)
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    left, top = (padded.width - size[0]) // 2, (padded.height - size[1]) // 2
    inner[top : top + size[1], left : left + size[0]] = True
    assert (pixels[inner] == 255).all() and (pixels[~inner] == 0).all()
