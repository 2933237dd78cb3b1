"""`--structured`: lists of pairs as JSON of a schema."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import chat_server
from helpers.architectures import random_model
from helpers.chat_server import Body, ChatServer, is_contact
from helpers.cli import Cli
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from helpers.rows import rows_of
from helpers.runs import make_generator
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import EngineOptions, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.parsing import parse_qa_list
from dialog_gen.protocols.protocol import Protocol, Sampling, conversation
from dialog_gen.protocols.schema import pairs_schema

LIST = {"user": "Ask two.", "parse": "qa-list", "pairs": 2}
MIXED = Protocol.model_validate({"name": "p", "turns": [{"user": "What?"}, LIST]})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in", 4)


def pairs_json(*pairs: tuple[str, str], **style: Any) -> str:
    return json.dumps({"pairs": [{"question": q, "answer": a} for q, a in pairs]}, **style)


TWO = (("What is it?", "A dog."), ("Where is it?", "In the grass."))
PAIRS = [
    TWO,
    (('What does "STOP" mean?', "It's a sign, saying: stop."), ("Q: Is it 1. or 2.?", "Answer: {yes}")),
    (("Was ist „das“?", "Ein Hünd."), ("这是什么？", "一只狗。")),  # noqa: RUF001
    (("Name\tthem:\nall?", "A\\B"), ("How many?", "2")),
]


@pytest.mark.parametrize("style", [{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2}])
@pytest.mark.parametrize("pairs", PAIRS)
def test_what_fits_the_schema_is_read(pairs: tuple[tuple[str, str], ...], style: dict[str, Any]) -> None:
    text = pairs_json(*pairs, **style)
    jsonschema.validate(json.loads(text), pairs_schema(2))
    found = parse_qa_list(text, pairs=2, truncated=False)
    assert [pair.user for pair in found] == [" ".join(q.split()).removeprefix("Q: ") for q, _ in pairs]
    assert [pair.assistant for pair in found] == [" ".join(a.split()).removeprefix("Answer: ") for _, a in pairs]


def test_the_schema_takes_no_other_form() -> None:
    for wrong in (
        json.loads(pairs_json(*TWO[:1])),
        json.loads(pairs_json(*TWO, *TWO)),
        {"pairs": [{"question": "a", "answer": "b", "more": 1}] * 2},
        {"pairs": [{"question": "a"}] * 2},
        [],
        {},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, pairs_schema(2))


def test_only_lists_have_a_schema_and_only_if_asked() -> None:
    for structured in (False, True):
        schemas: list[Any] = []

        def say(request: Request, schemas: list[Any] = schemas) -> str:
            schemas.append(request.schema)
            return "A dog." if request.messages[-1].text == "What?" else pairs_json(*TWO)

        plain = make_generator(MIXED)
        settings = {name: getattr(plain, name) for name in ("protocol", "chat_template", "sampling", "run_seed")}
        generator = type(plain)(**settings, structured=structured)
        dialogue = asyncio.run(generator.generate(ScriptedEngine(say=say), (Image.new("RGB", (5, 3)),), "ab" * 32))
        assert schemas == [None, pairs_schema(2) if structured else None]
        assert [(pair.user, pair.assistant) for pair in dialogue.pairs] == [("What?", "A dog."), *TWO]


def answers(body: Body) -> str:
    """What a server writes that keeps to schemas."""
    if "response_format" not in body:
        return "A dog."
    count = body["response_format"]["json_schema"]["schema"]["properties"]["pairs"]["minItems"]
    return pairs_json(*((f"What is {n}?", f"It is {n * n}.") for n in range(count)))


def run(images: Path, out: Path, server: ChatServer, **others: Any) -> dict[str, Any]:
    settings: Any = {"model": "talker", "engine": "openai", "endpoint": server.url, "images": images, "out": out}
    return dialog_gen.generate(**settings, **others).summary


def test_a_server_gets_the_schema_and_the_configuration_says_so(images: Path, tmp_path: Path) -> None:
    with ChatServer(say=answers) as server:
        summary = run(images, tmp_path / "out", server, structured=True)
        formats = [body["response_format"] for body in server.asked]
        contact = [body["response_format"] for body in server.bodies if is_contact(body)]
    assert (
        formats
        == [{"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": pairs_schema(3)}}] * 4
    )
    assert contact
    assert summary["config"]["structured"] is True
    assert [row["texts"][2] for row in rows_of(tmp_path / "out")] == [
        {"user": "What is 2?", "assistant": "It is 4."}
    ] * 4
    with ChatServer() as server:
        with pytest.raises(UsageError, match="structured"):
            run(images, tmp_path / "out", server)
        assert "structured" not in run(images, tmp_path / "plain", server)["config"]
        assert not any("response_format" in body for body in server.bodies)


def test_a_server_without_schemas_is_refused_at_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = chat_server._Handler.completion

    def without_schemas(self: Any, body: Body) -> tuple[int, Body]:
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        return complete(self, body)

    monkeypatch.setattr(chat_server._Handler, "completion", without_schemas)
    with ChatServer() as server:
        with pytest.raises(UsageError, match="response_format is not supported"):
            run(images, tmp_path / "out", server, structured=True)
        assert server.asked == []
        assert run(images, tmp_path / "out", server)["run"]["accepted"] == 4


def test_batches_have_the_schema_too(images: Path, tmp_path: Path) -> None:
    written = dialog_gen.batch_write(model="talker", images=images, out=tmp_path / "out", structured=True)
    lines = [json.loads(line) for path in written.files for line in Path(path).read_text().splitlines()]
    assert len(lines) == 4
    assert all(line["body"]["response_format"]["json_schema"]["schema"] == pairs_schema(3) for line in lines)


def test_what_cannot_be_is_refused(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    settings = ("run", "--model", "shapes-llava", "--images", images, "--out", tmp_path / "out", "--structured")
    mistake = dialog_gen_cli(*settings, "--engine", "transformers").mistake
    assert "--structured: the engine transformers cannot make a model keep to a schema; leave it out, or use" in mistake
    assert "--engine openai or vllm" in mistake
    mistake = dialog_gen_cli(*settings, "--engine", "vllm", "--protocol", "single-questions").mistake
    assert "--structured: the protocol single-questions asks for no list of pairs" in mistake
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_vllm")
def test_vllm_keeps_a_model_to_the_schema_and_computes_an_image_once(tmp_path: Path) -> None:
    """A random model writes noise, but noise in the form of the schema."""
    pytest.importorskip("vllm")
    model = resolve_model(str(random_model("qwen2.5-vl", tmp_path / "model")))
    options = EngineOptions(structured=True, max_model_len=2048, max_pixels=560 * 560)
    sampling = Sampling(temperature=1.0, max_tokens=96)
    (tmp_path / "log").touch()
    engine: Any = EngineSpec(name="vllm", model=model, sampling=sampling, options=options).start(tmp_path / "log")
    single = make_generator("single-questions")
    image = Image.new("RGB", (560, 560), "red")

    async def ask() -> tuple[list[str], int, int, int]:
        said = list[str]()
        for seed, schema in enumerate((None, pairs_schema(2), pairs_schema(2))):
            request = Request(
                messages=conversation("Ask."), images=(image,), image_sha256="0" * 64, seed=seed, schema=schema
            )
            said.append((await engine.answer(request)).text)
        before = engine.load()
        dialogue = await single.generate(engine, (image,), "1" * 64)
        load = engine.load()
        await engine.close()
        return (
            said,
            dialogue.requests,
            load.prompt_tokens - before.prompt_tokens,
            load.cached_tokens - before.cached_tokens,
        )

    (free, *structured), requests, prompt_tokens, cached = asyncio.run(ask())
    start = '{"pairs":[{"question":"'
    assert not free.startswith("{")
    assert [text[: len(start)] for text in structured] == [start] * 2
    # Turns that are asked at the same time share the prompt up to their questions: whole blocks of 128 tokens of it.
    assert requests % 3 == 0
    assert prompt_tokens > 400 * requests
    assert cached >= (requests - 1) * 384
    print(f"{requests} requests, {prompt_tokens} prompt tokens, {cached} of them cached")
