"""How the request for a URL can end: every URL of a list ends in exactly one of these classes."""

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
"""The server still has an image there, whether it could be kept or not."""

FINAL: Final[frozenset[Outcome]] = frozenset(
    ("success", "duplicate_url", "opted_out", "bad_url", "blocked_scheme", "blocked_address")
)
"""Asking again would be wrong or in vain: what `--retry-failed` leaves alone."""
