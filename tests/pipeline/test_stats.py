import itertools
import json
import random
import re
import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.inputs import png, sha256
from helpers.progress import Heard
from helpers.rows import gates_of, make_row, marks_of, scores_of, shard_of, write_shard
from hypothesis import given
from hypothesis import strategies as st

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.writer import open_writer
from dialog_gen.inspect.distributions import Distribution, Spread
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.inspect.sketches import DistinctItems, FrequentItems
from dialog_gen.inspect.statistics import answer_type, question_type, stats
from dialog_gen.inspect.stats_text import stats_text

QUESTIONS = ("What color is the car?", "How many dogs are there?", "Is there a dog?", "Why?", "what Color is it")
ANSWERS = ("Red.", "red", "Yes, there is.", "no", "2", "Two dogs are playing in the park.", "1,000")


def write_dataset(out: Path, rows: list[dict[str, Any]], shard_size: int = 150) -> Path:
    with open_writer(str(out), {"seed": 1}) as store:
        for number, start in enumerate(range(0, len(rows), shard_size)):
            some = rows[start : start + shard_size]
            write_shard(store, shard_of(f"s{number}", len(some)), some)
    return out


def made_up_rows(count: int) -> list[dict[str, Any]]:
    """Of every third image the bytes stand twice; a tenth is lost; half are gated."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        if i % 10 == 9:
            rows.append(make_row(i, rng.choice(["rejected", "unreadable"])))
            continue
        n = rng.randint(1, 4)
        texts = [{"user": rng.choice(QUESTIONS), "assistant": rng.choice(ANSWERS)} for _ in range(n)]
        gates: dict[str, Any] = {}
        if i % 2:
            scores = [rng.choice([None, round(rng.random(), 2)]) for _ in range(n)]
            marks = [
                ["leak"] * (score is not None and score > 0.8) + ["length"] * (rng.random() < 0.1) for score in scores
            ]
            gates["gates"] = gates_of(marks, leak=scores, length=[float(rng.randint(1, 9)) for _ in range(n)])
        seen = i - (i % 3 == 2)
        data = png(seen, (4 + seen % 5, 8))
        caption = rng.choice([None, "", "one", "a few words, four"])
        rows.append(
            make_row(i, texts=texts, caption=caption, **gates)
            | {
                "image_sha256": sha256(data),
                "images": [{"bytes": data, "path": None}],
                "model": f"m{i % 3}",
            }
        )
    return rows


def test_against_brute_force(tmp_path: Path) -> None:
    everything = made_up_rows(400)
    found = stats(write_dataset(tmp_path, everything))
    rows = [row for row in everything if "texts" in row]
    pairs = [pair for row in rows for pair in row["texts"]]
    lost = Counter(row["status"] for row in everything if "status" in row)
    assert (found.images, found.accepted, found.shards) == (400, 360, 3)
    assert {"rejected": found.rejected, "unreadable": found.unreadable} == lost
    assert found.reasons == {
        "rejected": {"too_few_pairs": lost["rejected"]},
        "unreadable": {"truncated": lost["unreadable"]},
    }
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.parquet"))
    assert found.repeated_images == len(rows) - len({row["image_sha256"] for row in rows}) > 50
    assert found.pairs == len(pairs)
    assert found.pairs_per_image == Counter(len(row["texts"]) for row in rows)
    assert found.models == Counter(row["model"] for row in rows)
    assert (found.protocols, found.engines) == ({"p": 360}, {"e": 360})

    for told, side, type_of in (
        (found.questions, "user", lambda text: " ".join(re.findall(r"\w+", text.lower())[:2])),
        (found.answers, "assistant", lambda text: text.lower().strip("?.")),
    ):
        texts = [pair[side] for pair in pairs]
        lengths = [len(re.findall(r"[\w,]*\w", text)) for text in texts]
        assert told.distinct == len({text.lower().strip("?.") for text in texts})
        assert told.distinct_is_exact
        assert told.top == Counter(map(type_of, texts))
        assert list(told.top.values()) == sorted(told.top.values(), reverse=True)
        assert told.words.count == len(texts)
        assert told.words.mean == pytest.approx(statistics.mean(lengths), abs=1e-4)
        assert [told.words.median, told.words.p95] == np.quantile(lengths, [0.5, 0.95], method="inverted_cdf").tolist()
    kinds = {
        "Red.": "other",
        "red": "other",
        "Yes, there is.": "yes/no",
        "no": "yes/no",
        "2": "number",
        "1,000": "number",
    }
    wanted = Counter(
        "number" if pair["user"].startswith("How many") and kinds.get(pair["assistant"]) != "yes/no"
        else kinds.get(pair["assistant"], "other")
        for pair in pairs
    )  # fmt: skip
    assert found.answer_types == wanted
    captions = Counter(len(row["caption"].split()) for row in rows if row["caption"])
    assert {bar.low: bar.count for bar in found.captions.bins if bar.count} == captions

    marks = [against for row in rows for against in marks_of(row) or ()]
    assert (found.pairs_gated, found.pairs_kept) == (len(marks), sum(not against for against in marks))
    assert (
        found.images_without_kept_pair == sum(all(marks_of(row) or ()) for row in rows if row["gates"] is not None) > 0
    )
    assert list(found.gates) == ["leak", "length"]
    for name, gate in found.gates.items():
        scores = [score for row in rows for score in scores_of(row, name) or () if score is not None]
        assert (gate.scored, gate.marked) == (len(scores), sum(name in against for against in marks))
        assert gate.scores.median == np.quantile(scores, 0.5, method="inverted_cdf")
        assert sum(bar.count for bar in gate.scores.bins) == len(scores)
    sizes = found.image_sizes
    assert sizes is not None
    assert (sizes.sampled, sizes.formats, sizes.height) == (360, {"PNG": 360}, 8)
    assert (sizes.smallest, sizes.largest) == ((4, 8), (8, 8))
    json.dumps(asdict(found), allow_nan=False)
    text = stats_text(found)
    for said in ("400 images in 3 shards", "too_few_pairs", "how many", "leak", "what color"):
        assert said in text


def test_shards_make_no_difference(tmp_path: Path) -> None:
    rows = made_up_rows(120)
    one, many = (stats(write_dataset(tmp_path / str(size), rows, size)) for size in (120, 7))
    differing = {key for key, value in asdict(one).items() if asdict(many)[key] != value}
    assert differing == {"shards", "bytes"}


def test_an_empty_dataset_and_one_without_images(tmp_path: Path) -> None:
    empty = stats(write_dataset(tmp_path / "empty", [make_row(0, "rejected")]))
    assert (empty.images, empty.accepted, empty.pairs, empty.image_sizes) == (1, 0, 0, None)
    assert stats_text(empty).startswith("1 image in 1 shard, ")
    rows = [make_row(0, images=None), make_row(1, images=[]), make_row(2, images=[{"bytes": None, "path": "a"}])]
    assert stats(write_dataset(tmp_path / "bare", rows)).image_sizes is None
    rows[0]["images"] = [{"bytes": b"no image", "path": None}]
    sizes = stats(write_dataset(tmp_path / "bad", rows)).image_sizes
    assert sizes is not None
    assert (sizes.sampled, sizes.readable, sizes.formats) == (1, 0, {"not an image": 1})


def test_what_is_not_a_number_is_not_a_score(tmp_path: Path) -> None:
    texts = [{"user": "a?", "assistant": "b"}] * 2
    row = make_row(0, texts=texts, gates=gates_of([[], []], leak=[float("nan"), 0.5]))
    assert stats(write_dataset(tmp_path, [row])).gates["leak"].scored == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shards/s0.json", r"s0\.json is damaged"),
        ("data/s0.parquet", r"s0\.parquet cannot be read"),
        ("", "has shards but no config.json"),
    ],
)
def test_damage_is_told(tmp_path: Path, name: str, message: str) -> None:
    write_dataset(tmp_path, made_up_rows(20))
    if name:
        (tmp_path / name).write_bytes(b"{")
    else:
        (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=message):
        stats(str(tmp_path))


@pytest.mark.parametrize(
    ("question", "answer", "kind", "type_"),
    [
        ("What color is it?", "Red.", "other", "what color"),
        ("WHAT'S that?", "a dog", "other", "what's that"),
        ("Is it red?", "Yes, it is.", "yes/no", "is it"),
        ("Is it red?", "NO", "yes/no", "is it"),
        ("Is it red?", "Nothing is.", "other", "is it"),
        ("How many dogs?", "There are two.", "number", "how many"),
        ("How many dogs?", "No dogs.", "yes/no", "how many"),
        ("Which year?", "1,999", "number", "which year"),
        ("What is seen?", "seven", "number", "what is"),
        ("What is seen?", "seven dogs", "other", "what is"),
        ("Why?", "...", "other", "why"),
        ("¿?", "", "other", ""),
    ],
)
def test_types(question: str, answer: str, kind: str, type_: str) -> None:
    assert (answer_type(question, answer), question_type(question)) == (kind, type_)


# Sketches


@given(st.lists(st.integers(0, 30).map(str)), st.integers(1, 8))
def test_frequent_items_are_too_low_by_no_more_than_they_say(stream: list[str], capacity: int) -> None:
    found, exact = FrequentItems(capacity), Counter(stream)
    for item in stream:
        found.add(item)
    told = found.top(len(stream))
    assert all(exact[item] - found.undercount <= count <= exact[item] for item, count in told.items())
    assert {item for item, count in exact.items() if count > found.undercount} <= told.keys()
    assert len(told) <= 2 * capacity
    if len(exact) <= capacity:
        assert found.undercount == 0
        assert told == exact


def test_frequent_items_of_a_long_tail() -> None:
    found = FrequentItems(50)
    for i in range(20_000):
        found.add("often" if i % 4 == 0 else f"once {i}")
    assert next(iter(found.top(3))) == "often"
    assert 5000 - found.undercount <= found.top(1)["often"] <= 5000
    assert 0 < found.undercount <= 20_000 / 50


@pytest.mark.parametrize(("different", "times"), [(0, 1), (1, 3), (1000, 2), (1001, 2), (30_000, 1), (30_000, 3)])
def test_distinct_items(different: int, times: int) -> None:
    found = DistinctItems(k=1000)
    for i in range(different * times):
        found.add(f"item {i % different}")
    assert found.exact == (different <= 1000)
    error = 0 if found.exact else 4 / 1000**0.5
    assert found.distinct == pytest.approx(different, rel=error, abs=0)
    assert found.repeated == pytest.approx(different * (times - 1), rel=1e-3)
    assert found.seen == different * times


@given(st.lists(st.one_of(st.integers(0, 999), st.integers(-100, 100).map(lambda i: i / 100)), min_size=1))
def test_distributions(values: list[float]) -> None:
    found = Distribution()
    for value in values:
        found.add(value)
    spread = Spread.of(found)
    quantiles = np.quantile(values, [0.5, 0.95], method="inverted_cdf").tolist()
    assert [spread.median, spread.p95] == pytest.approx(quantiles)
    assert spread.mean == pytest.approx(statistics.mean(values), abs=1e-4)
    whole = all(value == int(value) for value in values)
    for bar in spread.bins:
        high = float("inf") if bar.high is None else bar.high + (0 if whole else 1e-9)
        first = bar is spread.bins[0]
        low = bar.low if whole else bar.low - 1e-9 if first else bar.low + 1e-9
        assert bar.count == sum(low <= value < high for value in values)
    assert 1 <= len(spread.bins) <= 24
    assert [bar.high for bar in spread.bins[:-1]] == pytest.approx([bar.low for bar in spread.bins[1:]])


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([3, 3, 5], [(3, 4, 2), (4, 5, 0), (5, 6, 1)]),
        ([0.0, 1.0, 0.5], [(0, 0.05, 1), (0.45, 0.5, 1), (0.95, 1, 1)]),
        ([*range(100), 5000], [(0, 5, 5), (95, None, 6)]),
        ([0.29], [(0.29, 0.3, 1)]),
        ([], []),
    ],
)
def test_bins(values: list[float], bins: list[tuple[float, float | None, int]]) -> None:
    found = Distribution()
    for value in values:
        found.add(value)
    told = [(bar.low, bar.high, bar.count) for bar in Spread.of(found).bins]
    assert [bar for bar in told if bar in bins] == bins


# Sampling


def ids(out: Path, count: int, seed: int = 0) -> list[str]:
    return [row["image_id"] for row in sample_rows(DatasetFolder(str(out)), ["image_id"], count, seed=seed)]


def test_samples_are_uniform(tmp_path: Path) -> None:
    """40 of 160 rows under 100 seeds: each 25 times, give or take four standard deviations."""
    write_dataset(tmp_path, [make_row(i) for i in range(160)], 60)
    drawn = Counter(itertools.chain.from_iterable(ids(tmp_path, 40, seed) for seed in range(100)))
    assert len(drawn) == 160
    assert max(abs(times - 25) for times in drawn.values()) < 4 * (100 * 0.25 * 0.75) ** 0.5


def test_samples_depend_on_ids_and_seed_alone(tmp_path: Path) -> None:
    rows = [make_row(i, "rejected" if i % 7 == 0 else "accepted") for i in range(260)]
    one, many = (write_dataset(tmp_path / str(size), rows, size) for size in (260, 30))
    assert ids(one, 50) == ids(many, 50) == sorted(ids(one, 50), key=lambda name: int(name.split()[1]))
    assert set(ids(one, 20)) < set(ids(one, 50))
    assert ids(one, 50) != ids(one, 50, seed=1)
    assert ids(one, 0) == []
    assert ids(one, 1000) == [row["image_id"] for row in rows if "texts" in row]
    (row,) = sample_rows(DatasetFolder(str(one)), ["caption", "images"], 1)
    assert row.keys() == {"caption", "images"}


def test_progress(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, made_up_rows(40), 15)
    heard = Heard()
    assert stats(str(dataset), on_progress=heard) == stats(DatasetFolder(str(dataset)))
    assert heard.ends() == {"reading shards": (3, 3)}


def test_answers_by_type_of_question(tmp_path: Path) -> None:
    """Against a count by hand; texts of any length take bounded memory, by their beginnings."""
    asked = [
        ("What color is it?", "Red."),
        ("what COLOR was it?", "red"),
        ("What color?", "blue"),
        ("Is it?", "y" * 9999),
    ]
    texts = [{"user": question, "assistant": answer} for question, answer in asked]
    rows = [
        make_row(0, texts=texts, gates=gates_of([["leak"], [], ["leak", "length"], []])),
        make_row(1, texts=texts[:1]),
    ]
    with open_writer(str(tmp_path / "d"), {"model": "m"}) as store:
        write_shard(store, shard_of("s", 2), rows)
    found = stats(tmp_path / "d").by_question
    assert {name: (kind.pairs, kind.marked, kind.answers) for name, kind in found.items()} == {
        "what color": (4, 2, {"red": 3, "blue": 1}),
        "is it": (1, 0, {"y" * 1000: 1}),
    }
    assert list(found) == ["what color", "is it"]
