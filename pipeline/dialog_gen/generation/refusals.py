"""Ends a run whose first images are all refused for one and the same reason: its settings or its input are wrong."""

from dialog_gen.core.errors import FailedCheckError
from dialog_gen.executors.base import RowDone

STOP_AFTER = 200
"""The number of images."""


class Refusals:
    """Counts refused images until one of them is accepted, or is refused for another reason than the first one."""

    def __init__(self, *, keep_going: bool) -> None:
        self.settled = keep_going
        """Whether the run is not ended any more."""
        self._count = 0
        self._first: tuple[str, str] | None = None

    def add(self, row: RowDone) -> None:
        """Counts the row of an image. Raises FailedCheckError if it completes the first `STOP_AFTER` images."""
        if self.settled:
            return
        kind = (row.status, row.reason)
        self._first = self._first or kind
        if kind[0] == "accepted" or kind != self._first:
            self.settled = True
            return
        self._count += 1
        if self._count >= STOP_AFTER:
            status, reason = kind
            said = f" ({row.example!r})" if row.example else ""
            raise FailedCheckError(
                f"the first {self._count} images were all {status}: {reason}, such as {row.image_id!r}{said}. "
                "Finished shards are kept. Check the model, the protocol and the images, "
                "or run with --keep-going to refuse the rest as well."
            )
