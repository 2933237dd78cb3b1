"""Engines that do what no engine may: raise errors of other kinds, and answer with what cannot be recorded."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dialog_gen.core.errors import DialogGenError
from dialog_gen.engines.base import ENGINES, Answer, EngineDiedError, EngineOptions, RefusedRequestError, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.watchdog import EngineLoop
from dialog_gen.protocols.protocol import Sampling, conversation

REQUEST = Request(messages=conversation("What?"), images=(Image.new("RGB", (1, 1)),), image_sha256="0" * 64, seed=0)


class Panic(BaseException):
    """What a Rust library raises, such as a tokenizer."""


class Odd:
    name, version, deterministic = "odd", "1", True

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def answer(self, request: Request) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    async def close(self) -> None:
        pass


def answer_of(engine: Odd) -> Answer:
    with EngineLoop(engine, 60, keep=set()) as loop:
        return loop.run(loop.engine.answer(REQUEST))


def answer(**changed: Any) -> Answer:
    given: dict[str, Any] = {"text": "blue", "finish_reason": "stop", "output_tokens": 1, "saw_image": True, **changed}
    return Answer(**given)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
        (SystemExit(7), "SystemExit: 7"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Panic("unwrap on None"), "Panic: unwrap on None"),
        (None, "TypeError: 'None' is no answer"),
        (answer(output_tokens=-1), r"TypeError: .*output_tokens=-1.* is no answer"),
        (answer(output_tokens="3"), "TypeError: .*"),
        (answer(prompt_tokens=-1), r"TypeError: .*prompt_tokens=-1.* is no answer"),
        (answer(text=None), r"TypeError: .*text=None.* is no answer"),
    ],
)
def test_it_has_died(wrong: Any, said: str) -> None:
    with pytest.raises(EngineDiedError, match=f"^the engine failed: {said}$"):
        answer_of(Odd(wrong))


@pytest.mark.parametrize("error", [RefusedRequestError("too_long", "x"), EngineDiedError("gone")])
def test_its_own_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        answer_of(Odd(error))
    assert str(raised.value) == str(error)


def test_a_character_that_utf_8_does_not_have_is_replaced() -> None:
    given = answer(text="blue \ud83d sky", finish_reason="st\udcffop")
    assert answer_of(Odd(given)) == answer(text="blue \ufffd sky", finish_reason="st\ufffdop")
    with pytest.raises(RefusedRequestError, match=r"^long: \ufffd$"):
        answer_of(Odd(RefusedRequestError("long", "\ud83d")))
    emoji = answer(text="\U0001f600")
    assert answer_of(Odd(emoji)) is emoji


@pytest.mark.parametrize("error", [SystemExit(9), Panic("9"), asyncio.CancelledError("9"), ValueError("9")])
def test_a_start_that_fails_is_an_error(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise error

    monkeypatch.setattr(ENGINES, "get", lambda name, where="": SimpleNamespace(start=start))
    model: Any = SimpleNamespace(name="m", folder=None)
    spec = EngineSpec(name="odd", model=model, sampling=Sampling(), options=EngineOptions())
    with pytest.raises(DialogGenError, match=rf"^odd did not start on m: {type(error).__name__}: 9 \(log: "):
        spec.start(tmp_path / "log")
