"""A protocol that asks again about images whose attempts all gave malformed answers."""

import asyncio
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_server import Body, ChatServer, texts_of
from helpers.cli import Cli
from helpers.engine import EVERY, NONSENSE, ScriptedEngine, answer_to
from helpers.inputs import png, sha256, write_images
from helpers.rows import rows_of
from helpers.runs import make_generator, run
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.engines.openai import OpenAIEntry
from dialog_gen.generation.dialogue import Dialogue, DialogueGenerator, seed_of
from dialog_gen.protocols.protocol import Protocol, load_protocol, load_with_fallbacks
from dialog_gen.publish.card import make_card
from dialog_gen.publish.card_data import card_data

SHA = "ab" * 32
LIST = {"user": "Ask three. 1. Q: ... A: ...", "parse": "qa-list", "pairs": 3}


def protocol(name: str, *turns: dict[str, Any], **others: Any) -> Protocol:
    return Protocol.model_validate({"name": name, "turns": turns, **others})


SINGLE = protocol("single", {"user": "What is it?"}, {"user": "Where is it?"}, context="none")


def generator_of(*protocols: Protocol, temperature: float = 0.7, attempts: int = 3) -> DialogueGenerator:
    made = None
    for each in reversed(protocols):
        plain = make_generator(each, temperature=temperature, attempts=attempts)
        made = DialogueGenerator(
            protocol=plain.protocol,
            chat_template=plain.chat_template,
            sampling=plain.sampling,
            run_seed=plain.run_seed,
            attempts=attempts,
            fallback=made,
        )
    assert made is not None
    return made


def dialogue_of(generator: DialogueGenerator, engine: ScriptedEngine) -> Dialogue:
    return asyncio.run(generator.generate(engine, (Image.new("RGB", (5, 3)),), SHA))


def test_a_fallback_asks_after_the_last_attempt_only() -> None:
    generator = generator_of(protocol("list", LIST), SINGLE)
    for bad in range(3):
        engine = ScriptedEngine(malformed={SHA: range(1, bad + 1)})
        dialogue = dialogue_of(generator, engine)
        assert (len(dialogue.pairs), dialogue.attempts, dialogue.fallbacks, len(engine.asked)) == (
            3,
            bad + 1,
            0,
            bad + 1,
        )
    engine = ScriptedEngine(malformed={SHA: range(1, 4)})
    dialogue = dialogue_of(generator, engine)
    assert (dialogue.reason, dialogue.attempts, dialogue.fallbacks) == (None, 4, 1)
    assert [pair.user for pair in dialogue.pairs] == ["What is it?", "Where is it?"]
    assert [pair.assistant for pair in dialogue.pairs] == [answer_to(asked) for asked in engine.asked[3:]]
    # A new attempt has a seed of its own, whichever protocol makes it.
    firsts = [seed_of(7, SHA, attempt) for attempt in (1, 2, 3, 4)]
    assert [asked.seed for asked in engine.asked] == [*firsts, firsts[3] + 1]
    assert dialogue.seed == firsts[3]
    assert dialogue.requests == len(engine.asked) == 5
    assert dialogue.prompt_tokens == sum(len(asked.prompt.split()) for asked in engine.asked)
    assert dialogue.output_tokens == 3 + sum(len(text.split()) for text in dialogue.raw)


def test_a_greedy_run_has_a_fallback_too() -> None:
    engine = ScriptedEngine(malformed={SHA: [1]})
    dialogue = dialogue_of(generator_of(protocol("list", LIST), SINGLE, temperature=0), engine)
    assert (dialogue.reason, dialogue.attempts, dialogue.fallbacks, dialogue.requests) == (None, 2, 1, 3)


@pytest.mark.parametrize("knob", ["refused", "blind"])
def test_what_is_refused_has_no_fallback(knob: str) -> None:
    engine = ScriptedEngine(malformed={SHA: [1]}, **{knob: {SHA: [2]}})
    dialogue = dialogue_of(generator_of(protocol("list", LIST), SINGLE), engine)
    assert (len(engine.asked), dialogue.fallbacks, dialogue.attempts) == (2, 0, 2)


def test_a_fallback_that_fails_too_says_so_and_has_a_fallback_itself() -> None:
    engine = ScriptedEngine(malformed={SHA: EVERY})
    dialogue = dialogue_of(generator_of(protocol("list", LIST), SINGLE, attempts=2), engine)
    assert (dialogue.reason, dialogue.attempts, dialogue.fallbacks, dialogue.pairs) == ("empty", 4, 1, ())
    assert dialogue.raw == (NONSENSE, NONSENSE)  # both questions were asked at the same time
    last = protocol("last", {"user": "What?"})
    engine = ScriptedEngine(malformed={SHA: range(1, 7)})
    dialogue = dialogue_of(generator_of(protocol("list", LIST), SINGLE, last, attempts=2), engine)
    assert (dialogue.reason, dialogue.attempts, dialogue.fallbacks) == (None, 5, 2)
    assert [pair.user for pair in dialogue.pairs] == ["What?"]


