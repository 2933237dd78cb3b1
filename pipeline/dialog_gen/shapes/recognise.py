"""Whether an image may be of the embedded world: of its size, and painted in its colours."""

import numpy as np
from PIL import Image

from dialog_gen.shapes.render import IMAGE_SIZE_PX, RGB

_NEAR = 40
"""Distance per channel from a colour, of a pixel of that colour: JPEG moves it, most near outlines."""
_LEAST_SHARE = 0.75
"""Of the pixels, in an image of the world; the others are on edges."""
_COLOURS = np.array([*RGB.values(), (0, 0, 0)], np.int16)


def is_drawn(image: Image.Image) -> bool:
    """Whether the image looks like a scene of the world `shapes`."""
    if image.size != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
        return False
    pixels = np.asarray(image.convert("RGB"), np.int16).reshape(-1, 1, 3)
    near = np.any((abs(pixels - _COLOURS) < _NEAR).all(axis=2), axis=1)
    return bool(near.mean() >= _LEAST_SHARE)
