"""The error of a single request; what a user is shown is in `dialog_gen.core.errors`."""

import ssl
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead
from typing import Final

from dialog_gen.download.outcomes import Outcome

_TRANSIENT: Final = frozenset(("http_429", "http_5xx", "connection", "timeout", "truncated"))


class FetchError(Exception):
    """A request that gave no usable answer: its class, and what is known beyond that."""

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
        """Whether the same request may well succeed a little later."""


@contextmanager
def classed() -> Generator[None, None, None]:
    """Turns what the network raises into FetchError."""
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
