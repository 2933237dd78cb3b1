"""The memory that the images of a run may take: from the source, through the engine, into a written row group."""

import asyncio

BUDGET_BYTES = 1 << 30
"""For encoded and decoded images together. One thread decodes about 100 megapixels a second, which is 400 MB: this is
more than the images of two seconds, so engines are rarely kept waiting."""
PIXEL_BYTES = 4
"""Pillow's RGB images have four bytes per pixel."""
DECODING_PIXEL_BYTES = 12
"""In addition while an image is decoded: its pixels as stored, with an alpha channel on white, and not yet turned."""


class Memory:
    """A budget in bytes. Takers wait until others give back what they took; not thread-safe, and for one taker."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._changed = asyncio.Event()

    def take(self, size: int) -> bool:
        """Takes `size` bytes if they are available. If nothing else is in use, even more than the budget."""
        if self.used and self.used + size > self.limit:
            self._changed.clear()
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Gives back bytes, perhaps 0; wakes the taker that waits."""
        self.used -= size
        self._changed.set()

    async def changed(self) -> None:
        """Returns at the next `give_back` after a `take` that failed."""
        await self._changed.wait()
        self._changed.clear()
