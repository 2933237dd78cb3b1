"""A picture of small images of a dataset, for its card."""

from io import BytesIO

from PIL import Image, ImageOps

from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import stored_images
from dialog_gen.dataset.rows import random_rows
from dialog_gen.sources.images import UnreadableImage, decode_image

THUMBNAILS = "thumbnails.webp"
"""The picture's path in a repository."""
_COLUMNS, _ROWS = 8, 3
_SIDE, _GAP = 128, 4
_QUALITY = 80


def thumbnail_grid(folder: DatasetFolder) -> bytes | None:
    """A WebP of up to 24 images, each cut to a square of 128 pixels; None if the dataset has none that can be read.

    The images are drawn at random; the same dataset gives the same ones.
    """
    squares = list[Image.Image]()
    for found in random_rows(folder, _COLUMNS * _ROWS):
        for data in stored_images(found.row)[:1]:
            try:
                squares.append(ImageOps.fit(decode_image(data), (_SIDE, _SIDE)))
            except UnreadableImage:
                continue
    if not squares:
        return None
    columns, step = min(_COLUMNS, len(squares)), _SIDE + _GAP
    grid = Image.new("RGB", (columns * step - _GAP, -(-len(squares) // columns) * step - _GAP), "white")
    for place, square in enumerate(squares):
        grid.paste(square, (place % columns * step, place // columns * step))
    buffer = BytesIO()
    grid.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()
