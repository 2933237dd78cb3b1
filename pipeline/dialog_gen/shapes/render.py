"""Renders scene graphs as images."""

import io
import math

from PIL import Image, ImageDraw

from dialog_gen.shapes.scenes import POSITIONS, Scene, SceneObject

IMAGE_SIZE_PX = 64
OUTLINE_PX = 2
# Scenes are drawn at four times the size and reduced, which gives smooth edges and the same pixels on every machine.
_SCALE = 4
_RADIUS_PX = {"small": 7, "large": 13}
RGB = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 220, 50),
    "purple": (140, 50, 170),
    "cyan": (70, 210, 230),
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "pink": (255, 190, 210),
}


def render(scene: Scene) -> Image.Image:
    """The scene as a 64 x 64 RGB image."""
    canvas = Image.new("RGB", (IMAGE_SIZE_PX * _SCALE, IMAGE_SIZE_PX * _SCALE), RGB[scene.background])
    draw = ImageDraw.Draw(canvas)
    for scene_object in scene.objects:
        _draw_object(draw, scene_object)
    return canvas.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BOX)


def render_png(scene: Scene) -> bytes:
    """The scene as the bytes of a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def through_jpeg(image: Image.Image) -> Image.Image:
    """The image encoded and decoded as a JPEG of the quality that img2dataset uses."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return Image.open(buffer)


def _draw_object(draw: ImageDraw.ImageDraw, o: SceneObject) -> None:
    quadrant, half = POSITIONS.index(o.position), IMAGE_SIZE_PX // 2
    x = (quadrant % 2 * half + half // 2 + o.offset_px[0]) * _SCALE
    y = (quadrant // 2 * half + half // 2 + o.offset_px[1]) * _SCALE
    r = _RADIUS_PX[o.size] * _SCALE
    # The outline is a larger black copy below the shape, so that its width is even at sharp corners.
    for radius, fill in ((r, (0, 0, 0)), (r - OUTLINE_PX * _SCALE, RGB[o.color])):
        match o.shape:
            case "circle":
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
            case "square":
                side = radius * 0.88
                draw.rectangle((x - side, y - side, x + side, y + side), fill)
            case "triangle":
                draw.polygon(_polygon(x, y + r * 0.2, [radius * 1.15] * 3), fill)
            case "star":
                draw.polygon(_polygon(x, y, [radius * 1.15, radius * 0.55] * 5), fill)
            case _:
                raise ValueError(f"unknown shape {o.shape!r}")


def _polygon(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """(x, y) of corners at the given radii around the centre, evenly spaced clockwise from twelve o'clock."""
    angles = [2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
