"""How the request for a URL can end: in exactly one of these classes, and `FetchError` for all but success.

`FetchError` is the error of a single request; errors that a user is shown are in `dialog_gen.core.errors`.
"""

import ssl
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead
from typing import Final, Literal, get_args

Outcome = Literal[
    "success",
    "http_403",
    "http_404",
    "http_410",
    "http_429",
    "http_4xx",
    "http_5xx",
    "http_other",
    "dns",
    "connection",
    "tls",
    "timeout",
    "truncated",
    "redirect_loop",
    "bad_url",
    "blocked_scheme",
    "blocked_address",
    "too_many_bytes",
    "too_many_pixels",
    "not_an_image",
    "decode_error",
    "opted_out",
    "duplicate_url",
    "internal_error",
]

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

MEANING: Final[dict[Outcome, str]] = {
    "success": "stored",
    "http_403": "forbidden",
    "http_404": "not found",
    "http_410": "gone",
    "http_429": "too many requests, also after waiting as asked",
    "http_4xx": "another refusal",
    "http_5xx": "the server failed",
    "http_other": "another status, or a redirect to nowhere",
    "dns": "the host has no address",
    "connection": "refused, reset, unreachable or not HTTP",
    "tls": "no valid certificate, or no common protocol",
    "timeout": "no or too slow an answer",
    "truncated": "fewer bytes than announced",
    "redirect_loop": "redirects in a circle, or too many",
    "bad_url": "not a URL, or one with a user name",
    "blocked_scheme": "not http or https, perhaps after a redirect",
    "blocked_address": "a private, loopback, link-local or reserved address, perhaps after a redirect",
    "too_many_bytes": "larger than the cap",
    "too_many_pixels": "more pixels than the cap, by its header",
    "not_an_image": "HTML, empty, encoded or of an unknown format",
    "decode_error": "an image by its header, but damaged",
    "opted_out": "its X-Robots-Tag forbids this use",
    "duplicate_url": "stands earlier in the list: not fetched again",
    "internal_error": "a fault of this program: see the log",
}

STILL_THERE: Final[frozenset[Outcome]] = frozenset(
    ("success", "opted_out", "too_many_bytes", "too_many_pixels", "decode_error")
)
"""Outcomes of URLs where the server still has an image, whether it could be kept or not."""

FINAL: Final[frozenset[Outcome]] = frozenset(
    ("success", "duplicate_url", "opted_out", "bad_url", "blocked_scheme", "blocked_address")
)
"""Outcomes after which a URL is not requested again: that would be wrong or in vain. `--retry-failed` skips them."""

_TRANSIENT: Final[frozenset[Outcome]] = frozenset(("http_429", "http_5xx", "connection", "timeout", "truncated"))


class FetchError(Exception):
    """A request that gave no usable answer: the class of its outcome, and details."""

    def __init__(
        self,
        outcome: Outcome,
        detail: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        transient: bool | None = None,
    ) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome: Outcome = outcome
        self.detail = detail
        self.status = status
        """The HTTP status, where there was one."""
        self.retry_after_s = retry_after_s
        """How long the server asks to wait."""
        self.transient = outcome in _TRANSIENT if transient is None else transient
        """Whether the same request may succeed a little later."""


@contextmanager
def fetch_errors() -> Generator[None, None, None]:
    """Turns the errors of sockets, TLS and HTTP into FetchError."""
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", str(error) or "timed out") from None
    except ssl.SSLError as error:
        raise FetchError("tls", str(error)) from None
    except IncompleteRead as error:
        raise FetchError("truncated", str(error)) from None
    except (OSError, HTTPException) as error:
        raise FetchError("connection", f"{type(error).__name__}: {error}") from None
