"""A turn that asks the model to restate each pair as a sentence, and the column that holds the sentences."""

import asyncio
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_images
from helpers.rows import gates_of, make_row, rows_of, shard_of, sign, write_shard
from helpers.runs import CONFIG, make_generator, run
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.record import DIALOGUES
from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.base import Request
from dialog_gen.generation.dialogue import Dialogue, DialogueGenerator, seed_of
from dialog_gen.protocols.parsing import statement_of
from dialog_gen.protocols.protocol import Protocol, load_protocol, load_with_fallbacks
from dialog_gen.publish.card import make_card
from dialog_gen.publish.card_data import card_data

SHA = "ab" * 32
ASK = "Say as one sentence: {question} {answer}"
LIST = {"user": "Ask three. 1. Q: ... A: ...", "parse": "qa-list", "pairs": 3}
CONFIGURED = {**CONFIG, "statements": True}


def protocol(*turns: dict[str, Any], **others: Any) -> Protocol:
    return Protocol.model_validate({"name": "p", "turns": turns, "statement": {"user": ASK}, **others})


def say(request: Request) -> str | None:
    text = request.messages[-1].text
    return f"It is a sentence about {text[-9:-1]}." if text.startswith("Say as") else None


def dialogue_of(generator: DialogueGenerator, engine: ScriptedEngine) -> Dialogue:
    return asyncio.run(generator.generate(engine, (Image.new("RGB", (5, 3)),), SHA))


def test_each_pair_is_restated_by_a_request_of_its_own() -> None:
    engine = ScriptedEngine(say=say)
    dialogue = dialogue_of(make_generator(protocol(LIST, system="Be short.")), engine)
    assert len(dialogue.pairs) == 3
    expected = [f"Say as one sentence: {pair.user} {pair.assistant}" for pair in dialogue.pairs]
    assert [asked.prompt for asked in engine.asked[1:]] == [
        f"Be short. USER: <image>\n{text} ASSISTANT:" for text in expected
    ]
    first = seed_of(7, SHA, 1)
    assert [asked.seed for asked in engine.asked] == [first, first + 1, first + 2, first + 3]
    assert dialogue.statements == tuple(f"It is a sentence about {text[-9:-1]}." for text in expected)
    # Of the turns alone:
    assert len(dialogue.raw) == len(dialogue.finish_reasons) == 1
    # Of everything:
    assert dialogue.requests == 4
    assert dialogue.prompt_tokens == sum(len(asked.prompt.split()) for asked in engine.asked)
    assert dialogue.output_tokens == len(dialogue.raw[0].split()) + 3 * len(
        ["It", "is", "a", "sentence", "about", "x."]
    )
    assert engine.most_at_once == 3


def test_an_answer_with_braces_is_text() -> None:
    asked = protocol({"user": "What?"}).statement_text("a {question}?", "{answer} {0.x}")
    assert asked == "Say as one sentence: a {question}? {answer} {0.x}"


def test_a_refused_or_senseless_statement_is_none_and_the_pairs_stay() -> None:
    engine = ScriptedEngine(say=say, refused={SHA: [2]}, malformed={SHA: [3]})
    dialogue = dialogue_of(make_generator(protocol(LIST)), engine)
    assert dialogue.reason is None
    assert dialogue.statements is not None
    assert [text is None for text in dialogue.statements] == [True, True, False]


def test_rejected_dialogues_are_not_restated() -> None:
    engine = ScriptedEngine(malformed={SHA: EVERY})
    dialogue = dialogue_of(make_generator(protocol(LIST)), engine)
    assert (dialogue.statements, len(engine.asked)) == (None, 3)


SENTENCES = {
    "The dog is brown.": "The dog is brown.",
    "The dog is brown. It lies in the grass.": "The dog is brown. It lies in the grass.",
    '"The dog is brown."': "The dog is brown.",
    "Statement: The dog is brown.": "The dog is brown.",
    "Restated sentence: The dog is brown.": "The dog is brown.",
    "The sign says: stop and wait.": "The sign says: stop and wait.",
    "Der Hund ist braun.": "Der Hund ist braun.",
    "狗是棕色的。": "狗是棕色的。",
    "犬は茶色です": "犬は茶色です",
    "Is the dog brown?": None,
    "The dog is brown, is it?": None,
    "What colour is the dog": None,
    "Where the dog is": None,
    "What a lovely dog.": "What a lovely dog.",
    "Brown.": None,
    "Brown dog.": None,
    "The dog is brown and it": None,  # truncated
}


