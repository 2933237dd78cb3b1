import json
import random
import resource
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from helpers.rows import gates_of, rows_of, sign
from helpers.training import TINY_CLIP, TINY_SHARDS, scene_row, write_dialogues, write_tiny_clip

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tokens import TextEncoder, join_ids
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.upgrade import upgrade
from dialog_train.data import training_set as module
from dialog_train.data.training_set import (
    TrainingSet,
    TrainingSetSummary,
    build_training_set,
    columns_of,
    epoch_batches,
)
from dialog_train.data.vectors import VectorStore, embed_dataset

CONTEXT = TINY_CLIP["text_cfg"]["context_length"]
TOKENIZER = open_clip.SimpleTokenizer(context_length=CONTEXT)
LONG = "blue star " * 30


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> Clip:
    return load_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def vectors(tiny_dialogues: Path, clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    out = tmp_path_factory.mktemp("vectors") / "v"
    embed_dataset(DatasetFolder(str(tiny_dialogues)), clip, out)
    return VectorStore(out)


@pytest.fixture(scope="module")
def tiny_set(
    tiny_dialogues: Path, clip: Clip, vectors: VectorStore, tmp_path_factory: pytest.TempPathFactory
) -> TrainingSet:
    out = tmp_path_factory.mktemp("training") / "t"
    build_training_set(DatasetFolder(str(tiny_dialogues)), vectors, clip, out)
    return TrainingSet(out)


def make(folder: Path, clip: Clip, shards: dict[str, list[dict[str, Any]]], **options: Any) -> TrainingSetSummary:
    """From rows to a training set at `folder`/t, whatever was there."""
    write_dialogues(folder / "d", shards)
    dataset = DatasetFolder(str(folder / "d"))
    embed_dataset(dataset, clip, folder / "v")
    return build_training_set(dataset, VectorStore(folder / "v"), clip, folder / "t", **options)


def padded(texts: list[str]) -> torch.Tensor:
    tokens = TOKENIZER(texts)
    return tokens[:, : int((tokens != 0).sum(1).max())]


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_rows_are_the_vectors_and_the_tokenizers_ids(
    tiny_set: TrainingSet, tiny_dialogues: Path, vectors: VectorStore
) -> None:
    rows = rows_of(tiny_dialogues)
    assert len(tiny_set) == len(rows) == 48
    stored = {row["image_id"]: row["vector"] for shard in vectors.shards() for row in vectors.read(shard).to_pylist()}
    order = np.random.default_rng(0).permutation(48)
    turns: set[int] = set()
    for chosen in (order[:30], order[30:], [47, 0, 0]):
        batch = tiny_set.batch(chosen, 5, concatenate=False)
        expected = [rows[number] for number in chosen]
        assert batch.image_ids == [row["image_id"] for row in expected]
        assert torch.equal(batch.captions.tokens, padded([row["caption"] for row in expected]))
        assert (batch.image_vectors.dtype, batch.captions.tokens.dtype) == (torch.float32, torch.int64)
        wanted = torch.tensor([stored[row["image_id"]] for row in expected])
        torch.testing.assert_close(batch.image_vectors, wanted, atol=1e-3, rtol=0)
        torch.testing.assert_close(batch.image_vectors.norm(dim=1), torch.ones(len(chosen)))
        pairs = [[padded([f"{p['user']} {p['assistant']}"])[0].tolist() for p in row["texts"]] for row in expected]
        for ids, of_image in zip(batch.dialogues.tokens.tolist(), pairs, strict=True):
            turns.add(of_image.index([token for token in ids if token]))
        assert (batch.dialogues.tokens != 0).sum(1).max() == batch.dialogues.tokens.shape[1]
    # Which pair is first depends on the image.
    assert turns == {0, 1, 2}


def test_rotation_brings_every_pair_once(tiny_set: TrainingSet) -> None:
    numbers = range(48)
    seen: list[Counter[tuple[int, ...]]] = [Counter() for _ in numbers]
    for epoch in range(6):
        tokens = tiny_set.batch(numbers, epoch, concatenate=False).dialogues.tokens
        for counter, ids in zip(seen, tokens.tolist(), strict=True):
            counter[tuple(token for token in ids if token)] += 1
    assert all(sorted(counter.values()) == [2, 2, 2] for counter in seen)
    again = tiny_set.batch(numbers, 3, concatenate=False).dialogues.tokens
    assert torch.equal(again, tiny_set.batch(numbers, 0, concatenate=False).dialogues.tokens)


def test_epochs_take_turns_with_crops(tiny_dialogues: Path, clip: Clip, tmp_path: Path) -> None:
    dataset = DatasetFolder(str(tiny_dialogues))
    embed_dataset(dataset, clip, tmp_path / "v", crops=2)
    store = VectorStore(tmp_path / "v")
    build_training_set(dataset, store, clip, tmp_path / "t")
    training_set = TrainingSet(tmp_path / "t")
    rows = [row for shard in store.shards() for row in store.read(shard).to_pylist()]
    views = {row["image_id"]: torch.tensor(row["vector"], dtype=torch.float32).view(3, -1) for row in rows}
    taken = Counter[int]()
    for epoch in range(4):
        batch = training_set.batch(range(len(training_set)), epoch, concatenate=False)
        again = training_set.batch(range(len(training_set)), epoch, concatenate=False)
        assert torch.equal(batch.image_vectors, again.image_vectors)
        for image_id, vector in zip(batch.image_ids, batch.image_vectors, strict=True):
            torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
            distances = (views[image_id] - vector).norm(dim=1)
            assert distances.min() < 1e-3
            taken[int(distances.argmin())] += 1
    # A third each of about 190, give or take four standard deviations.
    assert all(abs(taken[view] - taken.total() / 3) < 4 * (taken.total() * 2 / 9) ** 0.5 for view in range(3))


def test_duplicate_captions_are_counted(clip: Clip, tmp_path: Path) -> None:
    captions = ["a red star", "a blue star", "a red star", "two stars", "a blue star", "a red star", "star", "x"]
    rows = [scene_row(number, caption=caption) for number, caption in enumerate(captions)]
    make(tmp_path, clip, {"a": rows})
    training_set = TrainingSet(tmp_path / "t")
    for chosen, duplicates in (([0, 1, 3], 0), ([0, 2, 6, 7], 2), (range(8), 5)):
        batch = training_set.batch(chosen, 0, concatenate=False)
        assert float(batch.duplicate_captions) == pytest.approx(duplicates / len(chosen))


def test_concatenated_is_the_text_of_all_pairs(tiny_set: TrainingSet, tiny_dialogues: Path) -> None:
    tokens = tiny_set.batch(range(48), 1, concatenate=True).dialogues.tokens
    texts = [" ".join(f"{p['user']} {p['assistant']}" for p in row["texts"]) for row in rows_of(tiny_dialogues)]
    assert torch.equal(tokens, padded(texts))
    assert tokens.shape[1] == CONTEXT
    too_long = sum(len(TOKENIZER.encode(text)) + 2 > CONTEXT for text in texts)
    assert 0 < tiny_set.summary.truncated["concatenated"] == too_long < 48


def test_full_length_is_the_tokenizers_own(tiny_set: TrainingSet, tiny_dialogues: Path) -> None:
    batch = tiny_set.batch([3, 9], 0, concatenate=False, full_length=True)
    captions = [rows_of(tiny_dialogues)[number]["caption"] for number in (3, 9)]
    assert torch.equal(batch.captions.tokens, TOKENIZER(captions))
    assert batch.dialogues.tokens.shape == (2, CONTEXT)


@pytest.mark.parametrize("rows", [[48], [-1], [0, 99]])
def test_rows_out_of_range(rows: list[int], tiny_set: TrainingSet) -> None:
    with pytest.raises(IndexError, match="from 0 to 47"):
        tiny_set.batch(rows, 0, concatenate=False)


@pytest.mark.parametrize(
    ("dialogue_format", "text"),
    [("question_answer", "Why? So."), ("labelled", "Question: Why? Answer: So."), ("answer", "So.")],
)
def test_formats(dialogue_format: str, text: str, clip: Clip, tmp_path: Path) -> None:
    rows = [scene_row(0, texts=[{"user": "Why?", "assistant": "So."}])]
    make(tmp_path, clip, {"a": rows}, dialogue_format=dialogue_format)
    batch = TrainingSet(tmp_path / "t").batch([0], 0, concatenate=False)
    assert torch.equal(batch.dialogues.tokens, padded([text]))
    other = "answer" if dialogue_format != "answer" else "labelled"
    with pytest.raises(UsageError, match=f"dialogue_format: '{dialogue_format}' there, '{other}' now"):
        make(tmp_path, clip, {"a": rows}, dialogue_format=other)
    with pytest.raises(UsageError, match="did you mean 'answer'"):
        make(tmp_path, clip, {"a": rows}, dialogue_format="answers")


def test_marked_pairs_are_left_out_where_asked_for(clip: Clip, tmp_path: Path) -> None:
    rows = [scene_row(number) for number in range(4)]
    marks = [[[], ["leak"], []], [["echo"], ["length"], ["leak", "length"]], [[], [], []], [[], [], ["leak"]]]
    for row, of_row in zip(rows, marks, strict=True):
        row["gates"] = gates_of(of_row)
    assert make(tmp_path / "all", clip, {"s": rows}).pairs == 12
    summary = make(tmp_path / "kept", clip, {"s": rows}, kept_only=True)
    assert (summary.rows, summary.pairs, summary.dropped) == (3, 7, {"without_dialogue": 1})
    kept = TrainingSet(tmp_path / "kept" / "t")
    pairs = rows[0]["texts"][0], rows[0]["texts"][2]
    expected = padded([f"{p['user']} {p['assistant']}" for p in pairs])
    found = [kept.batch([0], epoch, concatenate=False).dialogues.tokens[0].tolist() for epoch in (0, 1)]
    assert {tuple(filter(None, ids)) for ids in found} == {tuple(filter(None, ids)) for ids in expected.tolist()}
    # One and the same folder cannot hold both.
    with pytest.raises(UsageError, match="kept_only"):
        make(tmp_path / "kept", clip, {"s": rows})
    rows[2]["gates"] = None
    with pytest.raises(UsageError, match="no gates were applied to shard s"):
        make(tmp_path / "ungated", clip, {"s": rows}, kept_only=True)


def test_what_is_cut_is_counted(clip: Clip, tmp_path: Path) -> None:
    fits = "star " * (CONTEXT - 2)
    short = {"user": "Why?", "assistant": "So."}
    rows = [
        scene_row(0, caption=LONG, texts=[short]),
        scene_row(1, caption=fits, texts=[short, {"user": LONG, "assistant": "x"}, {"user": fits, "assistant": ""}]),
        scene_row(2, caption=fits + "star", texts=[{"user": fits[:60], "assistant": "no"}] * 2),
        scene_row(3, caption="{user} {0} %s", texts=[{"user": "{assistant}", "assistant": "{"}]),
    ]
    summary = make(tmp_path, clip, {"a": rows[:2], "b": rows[2:]})
    assert (summary.rows, summary.pairs) == (4, 7)
    assert summary.truncated == {"captions": 2, "dialogues": 1, "concatenated": 2}
    assert summary.truncation_rates() == {"captions": 0.5, "dialogues": 1 / 7, "concatenated": 0.5}
    batch = TrainingSet(tmp_path / "t").batch(range(4), 0, concatenate=False)
    assert torch.equal(batch.captions.tokens, TOKENIZER([row["caption"] for row in rows]))


def test_what_is_left_out_is_counted(clip: Clip, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = {"image_sha256": scene_row(0)["image_sha256"], "images": scene_row(0)["images"]}
    rows = [
        scene_row(0, caption=" \n", **same),
        scene_row(1, caption=None),
        scene_row(2, **same),
        scene_row(3, images=[{"bytes": b"no image", "path": None}]),
        scene_row(4, texts=[]),
        scene_row(5),
        scene_row(6, **same),
    ]
    caplog.set_level("INFO", "dialog_train")
    summary = make(tmp_path, clip, {"a": rows, "b": [scene_row(7, **same)], "c": [scene_row(8)]})
    assert summary.dropped == {
        "without_caption": 2,
        "without_dialogue": 1,
        "without_vector": 1,
        "duplicate_image": 2,
    }
    found = TrainingSet(tmp_path / "t")
    # The first copy that can be used stays.
    batch = found.batch(range(len(found)), 0, concatenate=False)
    assert batch.image_ids == ["image 2", "image 5", "image 8"]
    store = VectorStore(tmp_path / "v")
    stored = {row["image_id"]: row["vector"] for shard in "abc" for row in store.read(shard).to_pylist()}
    wanted = torch.tensor([stored[image_id] for image_id in batch.image_ids])
    torch.testing.assert_close(batch.image_vectors, wanted, atol=1e-3, rtol=0)
    assert found.summary.rows + sum(found.summary.dropped.values()) == 9
    assert "2 duplicate_image" in caplog.text
    assert "of captions" in caplog.text


def test_goes_on_and_ends_the_same(
    tiny_dialogues: Path,
    clip: Clip,
    vectors: VectorStore,
    tiny_set: TrainingSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, dataset = tmp_path / "t", DatasetFolder(str(tiny_dialogues))
    encoded: list[int] = []
    encode = TextEncoder.flat
    monkeypatch.setattr(TextEncoder, "flat", lambda self, t: encoded.append(len(t)) or encode(self, t))
    build_training_set(dataset, vectors, clip, out)
    assert sum(encoded) == 48 * 4
    # As a kill in the second shard leaves it, and a file system that lost the end of the third.
    (out / "summary.json").unlink()
    (out / ".tmp").mkdir()
    (out / ".tmp" / "b.arrow").write_bytes(b"ARROW1")
    (out / "rows" / "b.arrow").unlink()
    (out / "rows" / "c.arrow").write_bytes((out / "rows" / "c.arrow").read_bytes()[:-20])
    with pytest.raises(UsageError, match="no finished training set"):
        TrainingSet(out)
    encoded.clear()
    heard: list[int] = []
    summary = build_training_set(dataset, vectors, clip, out, on_shard=heard.append)
    assert sum(encoded) == (TINY_SHARDS["b"] + TINY_SHARDS["c"]) * 4
    assert sum(heard) == 48
    assert files(out) == files(tiny_set.out)
    encoded.clear()
    heard.clear()
    again = build_training_set(dataset, vectors, clip, out, on_shard=heard.append)
    assert (encoded, sum(heard)) == ([], 48)
    assert again.truncation_rates() == summary.truncation_rates()


def test_follows_the_dataset(clip: Clip, tmp_path: Path) -> None:
    make(tmp_path, clip, {"a": [scene_row(0)], "b": [scene_row(1), scene_row(5)], "c": [scene_row(2)]})
    # Shard a gains what b holds, so that a row of b turns into a duplicate; c is gone.
    (tmp_path / "d" / "shards" / "c.json").unlink()
    summary = make(tmp_path, clip, {"a": [scene_row(0), scene_row(1)]})
    assert (summary.rows, summary.dropped, summary.shards) == (3, {"duplicate_image": 1}, [("a", 2), ("b", 1)])
    assert sorted(path.name for path in (tmp_path / "t" / "rows").iterdir()) == ["a.arrow", "b.arrow"]
    found = TrainingSet(tmp_path / "t")
    assert found.batch([2, 1], 0, concatenate=False).image_ids == ["image 5", "image 1"]


def test_refuses_another_model(
    tiny_dialogues: Path, clip: Clip, vectors: VectorStore, tiny_set: TrainingSet, tmp_path: Path
) -> None:
    other = load_clip(str(write_tiny_clip(tmp_path / "other", seed=1)))
    dataset = DatasetFolder(str(tiny_dialogues))
    tiny_set.check(clip)
    with pytest.raises(UsageError, match=r"another model: tiny .* there, other .* now"):
        tiny_set.check(other)
    with pytest.raises(UsageError, match="another model"):
        build_training_set(dataset, vectors, other, tmp_path / "t")
    embed_dataset(dataset, other, tmp_path / "v")
    before = files(tiny_set.out)
    with pytest.raises(UsageError, match="another model"):
        build_training_set(dataset, VectorStore(tmp_path / "v"), other, tiny_set.out)
    assert files(tiny_set.out) == before
    assert not (tmp_path / "t").exists()


def test_refuses_old_vectors_and_useless_datasets(clip: Clip, tmp_path: Path) -> None:
    make(tmp_path / "x", clip, {"a": [scene_row(0)]})
    old = VectorStore(tmp_path / "x" / "v")
    for rows in ({"a": [scene_row(1)]}, {"b": [scene_row(2)]}):
        write_dialogues(tmp_path / "x" / "d", rows)
        with pytest.raises(UsageError, match=r"lacks vectors of shard .* run `dialog-train embed`"):
            build_training_set(DatasetFolder(str(tmp_path / "x" / "d")), old, clip, tmp_path / "x" / "t")

    with pytest.raises(UsageError, match=r"no row to train on: .*'without_caption': 1"):
        make(tmp_path / "y", clip, {"a": [scene_row(0, caption=None)]})
    write_dialogues(tmp_path / "empty", {})
    with pytest.raises(UsageError, match="holds no dialogues"):
        build_training_set(DatasetFolder(str(tmp_path / "empty")), old, clip, tmp_path / "t")


@pytest.mark.parametrize("column", ["texts", "caption"])
def test_refuses_a_dataset_without_the_column(column: str, clip: Clip, tmp_path: Path) -> None:
    write_dialogues(tmp_path / "d", {"a": [scene_row(0)]})
    file = tmp_path / "d" / "data" / "a.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    sign(tmp_path / "d", "a")
    dataset = DatasetFolder(str(tmp_path / "d"))
    embed_dataset(dataset, clip, tmp_path / "v")
    with pytest.raises(UsageError, match=f"has no column {column}: "):
        build_training_set(dataset, VectorStore(tmp_path / "v"), clip, tmp_path / "t")


def test_damaged_training_sets(tiny_set: TrainingSet, clip: Clip, tmp_path: Path) -> None:
    def damage(name: str, content: bytes | None) -> Path:
        out = tmp_path / name
        for path, data in files(tiny_set.out).items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(data)
        target = out / "rows" / "b.arrow" if name.startswith("rows") else out / "summary.json"
        target.write_bytes(content) if content is not None else target.unlink()
        return out

    whole = files(tiny_set.out)
    for name, content, words in (
        ("rows cut", whole["rows/b.arrow"][:-30], "is missing or damaged"),
        ("rows gone", None, "is missing or damaged"),
        ("rows of another shard", whole["rows/c.arrow"], "has not the 20 rows"),
        ("summary gone", None, "no finished training set"),
        ("summary cut", whole["summary.json"][:-30], "is damaged"),
    ):
        with pytest.raises(UsageError, match=words):
            TrainingSet(damage(name, content))


def test_holds_no_file_open(clip: Clip, tmp_path: Path) -> None:
    make(tmp_path, clip, {f"{number:03}": [scene_row(number)] for number in range(40)})
    opened = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, hard))
    try:
        found = TrainingSet(tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(found.batch(range(40), 0, concatenate=False).image_ids) == 40


def test_builds_in_pieces(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": [scene_row(number) for number in range(7)], "b": [scene_row(9)]}
    make(tmp_path / "whole", clip, rows)
    monkeypatch.setattr(module, "_ROWS_PER_BATCH", 3)
    make(tmp_path / "pieces", clip, rows)
    whole, pieces = (TrainingSet(tmp_path / name / "t") for name in ("whole", "pieces"))
    for concatenate in (False, True):
        one, other = (s.batch([7, 2, 3, 6, 0], 1, concatenate=concatenate) for s in (whole, pieces))
        assert one.image_ids == other.image_ids == ["image 9", "image 2", "image 3", "image 6", "image 0"]
        assert torch.equal(one.image_vectors, other.image_vectors)
        assert torch.equal(one.dialogues.tokens, other.dialogues.tokens)


def test_epochs_are_permutations_of_their_own() -> None:
    batches = [epoch_batches(103, 10, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for batch in batches:
        assert batch.shape == (10, 10)
        # A row, that is an image, once an epoch: and so once a batch.
        assert len(set(batch.ravel().tolist())) == 100
        assert set(batch.ravel().tolist()) < set(range(103))
    assert len({batch.tobytes() for batch in batches}) == 4
    assert np.array_equal(batches[1], epoch_batches(103, 10, 0, 1))
    left_out = {row for epoch in range(600) for row in set(range(103)) - set(epoch_batches(103, 10, 0, epoch).ravel())}
    assert left_out == set(range(103))
    assert sorted(epoch_batches(10, 10, 0, 0)[0]) == list(range(10))
    with pytest.raises(UsageError, match="a batch of 11 needs as many images, the training set has 10"):
        epoch_batches(10, 11, 0, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_world_size_takes_the_same_batches(world_size: int) -> None:
    batches = epoch_batches(100, 12, 5, 2)
    slices = [batches[:, columns_of(rank, world_size, 12)] for rank in range(world_size)]
    assert {part.shape[1] for part in slices} == {12 // world_size}
    assert np.array_equal(np.concatenate(slices, axis=1), batches)
    with pytest.raises(UsageError, match="must divide by 5"):
        columns_of(0, 5, 12)


def word_tokenizer(folder: Path, **special: str) -> open_clip.tokenizer.HFTokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "<s>", "</s>", *["a", "b", "c", "d", "e", "f", "g"]]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    start = "<s> " if "bos_token" in special else ""
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start}$A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="</s>", **special).save_pretrained(
        folder
    )
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=6)


@pytest.mark.parametrize(
    ("special", "start", "pad"),
    [
        ({"bos_token": "<s>", "pad_token": "[PAD]"}, [2], 1),
        ({"pad_token": "[PAD]"}, [], 1),
        ({"bos_token": "<s>", "pad_token": "</s>"}, [2], 3),
    ],
)
def test_tokenizers_of_hugging_face(special: dict[str, str], start: list[int], pad: int, tmp_path: Path) -> None:
    encoder = TextEncoder(word_tokenizer(tmp_path, **special))
    assert (encoder.start, encoder.end, encoder.pad_id) == (start, [3], pad)
    room = 6 - len(start) - 1
    ids, cut = encoder(["a b", "", "a b c d e f g", " ".join("abcdefg"[:room])])
    assert [row.tolist() for row in ids] == [
        [*start, 4, 5, 3],
        [*start, 3],
        [*start, *range(4, 4 + room), 3],
        [*start, *range(4, 4 + room), 3],
    ]
    assert cut == [False, False, True, False]
    assert join_ids([ids[0], ids[1], ids[2]], encoder.start, encoder.end, 6).tolist() == [
        *start,
        *[4, 5, 4, 5, 6, 7][:room],
        3,
    ]


def test_summary_is_json(tiny_set: TrainingSet) -> None:
    summary = json.loads((tiny_set.out / "summary.json").read_text())
    assert (summary["rows"], summary["pairs"], summary["dropped"]) == (48, 144, {})
    config = json.loads((tiny_set.out / "config.json").read_text())
    assert config["dialogue_format"] == "question_answer"
    assert config["tokenizer"]["context_length"] == CONTEXT


@pytest.mark.parametrize("name", ["v1", "v2", "v2-gated"])
def test_datasets_of_older_versions_are_trained_on(name: str, clip: Clip, tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "data" / name
    dataset = DatasetFolder.existing(str(stored))
    rows = json.loads((stored.parent / f"{name}.rows.json").read_text())["data"]
    usable = {row["image_sha256"]: row for row in reversed(rows) if row["caption"]}
    embed_dataset(dataset, clip, tmp_path / "v")
    vectors = VectorStore(tmp_path / "v")
    everything = build_training_set(dataset, vectors, clip, tmp_path / "t")
    assert (everything.rows, everything.pairs) == (len(usable), sum(len(row["texts"]) for row in usable.values()))
    if name != "v2-gated":
        with pytest.raises(UsageError, match="no gates were applied to shard set-000"):
            build_training_set(dataset, vectors, clip, tmp_path / "kept", kept_only=True)
        return
    kept = build_training_set(dataset, vectors, clip, tmp_path / "kept", kept_only=True)
    assert kept.rows == len(usable)
    assert kept.pairs == sum(sum(not marks for marks in row["marks"]) for row in usable.values()) < everything.pairs
    first = next(row for row in rows if row["image_sha256"] in usable)
    texts = [pair for pair, marks in zip(first["texts"], first["marks"], strict=True) if not marks]
    expected = padded([f"{pair['user']} {pair['assistant']}" for pair in texts])
    found = TrainingSet(tmp_path / "kept")
    asked = [found.batch([0], epoch, concatenate=False).dialogues.tokens[0].tolist() for epoch in range(len(texts))]
    assert {tuple(filter(None, ids)) for ids in asked} == {tuple(filter(None, ids)) for ids in expected.tolist()}


def test_a_folder_made_before_an_upgrade_is_continued_after_it(clip: Clip, tmp_path: Path) -> None:
    def vectors() -> list[Any]:
        embed_dataset(DatasetFolder.existing(str(dataset)), clip, tmp_path / "v")
        store = VectorStore(tmp_path / "v")
        return [store.read(shard).to_pylist() for shard in store.shards()]

    dataset = shutil.copytree(Path(__file__).parents[1] / "data" / "v2-gated", tmp_path / "dataset")
    before = vectors()
    upgrade(dataset)
    assert vectors() == before


@pytest.mark.slow
def test_processes_make_the_same_files(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {name: [scene_row(7 * number + row) for row in range(7)] for number, name in enumerate("abc")}
    make(tmp_path / "one", clip, shards)
    monkeypatch.setattr(module, "_ROWS_FOR_PROCESSES", 0)
    monkeypatch.setattr(module, "processes_for", lambda most: min(2, most))
    make(tmp_path / "two", clip, shards)
    for name in ("rows/a.arrow", "rows/b.arrow", "rows/c.arrow"):
        assert (tmp_path / "two" / "t" / name).read_bytes() == (tmp_path / "one" / "t" / name).read_bytes()


def test_an_older_file_of_rows_is_not_taken_for_the_present_one(clip: Clip, tmp_path: Path) -> None:
    make(tmp_path, clip, {"a": [scene_row(0)], "b": [scene_row(1), scene_row(5)]})
    older = (tmp_path / "t" / "rows" / "b.arrow").read_bytes()
    make(tmp_path, clip, {"b": [scene_row(2), scene_row(6)]})
    present = files(tmp_path / "t")
    # From a backup, as many rows, each with the right checksum.
    (tmp_path / "t" / "rows" / "b.arrow").write_bytes(older)
    make(tmp_path, clip, {})
    assert files(tmp_path / "t") == present


def test_no_flipped_bit_of_the_summary_is_read(tiny_set: TrainingSet, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_set.out, tmp_path / "t")
    whole = (out / "summary.json").read_bytes()
    end = whole.index(b'"sha256": "')
    for bit in random.Random(0).sample(range(8 * end), 100):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        if whole[bit // 8 : bit // 8 + 1].isspace():
            continue
        (out / "summary.json").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"summary\.json is damaged"):
            TrainingSet(out)


def test_rows_whose_columns_have_no_name_are_made_anew(clip: Clip, tmp_path: Path) -> None:
    make(tmp_path, clip, {"a": [scene_row(0), scene_row(1)]})
    whole, file = files(tmp_path / "t"), tmp_path / "t" / "rows" / "a.arrow"
    before, name, after = whole["rows/a.arrow"].rpartition(b"caption_truncated")
    file.write_bytes(before + name[:-1] + b"\xe4" + after)  # no UTF-8
    make(tmp_path, clip, {})
    assert files(tmp_path / "t") == whole
