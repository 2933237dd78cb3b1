"""The pictures of a page: thumbnails that fit into its size limit together."""

import base64
from collections.abc import Mapping
from itertools import islice
from typing import Any

from dialog_gen.dataset.record import stored_images
from dialog_gen.inspect.page.thumbnails import Size, fit, largest, thumbnail

_DATA_URI = "data:image/webp;base64,"
_IMAGES = 8
"""The most images of one row that are shown."""


class Pictures:
    """Collects the images of rows; `place` puts them into the rows' JSON values when the size of all is known."""

    def __init__(self) -> None:
        self._holders: list[tuple[dict[str, Any], list[bytes]]] = []

    def add(self, holder: dict[str, Any], row: Mapping[str, Any]) -> None:
        """Gives `holder` the key `images`, which is an empty list for now, and keeps thumbnails of the row's images."""
        made = (thumbnail(data) for data in stored_images(row)[:_IMAGES])
        holder["images"] = []
        self._holders.append((holder, [data for data in made if data]))

    @property
    def count(self) -> int:
        """The number of usable images."""
        return sum(len(images) for _, images in self._holders)

    def place(self, budget_bytes: int) -> Size | None:
        """Fills `images` with data URIs of the best size with which all together fit into the budget.

        Returns the size of the largest one, or None if even the smallest thumbnails do not fit.
        """
        flat = [data for _, images in self._holders for data in images]
        fitted = fit(flat, budget_bytes - len(flat) * len(f'"{_DATA_URI}",'))
        if fitted is None:
            return None
        thumbnails, size = fitted
        made = iter(thumbnails)
        for holder, images in self._holders:
            holder["images"] = [_DATA_URI + base64.b64encode(data).decode() for data in islice(made, len(images))]
        return largest(thumbnails, size)
