"""`dialog-gen inspect` and `dialog-gen sample`, and images on a terminal."""

import base64
import json
import math
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.inputs import png
from helpers.rows import gates_of, make_row, shard_of, write_shard
from helpers.terminal import EVIL, on_terminal, raw_controls
from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.core.terminal_images import Way, drawn, way_of
from dialog_gen.dataset import shard_writer
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import STATEMENTS
from dialog_gen.dataset.rows import FoundRow, find_row, random_rows
from dialog_gen.dataset.versions import RowFile
from dialog_gen.dataset.writer import open_writer
from dialog_gen.inspect.row_text import row_json, row_text

SHARDS, ROWS = 4, 7


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows 0 to 27, each third rejected, in row groups of two; its ids are not in their order as text."""
    monkeypatch.setattr(shard_writer, "ROWS_PER_GROUP", 2)
    with open_writer(str(tmp_path / "d"), {"schema_version": 3}) as store:
        for shard in range(SHARDS):
            numbers = range(shard * ROWS, (shard + 1) * ROWS)
            rows = [make_row(number, "rejected" if number % 3 == 2 else "accepted") for number in numbers]
            write_shard(store, shard_of(f"s{shard}", ROWS), rows)
    return tmp_path / "d"


ACCEPTED = [number for number in range(SHARDS * ROWS) if number % 3 != 2]


@pytest.mark.parametrize("number", [0, 6, 10, 13, 27, 2, 26])
def test_a_row_is_found_by_its_id(dataset: Path, number: int) -> None:
    found = find_row(dataset, f"image {number}")
    rejected = number % 3 == 2
    assert found.row["caption"] == f"caption {number}"
    assert found.row["images"][0]["bytes"] == png(number)
    assert found.file == f"{'rejects' if rejected else 'data'}/s{number // ROWS}.parquet"
    in_file = [n for n in range(number // ROWS * ROWS, number) if (n % 3 == 2) == rejected]
    assert found.number == len(in_file)


def test_no_row_with_this_id(dataset: Path) -> None:
    with pytest.raises(UsageError, match=r"no row with the image_id image 28\\x1b: did you mean .*dialog-gen sample"):
        find_row(dataset, "image 28\x1b")


@pytest.mark.parametrize(("asked", "nearest"), [("mage 13", "image 13"), ("17", "image 17"), ("imgae 7", "image 7")])
def test_the_nearest_id_is_named(dataset: Path, asked: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"image_id {asked}: did you mean {nearest}\? Ids are written as"):
        find_row(dataset, asked)
    with pytest.raises(UsageError, match=r"image_id zzz: ids are written as"):
        find_row(dataset, "zzz")


def test_only_row_groups_that_can_have_the_id_are_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[Any]()
    original = RowFile.row_group
    monkeypatch.setattr(RowFile, "row_group", lambda self, *of: (read.append(of[1:]), original(self, *of))[1])
    find_row(dataset, "image 27")
    # The ids of groups whose limits enclose it, and once the whole row; no image of another group.
    assert read.count(()) == 1
    assert len(read) < 8


def test_random_rows_are_uniform_and_different(dataset: Path) -> None:
    drawn_ids = Counter[str]()
    for seed in range(400):
        ids = [found.row["image_id"] for found in random_rows(dataset, 3, seed=seed)]
        assert len(set(ids)) == 3
        drawn_ids.update(ids)
    assert set(drawn_ids) == {f"image {number}" for number in ACCEPTED}
    expected = 400 * 3 / len(ACCEPTED)
    # Five standard deviations.
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in drawn_ids.values())
    first, again = ([found.row for found in random_rows(dataset, 3, seed=1)] for _ in range(2))
    assert first == again


def test_a_sample_of_more_rows_than_there_are(dataset: Path) -> None:
    assert [found.row["image_id"] for found in random_rows(dataset, 99)] == [f"image {n}" for n in ACCEPTED]


def test_a_sample_reads_the_row_groups_of_its_rows_only(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()
    original = RowFile.row_group
    monkeypatch.setattr(RowFile, "row_group", lambda self, *of: (read.append(of[0]), original(self, *of))[1])
    assert len(list(random_rows(dataset, 2, seed=5))) == len(read) == 2


def test_a_sample_of_nothing(dataset: Path, dialog_gen_cli: Cli) -> None:
    assert dialog_gen_cli("sample", dataset, "-n", "0").code == 2
    with open_writer(str(dataset.parent / "empty"), {"schema_version": 3}) as store:
        write_shard(store, shard_of("s", 1), [make_row(0, "rejected")])
    assert "empty" in dialog_gen_cli("sample", dataset.parent / "empty").mistake


def row(**columns: Any) -> FoundRow:
    return FoundRow(row=make_row(1, **columns), file="data/s.parquet", number=0)


def test_an_image_that_was_never_asked_about_has_no_seed() -> None:
    unread = row(status="unreadable", sampling={"temperature": 0.5, "top_p": 1.0, "seed": None}, attempts=0)
    assert "temperature 0.5, top-p 1; 0 attempts" in row_text(unread)


def test_what_a_row_says() -> None:
    pairs = [{"user": "Q1?", "assistant": "A1"}, {"user": "Q2?", "assistant": "A2"}]
    gates = gates_of([[], ["leak"]], leak=[0.125, 0.9375], length=[3.0, None])
    found = row(texts=pairs, gates=gates, answer_logprobs=[-0.25, None], url="https://x/y", **{STATEMENTS: ["S", None]})
    assert row_text(found).splitlines() == [
        "image 1",
        f"  image       1.png; PNG, 4 x 4 pixels, {len(png(1))} bytes",
        "  row         0 of data/s.parquet",
        "  url         https://x/y",
        "  caption     caption 1",
        "  made by     m r; e 1; protocol p; temperature 0.5, top-p 1, seed 1; 1 attempt; 2025-01-02 00:00:00 UTC",
        "",
        "  question 1  Q1?",
        "  answer      A1",
        "  statement   S",
        "  log-prob    -0.25 per token",
        "  gates       leak 0.125, length 3",
        "",
        "  question 2  Q2?",
        "  answer      A2",
        "  marked by   leak 0.938",
    ]


def test_why_a_row_was_rejected() -> None:
    found = FoundRow(
        row=make_row(1, "rejected", detail="2 of 3", raw=["Sorry.", "No."]), file="rejects/s.parquet", number=0
    )
    lines = row_text(found).splitlines()
    assert lines[-3:] == ["  rejected    too_few_pairs: 2 of 3", "  answer 1    Sorry.", "  answer 2    No."]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "left out"),
        ([], "left out"),
        ([{"path": "a.png", "bytes": None}], "a.png; its bytes were left out"),
        ([{"path": None, "bytes": b"<html>"}], "no name; no image of a known format, 6 bytes"),
    ],
)
def test_rows_without_an_image(images: Any, said: str) -> None:
    assert said in row_text(row(images=images)).splitlines()[1]


def test_lines_are_broken_only_on_a_terminal() -> None:
    found = row(caption="word " * 60)
    assert max(map(len, row_text(found, width=60).splitlines())) < 60
    assert max(map(len, row_text(found).splitlines())) > 300


def test_as_json(dataset: Path, dialog_gen_cli: Cli) -> None:
    found = json.loads(dialog_gen_cli("inspect", dataset, "--image-id", "image 3", "--json").out)
    assert found["texts"] == [{"user": "What 3?", "assistant": "Answer 3."}]
    assert found["images"] == [{"path": "3.png", "bytes": len(png(3))}]
    assert found["row"] == {"file": "data/s0.parquet", "number": 2}
    assert found["created_at"] == "2025-01-02T00:00:00+00:00"
    several = json.loads(dialog_gen_cli("sample", dataset, "-n", "3", "--seed", "4", "--json").out)
    assert [one["image_id"] for one in several] == [found.row["image_id"] for found in random_rows(dataset, 3, seed=4)]
    assert row_json(row(answer_logprobs=[math.nan]))["answer_logprobs"] == [None]


def test_in_a_pipe_there_is_no_image(dataset: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("inspect", dataset, "--image-id", "image 3")
    assert "\x1b" not in ended.out
    assert "3.png" in ended.out
    ended = dialog_gen_cli("sample", dataset, "-n", "2")
    (seed,) = re.findall(r"--seed (\d+) shows these again", ended.err)
    assert dialog_gen_cli("sample", dataset, "-n", "2", "--seed", seed).out == ended.out


# On a terminal

PLAIN = {"TERM_PROGRAM": "", "KITTY_WINDOW_ID": "", "LC_TERMINAL": "", "TMUX": "", "NO_COLOR": "", "LINES": "40"}


@pytest.mark.parametrize("command", ["inspect d --image-id EVIL", "sample d -n 2"])
def test_texts_give_no_orders_to_the_terminal(tmp_path: Path, command: str) -> None:
    with open_writer(str(tmp_path / "d"), {"schema_version": 3}) as store:
        made = {"model": EVIL, "model_revision": EVIL, "protocol": EVIL, "engine": EVIL, "engine_version": EVIL}
        gates = [[{"gate": EVIL, "score": 1.0, "marked": True}]]
        images = [{"bytes": png(1), "path": EVIL}]
        texts = [{"user": EVIL, "assistant": EVIL}]
        evil = make_row(1, image_id=EVIL, caption=EVIL, url=EVIL, texts=texts, gates=gates, images=images, **made)
        bad = make_row(2, "rejected", image_id=f"2{EVIL}", reason=EVIL, detail=EVIL, raw=[EVIL])
        write_shard(store, shard_of("s", 2), [evil, bad])
    words = [EVIL if word == "EVIL" else word for word in command.split()]
    code, said = on_terminal(tmp_path, "dialog_gen", *words, **PLAIN)
    assert code == 0, said
    assert raw_controls(said) == []
    assert said.count("PLANT") > 8
    assert "▀" in said
    if "--image-id" in words:
        code, said = on_terminal(tmp_path, "dialog_gen", "inspect", "d", "--image-id", f"2{EVIL}", **PLAIN)
        assert (code, raw_controls(said)) == (0, [])


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Way.KITTY),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app", "COLORTERM": "truecolor"}, Way.ITERM),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, Way.TRUE_COLOUR),
        ({"TERM": "xterm-256color"}, Way.COLOURS_256),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, Way.COLOURS_256),
        ({"TERM": "dumb"}, None),
        ({}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
    ],
)
def test_what_a_terminal_can_show(environment: dict[str, str], way: Way | None) -> None:
    assert way_of(environment) is way


def pixels_of(text: str) -> list[list[tuple[int, int, int]]]:
    """The colours of half blocks, read as a terminal reads them: two rows of pixels a line."""

    def colour(kind: str, rest: str) -> tuple[int, int, int]:
        numbers = [int(number) for number in rest.split(";")]
        if kind == "2":
            return tuple(numbers)  # type: ignore[return-value]
        levels = (0, 95, 135, 175, 215, 255)
        index = numbers[0] - 16
        return levels[index // 36], levels[index // 6 % 6], levels[index % 6]

    rows = list[list[tuple[int, int, int]]]()
    for line in text.splitlines():
        cells = re.findall(r"\x1b\[38;([25]);([\d;]+?);48;([25]);([\d;]+)m▀", line)
        rows.append([colour(kind, rest) for kind, rest, _, _ in cells])
        rows.append([colour(kind, rest) for _, _, kind, rest in cells])
    return rows


@pytest.mark.parametrize("way", [Way.TRUE_COLOUR, Way.COLOURS_256])
def test_half_blocks_have_the_colours_of_the_image(way: Way) -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 95, 255), (20, 10, 40, 20))
    rows = pixels_of(drawn(image, way, columns=16, lines=50))
    assert (len(rows[0]), len(rows)) == (16, 8)
    assert rows[1][2] == rows[6][2] == rows[1][13] == (255, 0, 0)
    assert rows[6][13] == (0, 95, 255)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (640, 480), (7, 5)])
@pytest.mark.parametrize("way", list(Way))
def test_an_image_stays_within_its_room(size: tuple[int, int], way: Way) -> None:
    text = drawn(Image.new("RGB", size), way, columns=30, lines=9)
    if way in (Way.TRUE_COLOUR, Way.COLOURS_256):
        lines = text.splitlines()
        assert 1 <= len(lines) <= 9
        assert {line.count("▀") for line in lines} <= set(range(1, 31))
        assert all(line.endswith("\x1b[0m") for line in lines)
    else:
        found = re.search(r"c=(\d+),r=(\d+)|width=(\d+);height=(\d+)", text)
        assert found is not None
        columns, lines_high = (int(number) for number in found.groups() if number)
        assert 1 <= columns <= 30
        assert 1 <= lines_high <= 9


def noise() -> Image.Image:
    return Image.effect_noise((300, 200), 90).convert("RGB")


def test_kitty_graphics() -> None:
    text = drawn(noise(), Way.KITTY, columns=60, lines=20)
    parts = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) + "\n" == text
    assert len(parts) > 2
    assert all(len(data) <= 4096 for _, data in parts)
    assert all(len(data) % 4 == 0 for _, data in parts)
    assert [keys.split(",")[-1] for keys, _ in parts] == ["m=1"] * (len(parts) - 1) + ["m=0"]
    assert {"a=T", "f=100", "q=2"} <= set(parts[0][0].split(","))
    with Image.open(BytesIO(base64.b64decode("".join(data for _, data in parts)))) as shown:
        assert (shown.format, shown.size) == ("PNG", (300, 200))


def test_iterm_images() -> None:
    text = drawn(noise(), Way.ITERM, columns=60, lines=20)
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;width=60;height=20;preserveAspectRatio=1:([\w+/=]+)\x07\n", text)
    assert found is not None
    with Image.open(BytesIO(base64.b64decode(found[1]))) as shown:
        assert (shown.format, shown.size) == ("PNG", (300, 200))


def test_damaged_files(dataset: Path) -> None:
    file = next((dataset / "data").glob("s0*"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UsageError, match="s0"):
        find_row(DatasetFolder(str(dataset)), "image 1")
