"""Fetches an image that was left out of a dataset, and restores the exact bytes with which the dataset was made."""

import hashlib
from concurrent.futures import Future
from io import BytesIO
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, Literal, cast

from img2dataset.downloader import is_disallowed

from dialog_gen.download.http import FetchPolicy, open_url, with_retries
from dialog_gen.download.img2dataset.resize import check_header, resizer
from dialog_gen.download.outcomes import FINAL, FetchError, Outcome

RefetchOutcome = Literal["present", "restored", "no_url", "changed", "encoded_differently"] | Outcome
Fetched = tuple[bytes | None, str]
"""The bytes of an image, or None, and a `RefetchOutcome`."""

MEANING: Final[dict[RefetchOutcome, str]] = {
    "present": "was already in the dataset",
    "restored": "fetched, and exactly the same as before",
    "no_url": "its URL is unknown",
    "changed": "another image is there now",
    "encoded_differently": "the same image is there, but this version of img2dataset stores it in other bytes",
}
"""The meaning of outcomes that `dialog_gen.download.outcomes.MEANING` does not have."""

SETTLED: Final[frozenset[str]] = FINAL | MEANING.keys()
"""Outcomes after which another try would be wrong or useless."""

# The same opt-out rules as in a download with img2dataset.
_DIRECTIVES: Final = {"noai", "noimageai", "noindex", "noimageindex"}
_ROBOTS_TOKEN: Final = "dialog-gen"  # noqa: S105 - a program's name


class Refetcher:
    """Restores images in daemon threads, so that the process can end without waiting for them.

    The standard library's thread pool would wait: after a Ctrl-C, slow servers would delay the end of the process.
    """

    def __init__(self, policy: FetchPolicy, threads: int) -> None:
        self._policy = policy
        self._resizer = resizer()
        self._one_at_a_time = Lock()
        self._tasks = SimpleQueue[tuple[Future[Fetched], dict[str, Any]]]()
        self._closed = False
        for _ in range(threads):
            Thread(target=self._work, name="fetch", daemon=True).start()

    def submit(self, row: dict[str, Any]) -> Future[Fetched]:
        """Queues a row. The result of the future is that of `restore`."""
        future = Future[Fetched]()
        self._tasks.put((future, row))
        return future

    def close(self) -> None:
        """Drops all unfinished work without waiting for it."""
        self._closed = True
        self._tasks.put((Future(), {}))
        # Never released, so that no image is resized any more: resizing turns stderr off, and messages would be lost.
        self._one_at_a_time.acquire()

    def may_change(self, outcome: str) -> bool:
        """Whether another try may give another outcome."""
        return outcome not in SETTLED or (outcome == "blocked_address" and self._policy.allow_loopback)

    def restore(self, row: dict[str, Any]) -> tuple[bytes | None, RefetchOutcome]:
        """Fetches the row's `url`; returns bytes whose hash is the row's `image_sha256`, or None, and the outcome."""
        if not row["url"]:
            return None, "no_url"
        try:
            data = with_retries(self._policy, lambda: self._fetch(row["url"]))
            check_header(data)
        except FetchError as error:
            return None, error.outcome
        if _sha256(data) == row["image_sha256"]:
            return data, "restored"
        known = row["source_sha256"]
        if known is not None and _sha256(data) != known:
            return None, "changed"
        stored = self._as_stored(data)
        if stored is not None and _sha256(stored) == row["image_sha256"]:
            return stored, "restored"
        return None, "changed" if known is None else "encoded_differently"

    def _work(self) -> None:
        while True:
            future, row = self._tasks.get()
            if self._closed:
                self._tasks.put((future, row))  # wakes up the next thread, which then also ends
                return
            try:
                future.set_result(self.restore(row))
            except BaseException as error:  # noqa: BLE001 - raised by `Future.result`
                future.set_exception(error)

    def _fetch(self, url: str) -> bytes:
        with open_url(url, self._policy) as response:
            if is_disallowed(response.headers, _ROBOTS_TOKEN, _DIRECTIVES):
                raise FetchError("opted_out", "X-Robots-Tag")
            return response.read()

    def _as_stored(self, data: bytes) -> bytes | None:
        # One image at a time, because the resizer turns the process's stdout and stderr off while it works.
        with self._one_at_a_time:
            return cast("bytes | None", self._resizer(BytesIO(data))[0])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
