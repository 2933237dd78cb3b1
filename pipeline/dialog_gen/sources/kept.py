"""Readers that are kept open between two shards of one part, so that the next shard continues where the last ended."""

import atexit
import threading
from typing import Final, Generic, Protocol, TypeVar

_READERS_KEPT: Final = 4


class _Closeable(Protocol):
    def close(self) -> object: ...


_Reader = TypeVar("_Reader", bound=_Closeable)


class KeptReaders(Generic[_Reader]):
    """At most four open readers of a process, by the object that they belong to. Thread-safe.

    A reader has one user at a time: whoever takes one is its owner until it is kept again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[object, _Reader]] = []
        atexit.register(self.close)

    def take(self, owner: object) -> _Reader | None:
        """The reader of `owner`, compared by identity; None if none is kept."""
        with self._lock:
            for index, (other, reader) in enumerate(self._kept):
                if other is owner:
                    del self._kept[index]
                    return reader
        return None

    def keep(self, owner: object, reader: _Reader) -> None:
        """Keeps a reader; closes the oldest if there are too many."""
        with self._lock:
            self._kept.append((owner, reader))
            old = self._kept[:-_READERS_KEPT]
            del self._kept[:-_READERS_KEPT]
        for _, closed in old:
            closed.close()

    def close(self) -> None:
        """Closes all readers."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, reader in kept:
            reader.close()
