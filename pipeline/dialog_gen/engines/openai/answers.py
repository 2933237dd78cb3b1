"""One request to a server, and its answer. Every error becomes a `Fault`."""

import asyncio
from typing import Any

from dialog_gen.core.json_text import parse_json
from dialog_gen.engines.base import Answer, RefusedRequestError
from dialog_gen.engines.openai.budget import Tokens
from dialog_gen.engines.openai.faults import Fault, fault_of
from dialog_gen.engines.openai.pool import Endpoint

# The client library takes these only apart from the others.
_NOT_OPENAIS = ("top_k", "repetition_penalty")
_OLD_NAME, _NEW_NAME = "max_tokens", "max_completion_tokens"


async def ask(endpoint: Endpoint, body: dict[str, Any], key: str | None, timeout_s: float) -> dict[str, Any]:
    """The server's chat completion. Raises Fault, also if the whole answer does not come within `timeout_s`.

    A server that wants `max_completion_tokens` in place of `max_tokens` says so once, and gets it from then on.
    """
    try:
        return await _completion(endpoint, body, key, timeout_s)
    except Fault as fault:
        if fault.kind != "refused" or _NEW_NAME not in str(fault) or _OLD_NAME not in body:
            raise
        endpoint.limit_name = _NEW_NAME
    renamed = {_NEW_NAME if name == _OLD_NAME else name: value for name, value in body.items()}
    return await _completion(endpoint, renamed, key, timeout_s)


async def model_names(endpoint: Endpoint, key: str | None, timeout_s: float) -> list[str]:
    """The names of the server's models. Raises Fault."""
    try:
        async with asyncio.timeout(timeout_s):
            response = await endpoint.client.models.with_raw_response.list()
    except Exception as error:  # noqa: BLE001 - the HTTP library raises errors of many kinds
        raise fault_of(error, key) from None
    listed = _json(response.http_response.content)
    models = listed.get("data")
    if not isinstance(models, list) or not all(isinstance(model, dict) and "id" in model for model in models):
        raise Fault("broken", "no list of models")
    return [str(model["id"]) for model in models]


async def _completion(endpoint: Endpoint, body: dict[str, Any], key: str | None, timeout_s: float) -> dict[str, Any]:
    try:
        # The client library limits the time between two bytes, not that of the whole answer.
        async with asyncio.timeout(timeout_s):
            others = {name: body[name] for name in _NOT_OPENAIS if name in body}
            named = {name: value for name, value in body.items() if name not in others}
            response = await endpoint.client.chat.completions.with_raw_response.create(**named, extra_body=others)
    except Exception as error:  # noqa: BLE001 - the HTTP library raises errors of many kinds
        raise fault_of(error, key) from None
    return completion_of(_json(response.http_response.content))


def completion_of(found: Any) -> dict[str, Any]:
    """The value, if it is a chat completion with an answer. Raises Fault if it is not."""
    choices = found.get("choices") if isinstance(found, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise Fault("broken", "the answer is no chat completion")
    return found


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = parse_json(content, finite=False)  # a log-probability may be -Infinity
    except ValueError:
        raise Fault("broken", "the answer is no JSON") from None
    if not isinstance(found, dict):
        raise Fault("broken", "the answer is no JSON object")
    return found


def tokens_of(completion: dict[str, Any]) -> Tokens | None:
    """The tokens that the server counted; None if it did not."""
    usage = completion.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(answer, int) or min(prompt, answer) < 0:
        return None
    return Tokens(prompt, answer)


def answer_of(completion: dict[str, Any], used: Tokens) -> Answer:
    """The answer in a chat completion. Raises RefusedRequestError if the model or a filter refused."""
    choice = completion["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    if message.get("refusal"):
        raise RefusedRequestError("engine_refused", f"the model refused: {message['refusal']}")
    if reason == "content_filter":
        raise RefusedRequestError("engine_refused", "the server's content filter")
    return Answer(
        text=message.get("content") or "",
        finish_reason=reason if isinstance(reason, str) and reason else "unknown",
        output_tokens=used.output,
        prompt_tokens=used.input,
        # The first contact has shown that the server gives images to the model, if it counts tokens.
        saw_image=True,
        tokens=_tokens(choice.get("logprobs")),
    )


def _tokens(logprobs: Any) -> list[tuple[str, float]]:
    try:
        return [(str(token["token"]), float(token["logprob"])) for token in logprobs["content"]]
    except (KeyError, TypeError, ValueError):
        return []
