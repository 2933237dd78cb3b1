import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.rows import gates_of, rows_of
from helpers.training import scene_row, write_dialogues

from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.gates.words import words
from dialog_train.long_text import with_context
from dialog_train.systems.multitask.pairs import TextPairs, build_text_pairs
from dialog_train.systems.multitask.sources import (
    AnswerPool,
    DialoguePairs,
    DialogueRows,
    DialogueTriplets,
    ParquetPairs,
)

TEXTS = [("a red thing", "what is it? a circle"), ("is it red?", "yes"), ("x " * 40, "no")]


@pytest.fixture(scope="module")
def encoder(tiny_clip: Path) -> TextEncoder:
    return TextEncoder(load_clip(str(tiny_clip)).tokenizer)


def rows_with(texts: Any) -> DialogueRows:
    return DialogueRows(DatasetFolder.existing(str(texts)))


def ids_of(encoder: TextEncoder, *texts: str) -> list[list[int]]:
    return [ids.tolist() for ids in encoder(texts)[0]]


def stored(out: Path) -> list[list[list[int]]]:
    """Token ids of all texts of all rows."""
    pairs = TextPairs(out)
    found: list[list[list[int]]] = []
    for row in range(len(pairs)):
        batch = pairs.batch([row])
        tensors = [*batch.queries.tokens, *batch.targets.tokens, *batch.negatives.tokens]
        found.append([[i for i in ids.tolist() if i] for ids in tensors])
    return found


def write_parquet(file: Path, **columns: list[Any]) -> Path:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def test_pairs_of_dialogues(tmp_path: Path, tiny_dialogues: Path, encoder: TextEncoder) -> None:
    summary = build_text_pairs(DialoguePairs(rows_with(tiny_dialogues)), encoder, tmp_path)
    pairs: list[tuple[str, str]] = []
    for row in rows_of(tiny_dialogues):
        pairs.append((row["caption"], " ".join(f"{pair['user']} {pair['assistant']}" for pair in row["texts"])))
        pairs += [(pair["user"], pair["assistant"]) for pair in row["texts"]]
    assert stored(tmp_path) == [ids_of(encoder, *pair) for pair in pairs]
    assert summary.rows == len(pairs) == 48 * 4
    assert summary.truncated == sum(sum(encoder(pair)[1]) for pair in pairs) > 0
    assert summary.substitutes == 0


def test_triplets_of_dialogues(tmp_path: Path, tiny_dialogues: Path, encoder: TextEncoder) -> None:
    source = DialogueTriplets(rows_with(tiny_dialogues), 7, seed=0)
    summary = build_text_pairs(source, encoder, tmp_path / "0")
    pairs = [pair for row in rows_of(tiny_dialogues) for pair in row["texts"]]
    triplets = [pair for part in source.parts() for rows in part.read() for pair in rows]
    assert [(t.query, t.target) for t in triplets] == [(p["user"], p["assistant"]) for p in pairs]
    assert stored(tmp_path / "0") == [ids_of(encoder, t.query, t.target, *t.negatives) for t in triplets]

    of_type: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for pair in pairs:
        of_type[tuple(words(pair["user"])[:2])].add(" ".join(words(pair["assistant"])))
    everything = set.union(*of_type.values())
    substitutes = 0
    for triplet in triplets:
        negatives, right = [" ".join(words(text)) for text in triplet.negatives], " ".join(words(triplet.target))
        assert len(set(negatives)) == 7
        assert right not in negatives
        assert set(negatives) <= everything
        own = of_type[tuple(words(triplet.query)[:2])]
        # All there are of the type come before any other.
        assert len(set(negatives) & own) == min(7, len(own - {right}))
        substitutes += len(set(negatives) - own)
    assert summary.substitutes == sum(t.substitutes for t in triplets) == substitutes > 0

    # Those of one question and answer are not the same for all images.
    of_pair: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for triplet in triplets:
        of_pair[triplet[:2]].add(triplet.negatives)
    assert any(len(found) > 1 for found in of_pair.values())

    again, other = (DialogueTriplets(rows_with(tiny_dialogues), 7, seed=seed) for seed in (0, 1))
    build_text_pairs(again, encoder, tmp_path / "again")
    build_text_pairs(other, encoder, tmp_path / "1")
    assert stored(tmp_path / "again") == stored(tmp_path / "0")
    assert [row[:2] for row in stored(tmp_path / "1")] == [row[:2] for row in stored(tmp_path / "0")]
    assert stored(tmp_path / "1") != stored(tmp_path / "0")


def test_triplets_depend_on_the_other_shards(tmp_path: Path) -> None:
    folders = [write_dialogues(tmp_path / str(n), {"a": [scene_row(0)], "b": [scene_row(n)]}) for n in (1, 2)]
    pairs, triplets = (
        [next(source.parts()).fingerprint for source in sources]
        for sources in (
            [DialoguePairs(rows_with(folder)) for folder in folders],
            [DialogueTriplets(rows_with(folder), 2, seed=0) for folder in folders],
        )
    )
    assert pairs[0] == pairs[1]
    assert triplets[0] != triplets[1]


