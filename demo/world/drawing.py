"""Renders scenes as pictures of 64 by 64 pixels; the same scene always gives the same bytes.

Each combination of shape, colour, texture and size is drawn once at four times its size, scaled down and cached; a
picture is put together by pasting these images.
"""

from __future__ import annotations

import math
from functools import cache
from random import Random

from PIL import Image, ImageDraw

from demo.world.scenes import Scene

SIDE = 64  # pixels
CELL = SIDE // 2
OVERSAMPLING = 4  # shapes are drawn at this multiple of their size, so that their edges are smooth
DIAMETER = {"small": 19, "large": 27}  # pixels
COLOUR_RGB = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (40, 80, 210),
    "yellow": (240, 220, 40),
    "purple": (140, 50, 170),
    "orange": (250, 140, 20),
    "cyan": (40, 200, 210),
}
BACKGROUND_RGB = {
    "white": (246, 246, 246),
    "grey": (140, 140, 140),
    "black": (16, 16, 16),
    "pink": (250, 180, 200),
    "brown": (110, 72, 42),
}


def picture(scene: Scene) -> Image.Image:
    """The scene as an RGB image of 64 by 64 pixels."""
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND_RGB[scene.background])
    jitter = Random(scene.jitter_seed)
    for item in scene.items:
        sprite = _sprite(item.shape, item.colour, item.texture, item.size)
        for cell in item.cells:
            row, column = divmod(cell, 2)
            margin = CELL - sprite.width
            at = (column * CELL + jitter.randint(0, margin), row * CELL + jitter.randint(0, margin))
            image.paste(sprite, at, sprite)
    return image


@cache
def _sprite(shape: str, colour: str, texture: str, size: str) -> Image.Image:
    """One shape with its colour, texture and size as an RGBA image, transparent outside its outline."""
    side = DIAMETER[size]
    colour_rgb = COLOUR_RGB[colour]
    second = tuple((value + 2 * 255) // 3 if sum(colour_rgb) < 500 else value // 3 for value in colour_rgb)
    filled = Image.new("RGB", (side, side), colour_rgb)
    filled.paste(second, (0, 0), _texture(texture, side))
    filled.putalpha(_outline(shape, side * OVERSAMPLING).resize((side, side), Image.Resampling.BOX))
    return filled


def _texture(texture: str, side: int) -> Image.Image:
    """A mask of the area in the second colour: empty, diagonal stripes, or dots."""
    mask = Image.new("L", (side, side), 0)
    for y in range(side):
        for x in range(side):
            striped = texture == "striped" and (x + y) % 6 < 3
            dotted = texture == "dotted" and x % 4 in (1, 2) and y % 4 in (1, 2)
            if striped or dotted:
                mask.putpixel((x, y), 255)
    return mask


def _outline(shape: str, side: int) -> Image.Image:
    """A mask of the shape, which fills a square of `side` pixels."""
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    end = side - 1
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, end, end), fill=255)
        if shape == "ring":
            hole = side * 0.3
            pen.ellipse((hole, hole, end - hole, end - hole), fill=0)
    elif shape == "square":
        pen.rectangle((side * 0.06, side * 0.06, end - side * 0.06, end - side * 0.06), fill=255)
    elif shape == "triangle":
        pen.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        near, far = side * 0.33, end - side * 0.33
        pen.rectangle((near, 0, far, end), fill=255)
        pen.rectangle((0, near, end, far), fill=255)
    else:
        pen.polygon(_star(side), fill=255)
    return mask


def _star(side: int) -> list[tuple[float, float]]:
    """The ten corners of a five-pointed star."""
    middle = side / 2
    corners = []
    for corner in range(10):
        radius = middle * (1.0 if corner % 2 == 0 else 0.42)
        angle = math.pi * (corner / 5 - 0.5)
        corners.append((middle + radius * math.cos(angle), middle + radius * math.sin(angle)))
    return corners