@pytest.mark.parametrize("knob", ["malformed", "refused", "blind"])
@pytest.mark.parametrize("asked", [protocol("list", LIST), SINGLE])
def test_an_image_is_let_go_after_an_error(knob: str, asked: Protocol) -> None:
    """Without a wait for the garbage collector: a decoded image has megabytes."""
    generator, engine = generator_of(asked), ScriptedEngine(**{knob: {SHA: EVERY}})
    image = Image.new("RGB", (5, 3))
    held = weakref.ref(image)
    gc.disable()
    try:
        assert asyncio.run(generator.generate(engine, (image,), SHA)).reason is not None
        del image
        assert held() is None
    finally:
        gc.enable()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in", 12)


def test_rows_say_which_protocol_made_them(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    bad = {sha256(png(3)): range(1, 4), sha256(png(7)): range(1, 4), sha256(png(9)): EVERY, sha256(png(4)): [1]}
    generator, out = generator_of(protocol("list", LIST), SINGLE), tmp_path / "out"
    result = run(images, out, ScriptedEngine(malformed=bad), generator=generator)
    assert generator.fallback is not None
    by_id = {row["image_id"]: row for part in ("data", "rejects") for row in rows_of(out, part)}
    made = {name for name, row in by_id.items() if row["protocol"] == "single"}
    assert made == {"00003.png", "00007.png", "00009.png"}
    for name, row in by_id.items():
        by = generator.fallback if name in made else generator
        assert (row["protocol"], row["prompt_sha256"]) == (by.protocol.name, by.prompt_sha256)
        assert row["sampling"]["seed"] == seed_of(7, row["image_sha256"], row["attempts"])
    assert by_id["00009.png"]["reason"] == "empty"
    assert by_id["00003.png"]["finish_reasons"] == ["stop", "stop"]
    assert result.fallbacks == {"single": 2}  # dialogues; the third image has none
    status = dialog_gen_cli("status", out)
    assert "accepted          11   by a fallback: single 2\n" in status.out
    assert json.loads(dialog_gen_cli("status", out, "--json").out)["fallbacks"] == {"single": 2}
    verified = dialog_gen_cli("verify", out)
    assert (verified.code, "accepted by a fallback: single 2" in verified.out) == (0, True)
    stats = dialog_gen_cli("stats", out).out
    assert "protocols       list 9, single 2\n" in stats
    assert "by fallback             2   18.2%   single\n" in stats
    merged = tmp_path / "merged"
    dialog_gen.compact(out, merged)
    assert dialog_gen.totals(merged).fallbacks == {"single": 2}
    assert dialog_gen.verify(merged).problems == []


def test_a_manifest_that_counts_other_fallbacks_is_found(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad = {sha256(png(3)): range(1, 4)}
    run(
        images,
        out,
        ScriptedEngine(malformed=bad),
        generator=generator_of(protocol("list", LIST), SINGLE),
        shard_size=12,
    )
    (sidecar,) = (out / "shards").glob("*.json")
    manifest = unsealed(sidecar.read_bytes())
    assert manifest["fallbacks"] == {"single": 1}
    sidecar.write_text(json.dumps({**manifest, "fallbacks": {"single": 2}}))
    (problem,) = dialog_gen.verify(out).problems
    assert "its fallback protocols made {'single': 1} of its dialogues, {'single': 2} are promised" in problem


FILES = {
    "list.toml": """
fallback = "sub/single.toml"
sampling = { temperature = 0.7, max_tokens = 64 }
[[turns]]
user = "Ask one. 1. Q: ... A: ..."
parse = "qa-list"
""",
    "sub/single.toml": """
context = "none"
sampling = { temperature = 0.2, max_tokens = 32 }
[[turns]]
user = "What is it?"
[[turns]]
user = "Where is it?"
""",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path / "list.toml"


def unlisted(body: Body) -> str | None:
    """Some images give no list, ever."""
    return "No idea, sorry." if "1. Q:" in texts_of(body)[0] and body["seed"] % 3 else None


def generated(images: Path, out: Path, file: Path, **others: Any) -> tuple[list[Body], dict[str, Any]]:
    with ChatServer(say=unlisted) as server:
        made = dialog_gen.generate(
            model="talker", images=images, out=out, protocol=str(file), engine="openai", endpoint=server.url, **others
        )
        return server.asked, made.summary


def test_a_run_has_the_fallback_of_its_protocol(images: Path, tmp_path: Path, file: Path) -> None:
    out = tmp_path / "out"
    asked, summary = generated(images, out, file, attempts=1)
    rows = rows_of(out)
    made = sum(row["protocol"] == "single" for row in rows)
    assert 0 < made < len(rows) == 12
    assert summary["run"]["fallbacks"] == summary["dataset"]["fallbacks"] == {"single": made}
    card = make_card(card_data(dialog_gen.open_dataset(out)), "me/mine")
    assert f"| accepted dialogues of the fallback protocol single | {made} | {made / 12:.1%} |" in card
    assert "The protocol single is a fallback:" in card
    assert "Its decoding: temperature 0\\.2, top\\_p 1\\.0, max\\_tokens 32." in card
    assert {(row["protocol"], row["sampling"]["max_tokens"], row["attempts"]) for row in rows} == {
        ("list", 64, 1),
        ("single", 32, 2),
    }
    # A server gets the decoding settings of the protocol that asks.
    found = {(texts_of(body)[0][:4], body["temperature"], body.get("max_tokens", 0)) for body in asked}
    assert found == {("Ask ", 0.7, 64), ("What", 0.2, 32), ("Wher", 0.2, 32)}
    (fallback,) = summary["config"]["fallbacks"]
    assert (fallback["protocol"], fallback["temperature"], fallback["max_tokens"]) == ("single", 0.2, 32)
    assert fallback["prompt_sha256"] == next(row["prompt_sha256"] for row in rows if row["protocol"] == "single")
    text = dialog_gen.generate(
        model="talker", images=images, out=out, protocol=str(file), engine="openai", endpoint="http://localhost:1/v1",
        attempts=1,
    ).text  # fmt: skip
    assert f"by a fallback: single {made}" in text
    (tmp_path / "sub" / "single.toml").write_text(FILES["sub/single.toml"].replace("Where", "When"))
    load_protocol.cache_clear()
    with pytest.raises(UsageError, match="fallbacks"):
        generated(images, out, file, attempts=1)


def test_batches_have_fallbacks_too(images: Path, tmp_path: Path, file: Path) -> None:
    out = tmp_path / "out"
    for round_ in range(4):
        written = dialog_gen.batch_write(model="talker", images=images, out=out, protocol=str(file), attempts=1)
        if not written.requests:
            break
        requests = [json.loads(line) for path in written.files for line in Path(path).read_text().splitlines()]
        if round_ == 1:  # both questions of an image are in one batch
            assert {request["custom_id"].rpartition("-")[0][33:] for request in requests} == {"t1-a2", "t2-a2"}
            assert {request["body"]["temperature"] for request in requests} == {0.2}
        results = tmp_path / f"{round_}.jsonl"
        results.write_text("".join(json.dumps(result(request)) + "\n" for request in requests))
        dialog_gen.batch_read(out, [results])
    else:
        raise AssertionError("it never ends")
    generated(images, tmp_path / "served", file, attempts=1)
    assert rows_of(out) == rows_of(tmp_path / "served")


def result(request: dict[str, Any]) -> dict[str, Any]:
    from helpers.chat_server import answer_for

    text = unlisted(request["body"]) or answer_for(request["body"])
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    body = {"id": "c", "object": "chat.completion", "choices": choices, "usage": usage}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


def test_an_engine_that_cannot_change_its_settings_is_refused(
    images: Path, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAIEntry, "samples_per_request", False)
    with pytest.raises(UsageError, match=r"protocol list: its fallback has other decoding settings, .* openai"):
        generated(images, tmp_path / "out", file)
    generated(images, tmp_path / "out", file, temperature=0.5, max_tokens=64)


def test_wrong_fallbacks(tmp_path: Path, file: Path) -> None:
    assert [each.name for each in load_with_fallbacks(str(file))] == ["list", "single"]
    single = tmp_path / "sub" / "single.toml"
    for fallback, said in {
        "../list.toml": "protocol single: its fallback .*list.toml has the name list, which an earlier",
        "single.toml": "has the name single",
        "no-such": "unknown protocol 'no-such'",
        "no-such.toml": "no-such.toml: No such file",
    }.items():
        single.write_text(f'fallback = "{fallback}"\n{FILES["sub/single.toml"]}')
        load_protocol.cache_clear()
        with pytest.raises(UsageError, match=said):
            load_with_fallbacks(str(file))
    load_protocol.cache_clear()


def test_the_plan_shows_the_prompts_of_fallbacks(images: Path, tmp_path: Path, file: Path) -> None:
    settings: dict[str, Any] = {
        "model": "shapes-llava",
        "engine": "transformers",
        "images": images,
        "out": tmp_path / "out",
    }
    text = dialog_gen.generate(**settings, protocol=str(file), dry_run=True).text
    assert "    turn 1: 'USER: <image>\\nAsk one." in text
    assert "    fallback single, turn 2: 'USER: <image>\\nWhere is it? ASSISTANT:'" in text