@pytest.mark.parametrize(("right", "count"), [("Two.", 5), ("TWO", 5), ("nine", 6)])
def test_answers_that_are_equal_but_for_their_writing(right: str, count: int) -> None:
    pool = AnswerPool()
    for answer in ("two", "Two!", "one", "three", "", "?"):
        pool.add("How many?", answer)
    for answer in ("red", "blue", "two"):
        pool.add("What color is it?", answer)
    for seed in range(20):
        negatives, substitutes = pool.draw("how many, then?", right, 7, random.Random(seed))
        # Of "how many" there are one, two and three; the rest are colors.
        own = {"one", "three"} | ({"two"} if count == 6 else set())
        assert set(negatives[: len(own)]) <= own | {"two"}
        assert len(negatives) == len({n.casefold() for n in negatives}) == count - 1
        assert substitutes == 2
        assert set(negatives[-2:]) == {"red", "blue"}


def test_few_of_many_answers_are_held() -> None:
    one, other = AnswerPool(limit=50), AnswerPool(limit=50)
    answers = [f"answer {number}" for number in range(400)]
    for answer in answers:
        one.add("what is it?", answer)
    for answer in reversed(answers):
        other.add("what is it?", answer)
    held = [set(pool.draw("what is it?", "none", 400, random.Random(0))[0]) for pool in (one, other)]
    assert held[0] == held[1]
    assert len(held[0]) == 50


def test_too_few_answers_for_triplets(tmp_path: Path, tiny_dialogues: Path, encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match=r"triplets need 500: lower texts\.negatives"):
        build_text_pairs(DialogueTriplets(rows_with(tiny_dialogues), 500, seed=0), encoder, tmp_path)


def test_marked_pairs_are_left_out(tmp_path: Path, encoder: TextEncoder) -> None:
    rows = [scene_row(number, gates=gates_of([["short"], [], []])) for number in range(4)]
    dialogues = write_dialogues(tmp_path / "set", {"a": rows})
    source = DialoguePairs(DialogueRows(DatasetFolder.existing(str(dialogues)), kept_only=True))
    assert build_text_pairs(source, encoder, tmp_path / "out").rows == 4 * 3
    ungated = write_dialogues(tmp_path / "ungated", {"a": [scene_row(0)]})
    source = DialoguePairs(DialogueRows(DatasetFolder.existing(str(ungated)), kept_only=True))
    with pytest.raises(UsageError, match="dialog-gen gate"):
        build_text_pairs(source, encoder, tmp_path / "other")


def test_an_image_without_a_caption_has_questions_still(tmp_path: Path, encoder: TextEncoder) -> None:
    dialogues = write_dialogues(tmp_path / "set", {"a": [scene_row(0, caption=" "), scene_row(1, caption=None)]})
    assert build_text_pairs(DialoguePairs(rows_with(dialogues)), encoder, tmp_path / "out").rows == 6


def test_pairs_and_triplets_of_a_user(tmp_path: Path, encoder: TextEncoder) -> None:
    queries, targets = ([pair[i] for pair in TEXTS] for i in (0, 1))
    file = write_parquet(tmp_path / "files" / "0.parquet", query=queries, positive=targets)
    build_text_pairs(ParquetPairs(file), encoder, tmp_path / "pairs")
    assert stored(tmp_path / "pairs") == [ids_of(encoder, *pair) for pair in TEXTS]
    # More than are wanted.
    negatives = [["one", "two", "three"]] * 3
    write_parquet(tmp_path / "files" / "1.parquet", query=queries, positive=targets, negatives=negatives)
    write_parquet(tmp_path / "files" / "0.parquet", query=queries[:1], positive=["new"], negatives=negatives[:1])
    build_text_pairs(ParquetPairs(tmp_path / "files", 2), encoder, tmp_path / "triplets")
    expected = [(TEXTS[0][0], "new"), *TEXTS]
    assert stored(tmp_path / "triplets") == [ids_of(encoder, *pair, "one", "two") for pair in expected]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"query": ["a"]}, "no column positive, negatives"),
        ({"query": ["a", "b"], "positive": ["c", None], "negatives": [["d", "e"]] * 2}, "row 1: .* got .*None"),
        ({"query": ["a"], "positive": [" "], "negatives": [["d", "e"]]}, "row 0"),
        ({"query": ["a"], "positive": ["b"], "negatives": [["d"]]}, "2 negatives must be texts"),
        ({"query": ["a"], "positive": ["b"], "negatives": [["d", None]]}, "row 0"),
        ({"query": [1], "positive": ["b"], "negatives": [["d", "e"]]}, "row 0"),
    ],
)
def test_refuses_tables(tmp_path: Path, encoder: TextEncoder, columns: dict[str, list[Any]], said: str) -> None:
    file = write_parquet(tmp_path / "in" / "x.parquet", **columns)
    with pytest.raises(UsageError, match=said):
        build_text_pairs(ParquetPairs(file, 2), encoder, tmp_path / "out")


