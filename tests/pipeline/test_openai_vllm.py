"""The engine `openai` and a real `vllm serve` of the embedded model: the same rows as the engine `vllm`, come what may.

The proxy between them fails as it is told.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_server import ChatServer, Failure
from helpers.forks import run_module
from helpers.rows import rows_of
from helpers.vllm_server import vllm_server

import dialog_gen
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene

pytestmark = pytest.mark.slow

MODEL = "shapes-llava"
IMAGES = 24
# What the engine vllm records in other words.
OTHER_WORDS = ("engine", "model_revision", "prompt_sha256")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(MODEL, tmp_path_factory.mktemp("serve")) as url:
        yield url


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        (folder / f"{number:02}.png").write_bytes(render_png(draw_scene("test", 5, number)))
    return folder


@pytest.fixture(scope="module")
def by_vllm(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the engine vllm; a process of its own gives its memory back."""
    out = tmp_path_factory.mktemp("vllm") / "out"
    flags = ["--model", MODEL, "--images", images, "--out", out, "--engine", "vllm", "--temperature", "0"]
    done = run_module("dialog_gen", "run", *flags)
    assert done.returncode == 0, done.stderr
    return comparable(out)


def comparable(out: Path) -> list[dict[str, Any]]:
    rows = rows_of(out) + rows_of(out, "rejects")
    return [{key: value for key, value in row.items() if key not in OTHER_WORDS} for row in rows]


def by_openai(images: Path, out: Path, url: str) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"engine": "openai", "temperature": 0, "engine_timeout": 240, "max_losses": 1}
    dialog_gen.generate(model=MODEL, images=images, out=out, endpoint=url, **given)
    return comparable(out)


def test_rows_are_those_of_the_engine_vllm(
    server: str, images: Path, by_vllm: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert by_openai(images, tmp_path / "out", server) == by_vllm
    use = json.loads((tmp_path / "out" / "run.json").read_text())["server"]
    assert use["estimated"] == 0
    assert use["input_tokens"] > 0


def test_rows_are_the_same_through_a_failing_proxy(
    server: str, images: Path, by_vllm: list[dict[str, Any]], tmp_path: Path
) -> None:
    failures = [
        Failure(429),
        Failure(429, {"Retry-After": "1"}),
        Failure(500),
        Failure(how="reset"),
        Failure(how="truncated"),
        Failure(502, body=b"<html>bad gateway</html>"),
        Failure(how="garbage"),
    ]

    def plan(number: int, body: dict[str, Any]) -> Failure | None:
        return failures[number // 2 % len(failures)] if number % 2 else None

    with ChatServer(plan, upstream=server) as proxy:
        assert by_openai(images, tmp_path / "out", proxy.url) == by_vllm
    assert len(proxy.asked) > IMAGES
