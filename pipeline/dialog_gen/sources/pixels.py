"""The number of pixels that a model gets of an image: more pixels are more tokens."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LARGEST_PIXELS = 1 << 30
"""The pixels of the largest image that any part of a run makes."""


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Images outside these limits are made smaller or larger, and keep their proportions."""

    least: int | None = None
    most: int | None = None

    def processor_kwargs(self) -> dict[str, int]:
        """The limits as settings of a processor that knows them."""
        named = {"min_pixels": self.least, "max_pixels": self.most}
        return {name: value for name, value in named.items() if value is not None}

    def fit(self, image: "Image.Image") -> "Image.Image":
        """The image, or a copy with as many pixels as the nearest limit allows; no side becomes less than one pixel."""
        pixels = image.width * image.height
        if self.most is not None and pixels > self.most:
            scale, rounded = math.sqrt(self.most / pixels), math.floor
        elif self.least is not None and pixels < self.least:
            scale, rounded = math.sqrt(self.least / pixels), math.ceil
        else:
            return image
        from PIL import Image

        size = max(1, rounded(image.width * scale)), max(1, rounded(image.height * scale))
        return image.resize(size, Image.Resampling.BICUBIC)


UNLIMITED = PixelLimits()