def test_refuses_files(tmp_path: Path, encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match="no Parquet file"):
        build_text_pairs(ParquetPairs(tmp_path / "none.parquet"), encoder, tmp_path / "out")
    (tmp_path / "text.parquet").write_text("query")
    with pytest.raises(UsageError, match=r"text.parquet cannot be read"):
        build_text_pairs(ParquetPairs(tmp_path / "text.parquet"), encoder, tmp_path / "out")


def test_is_made_once_and_anew_where_it_must(tmp_path: Path, tiny_dialogues: Path, encoder: TextEncoder) -> None:
    source, out = DialoguePairs(rows_with(tiny_dialogues)), tmp_path / "out"
    build_text_pairs(source, encoder, out)
    times = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert len(times) == 3
    build_text_pairs(source, encoder, out)
    # As after a kill: one part is there, one is damaged, one is missing.
    (out / "summary.json").unlink()
    first, second, third = sorted(times)
    before = {path: path.read_bytes() for path in times}
    second.write_bytes(before[second][:500])
    third.unlink()
    with pytest.raises(UsageError, match="no finished text pairs"):
        TextPairs(out)
    build_text_pairs(source, encoder, out)
    assert {path: path.read_bytes() for path in times} == before
    assert first.stat().st_mtime_ns == times[first]
    with pytest.raises(UsageError, match="negatives: 0 there, 7 now"):
        build_text_pairs(DialogueTriplets(rows_with(tiny_dialogues), 7, seed=0), encoder, out)


def test_a_changed_file_is_read_anew(tmp_path: Path, encoder: TextEncoder) -> None:
    file = write_parquet(tmp_path / "in" / "x.parquet", query=["a"], positive=["b"])
    first = build_text_pairs(ParquetPairs(file), encoder, tmp_path / "out")
    write_parquet(file, query=["a"], positive=["c"])
    assert build_text_pairs(ParquetPairs(file), encoder, tmp_path / "out").fingerprint != first.fingerprint
    assert stored(tmp_path / "out") == [ids_of(encoder, "a", "c")]


@pytest.mark.parametrize(("rows", "full_length", "length"), [([0, 2], False, 6), ([0], False, 5), ([0], True, 6)])
def test_fewer_tokens_than_are_stored(
    tmp_path: Path, encoder: TextEncoder, tiny_clip: Path, rows: list[int], full_length: bool, length: int
) -> None:
    queries, targets = ([pair[i] for pair in TEXTS] for i in (0, 1))
    file = write_parquet(tmp_path / "x.parquet", query=queries, positive=targets)
    build_text_pairs(ParquetPairs(file), encoder, tmp_path / "out")
    batch = TextPairs(tmp_path / "out", 6).batch(rows, full_length=full_length)
    tokenizer = with_context(load_clip(str(tiny_clip)).tokenizer, 6)
    assert batch.queries.tokens.shape == (len(rows), length)
    assert torch.equal(batch.queries.tokens, tokenizer([queries[row] for row in rows])[:, :length])


def test_equal_texts_have_equal_ids(tmp_path: Path, encoder: TextEncoder) -> None:
    file = write_parquet(
        tmp_path / "x.parquet",
        query=["a", "A", "b", "c"],
        positive=["yes", "no", "Yes", "?"],
        negatives=[["no"], ["yes"], ["b"], ["c"]],
    )
    build_text_pairs(ParquetPairs(file, 1), encoder, tmp_path / "out")
    batch = TextPairs(tmp_path / "out").batch([0, 1, 2, 3])
    ids = batch.text_ids
    assert ids.shape == (4, 3)
    assert len(set(ids.flatten().tolist())) == 6  # a, b, c, yes, no, ?
    assert ids[0, 0] == ids[1, 0]
    assert ids[0, 1] == ids[2, 1] == ids[1, 2]
    assert float(batch.duplicate_targets) == 0.5
    moved = batch.to(torch.device("meta"))
    assert moved.text_ids.device.type == moved.negatives.tokens.device.type == "meta"


def test_a_source_without_rows(tmp_path: Path, encoder: TextEncoder) -> None:
    file = write_parquet(tmp_path / "x.parquet", query=pa.array([], pa.string()), positive=pa.array([], pa.string()))
    with pytest.raises(UsageError, match="no text pair"):
        build_text_pairs(ParquetPairs(file), encoder, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["source"] == "parquet"