@pytest.mark.parametrize("text", SENTENCES)
def test_what_is_a_statement(text: str) -> None:
    truncated = text.endswith("and it")
    found = statement_of(text, question="What colour is the dog?", truncated=truncated)
    assert found == SENTENCES[text]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in", 12)


def made(images: Path, out: Path, **others: Any) -> Path:
    """A dataset with statements, one of which is missing, and a reject."""
    engine = ScriptedEngine(say=say, malformed={sha256(png(5)): EVERY, sha256(png(3)): [2]})
    run(images, out, engine, generator=make_generator(protocol(LIST)), config={**CONFIGURED, **others})
    return out


def statements(out: Path) -> dict[str, list[str | None]]:
    return {row["image_id"]: row["statements"] for row in rows_of(out)}


def test_the_column_has_one_text_for_each_pair(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    out = made(images, tmp_path / "out")
    for row in rows_of(out):
        pairs = [f"It is a sentence about {pair['assistant'][-9:-1]}." for pair in row["texts"]]
        expected = [None, *pairs[1:]] if row["image_id"] == "00003.png" else pairs
        assert row["statements"] == expected
    assert dialog_gen_cli("verify", out).code == 0
    assert "statements             32   97.0%   of the pairs have a sentence" in dialog_gen_cli("stats", out).out
    assert dialog_gen.stats(out).statements == 32


def test_lost_statements_are_counted(images: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(say=say, malformed={sha256(png(5)): EVERY, sha256(png(3)): [2]})
    result = run(images, tmp_path / "out", engine, generator=make_generator(protocol(LIST)), config=CONFIGURED)
    assert (result.statements, result.statements_lost) == (32, 1)


def test_other_datasets_have_no_such_column(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "out", ScriptedEngine(), generator=make_generator())
    for file in (tmp_path / "out" / "data").iterdir():
        found = pq.read_schema(file)
        assert found.equals(DIALOGUES)
        assert found.metadata[b"huggingface"] == DIALOGUES.metadata[b"huggingface"]
    assert dialog_gen.stats(tmp_path / "out").statements is None


def test_the_hubs_viewer_knows_the_column(images: Path, tmp_path: Path) -> None:
    import datasets

    out = made(images, tmp_path / "out")
    files = sorted(map(str, (out / "data").iterdir()))
    loaded: Any = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.remove_columns("images")[0]["statements"] == rows_of(out)[0]["statements"]
    card = make_card(card_data(dialog_gen.open_dataset(out)), "me/mine")
    assert "| `statements` | `list of string` | for each pair a sentence" in card
    assert "| pairs with a statement | 32 |" in card
    header = card.split("---")[1]
    assert "- name: statements\n" in header
    other = run(images, tmp_path / "other", ScriptedEngine(), generator=make_generator())
    assert other.images == 12
    assert "statements" not in make_card(card_data(dialog_gen.open_dataset(tmp_path / "other")), "me/mine")


def test_copies_keep_it(images: Path, tmp_path: Path) -> None:
    out = made(images, tmp_path / "out")
    expected = statements(out)
    dialog_gen.gate(out, gates="length")
    assert statements(out) == expected
    dialog_gen.compact(out, tmp_path / "compact")
    dialog_gen.compact(out, tmp_path / "bare", without_images=True)
    more = write_images(tmp_path / "more", 14).rename(tmp_path / "renamed")
    for number in range(14):
        (more / f"{number:05}.png").rename(more / f"other{number}.png")
    second = made(more, tmp_path / "second")
    dialog_gen.gate(second, gates="length")
    dialog_gen.merge([out, second], tmp_path / "merged")
    for copy, rows in (("compact", expected), ("bare", expected), ("merged", expected | statements(second))):
        assert statements(tmp_path / copy) == rows
        assert dialog_gen.verify(tmp_path / copy).problems == []
        assert dialog_gen.open_dataset(tmp_path / copy).config()["statements"] is True


def test_exports_with_room_for_it_keep_it(images: Path, tmp_path: Path) -> None:
    out = made(images, tmp_path / "out")
    dialog_gen.export(out, tmp_path / "texts", to="texts")
    rows = pq.read_table(tmp_path / "texts").to_pylist()
    assert [row["statements"] for row in rows] == list(statements(out).values())
    dialog_gen.export(out, tmp_path / "tars", to="webdataset")
    (tar,) = (tmp_path / "tars").iterdir()
    with tarfile.open(tar) as file:
        found = [json.load(file.extractfile(name)) for name in file.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    assert {item["image_id"]: item["statements"] for item in found} == statements(out)
    dialog_gen.export(out, tmp_path / "messages", to="messages")
    assert "statements" not in pq.read_schema(next((tmp_path / "messages").iterdir())).names


def test_only_the_statements_of_kept_pairs_are_exported(tmp_path: Path) -> None:
    texts = [{"user": f"What {n}?", "assistant": f"Answer {n}."} for n in range(3)]
    row = make_row(
        0, texts=texts, statements=["One is it.", None, "Three is it."], gates=gates_of([["length"], [], []])
    )
    with open_writer(str(tmp_path / "out"), CONFIGURED) as store:
        write_shard(store, shard_of("s", 1), [row])
    dialog_gen.export(tmp_path / "out", tmp_path / "texts", to="texts", kept_only=True)
    (exported,) = pq.read_table(tmp_path / "texts").to_pylist()
    assert (exported["texts"], exported["statements"]) == (texts[1:], [None, "Three is it."])


def test_a_row_with_too_few_statements_is_found(images: Path, tmp_path: Path) -> None:
    out = made(images, tmp_path / "out")
    file = sorted((out / "data").iterdir())[0]
    table = pq.read_table(file)
    short = [row[:-1] for row in table["statements"].to_pylist()]
    place = table.schema.get_field_index("statements")
    changed = table.set_column(place, table.schema.field(place), [short])
    pq.write_table(changed, file)
    sign(out, file.stem)
    assert any("statements has 2 entries for 3 pairs" in problem for problem in dialog_gen.verify(out).problems)


def test_the_report_shows_them(images: Path, tmp_path: Path) -> None:
    out = made(images, tmp_path / "out")
    dialog_gen.report(out, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for texts in statements(out).values() for text in texts if text)


MINE = """
fallback = "single.toml"
[statement]
user = "Say: {question} {answer}"
[[turns]]
user = "Ask one. 1. Q: ... A: ..."
parse = "qa-list"
"""


def test_a_fallback_asks_for_the_same_statements(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "single.toml").write_text("[[turns]]\nuser = 'What?'\n")
    mine, single = load_with_fallbacks(str(tmp_path / "mine.toml"))
    assert single.statement == mine.statement
    assert single.sha256 != load_protocol(str(tmp_path / "single.toml")).sha256


@pytest.mark.parametrize(
    "user", ["Say it.", "{question}", "{answer}", "{question} {answer} {answer_1}", "{question} {answer"]
)
def test_it_needs_question_and_answer(tmp_path: Path, user: str) -> None:
    (tmp_path / "mine.toml").write_text(MINE.replace("Say: {question} {answer}", user))
    with pytest.raises(UsageError, match=r"statement\.user: .*(needs \{question\} and \{answer\}|Write \{\{ and \}\})"):
        load_protocol(str(tmp_path / "mine.toml"))


def test_the_configuration_says_so(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE.replace('fallback = "single.toml"\n', ""))
    settings: dict[str, Any] = {
        "model": "shapes-llava",
        "engine": "transformers",
        "images": images,
        "out": tmp_path / "out",
    }
    plan = dialog_gen.generate(**settings, protocol=str(tmp_path / "mine.toml"), dry_run=True)
    assert plan.summary["config"]["statements"] is True
    assert "12 images in 1 shard, 2 requests per image" in plan.text
    assert "    statement: 'USER: <image>\\nSay: <question> <answer> ASSISTANT:'" in plan.text
    assert "statements" not in dialog_gen.generate(**settings, dry_run=True).summary["config"]
