"""The first contact with a server: one small request with an image, as the run will send them, and one without.

It finds a wrong address, key or model before any image is read. If the server counts tokens, it also shows whether the
server gives images to the model at all: some drop them silently.
"""

import asyncio
import difflib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.core.visible import visible
from dialog_gen.engines.base import EngineOptions, Request
from dialog_gen.engines.openai.answers import ask, model_names, tokens_of
from dialog_gen.engines.openai.budget import Budget, Tokens
from dialog_gen.engines.openai.faults import Fault
from dialog_gen.engines.openai.messages import chat_body
from dialog_gen.engines.openai.pool import Endpoint, backoff_s
from dialog_gen.protocols.protocol import Sampling, conversation
from dialog_gen.protocols.schema import pairs_schema

T = TypeVar("T")

_QUESTION = "What colour is the image?"
_SIDE = 224
_MAX_TOKENS = 16
_TRIES = 5
_FIRST_PAUSE_S = 0.2
_PATIENCE_S = 120.0
_NAMES_SHOWN = 8


class Contact:
    """Asks servers small questions."""

    def __init__(
        self, model: str, sampling: Sampling, options: EngineOptions, key: str | None, budget: Budget, timeout_s: float
    ) -> None:
        self._model, self._options, self._key, self._budget = model, options, key, budget
        self._sampling = sampling.model_copy(update={"max_tokens": min(_MAX_TOKENS, sampling.max_tokens)})
        # A server that knows no schemas should say so now.
        self._schema = pairs_schema(1) if options.structured else None
        self._patience_s, self._timeout_s = min(_PATIENCE_S, options.timeout_s), timeout_s

    async def check(self, endpoint: Endpoint) -> None:
        """Raises UsageError if the server cannot be used, and Fault of kind "down" if it cannot be reached."""
        names = await self._names(endpoint)
        try:
            with_image = await self._insisting(lambda: self._tokens(endpoint, with_image=True))
        except Fault as fault:
            if fault.kind == "down":
                raise
            raise self._problem(endpoint, names, fault) from None
        try:
            without = await self._insisting(lambda: self._tokens(endpoint, with_image=False))
        except Fault:
            return  # a server may refuse a request without an image
        if with_image is not None and without is not None and with_image.input <= without.input:
            raise UsageError(
                f"--endpoint {endpoint.url}: the server drops images: it counts {with_image.input} prompt tokens with "
                f"an image and {without.input} without. Serve {visible(self._model)} with its image tower, or choose "
                "another model."
            )

    async def answers(self, endpoint: Endpoint) -> bool:
        """Whether the server answers a small request now."""
        try:
            await self._tokens(endpoint, with_image=True)
        except Fault:
            return False
        return True

    async def _names(self, endpoint: Endpoint) -> list[str]:
        """The names of the server's models; empty if it does not tell: not all clouds do."""
        try:
            return await self._insisting(lambda: model_names(endpoint, self._key, self._timeout_s))
        except Fault as fault:
            if fault.kind == "down":
                raise
            if fault.status == 401:
                raise self._problem(endpoint, [], fault) from None
            return []

    async def _tokens(self, endpoint: Endpoint, *, with_image: bool) -> Tokens | None:
        image = Image.new("RGB", (_SIDE, _SIDE), "gray")
        request = Request(
            messages=conversation(_QUESTION), images=(image,), image_sha256="", seed=0, schema=self._schema
        )
        body = chat_body(request, self._model, self._sampling, self._options, limit_name=endpoint.limit_name)
        if not with_image:
            del body["messages"][0]["content"][0]
        completion = await ask(endpoint, body, self._key, self._timeout_s)
        used = tokens_of(completion)
        self._budget.count(used or self._budget.estimated(request, ""), estimated=used is None)
        return used

    async def _insisting(self, call: Callable[[], Awaitable[T]]) -> T:
        """Tries again where that may help, for a short time."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                return await call()
            except Fault as fault:
                tries += 1
                again = fault.kind in ("busy", "slow") or (fault.kind == "broken" and tries < _TRIES)
                if not again or time.monotonic() - began > self._patience_s:
                    raise
                pause = backoff_s(tries, _FIRST_PAUSE_S) if fault.retry_after_s is None else fault.retry_after_s
            await asyncio.sleep(min(pause, self._patience_s))

    def _problem(self, endpoint: Endpoint, names: list[str], fault: Fault) -> UsageError:
        url, model = f"--endpoint {endpoint.url}", visible(self._model)
        if fault.status in (401, 403):
            what = "refuses the key in" if self._key else "wants a key: put it into"
            return UsageError(f"{url} {what} the environment variable {self._options.api_key_env} ({fault}).")
        if fault.status in (402, 429):
            return UsageError(f"{url} does not work for this account: {fault}.")
        if fault.status in (404, 400) and names and self._model not in names:
            nearest = difflib.get_close_matches(self._model, names, n=1)
            guess = f"; did you mean {visible(nearest[0])!r}?" if nearest else "."
            shown = ", ".join(visible(name) for name in names[:_NAMES_SHOWN])
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            return UsageError(f"--model {model}: {url} does not have it{guess} It has: {shown}{more}.")
        if fault.status is not None and 300 <= fault.status < 400:
            return UsageError(f"{url} answers {fault}: redirects are not followed; give the address of the server.")
        if fault.kind == "refused":
            return UsageError(f"{url} refuses a small request with an image to the model {model}: {fault}.")
        if fault.kind in ("busy", "slow"):
            return UsageError(f"{url} did not answer within {self._patience_s:g} s: {fault}. Try again later.")
        return UsageError(
            f"{url} is no server with OpenAI's API, or has no model {model}: {fault}. Most such addresses end in /v1."
        )
