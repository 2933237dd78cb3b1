"""What went wrong with a request, and what follows from it.

busy      429, 503, 529, ...      the server is overloaded: later, and fewer requests at a time
down      no connection, 502, 504 the server cannot be reached: later, or another server
slow      no answer in time       later, and fewer requests at a time
broken    other 5xx, a connection that breaks, a body that is no answer: again, but not for ever
refused   400, 413, 422, ...      the server will not answer this request
fatal     3xx, 401, 402, 403, 404, a used-up quota: no request will be answered

The client library's own retries are switched off (`max_retries=0`): it retries one request at a time, up to a fixed
number, and knows nothing of other requests and servers.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from dialog_gen.core.visible import visible

if TYPE_CHECKING:
    import openai

Kind = Literal["busy", "down", "slow", "broken", "refused", "fatal"]

_BUSY = (408, 409, 425, 429, 503, 529)
_DOWN = (502, 504, 520, 521, 522, 523, 524)
_FATAL = (401, 402, 403, 404)
_NO_SUCH_CALL = (405, 501)
_SHOWN = 300


class Fault(Exception):  # noqa: N818 - an outcome, which is handled
    """A request without an answer. Its text contains no key."""

    def __init__(self, kind: Kind, said: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(said)
        self.kind: Kind = kind
        self.status = status
        self.retry_after_s = retry_after_s


def fault_of(error: Exception, key: str | None) -> Fault:
    """The fault behind an error of the client library; `key` is removed from its text."""
    import openai

    if isinstance(error, Fault):
        return error
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        is_connect = "Connect" in type(error.__cause__).__name__
        return Fault("down", "no connection in time") if is_connect else Fault("slow", "no answer in time")
    if isinstance(error, openai.APIStatusError):
        return _fault_of_status(error, key)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    said = redacted(f"{type(cause).__name__}: {cause}".removesuffix(": "), key)
    # By name, since the HTTP library depends on the version of the client library.
    return Fault("down" if type(cause).__name__ in ("ConnectError", "ProxyError") else "broken", said)


def _fault_of_status(error: "openai.APIStatusError", key: str | None) -> Fault:
    status, headers = error.status_code, error.response.headers
    message = _message(error.body) or error.response.reason_phrase
    said = redacted(f"{status} {message}".strip(), key)
    if status in _FATAL or status in _NO_SUCH_CALL:
        return Fault("refused" if _is_moderation(status, error.body) else "fatal", said, status=status)
    if status < 400:
        where = redacted(headers.get("location", "another address"), key)
        return Fault("fatal", f"{status}, redirected to {where}", status=status)
    if status == 429 and "insufficient_quota" in str(error.body):
        return Fault("fatal", said, status=status)
    retry_after_s = retry_after(headers)
    if status in _BUSY:
        return Fault("busy", said, status=status, retry_after_s=retry_after_s)
    if status in _DOWN:
        return Fault("down", said, status=status, retry_after_s=retry_after_s)
    kind: Kind = "broken" if status >= 500 else "refused"
    return Fault(kind, said, status=status, retry_after_s=retry_after_s)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server wants us to wait: `Retry-After` in seconds or as a date, or `Retry-After-Ms`."""
    milliseconds, said = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return _at_least_0(float(milliseconds) / 1000)
        return None if said is None else _at_least_0(float(said))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said or "")
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return _at_least_0((when - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def redacted(text: str, key: str | None) -> str:
    """The text as one short line, without the key and without passwords in addresses."""
    if key:
        text = text.replace(key, "***")
    return visible(re.sub(r"(?<=//)[^/@\s]+@", "***@", text).strip()[:_SHOWN])


def _at_least_0(seconds: float) -> float | None:
    return max(0.0, seconds) if seconds == seconds else None  # NaN is no time


def _message(body: Any) -> str:
    """The server's own words, wherever it puts them."""
    if isinstance(body, dict):
        for name in ("error", "message", "detail"):
            if found := body.get(name):
                return _message(found)
        return ""
    return body if isinstance(body, str) and not body.lstrip().startswith("<") else ""


def _is_moderation(status: int, body: Any) -> bool:
    """Whether a 403 is about what the request contains, as some clouds have it."""
    return status == 403 and bool(re.search(r"moderation|flagged", str(body), re.IGNORECASE))
