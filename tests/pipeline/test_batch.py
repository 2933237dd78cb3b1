"""`dialog-gen batch write|read` with a cloud that answers as the server of `--engine openai` does."""

import json
import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_server import ChatServer, answer_for
from helpers.cli import Cli
from helpers.inputs import png, write_files
from helpers.rows import rows_of

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.generation.batch.answers import Answers
from dialog_gen.generation.batch.read import BatchRead
from dialog_gen.generation.batch.write import BatchWritten

IMAGES = 20
TWO_TURNS = """
name = "two-turns"
sampling = { temperature = 0.7, max_tokens = 64 }

[[turns]]
user = "What is in the image?"

[[turns]]
user = "You said {answer_1} Where is it?"
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """With two equal ones, and one that is none."""
    files = {f"{number:02}.png": png(number) for number in range(IMAGES - 2)}
    return write_files(tmp_path / "images", {**files, "98.png": png(0), "99.png": b"no image"})


@pytest.fixture
def protocol(tmp_path: Path) -> str:
    path = tmp_path / "two-turns.toml"
    path.write_text(TWO_TURNS)
    return str(path)


def write(images: Path, out: Path, **others: Any) -> BatchWritten:
    return dialog_gen.batch_write(**{"model": "talker", "images": images, "out": out, "shard_size": 5, **others})


def lines_of(written: BatchWritten) -> list[dict[str, Any]]:
    return [json.loads(line) for file in written.files for line in Path(file).read_text().splitlines()]


def result(request: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    """A line of a result file, as the reference of OpenAI's Batch API has it."""
    message = {"role": "assistant", "content": answer_for(request["body"]) if text is None else text}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": len(message["content"].split()), "total_tokens": 0},
    }
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def error(request: dict[str, Any], status: int) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": {"error": {"message": "as told"}}}
    return {"id": "x", "custom_id": request["custom_id"], "response": response, "error": None}


def expired(request: dict[str, Any]) -> dict[str, Any]:
    said = {"code": "batch_expired", "message": "This request could not be executed before the batch expired."}
    return {"id": "x", "custom_id": request["custom_id"], "response": None, "error": said}


