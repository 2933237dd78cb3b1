"""Whether the Hugging Face Hub can be reached. Its client tries each file for half a minute before it says no."""

import time
from collections.abc import Generator
from contextlib import contextmanager

_TRIES = 3
_WAIT_S = 1
_NO_CONNECTION = ("ConnectError", "ConnectionError", "ProxyError")
"""Names of the errors of HTTP libraries for a host that is unknown or refuses. A timeout is none: networks are slow."""


@contextmanager
def offline_if_unreachable() -> Generator[str | None]:
    """Lets the Hub's client use its cache alone where the Hub cannot be reached; yields the reason, or None.

    A host that is slow to answer counts as reachable. Nothing is asked where HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    reason = None if before else _unreachable()
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def _unreachable() -> str | None:
    """Why no connection to the Hub can be made, after some tries; None if it can, or if that is not certain."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S)
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        # The errors of its HTTP library, which differs between versions of the client.
        except Exception as error:  # noqa: BLE001
            if type(error).__name__ not in _NO_CONNECTION:
                return None
            first = str(error).strip().split("\n")[0]
            reason = f"{constants.ENDPOINT} cannot be reached ({first})"
        else:
            return None
    return reason
