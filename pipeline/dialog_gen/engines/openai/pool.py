"""The servers of an engine: each request goes to the one with the fewest requests among those that can take it."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dialog_gen.engines.openai.concurrency import Concurrency
from dialog_gen.engines.openai.faults import Fault

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LONGEST_RETRY_AFTER_S = 300.0
# Shorter pauses are not worth a message.
_SHORT_S = 5.0
# A server that breaks this many requests in a row is taken for down.
_BROKEN_IN_ROW = 8


def backoff_s(failures: int, first: float = _FIRST_PAUSE_S, longest: float = _LONGEST_PAUSE_S) -> float:
    """The time before the next try: at random up to a limit that doubles with each failure ("full jitter")."""
    return random.uniform(0, min(longest, first * 2 ** min(failures, 30)))


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server."""

    url: str
    client: Any
    concurrency: Concurrency
    in_flight: int = 0
    sent: int = 0
    failures: int = 0
    """Times in a row that it was found down."""
    broken: int = 0
    """Requests in a row that broke."""
    paused_until: float = 0.0
    answered_at: float = 0.0
    down_at: float = 0.0
    said: str = ""
    """What was wrong the last time."""
    limit_name: str = field(default="max_tokens")
    """How it wants the limit of an answer to be called."""

    def can_take(self, now: float) -> bool:
        """Whether the server can take a request. After a failure, it gets one at a time until it answers."""
        return now >= self.paused_until and self.in_flight < (1 if self.failures else self.concurrency.limit)


class Pool:
    """Hands out the servers. Used from one event loop."""

    def __init__(self, endpoints: Sequence[Endpoint], *, most: int, patience_s: float) -> None:
        """`most`: requests at a time to all servers together; `patience_s` bounds pauses."""
        self.endpoints = list(endpoints)
        self._most, self._in_flight = most, 0
        self._longest_pause_s = min(_LONGEST_PAUSE_S, patience_s / 8)
        self._longest_retry_after_s = min(_LONGEST_RETRY_AFTER_S, patience_s / 4)
        self._waiting = deque[asyncio.Future[Endpoint]]()
        self._timer: asyncio.TimerHandle | None = None
        self.on_waiting: Callable[[str], None] = lambda text: None
        self._is_waiting = False

    async def take(self) -> Endpoint:
        """A server for one request; `answered`, `failed` or `returned` gives it back. First come, first served."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.returned(future.result())
            raise

    def answered(self, endpoint: Endpoint, began: float) -> None:
        """The server answered a request that was sent at `began`, also if the answer is that it refuses it."""
        endpoint.answered_at = time.monotonic()
        endpoint.concurrency.answered(began=began, now=endpoint.answered_at, in_flight=endpoint.in_flight)
        endpoint.broken = 0
        # Answers to requests that were sent before the server went down may come later.
        is_up = began >= endpoint.down_at
        if is_up:
            endpoint.failures = 0
        if self._is_waiting and is_up:
            self._is_waiting = False
            self.on_waiting("")
        self.returned(endpoint)

    def failed(self, endpoint: Endpoint, began: float, fault: Fault) -> None:
        """The server did not answer."""
        now = time.monotonic()
        endpoint.said = str(fault)
        if fault.kind in ("busy", "slow"):
            endpoint.concurrency.overloaded(began=began, now=now)
        endpoint.broken += fault.kind == "broken"
        if fault.retry_after_s is not None:
            pause = min(self._longest_retry_after_s, fault.retry_after_s)
            endpoint.paused_until = max(endpoint.paused_until, now + pause)
        # Requests that were sent before the pause, or before the last answer, say nothing new.
        is_down = (fault.kind == "down" and began >= endpoint.answered_at) or endpoint.broken >= _BROKEN_IN_ROW
        if is_down and now >= endpoint.paused_until:
            endpoint.failures += 1
            endpoint.down_at = now
            endpoint.paused_until = (
                now + self._longest_pause_s * 0.01 + backoff_s(endpoint.failures, longest=self._longest_pause_s)
            )
        if not self._is_waiting and all(each.failures or each.paused_until > now + _SHORT_S for each in self.endpoints):
            self._is_waiting = True
            self.on_waiting(f"waiting for {', '.join(f'{each.url} ({each.said})' for each in self.endpoints)}")
        self.returned(endpoint)

    def returned(self, endpoint: Endpoint) -> None:
        """The request has ended, and says nothing about the server."""
        endpoint.in_flight -= 1
        self._in_flight -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        now = time.monotonic()
        while self._waiting and self._in_flight < self._most:
            if self._waiting[0].done():  # cancelled meanwhile
                self._waiting.popleft()
                continue
            able = [endpoint for endpoint in self.endpoints if endpoint.can_take(now)]
            if not able:
                self._wake_up(now)
                return
            chosen = min(able, key=lambda endpoint: (endpoint.in_flight, endpoint.sent))
            chosen.in_flight += 1
            chosen.sent += 1
            self._in_flight += 1
            self._waiting.popleft().set_result(chosen)

    def _wake_up(self, now: float) -> None:
        """Hands out again when the first pause ends."""
        ends = [endpoint.paused_until for endpoint in self.endpoints if endpoint.paused_until > now]
        if ends:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(min(ends) - now, self._hand_out)
