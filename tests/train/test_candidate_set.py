"""Candidates in the files of a training set, against the texts themselves and the tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers.rows import rows_of
from helpers.training import TINY_CLIP

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.asking.prior import AnswerPrior, question_type
from dialog_train.asking.statements import statement
from dialog_train.data.candidate_set import CandidateBatch, CandidateBatches, CandidateSet
from dialog_train.data.pair_texts import Candidates
from dialog_train.data.training_set import TrainingSet, build_training_set
from dialog_train.data.vectors import VectorStore, embed_dataset
from dialog_train.system import EVERYTHING, Share

TOKENIZER = open_clip.SimpleTokenizer(context_length=TINY_CLIP["text_cfg"]["context_length"])
ROOM = TINY_CLIP["text_cfg"]["context_length"] - 2
FOILS, PER_PAIR = 5, 8


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> Clip:
    return load_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def vectors(tiny_dialogues: Path, clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    out = tmp_path_factory.mktemp("vectors") / "v"
    embed_dataset(DatasetFolder(str(tiny_dialogues)), clip, out)
    return VectorStore(out)


@pytest.fixture(scope="module")
def made(tiny_dialogues: Path) -> Candidates:
    prior = AnswerPrior.of_dataset(tiny_dialogues)
    return Candidates(prior=prior, text_format="statement", foils=FOILS, denials=True)


@pytest.fixture(scope="module")
def folder(
    tiny_dialogues: Path, clip: Clip, vectors: VectorStore, made: Candidates, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("candidates") / "c"
    summary = build_training_set(DatasetFolder(str(tiny_dialogues)), vectors, clip, out, pair_texts=made)
    assert (summary.rows, summary.pairs) == (48, 144)
    return out


@pytest.fixture
def candidate_set(folder: Path) -> CandidateSet:
    return CandidateSet(folder)


def said(texts: Texts) -> list[str]:
    """What the tokens say, without start and end."""
    return [
        TOKENIZER.decode(row[1 : length - 1].tolist()).strip()
        for row, length in zip(texts.tokens, texts.lengths.tolist(), strict=True)
    ]


def as_read(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER([text])[0][1:].tolist()).split("<end_of_text>")[0].strip()


def table(batch: CandidateBatch) -> list[list[str]]:
    texts = said(batch.candidates)
    return [[texts[number] for number in row] for row in batch.which.tolist()]


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("distinct", [False, True])
def test_batches_are_the_texts(
    candidate_set: CandidateSet, tiny_dialogues: Path, made: Candidates, distinct: bool, resident: bool
) -> None:
    if resident:
        candidate_set.place(torch.device("cpu"), "always")
    rows = {row["image_id"]: row for row in rows_of(tiny_dialogues)}
    seen = list[list[str]]()
    for epoch in range(3):
        batch = candidate_set.candidate_batch(range(48), epoch, distinct=distinct)
        found = table(batch)
        for number, image_id in enumerate(batch.image_ids):
            pairs = rows[image_id]["texts"]
            texts = [as_read(text) if text else "" for text in made(image_id, pairs)]
            of_pairs = [texts[start : start + PER_PAIR] for start in range(0, len(texts), PER_PAIR)]
            assert found[number] in of_pairs
            assert batch.there[number].tolist() == [bool(text) for text in found[number]]
            seen.append([image_id, *found[number]])
            assert said(batch.captions)[number] == as_read(rows[image_id]["caption"])
        if distinct:
            assert len(batch.candidates) == len({text for row in found for text in row}) < 48 * PER_PAIR
    # In three epochs each image has all its pairs.
    assert len({tuple(row) for row in seen}) > 130


def ids(texts: Texts) -> list[list[int]]:
    """Without start and end."""
    return [row[1 : length - 1].tolist() for row, length in zip(texts.tokens, texts.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("resident", [False, True])
def test_recombined_texts(candidate_set: CandidateSet, resident: bool) -> None:
    """Each begins as a candidate of its image and ends as its caption, or the reverse; all cuts and both ways occur."""
    if resident:
        candidate_set.place(torch.device("cpu"), "always")
    ways, shares = set[int](), list[float]()
    for epoch in range(8):
        batch = candidate_set.candidate_batch(range(48), epoch, recombined=True)
        assert (batch.recombined.tokens[:, 0] == 49406).all()
        captions, candidates = ids(batch.captions), ids(batch.candidates)
        for caption, which, found in zip(captions, batch.which.tolist(), ids(batch.recombined), strict=True):
            fits = [
                (way, cut / max(len(first), 1))
                for candidate in (candidates[number] for number in which)
                for way, (first, second) in enumerate([(candidate, caption), (caption, candidate)])
                for cut in range(len(first) + 1)
                for rest in range(len(second) + 1)
                if (first[:cut] + second[rest:])[:ROOM] == found
            ]
            assert fits, found
            if len({way for way, _ in fits}) == 1:
                ways.add(fits[0][0])
                shares.append(fits[0][1])
    assert ways == {0, 1}
    assert min(shares) == 0
    assert max(shares) == 1
    assert 0.3 < sum(shares) / len(shares) < 0.7


def test_pairs_rotate_as_in_draft(
    candidate_set: CandidateSet, tiny_dialogues: Path, clip: Clip, vectors: VectorStore, tmp_path: Path
) -> None:
    build_training_set(DatasetFolder(str(tiny_dialogues)), vectors, clip, tmp_path / "t")
    plain = TrainingSet(tmp_path / "t")
    rows = {row["image_id"]: row["texts"] for row in rows_of(tiny_dialogues)}
    for epoch in range(2):
        batch = candidate_set.candidate_batch(range(48), epoch)
        theirs = plain.batch(range(48), epoch, concatenate=False)
        torch.testing.assert_close(batch.image_vectors, theirs.image_vectors, rtol=0, atol=0)
        for image_id, row, text in zip(batch.image_ids, table(batch), said(theirs.dialogues), strict=True):
            pairs = [(pair["user"], pair["assistant"]) for pair in rows[image_id]]
            told = {as_read(statement(*pair)) for pair in pairs if as_read(" ".join(pair)) == text}
            assert told == {row[0]}


def test_balance_draws_rare_types_more_often(
    candidate_set: CandidateSet, tiny_dialogues: Path, made: Candidates
) -> None:
    """Against the probabilities, for an image whose three questions are of types of different frequency."""
    rows = {row["image_id"]: row["texts"] for row in rows_of(tiny_dialogues)}
    shares = {image_id: np.array(made.shares(pairs)) for image_id, pairs in rows.items()}
    image_id = max(rows, key=lambda one: shares[one].max() / shares[one].min())
    number = candidate_set.candidate_batch(range(48), 0).image_ids.index(image_id)
    firsts = [as_read(text) for text in made(image_id, rows[image_id])[::PER_PAIR]]
    assert len({question_type(pair["user"]) for pair in rows[image_id]}) > 1
    for balance in (0.5, 1.0):
        counts = np.zeros(3)
        for epoch in range(1500):
            (row,) = table(candidate_set.candidate_batch([number], epoch, balance=balance))
            counts[firsts.index(row[0])] += 1
        expected = shares[image_id] ** -balance
        assert (counts / 1500).tolist() == pytest.approx((expected / expected.sum()).tolist(), abs=0.05)


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_processes_take_their_parts(candidate_set: CandidateSet, balance: float) -> None:
    def batches(share: Share) -> CandidateBatch:
        how: dict[str, Any] = {
            "batch_size": 12,
            "seed": 3,
            "balance": balance,
            "recombined": True,
            "full_length": False,
        }
        return CandidateBatches(candidate_set, **how).batch(5, share)

    whole, parts = batches(EVERYTHING), [batches(Share(rank, 3)) for rank in range(3)]
    assert [row for part in parts for row in table(part)] == table(whole)
    assert [text for part in parts for text in said(part.recombined)] == said(whole.recombined)
    assert {len(part.candidates) for part in parts} == {4 * PER_PAIR}


def test_candidates_change_with_the_prior(
    tiny_dialogues: Path, clip: Clip, vectors: VectorStore, made: Candidates, tmp_path: Path
) -> None:
    """Another prior makes the files anew, the same one does not."""
    dataset = DatasetFolder(str(tiny_dialogues))

    def build(texts: Candidates) -> dict[str, int]:
        build_training_set(dataset, vectors, clip, tmp_path / "c", pair_texts=texts)
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "c" / "rows").iterdir()}

    first = build(made)
    assert build(made) == first
    (tmp_path / "c" / "summary.json").unlink()
    assert build(made) == first
    other = AnswerPrior.of_pairs([("What color?", "red"), ("What shape?", "star")])
    again = build(Candidates(prior=other, text_format="statement", foils=FOILS, denials=True))
    assert all(again[name] != time for name, time in first.items())
