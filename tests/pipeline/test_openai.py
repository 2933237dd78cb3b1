"""The engine `openai` against a server on loopback that answers at once and fails as it is told."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from helpers.chat_server import ChatServer, Failure, answer_for, image_of, is_contact
from helpers.cli import Cli
from helpers.inputs import png, sha256
from helpers.rows import rows_of
from PIL import Image

import dialog_gen
from dialog_gen.dataset.errors import OtherConfigError
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.engines.openai import pool
from dialog_gen.engines.openai.concurrency import Concurrency
from dialog_gen.engines.openai.faults import retry_after
from dialog_gen.engines.openai.messages import image_url
from dialog_gen.generation.dialogue import seed_of
from dialog_gen.protocols.protocol import load_protocol
from dialog_gen.upkeep.repair import repair

KEY = "sk-secret-0123456789"
IMAGES = 24


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(pool.backoff_s, "__defaults__", (0.02, 0.2))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number:02}.png").write_bytes(png(number))
    return folder


def generate(images: Path, out: Path, *servers: ChatServer, **others: Any) -> list[dict[str, Any]]:
    # A request may take a fifth of it: none is given up because the machine stood still for a while.
    given: dict[str, Any] = {"engine_timeout": 100, "shard_size": 8, "protocol": "llava-3qa", **others}
    endpoint = [server.url for server in servers]
    dialog_gen.generate(model="talker", images=images, out=out, engine="openai", endpoint=endpoint, **given)
    return rows_of(out)


def expected(number: int) -> list[dict[str, str]]:
    """What the server says about an image, computed without the pipeline."""
    url = f"data:image/png;base64,{base64.b64encode(png(number)).decode()}"
    text = load_protocol("llava-3qa").turns[0].user
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    body = {"messages": [{"role": "user", "content": content}], "seed": seed_of(0, sha256(png(number)), 1)}
    found = re.findall(r"Q: (.*?) A: (.*)", answer_for(body))
    return [{"user": question, "assistant": answer} for question, answer in found]


def test_rows_are_what_the_server_says(images: Path, tmp_path: Path) -> None:
    with ChatServer() as server:
        rows = generate(images, tmp_path / "out", server)
    assert [row["texts"] for row in rows] == [expected(number) for number in range(IMAGES)]
    assert {(row["model"], row["model_revision"], row["engine"]) for row in rows} == {("talker", "", "openai")}
    assert server.paths["/v1/chat/completions"] == IMAGES + 2  # the first contact: with an image and without
    assert {image_of(body) for body in server.asked} == {png(number) for number in range(IMAGES)}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["image_max_side"], config["image_format"]) == (1024, "jpeg")


FAILURES = {
    "429": Failure(429),
    "429 with seconds": Failure(429, {"Retry-After": "0.1"}),
    "429 with a date": Failure(429, {"Retry-After": format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)}),
    "500": Failure(500),
    "502 of a proxy": Failure(502, body=b"<html>bad gateway</html>"),
    "503": Failure(503, body=b""),
    "reset": Failure(how="reset"),
    "truncated": Failure(how="truncated"),
    "slow bytes": Failure(how="drip"),
    "no HTTP": Failure(how="garbage"),
    "no JSON": Failure(200, body=b"<html>welcome</html>"),
    "no completion": Failure(200, body=b'{"choices": []}'),
    "null": Failure(200, body=b"null"),
    "nested": Failure(200, body=b"[" * 100_000),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_rows_do_not_depend_on_failures(images: Path, tmp_path: Path, failure: Failure) -> None:
    with ChatServer(lambda number, body: failure if number % 3 == 1 else None) as server:
        rows = generate(images, tmp_path / "out", server, engine_timeout=8 if failure.how == "drip" else 100)
    assert [row["texts"] for row in rows] == [expected(number) for number in range(IMAGES)]
    use = json.loads((tmp_path / "out" / "run.json").read_text())["server"]
    # One that is given up after a second or two may not have reached the server, on a slow machine.
    assert use["retries"] >= len(server.asked) - IMAGES >= IMAGES // 3
    assert use["retries"] == len(server.asked) - IMAGES or failure.how == "drip"


def test_a_restarted_server_is_waited_for(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="dialog_gen")
    first = ChatServer(lambda number, body: Failure(how="reset") if number > 9 else None)
    port = first.server_port

    def restart() -> None:
        while len(first.asked) <= 9:
            time.sleep(0.01)
        first.stop()
        time.sleep(1)
        second.append(ChatServer(port=port).__enter__())

    second = list[ChatServer]()
    notes = list[str]()
    thread = threading.Thread(target=restart)
    with first:
        thread.start()
        rows = generate(
            images, tmp_path / "out", first, on_progress=lambda *_, note="", **__: notes.append(note or str(_[-1]))
        )
        thread.join()
    second[0].stop()
    assert [row["texts"] for row in rows] == [expected(number) for number in range(IMAGES)]
    waiting = f"waiting for http://127.0.0.1:{port}/v1 ("
    assert any(note.startswith(waiting) for note in notes)
    assert any(record.message.startswith(waiting) for record in caplog.records)
    assert caplog.messages.count("a server answers again") == 1


def test_a_server_that_stays_away_ends_the_run(images: Path, tmp_path: Path) -> None:
    def plan(number: int, body: dict[str, Any]) -> Failure | None:
        if number == 12:
            threading.Thread(target=server.stop).start()
        return Failure(how="reset") if number >= 12 else None

    server = ChatServer(plan)
    began = time.monotonic()
    with server, pytest.raises(EngineDiedError, match=r"no server answered for \d s \(--engine-timeout 4\)") as error:
        generate(images, tmp_path / "out", server, engine_timeout=4, max_in_flight=1)
    assert 3 < time.monotonic() - began < 20
    assert error.value.exit_code == 1
    assert len(rows_of(tmp_path / "out")) == 8  # the finished shard
    with ChatServer() as server:
        rows = generate(images, tmp_path / "out", server)
    assert [row["texts"] for row in rows] == [expected(number) for number in range(IMAGES)]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_rejects_its_image(images: Path, tmp_path: Path, status: int) -> None:
    with ChatServer(lambda number, body: Failure(status) if image_of(body) == png(3) else None) as server:
        rows = generate(images, tmp_path / "out", server)
    assert [row["image_id"] for row in rows] == [f"{n:02}.png" for n in range(IMAGES) if n != 3]
    (reject,) = rows_of(tmp_path / "out", "rejects")
    assert (reject["image_id"], reject["reason"]) == ("03.png", "engine_refused")
    assert reject["detail"] == f"engine_refused: {status} as told" or reject["detail"] == f"{status} as told"
    assert sum(image_of(body) == png(3) for body in server.asked) == 1


@pytest.mark.parametrize("failure", [Failure(500), Failure(how="reset"), Failure(how="truncated")])
def test_an_image_that_the_server_breaks_on_is_rejected(images: Path, tmp_path: Path, failure: Failure) -> None:
    """Also if it is the last image, and no other one shows that the server works."""
    broken = png(IMAGES - 1)
    with ChatServer(lambda number, body: failure if image_of(body) == broken else None) as server:
        rows = generate(images, tmp_path / "out", server)
    assert len(rows) == IMAGES - 1
    (reject,) = rows_of(tmp_path / "out", "rejects")
    assert reject["reason"] == "engine_error"


def test_the_servers_words_for_a_refusal(images: Path, tmp_path: Path) -> None:
    moderated = Failure(403, body=b'{"error": {"message": "input was flagged", "metadata": {"reasons": ["x"]}}}')
    with ChatServer(lambda number, body: moderated if image_of(body) == png(5) else None) as server:
        generate(images, tmp_path / "out", server)
    (reject,) = rows_of(tmp_path / "out", "rejects")
    assert reject["reason"] == "engine_refused"
    assert "flagged" in reject["detail"]


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_server_that_answers_no_more_ends_the_run(images: Path, tmp_path: Path, status: int) -> None:
    said = f"does not answer any more: {status} as told"
    server = ChatServer(lambda number, body: Failure(status) if number > 12 else None)
    with server, pytest.raises(EngineDiedError, match=said):
        generate(images, tmp_path / "out", server, max_in_flight=1)
    assert len(rows_of(tmp_path / "out")) == 8
    assert rows_of(tmp_path / "out", "rejects") == []


def test_retry_after_is_honoured(images: Path, tmp_path: Path) -> None:
    with ChatServer(lambda number, body: Failure(429, {"Retry-After": "1"}) if number == 4 else None) as server:
        generate(images, tmp_path / "out", server, max_in_flight=1)
    asked = [when for when, body in zip(server.times, server.bodies, strict=True) if not is_contact(body)]
    assert len(asked) == IMAGES + 1  # refused once
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps[3] > 0.95
    assert median(gaps) < 0.5  # the others do not wait


def test_retry_after_reads_seconds_and_dates() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert 58 < (retry_after({"retry-after": in_a_minute}) or 0) <= 60
    past = format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)
    assert retry_after({"retry-after": past}) == retry_after({"retry-after": "-5"}) == 0
    assert [retry_after({"retry-after": said}) for said in ("soon", "nan", "")] == [None] * 3
    assert retry_after({}) is None


def test_a_very_long_retry_after_is_bounded(images: Path, tmp_path: Path) -> None:
    with ChatServer(lambda number, body: Failure(429, {"Retry-After": "86400"}) if number == 4 else None) as server:
        assert len(generate(images, tmp_path / "out", server, engine_timeout=8)) == IMAGES


def test_requests_go_to_the_server_with_the_fewest(images: Path, tmp_path: Path) -> None:
    with ChatServer(delay_s=0.2) as slow, ChatServer(delay_s=0.01) as fast:
        rows = generate(images, tmp_path / "out", slow, fast, max_in_flight=4)
    assert [row["texts"] for row in rows] == [expected(number) for number in range(IMAGES)]
    assert len(fast.asked) + len(slow.asked) == IMAGES
    assert 0 < len(slow.asked) < len(fast.asked)


def test_a_server_that_fails_pauses_and_comes_back(images: Path, tmp_path: Path) -> None:
    failing = ChatServer(lambda number, body: Failure(502) if number <= 2 else None, delay_s=0.02)
    with failing, ChatServer(delay_s=0.1) as other:
        rows = generate(images, tmp_path / "out", failing, other)
    assert [row["texts"] for row in rows] == [expected(number) for number in range(IMAGES)]
    assert len(failing.asked) > 2


def test_one_of_two_servers_is_not_there(images: Path, tmp_path: Path) -> None:
    with ChatServer() as gone:
        pass
    with ChatServer() as server:
        assert len(generate(images, tmp_path / "out", gone, server)) == IMAGES


def test_never_more_requests_than_max_in_flight(images: Path, tmp_path: Path) -> None:
    with ChatServer(delay_s=0.05) as server:
        generate(images, tmp_path / "out", server, max_in_flight=3)
    assert server.most_at_once == 3


def test_the_new_name_of_the_limit(images: Path, tmp_path: Path) -> None:
    with ChatServer(new_name=True) as server:
        rows = generate(images, tmp_path / "out", server, max_tokens=77)
    assert len(rows) == IMAGES
    assert {body.get("max_completion_tokens") for body in server.asked} == {77}  # the contact has found out


def test_confidence_comes_from_the_server(images: Path, tmp_path: Path) -> None:
    with ChatServer() as server:
        rows = generate(images, tmp_path / "out", server, gates="logprob")
    assert all(row["answer_logprobs"] == [-0.5] * 3 for row in rows)


class TestBudget:
    def test_the_run_ends_before_it_costs_more(self, images: Path, tmp_path: Path) -> None:
        prices = {"price_input": 1000, "price_output": 2000}
        with ChatServer() as server:
            with pytest.raises(EngineDiedError, match="--max-cost 3 is reached") as error:
                generate(images, tmp_path / "out", server, max_in_flight=1, max_cost=3, max_tokens=64, **prices)
            assert error.value.exit_code == 1
            use = json.loads((tmp_path / "out" / "spent.json").read_text())["server"]
            # run.json would say that the run had finished: a repair would make what is missing, without a budget.
            assert not (tmp_path / "out" / "run.json").exists()
            assert repair(tmp_path / "out").unfinished
            paid = sum(1000 * tokens[0] + 2000 * tokens[1] for tokens in map(self.tokens, server.bodies)) / 1e6
            assert use["cost"] == pytest.approx(paid)
            assert 2 < use["cost"] <= 3
            assert len(rows_of(tmp_path / "out")) % 8 == 0
            rows = generate(images, tmp_path / "out", server, max_tokens=64, **prices)
            again = json.loads((tmp_path / "out" / "run.json").read_text())["server"]
        assert len(rows) == IMAGES
        assert again["cost_of_all_runs"] == pytest.approx(use["cost"] + again["cost"])
        assert not (tmp_path / "out" / "spent.json").exists()

    def test_parts_add_up(self, images: Path, tmp_path: Path) -> None:
        with ChatServer() as server:
            for part in ("0/2", "1/2"):
                generate(images, tmp_path / "out", server, part=part, price_input=1000, price_output=2000)
            paid = sum(1000 * tokens[0] + 2000 * tokens[1] for tokens in map(self.tokens, server.bodies)) / 1e6
            whole = json.loads((tmp_path / "out" / "run.json").read_text())["server"]
        assert whole["cost_of_all_runs"] == pytest.approx(paid)
        assert (whole["requests"], whole["endpoints"]) == (len(server.bodies), [server.url])

    @pytest.mark.parametrize("flags", [("--engines", 2), ("--engines", 1, "--executor", "ray")], ids=["engines", "ray"])
    def test_several_engines_have_no_common_budget(
        self, dialog_gen_cli: Cli, images: Path, tmp_path: Path, flags: tuple[object, ...]
    ) -> None:
        prices = ("--price-input", 1, "--price-output", 1, "--max-cost", 5, "--model", "m", "--images", images)
        with ChatServer() as server:
            endpoint = ("--engine", "openai", "--endpoint", server.url)
            said = dialog_gen_cli("run", "--out", tmp_path / "out", *prices, *endpoint, *flags).mistake
        assert "only a single engine keeps to a budget" in said
        assert not (tmp_path / "out").exists()

    def test_without_counts_the_cost_is_estimated(self, images: Path, tmp_path: Path) -> None:
        with ChatServer(usage=False) as server:
            given: dict[str, Any] = {"engine_timeout": 20, "protocol": "llava-3qa", "price_input": 1, "price_output": 1}
            result = dialog_gen.generate(
                model="talker", images=images, out=tmp_path / "out", engine="openai", endpoint=server.url, **given
            )
        assert result.summary["server"]["estimated"] == IMAGES + 2
        assert result.summary["server"]["cost"] > 0
        assert "estimated: not counted by the server" in result.text

    @staticmethod
    def tokens(body: dict[str, Any]) -> tuple[int, int]:
        words = [len(p["text"].split()) for m in body["messages"] for p in m["content"] if p["type"] == "text"]
        return sum(words) + 100 * (image_of(body) is not None), len(answer_for(body).split())


class TestKey:
    def test_it_is_sent_and_never_written(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")
        echo = Failure(400, body=json.dumps({"error": {"message": f"no, {KEY}"}}).encode())
        with ChatServer(lambda number, body: echo if number == 2 else None, key=KEY) as server:
            generate(images, tmp_path / "out", server, api_key_env="OTHER_KEY")
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert len(files) > 5
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []
        (reject,) = rows_of(tmp_path / "out", "rejects")
        assert "no, ***" in reject["detail"]
        assert KEY not in caplog.text

    def test_redirects_are_not_followed(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with ChatServer() as thief:
            away = Failure(307, {"Location": f"{thief.url}/chat/completions"})
            with ChatServer(lambda number, body: away) as server, pytest.raises(EngineDiedError, match="redirected to"):
                generate(images, tmp_path / "out", server)
        assert thief.bodies == []


class TestImages:
    def test_small_plain_files_are_sent_as_they_are(self) -> None:
        assert self.sent(png(1)) == ("png", png(1))

    @pytest.mark.parametrize("kind", ["jpeg", "png"])
    def test_large_images_are_made_smaller(self, kind: str) -> None:
        found, data = self.sent(self.stored(size=(300, 100)), kind=kind, max_side=150)
        assert found == kind
        assert Image.open(io.BytesIO(data)).size == (150, 50)

    @pytest.mark.parametrize(
        "stored", [{"kind": "WEBP"}, {"mode": "RGBA"}, {"kind": "GIF"}, {"kind": "JPEG", "mode": "CMYK"}], ids=str
    )
    def test_other_files_are_encoded_again(self, stored: dict[str, Any]) -> None:
        assert self.sent(self.stored(**stored))[0] == "jpeg"

    def test_turned_images_are_sent_upright(self) -> None:
        exif = Image.Exif()
        exif[274] = 6
        data = self.stored(kind="JPEG", size=(40, 20), exif=exif)
        assert Image.open(io.BytesIO(self.sent(data)[1])).size == (20, 40)

    @staticmethod
    def stored(*, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (64, 32), **others: Any) -> bytes:
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize(size).convert("RGB").convert(mode).save(buffer, kind, **others)
        return buffer.getvalue()

    @staticmethod
    def sent(data: bytes, *, kind: str = "jpeg", max_side: int = 1024) -> tuple[str, bytes]:
        from dialog_gen.sources.images import decode_image

        url = image_url(decode_image(data), data, max_side=max_side, kind=kind)
        content = image_of({"messages": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]})
        assert content is not None
        return url.removeprefix("data:image/").partition(";")[0], content

    def test_their_size_is_part_of_the_configuration(self, images: Path, tmp_path: Path) -> None:
        with ChatServer() as server:
            generate(images, tmp_path / "out", server)
            with pytest.raises(OtherConfigError, match="image_max_side"):
                generate(images, tmp_path / "out", server, image_max_side=512)


class Simulated:
    """A server that works on `slots` requests at a time, one second each, and refuses what does not fit its queue."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.queue = slots, queue

    def run(self, limit: Concurrency, rounds: int) -> list[int]:
        """The limits after each round of requests."""
        found, now = list[int](), 0.0
        for _ in range(rounds):
            sent = limit.limit
            fits = min(sent, self.slots + self.queue)
            latency = max(1.0, fits / self.slots)
            for _ in range(sent - fits):
                limit.overloaded(began=now, now=now + 0.01)
            for _ in range(fits):
                limit.answered(began=now + 0.02, now=now + 0.02 + latency, in_flight=sent)
            now += 0.02 + latency
            found.append(limit.limit)
        return found


