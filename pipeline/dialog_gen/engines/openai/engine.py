"""An engine whose model runs at servers with OpenAI's chat API."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import openai

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import (
    Answer,
    EngineDiedError,
    EngineOptions,
    RefusedRequestError,
    Request,
    ServerUse,
)
from dialog_gen.engines.openai.answers import answer_of, ask, tokens_of
from dialog_gen.engines.openai.budget import Budget
from dialog_gen.engines.openai.concurrency import Concurrency
from dialog_gen.engines.openai.contact import Contact
from dialog_gen.engines.openai.faults import Fault
from dialog_gen.engines.openai.messages import chat_body
from dialog_gen.engines.openai.pool import Endpoint, Pool, backoff_s
from dialog_gen.protocols.protocol import Sampling

_CONNECT_S = 10.0
# A server that answers nothing is given up shortly before the engine would be killed as one that hangs.
_PATIENCE = 0.8
# One request may take this part of the patience, but not longer than the library's own timeout.
_REQUEST = 0.25
_LONGEST_REQUEST_S = 600.0
# After this many tries that broke, a server that answers other requests will not answer this one.
_TRIES = 6


class OpenAIEngine:
    """One or more servers with the same model."""

    name = "openai"
    version = openai.__version__
    # Servers batch requests as they like.
    deterministic = False

    def __init__(self, model: str, sampling: Sampling, options: EngineOptions) -> None:
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._model, self._sampling, self._options = model, sampling, options
        self._key = _key(options.api_key_env)
        self._patience_s = _PATIENCE * options.timeout_s
        self._request_s = min(_LONGEST_REQUEST_S, _REQUEST * self._patience_s)
        self._budget = Budget(options, sampling.max_tokens)
        self._contact = Contact(model, sampling, options, self._key, self._budget, self._request_s)
        endpoints = [
            Endpoint(url=url, client=None, concurrency=Concurrency(options.max_in_flight))
            for url in dict.fromkeys(map(_with_path, options.endpoints))
        ]
        self._pool = Pool(endpoints, most=options.max_in_flight, patience_s=self._patience_s)
        asyncio.run(self._first_contact())
        # Connections belong to an event loop: the run has another one.
        self._connect()
        self._last_answer = time.monotonic()

    @property
    def on_waiting(self) -> Callable[[str], None]:
        """As `ServedEngine.on_waiting`."""
        return self._pool.on_waiting

    @on_waiting.setter
    def on_waiting(self, call: Callable[[str], None]) -> None:
        self._pool.on_waiting = call

    def use(self) -> ServerUse:
        """As `ServedEngine.use`."""
        return self._budget.use()

    async def answer(self, request: Request) -> Answer:
        """The model's answer.

        Raises RefusedRequestError if the servers refuse the request, or break on it while they answer others;
        EngineDiedError if they answer nothing for too long or will not answer any more, and BudgetSpentError.
        """
        reserved = await self._budget.reserve(request)
        began = time.monotonic()
        used, estimated = None, False
        failures = broken = 0
        try:
            content: dict[str, Any] | None = None
            while True:
                endpoint = await self._pool.take()
                if content is None:
                    content = await self._body(request, endpoint)
                sent = time.monotonic()
                try:
                    left_s = min(self._request_s, max(1.0, self._patience_s - self._waited(began)))
                    completion = await ask(endpoint, _named(content, endpoint), self._key, left_s)
                except Fault as fault:
                    if fault.kind == "refused":
                        self._answered(endpoint, sent)
                        raise RefusedRequestError("engine_refused", str(fault)) from None
                    self._pool.failed(endpoint, sent, fault)
                    failures += 1
                    broken += fault.kind in ("broken", "slow")
                    if fault.kind in ("broken", "slow") and fault.status is None:
                        self._budget.count_lost(reserved)
                    self._give_up(fault, began)
                    if broken >= _TRIES and await self._contact.answers(endpoint):
                        raise RefusedRequestError("engine_error", f"{broken} tries: {fault}") from None
                except BaseException:
                    self._pool.returned(endpoint)
                    raise
                else:
                    self._answered(endpoint, sent)
                    used = tokens_of(completion)
                    estimated = used is None
                    text = completion["choices"][0]["message"].get("content") or ""
                    used = used or self._budget.estimated(request, text)
                    return answer_of(completion, used)
                self._budget.count_retry()
                await asyncio.sleep(backoff_s(failures))
        finally:
            self._budget.settle(reserved, used, estimated=estimated)

    async def close(self) -> None:
        """Closes the connections."""
        for endpoint in self._pool.endpoints:
            await endpoint.client.close()

    def _answered(self, endpoint: Endpoint, sent: float) -> None:
        self._last_answer = time.monotonic()
        self._pool.answered(endpoint, sent)

    def _give_up(self, fault: Fault, began: float) -> None:
        if fault.kind == "fatal":
            raise EngineDiedError(f"the server does not answer any more: {fault}")
        if (waited := self._waited(began)) >= self._patience_s:
            raise EngineDiedError(
                f"no server answered for {waited:.0f} s (--engine-timeout {self._options.timeout_s:g}); "
                f"the last time: {fault}"
            )

    def _waited(self, began: float) -> float:
        """How long no server has answered anything while a request of time `began` waited."""
        return time.monotonic() - max(began, self._last_answer)

    async def _body(self, request: Request, endpoint: Endpoint) -> dict[str, Any]:
        return await asyncio.to_thread(
            chat_body, request, self._model, self._sampling, self._options, limit_name=endpoint.limit_name
        )

    async def _first_contact(self) -> None:
        self._connect()
        try:
            for endpoint in self._pool.endpoints:
                try:
                    await self._contact.check(endpoint)
                except Fault as fault:
                    # Another server may do the work, and this one may come back.
                    endpoint.failures, endpoint.said = 1, str(fault)
        finally:
            await self.close()
        if all(endpoint.failures for endpoint in self._pool.endpoints):
            said = ", ".join(f"{endpoint.url} ({endpoint.said})" for endpoint in self._pool.endpoints)
            raise UsageError(f"no server answers at --endpoint {said}: start it, or correct the address.")

    def _connect(self) -> None:
        for endpoint in self._pool.endpoints:
            endpoint.client = _client(endpoint.url, self._key, self._request_s)


def _client(url: str, key: str | None, timeout_s: float) -> openai.AsyncOpenAI:
    # As many connections as there are requests; their number is limited elsewhere.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=None)
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=key or "none",  # servers without a key ignore it; the library wants one
        max_retries=0,
        timeout=openai.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
        # A redirect could take the key to another host.
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, limits=limits),
    )


def _key(variable: str) -> str | None:
    """The key in an environment variable; None if there is none. Raises UsageError if it cannot be a key."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        # The HTTP library would show it in its error.
        raise UsageError(f"the environment variable {variable} holds no key: it has characters that no key has.")
    return key or None


def _with_path(url: str) -> str:
    """The address with the usual path if it has none."""
    return url.rstrip("/") + ("" if urlsplit(url).path.strip("/") else "/v1")


def _named(body: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The body with the name of the limit of an answer that this server wants."""
    names = ("max_tokens", "max_completion_tokens")
    return {endpoint.limit_name if name in names else name: value for name, value in body.items()}
