"""Renders scene graphs of the world `shapes-2` as images."""

import io
import math
from functools import cache

from PIL import Image, ImageDraw

from dialog_gen.shapes.render import OUTLINE_PX
from dialog_gen.shapes.render import RGB as RGB_OF_FIRST
from dialog_gen.shapes.second.scenes import CELL_PX, EXTENT, RADIUS_PX, Scene

IMAGE_SIZE_PX = 3 * CELL_PX
# Objects are drawn at four times the size and reduced, which gives smooth edges and the same pixels on every machine.
_SCALE = 4
# (period, dark part of it) in pixels.
_MARKS_PX = {"striped": (4, 2), "dotted": (5, 3)}
# Stripes and dots are a darker shade of the object's color, so that its hue stays.
_SHADE = 0.45
RGB = {**RGB_OF_FIRST, "orange": (250, 140, 30)}


def render(scene: Scene) -> Image.Image:
    """The scene as a 96 x 96 RGB image."""
    image = Image.new("RGB", (IMAGE_SIZE_PX, IMAGE_SIZE_PX), RGB[scene.background])
    for o in scene.objects:
        x, y = o.center_px
        drawn = sprite(o.shape, o.color, o.texture, o.size)
        image.paste(drawn, (x - drawn.width // 2, y - drawn.height // 2), drawn)
    return image


def render_png(scene: Scene) -> bytes:
    """The scene as the bytes of a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def sprite(shape: str, color: str, texture: str, size: str) -> Image.Image:
    """An object alone, in the middle of a transparent RGBA image of even width and height."""
    r = RADIUS_PX[size] * _SCALE
    middle = math.ceil(RADIUS_PX[size] * EXTENT) * _SCALE
    drawn = Image.new("RGBA", (2 * middle, 2 * middle))
    draw = ImageDraw.Draw(drawn)
    # The outline is a larger black copy below the shape, so that its width is even at sharp corners.
    _fill(draw, shape, middle, r, r, (0, 0, 0))
    _fill(draw, shape, middle, r, r - OUTLINE_PX * _SCALE, RGB[color])
    if texture != "plain":
        inside, nothing = Image.new("1", drawn.size), Image.new("1", drawn.size)
        _fill(ImageDraw.Draw(inside), shape, middle, r, r - OUTLINE_PX * _SCALE, 1)
        red, green, blue = (int(value * _SHADE) for value in RGB[color])
        drawn.paste((red, green, blue), mask=Image.composite(_pattern(texture, 2 * middle), nothing, inside))
    return drawn.resize((2 * middle // _SCALE, 2 * middle // _SCALE), Image.Resampling.BOX)


def _fill(draw: ImageDraw.ImageDraw, shape: str, at: int, r: int, radius: int, ink: int | tuple[int, int, int]) -> None:
    """Fills a shape around (at, at). `radius` is that of its edge, `r` that of the object with its outline."""
    x = y = at
    match shape:
        case "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), ink)
        case "square":
            side = radius * 0.88
            draw.rectangle((x - side, y - side, x + side, y + side), ink)
        case "triangle":
            draw.polygon(_polygon(x, y + r * 0.2, [radius * 1.1] * 3), ink)
        case "star":
            draw.polygon(_polygon(x, y, [radius * 1.15, radius * 0.55] * 5), ink)
        case "diamond":
            draw.polygon(_polygon(x, y, [radius * 1.15, radius * 0.75] * 2), ink)
        case "cross":
            arm = radius * 0.4
            draw.rectangle((x - radius, y - arm, x + radius, y + arm), ink)
            draw.rectangle((x - arm, y - radius, x + arm, y + radius), ink)
        case _:
            raise ValueError(f"unknown shape {shape!r}")


def _pattern(texture: str, side: int) -> Image.Image:
    """Where a square of a texture is dark; there is a mark in its middle."""
    period, dark = (value * _SCALE for value in _MARKS_PX[texture])
    pattern = Image.new("1", (side, side))
    draw = ImageDraw.Draw(pattern)
    starts = range((side // 2 - dark // 2) % period - period, side, period)
    for y in starts:
        if texture == "striped":
            draw.rectangle((0, y, side, y + dark - 1), 1)
        else:
            for x in starts:
                draw.ellipse((x, y, x + dark - 1, y + dark - 1), 1)
    return pattern


def _polygon(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """(x, y) of corners at the given radii around the centre, evenly spaced clockwise from twelve o'clock."""
    angles = [2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
