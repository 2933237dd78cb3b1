"""An object store in memory that takes its time for each request, as real ones do."""

import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class SlowStore(MemoryFileSystem):
    """`slow://...`; all requests of all its instances are counted."""

    protocol = "slow"
    cachable = True
    store: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    pseudo_dirs: ClassVar[list[str]] = [""]
    latency_s: ClassVar[float] = 0.0
    requests: ClassVar[Counter[str]] = Counter()
    most_at_once: ClassVar[int] = 0
    _now: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("slow://", "memory://"))

    @classmethod
    def reset(cls) -> None:
        cls.requests.clear()
        cls.most_at_once = 0

    @classmethod
    @contextmanager
    def _request(cls, kind: str) -> Generator[None]:
        with cls._lock:
            cls.requests[kind] += 1
            cls._now += 1
            cls.most_at_once = max(cls.most_at_once, cls._now)
        try:
            time.sleep(cls.latency_s)
            yield
        finally:
            with cls._lock:
                cls._now -= 1

    def cat_file(self, path: str, start: Any = None, end: Any = None, **others: Any) -> bytes:
        with self._request("get"):
            return super().cat_file(path, start, end, **others)

    def info(self, path: str, **others: Any) -> Any:
        with self._request("head"):
            return super().info(path, **others)

    def ls(self, path: str, detail: bool = True, **others: Any) -> Any:
        with self._request("list"):
            return super().ls(path, detail, **others)

    def _open(self, path: str, *arguments: Any, **others: Any) -> Any:
        with self._request("open"):
            return super()._open(path, *arguments, **others)

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **others: Any) -> Any:
        with self._request("put"):
            return super().put_file(lpath, rpath, *arguments, **others)


fsspec.register_implementation("slow", SlowStore, clobber=True)