def save(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def finish(images: Path, out: Path, tmp_path: Path, **others: Any) -> BatchRead:
    """Rounds of write and read until nothing is left."""
    found = BatchRead()
    for round_ in range(20):
        written = write(images, out, **others)
        if not written.requests:
            return found
        found = dialog_gen.batch_read(out, [save(tmp_path / f"{round_}.jsonl", map(result, lines_of(written)))])
    raise AssertionError("it never ends")


def served(images: Path, out: Path, **others: Any) -> list[dict[str, Any]]:
    """The same rows from the engine."""
    with ChatServer() as server:
        given = {"model": "talker", "images": images, "out": out, "shard_size": 5, "engine": "openai", **others}
        dialog_gen.generate(endpoint=server.url, **given)
    return rows_of(out)


def test_one_turn_is_one_batch(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    out = tmp_path / "out"
    written = write(images, out)
    requests = lines_of(written)
    assert written.images == IMAGES
    assert len(requests) == len({request["custom_id"] for request in requests}) == IMAGES - 2
    assert all(len(request["custom_id"]) <= 64 for request in requests)
    assert {(request["method"], request["url"]) for request in requests} == {("POST", "/v1/chat/completions")}
    read = dialog_gen.batch_read(out, [save(tmp_path / "results.jsonl", map(result, requests))])
    assert read == BatchRead(answers=IMAGES - 2, shards=4, images=IMAGES)
    assert rows_of(out) == served(images, tmp_path / "served")
    assert [row["reason"] for row in rows_of(out, "rejects")] == ["not_an_image"]
    assert write(images, out).requests == 0
    assert dialog_gen_cli("verify", out).code == 0
    assert json.loads((out / "run.json").read_text())["dataset"]["images"] == IMAGES


def test_turns_and_attempts_come_in_later_batches(images: Path, tmp_path: Path, protocol: str) -> None:
    out = tmp_path / "out"
    first = lines_of(write(images, out, protocol=protocol))
    bad, answers = first[3], [result(request) for request in first]
    answers[3] = result(bad, "...")  # malformed
    read = dialog_gen.batch_read(out, [save(tmp_path / "1.jsonl", answers)])
    assert (read.shards, read.images_left) == (0, IMAGES)
    second = lines_of(write(images, out, protocol=protocol))
    assert len(second) == len(first)
    kinds = {request["custom_id"].rpartition("-")[0][33:] for request in second}
    assert kinds == {"t2-a1", "t1-a2"}
    assert sum("t1-a2" in request["custom_id"] for request in second) == 1
    assert {len(request["body"]["messages"]) for request in second} == {3, 1}
    finish(images, out, tmp_path, protocol=protocol)
    rows = {row["image_id"]: row for row in rows_of(out)}
    assert len(rows) == IMAGES - 1
    assert [row["attempts"] for row in rows.values()].count(2) == 1
    for row in served(images, tmp_path / "served", protocol=protocol):
        if rows[row["image_id"]]["attempts"] == 1:
            assert rows[row["image_id"]] == row


def test_results_in_any_order_twice_and_with_garbage(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    requests = lines_of(write(images, out))
    answers: list[Any] = [result(request) for request in requests]
    other = {**requests[0], "custom_id": requests[0]["custom_id"][:-8] + "00000000"}
    late = [result(request, "1. Q: Too late? A: Yes. 2. Q: B? A: C. 3. Q: D? A: E.") for request in requests[:3]]
    garbage = ["", "{", "[]", "null", '{"custom_id": 7}', '{"custom_id": "../../etc"}', "[" * 5000, "\x00\xff"]
    shuffled = [*answers, *answers[:4], result(other), *garbage]
    random.Random(0).shuffle(shuffled)
    file = save(tmp_path / "a.jsonl", shuffled)
    read = dialog_gen.batch_read(out, [file, save(tmp_path / "b.jsonl", late), file])
    assert read.answers == IMAGES - 2
    assert read.duplicates == 4 + 3 + IMAGES - 2 + 4
    assert (read.foreign, read.unusable) == (2, 2 * (len(garbage) - 1))
    assert rows_of(out) == served(images, tmp_path / "served")


def test_what_has_no_result_comes_again(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    requests = lines_of(write(images, out))
    good, half = map(result, requests[:10]), json.dumps(result(requests[10]))[:-40]
    results = save(tmp_path / "results.jsonl", [*good, half])  # the download was cut off
    errors = save(
        tmp_path / "errors.jsonl", [error(requests[11], 500), error(requests[12], 429), expired(requests[13])]
    )
    read = dialog_gen.batch_read(out, [errors, results])
    assert (read.answers, read.failed, read.unusable) == (10, 3, 1)
    assert (read.shards, read.images) == (2, 10)
    assert len(rows_of(out)) == 10
    again = lines_of(write(images, out))
    assert {request["custom_id"] for request in again} == {request["custom_id"] for request in requests[10:]}
    assert {json.dumps(request) for request in again} <= {json.dumps(request) for request in requests}
    finish(images, out, tmp_path)
    assert rows_of(out) == served(images, tmp_path / "served")


def test_a_refused_request_is_a_reject(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    requests = lines_of(write(images, out))
    lines = [error(requests[1], 400), *(result(request) for request in requests if request is not requests[1])]
    dialog_gen.batch_read(out, [save(tmp_path / "results.jsonl", lines)])
    reject = next(row for row in rows_of(out, "rejects") if row["image_id"] == "01.png")
    assert (reject["reason"], reject["detail"]) == ("engine_refused", "400 as told")


def test_the_engine_finishes_what_batches_began(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    requests = lines_of(write(images, out))
    dialog_gen.batch_read(out, [save(tmp_path / "results.jsonl", map(result, requests[:6]))])
    assert len(rows_of(out)) == 5
    assert served(images, out) == served(images, tmp_path / "served")
    assert write(images, out).requests == 0


def test_files_keep_to_the_limits(images: Path, tmp_path: Path) -> None:
    by_count = write(images, tmp_path / "a", max_requests=7)
    assert [len(Path(file).read_text().splitlines()) for file in by_count.files] == [7, 7, 4]
    by_bytes = write(images, tmp_path / "a", max_bytes=3000)
    sizes = [Path(file).stat().st_size for file in by_bytes.files]
    assert len(sizes) > 2
    assert max(sizes) <= 3000
    assert sorted(map(json.dumps, lines_of(by_bytes))) == sorted(map(json.dumps, lines_of(by_count)))
    assert Path(by_bytes.files[0]).parent.name == "write-0002"


def test_a_write_that_fails_leaves_no_files(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli
) -> None:
    from dialog_gen.generation.batch import write as module

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "fsync", fail)
        with pytest.raises(dialog_gen.DialogGenError, match="No space left"):
            write(images, tmp_path / "out", max_requests=7)
    assert list((tmp_path / "out" / "batch").glob("write*")) == []
    assert write(images, tmp_path / "out").requests == IMAGES - 2


class TestMistakes:
    def test_a_folder_of_another_command(self, dialog_gen_cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "empty" in dialog_gen_cli("batch", "read", tmp_path / "empty").mistake

    def test_a_missing_result_file(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path) -> None:
        write(images, tmp_path / "out")
        said = dialog_gen_cli("batch", "read", tmp_path / "out", tmp_path / "none.jsonl").mistake
        assert "none.jsonl cannot be read: No such file" in said

    def test_other_settings(self, images: Path, tmp_path: Path) -> None:
        requests = lines_of(write(images, tmp_path / "out"))
        dialog_gen.batch_read(tmp_path / "out", [save(tmp_path / "r.jsonl", map(result, requests))])
        with pytest.raises(UsageError, match="seed"):
            write(images, tmp_path / "out", seed=1)

    def test_a_damaged_store(self, images: Path, tmp_path: Path) -> None:
        write(images, tmp_path / "out")
        (tmp_path / "out" / "batch" / "answers.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(UsageError, match=r"answers\.sqlite: file is not a database"):
            write(images, tmp_path / "out")

    def test_an_object_store(self, dialog_gen_cli: Cli, images: Path) -> None:
        flags = ("--model", "talker", "--images", images, "--out", "memory://bucket/out")
        assert "need a dataset folder on local disk" in dialog_gen_cli("batch", "write", *flags).mistake

    def test_the_command_line(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path) -> None:
        flags = ("--model", "talker", "--images", images, "--out", tmp_path / "out", "--json")
        written = json.loads(dialog_gen_cli("batch", "write", *flags).out)
        assert written["requests"] == IMAGES - 2
        lines = [json.loads(line) for line in Path(written["files"][0]).read_text().splitlines()]
        file = save(tmp_path / "r.jsonl", map(result, lines))
        assert "the dataset is complete" in dialog_gen_cli("batch", "read", tmp_path / "out", file).out


def test_damaged_answers_are_no_answers(images: Path, tmp_path: Path) -> None:
    """They were paid for, and SQLite has no checksum of what it stores."""
    out = tmp_path / "out"
    requests = lines_of(write(images, out))
    half = save(tmp_path / "half.jsonl", map(result, requests[::2]))
    dialog_gen.batch_read(out, [half])
    path, folder = out / "batch" / "answers.sqlite", DatasetFolder(str(out))
    whole, ids = path.read_bytes(), [request["custom_id"] for request in requests]
    with Answers(folder) as answers:
        stored = [answers.get(custom_id) for custom_id in ids]
    assert sum(answer is not None for answer in stored) == len(requests[::2])
    found = 0
    for bit in random.Random(0).sample(range(8 * len(whole)), 300):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            with Answers(folder) as answers:
                now = [answers.get(custom_id) for custom_id in ids]
        except UsageError as error:
            assert "Remove it, and read all result files again." in str(error)  # noqa: PT017 - not every bit matters
            found += 1
        else:
            assert now == stored
    assert found > 30


def test_answers_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = DatasetFolder(str(tmp_path))
    (tmp_path / "batch").mkdir()
    with closing(sqlite3.connect(tmp_path / "batch" / "answers.sqlite")) as file:
        file.execute("CREATE TABLE answers (id TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        file.execute("INSERT INTO answers VALUES ('a', '{\"text\": \"yes\"}')")
        file.commit()
    with Answers(folder) as answers:
        assert answers.get("a") == {"text": "yes"}