class TestConcurrency:
    def test_it_grows_to_the_maximum_where_nothing_refuses(self) -> None:
        limits = Simulated(slots=1000, queue=0).run(Concurrency(most=256), 8)
        assert limits[:3] == [16, 32, 64]
        assert limits[-1] == 256

    def test_it_settles_near_what_the_server_takes(self) -> None:
        limits = Simulated(slots=40, queue=10).run(Concurrency(most=256), 300)
        assert all(25 <= limit <= 60 for limit in limits[50:])
        assert max(limits[50:]) - min(limits[50:]) > 10  # it keeps on trying

    def test_a_latency_in_proportion_is_no_overload(self) -> None:
        limits = Simulated(slots=4, queue=10_000).run(Concurrency(most=64), 60)
        assert limits[-1] == 64

    def test_a_server_that_became_slower_gets_less(self) -> None:
        limit = Concurrency(most=64)
        Simulated(slots=64, queue=10_000).run(limit, 20)
        assert limit.limit == 64
        assert min(Simulated(slots=16, queue=10_000).run(limit, 3)) <= 50

    def test_one_is_the_least(self) -> None:
        limit = Concurrency(most=8)
        for second in range(20):
            limit.overloaded(began=second, now=second + 0.5)
        assert limit.limit == 1


class QuietHandler(SimpleHTTPRequestHandler):
    """Of a web server that is no chat server."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


class TestMistakes:
    """Each is one line with exit code 2, before any image is sent."""

    def run(self, cli: Cli, images: Path, out: Path, *flags: object) -> str:
        return cli(
            "run", "--model", "talker", "--images", images, "--out", out, "--engine", "openai", "--protocol",
            "llava-3qa", "--engine-timeout", 10, *flags,
        ).mistake  # fmt: skip

    @pytest.mark.parametrize("key", [None, "sk-wrong-987"])
    def test_wrong_key(
        self, dialog_gen_cli: Cli, images: Path, tmp_path: Path, key: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if key:
            monkeypatch.setenv("OPENAI_API_KEY", key)
        with ChatServer(key=KEY) as server:
            said = self.run(dialog_gen_cli, images, tmp_path / "out", "--endpoint", server.url)
        assert ("refuses the key in" if key else "wants a key: put it into") in said
        assert "OPENAI_API_KEY" in said
        assert "sk-wrong" not in said
        assert server.bodies == []

    @pytest.mark.parametrize("lists", [True, False])
    def test_wrong_model(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path, lists: bool) -> None:
        with ChatServer(model="walker", lists_models=lists) as server:
            said = self.run(dialog_gen_cli, images, tmp_path / "out", "--endpoint", server.url)
        assert "talker" in said
        assert ("did you mean 'walker'?" if lists else "does not exist") in said

    def test_no_chat_server(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path, web_server: str) -> None:
        said = self.run(dialog_gen_cli, images, tmp_path / "out", "--endpoint", web_server)
        assert "is no server with OpenAI's API" in said

    def test_closed_port(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path) -> None:
        with ChatServer() as gone:
            pass
        said = self.run(dialog_gen_cli, images, tmp_path / "out", "--endpoint", gone.url)
        assert said.startswith(f"error: no server answers at --endpoint {gone.url} (ConnectError")

    def test_a_server_that_drops_images(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path) -> None:
        with ChatServer(sees_images=False) as server:
            said = self.run(dialog_gen_cli, images, tmp_path / "out", "--endpoint", server.url)
        assert "drops images: it counts 5 prompt tokens with an image and 5 without" in said

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ((), "needs an --endpoint"),
            (("--endpoint", "localhost:8000"), "is not an http or https address"),
            (("--endpoint", "http://[::1"), "is not an http or https address"),
            (("--endpoint", f"http://me:{KEY}@h/v1"), "http://***@h/v1 contains a password or key"),
            (("--endpoint", f"http://h/v1?key={KEY}"), "leave out what follows"),
            (("--endpoint", "http://h/v1", "--api-key-env", KEY), "not the key itself"),
            (("--endpoint", "http://h/v1", "--max-cost", 5), "--price-input and --price-output"),
            (("--endpoint", "http://h/v1", "--price-input", 5), "--price-output (per million tokens)"),
        ],
    )
    def test_flags(
        self, dialog_gen_cli: Cli, images: Path, tmp_path: Path, flags: tuple[object, ...], words: str
    ) -> None:
        said = self.run(dialog_gen_cli, images, tmp_path / "out", *flags)
        assert words in said
        assert KEY not in said
        assert not (tmp_path / "out").exists()

    def test_an_endpoint_without_a_server_engine(self, dialog_gen_cli: Cli, images: Path, tmp_path: Path) -> None:
        flags = ("--model", "shapes-llava", "--images", images, "--out", tmp_path / "out", "--engine", "transformers")
        said = dialog_gen_cli("run", *flags, "--endpoint", "http://h/v1").mistake
        assert "runs the model itself" in said
        # A budget that nobody keeps to would be worse than none.
        said = dialog_gen_cli("run", *flags, "--max-cost", 5).mistake
        assert said.startswith("error: --max-cost 5: the engine transformers runs the model itself")

    def test_a_used_up_quota(self, images: Path, tmp_path: Path) -> None:
        quota = Failure(429, body=b'{"error": {"message": "no money", "code": "insufficient_quota"}}')
        with ChatServer(lambda number, body: quota) as server, pytest.raises(EngineDiedError, match="429 no money"):
            generate(images, tmp_path / "out", server)
