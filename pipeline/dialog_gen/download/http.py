"""Safe HTTP requests: neither a URL nor a server can turn them against this machine. All downloads use this module.

The scheme and every address of the host are checked before anything is sent, and again at each redirect
(`dialog_gen.download.connections`). The number of bytes and redirects, each wait and the whole request are limited.
Bodies are returned as they were sent. Nothing is decompressed, so compression bombs do no harm.

Proxy settings of the environment are ignored: a proxy resolves names itself, so its connections cannot be checked.
"""

import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from math import inf
from typing import Final, TypeVar
from urllib.parse import urljoin

from dialog_gen.core.version import __version__
from dialog_gen.download.connections import Target, connect
from dialog_gen.download.outcomes import FetchError, Outcome, fetch_errors

USER_AGENT: Final = f"Mozilla/5.0 (compatible; dialog-gen/{__version__})"

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_OWN_CLASS: Final[dict[int, Outcome]] = {403: "http_403", 404: "http_404", 410: "http_410", 429: "http_429"}
_CHUNK_BYTES: Final = 1 << 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """The limits of a request."""

    allow_loopback: bool = False
    """Whether requests may go to servers on this machine."""
    max_bytes: int | None = 32 << 20
    """The largest body in bytes; None for no limit."""
    timeout_s: float = 10
    """The longest single wait: for the connection, or between two pieces of an answer."""
    deadline_s: float | None = 30
    """The longest time for one try, including redirects and the whole body; None for no limit."""
    max_redirects: int = 10
    retries: int = 2
    """Further tries after a transient failure: 429, 5xx, timeouts, broken connections."""
    backoff_s: float = 1
    """The pause before the second try. Each further one is twice as long; all are randomly shortened by up to half."""
    max_backoff_s: float = 30
    """The longest pause. If a server asks for a longer one (Retry-After), there is no further try."""

    @property
    def longest_s(self) -> float:
        """The longest time in seconds that a URL can take, with all tries and pauses."""
        tries_s = inf if self.deadline_s is None else (self.retries + 1) * self.deadline_s
        return tries_s + self.retries * self.max_backoff_s


class Response:
    """An answer whose body has not been read yet."""

    def __init__(self, http_response: HTTPResponse, url: str, max_bytes: int | None) -> None:
        self.status = http_response.status
        self.headers = http_response.headers
        self.url = url
        """The last URL, after redirects."""
        self.length = http_response.length
        """Announced number of bytes of the body; None if it was not announced."""
        self._response = http_response
        self._max_bytes = max_bytes
        self._read = 0
        if max_bytes is not None and self.length is not None and self.length > max_bytes:
            raise FetchError("too_many_bytes", f"{self.length} bytes announced, at most {max_bytes} allowed")

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes of the body: fewer only at its end, b"" after it. Without `size`, the rest of the body.

        Raises FetchError: `too_many_bytes`, `truncated`, `timeout`, `connection` or `tls`.
        """
        if size < 0:
            if self.length is not None:
                return self.read(self.length - self._read)
            return b"".join(iter(lambda: self.read(_CHUNK_BYTES), b""))
        with fetch_errors():
            data = self._response.read(size)
        self._read += len(data)
        if self._max_bytes is not None and self._read > self._max_bytes:
            raise FetchError("too_many_bytes", f"more than {self._max_bytes} bytes")
        if len(data) < size and self.length is not None and self._read < self.length:
            raise FetchError("truncated", f"{self._read} of {self.length} bytes")
        return data


@contextmanager
def open_url(
    url: str, policy: FetchPolicy, headers: Mapping[str, str] | None = None
) -> Generator[Response, None, None]:
    """Makes one GET request and follows redirects. The connection is closed at the end of the block.

    Raises FetchError unless there is an answer with a status of 200 to 299. There is no second try; use `with_retries`
    for that.
    """
    deadline = None if policy.deadline_s is None else time.monotonic() + policy.deadline_s
    visited: set[str] = set()
    while url not in visited and len(visited) <= policy.max_redirects:
        visited.add(url)
        target = Target.of(url)
        sock = connect(target, allow_loopback=policy.allow_loopback, timeout_s=policy.timeout_s, deadline=deadline)
        with closing(sock), closing(HTTPResponse(sock, method="GET")) as answer:
            with fetch_errors():
                sock.sendall(_request(target, headers or {}))
                answer.begin()
            location = answer.headers["Location"]
            if answer.status not in _REDIRECTS or not location:
                _check_status(answer)
                yield Response(answer, url, policy.max_bytes)
                return
        url = _redirected(url, location)
    raise FetchError("redirect_loop", f"{len(visited)} redirects, the last one to {url}")


def with_retries(policy: FetchPolicy, attempt: Callable[[], _T]) -> _T:
    """The result of `attempt`, which is called again after a transient FetchError, with growing pauses.

    Raises the FetchError of the last try.
    """
    for number in range(policy.retries + 1):
        try:
            return attempt()
        except FetchError as error:
            asked_s = error.retry_after_s or 0
            if number == policy.retries or not error.transient or asked_s > policy.max_backoff_s:
                raise
            # Pauses are random, so that requests that failed at the same time are not repeated at the same time.
            pause_s = min(policy.backoff_s * 2**number, policy.max_backoff_s) * random.uniform(0.5, 1)
            time.sleep(max(pause_s, asked_s))
    raise AssertionError("unreachable")


def fetch_bytes(url: str, policy: FetchPolicy) -> bytes:
    """The whole body of the answer for a URL, with retries. Raises FetchError."""

    def attempt() -> bytes:
        with open_url(url, policy) as response:
            return response.read()

    return with_retries(policy, attempt)


def _request(target: Target, headers: Mapping[str, str]) -> bytes:
    own = {"Host": target.authority, "User-Agent": USER_AGENT, "Accept": "*/*"}
    fixed = {"Accept-Encoding": "identity", "Connection": "close"}
    lines = [
        f"GET {target.path} HTTP/1.1",
        *(f"{key}: {value}" for key, value in (own | dict(headers) | fixed).items()),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError(f"a line break within a header: {headers}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _check_status(answer: HTTPResponse) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    family: Outcome = "http_4xx" if status // 100 == 4 else "http_5xx" if status // 100 == 5 else "http_other"
    raise FetchError(
        _OWN_CLASS.get(status, family),
        f"{status} {answer.reason}",
        status=status,
        retry_after_s=_seconds(answer.headers["Retry-After"]),
    )


def _seconds(retry_after: str | None) -> float | None:
    """The value of a Retry-After header (seconds or a date) in seconds from now; None if it is neither."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with suppress(ValueError):
        date = parsedate_to_datetime(retry_after)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


def _redirected(url: str, location: str) -> str:
    with suppress(UnicodeError):
        # Headers are decoded as Latin-1, but servers that do not quote a URL send UTF-8.
        location = location.encode("latin-1").decode()
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchError("bad_url", f"redirect to {location[:200]!r}") from None
