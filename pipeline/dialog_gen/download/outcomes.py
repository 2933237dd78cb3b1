"""The outcomes of a URL: each request ends in exactly one of these classes, and raises FetchError unless it succeeds.

`FetchError` is the error of a single request. Errors that users see are in `dialog_gen.core.errors`.
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
    "no_url",
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
    "http_429": "too many requests, even after the requested pause",
    "http_4xx": "another refusal",
    "http_5xx": "the server failed",
    "http_other": "another status, or a redirect to nowhere",
    "dns": "the host has no address",
    "connection": "refused, reset, unreachable or not HTTP",
    "tls": "no valid certificate, or no common protocol",
    "timeout": "no answer, or one that is too slow",
    "truncated": "fewer bytes than announced",
    "redirect_loop": "redirects in a circle, or too many",
    "no_url": "a row of the list that has no URL, or cannot be read",
    "bad_url": "not a URL, or one with a user name",
    "blocked_scheme": "not http or https, perhaps after a redirect",
    "blocked_address": "a private, loopback, link-local or reserved address, perhaps after a redirect",
    "too_many_bytes": "larger than the limit",
    "too_many_pixels": "more pixels than the limit, according to its header",
    "not_an_image": "HTML, empty, encoded or of an unknown format",
    "decode_error": "an image according to its header, but damaged",
    "opted_out": "its X-Robots-Tag forbids this use",
    "duplicate_url": "occurs earlier in the list: not fetched again",
    "internal_error": "an error of this program: see the log",
}

STILL_THERE: Final[frozenset[Outcome]] = frozenset(
    ("success", "opted_out", "too_many_bytes", "too_many_pixels", "decode_error")
)
"""Outcomes of URLs whose server still has an image, even if the image could not be stored."""

FINAL: Final[frozenset[Outcome]] = frozenset(
    ("success", "duplicate_url", "opted_out", "no_url", "bad_url", "blocked_scheme", "blocked_address")
)
"""Outcomes after which another request would be wrong or useless. `--retry-failed` skips these URLs."""

_TRANSIENT: Final[frozenset[Outcome]] = frozenset(("http_429", "http_5xx", "connection", "timeout", "truncated"))


class FetchError(Exception):
    """The failure of a single request, with the class of its outcome and details."""

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
        """The HTTP status, if there was an answer."""
        self.retry_after_s = retry_after_s
        """The pause that the server asks for."""
        self.transient = outcome in _TRANSIENT if transient is None else transient
        """Whether the same request may succeed later."""


@contextmanager
def fetch_errors() -> Generator[None, None, None]:
    """Converts errors of sockets, TLS and HTTP in the block to FetchError."""
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
