"""Sentences of a generator: what they say of other answers, and that trainings use them."""

from pathlib import Path

import open_clip
import pytest
from helpers.rows import gates_of
from helpers.training import TINY_CLIP, scene_row, write_dialogues

from dialog_gen.clip.loader import load_clip
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.asking import prior as prior_module
from dialog_train.asking.prior import AnswerPrior
from dialog_train.asking.sentences import RULES, Sentences, forms_of
from dialog_train.asking.statements import statement
from dialog_train.data.candidate_set import CandidateSet
from dialog_train.data.pair_texts import Candidates
from dialog_train.data.training_set import build_training_set
from dialog_train.data.vectors import VectorStore, embed_dataset

COLOR, STAR = "What color is the star?", "Is there a star?"
TOLD = [
    (COLOR, "Purple.", "A purple star is shown."),
    (COLOR, "red", "The star looks red."),
    (COLOR, "red", "The star looks red."),
    (COLOR, "green", None),
    (STAR, "yes", "I see a star."),
    (STAR, "no", "No star is here."),
    ("Is there a dog?", "yes", "I see a dog."),
    ("How many stars?", "2", "Two stars are here."),
    ("Which is red?", "red", "The red one is red."),
]


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        # The most frequent form that names the answer, with another answer in its place.
        (COLOR, "blue", "The star looks blue"),
        ("what color is the  star", "blue", "The star looks blue"),
        # Yes and no where both were stated.
        (STAR, "yes", "I see a star"),
        (STAR, "No.", "No star is here"),
        # By rules: only one of both, a sentence without the answer, with it twice, or about no such question.
        ("Is there a dog?", "yes", "there is a dog"),
        ("Is there a dog?", "no", "there is no dog"),
        ("How many stars?", "3", statement("How many stars?", "3")),
        ("Which is red?", "star", statement("Which is red?", "star")),
        ("What color is the dog?", "red", "the dog is red"),
        (COLOR, "yes", statement(COLOR, "yes")),
        (COLOR, "", statement(COLOR, "")),
    ],
)
def test_answers_are_stated_as_the_generator_does(question: str, answer: str, said: str) -> None:
    assert Sentences.of_triples(TOLD).statement(question, answer) == said


def test_rules_state_as_rules() -> None:
    assert not RULES
    assert RULES.statement(COLOR, "red") == statement(COLOR, "red")


def test_a_form_of_ones_own_comes_first() -> None:
    own = forms_of(COLOR, "purple", "A purple star is shown.")
    assert Sentences.of_triples(TOLD).statement(COLOR, "blue", own) == "A blue star is shown"
    # Its own yes, and the no of the others.
    own = forms_of(STAR, "yes", "Yes, a star!")
    stated = [Sentences.of_triples(TOLD).statement(STAR, answer, own) for answer in ("yes", "no")]
    assert stated == ["Yes, a star", "No star is here"]


def test_rare_sentences_are_forgotten_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_module, "_MOST_COUNTS", 10)
    often = [("Who?", "Ann", "It is Ann.")] * 5
    found = Sentences.of_triples([*often, *((f"Where is {n}?", "here", f"{n} is here.") for n in range(50))])
    assert len(found) <= 10
    assert found.statement("Who?", "Bob") == "It is Bob"


@pytest.fixture
def stated(tmp_path: Path) -> Path:
    """A dataset whose sentences the rules would not write; a gate marks the pair that has none."""
    rows = []
    for number in range(12):
        told = [
            (f"What color is thing {number}?", ("red", "blue")[number % 2], f"I see thing {number}: COLOR."),
            (f"What size is thing {number}?", ("small", "large")[number % 2], None),
            (f"Where is thing {number}?", ("here", "there")[number % 2], f"Thing {number} has a place."),
        ]
        texts = [{"user": question, "assistant": answer} for question, answer, _ in told]
        sentences = [said and said.replace("COLOR", answer) for _, answer, said in told]
        gates = gates_of([[], ["g"], []])
        rows.append(scene_row(number, texts=texts, statements=sentences, gates=gates))
    return write_dialogues(tmp_path / "dialogues", {"a": rows})


@pytest.mark.parametrize("kept_only", [False, True])
def test_training_texts_are_the_sentences(stated: Path, tiny_clip: Path, tmp_path: Path, kept_only: bool) -> None:
    clip, dataset = load_clip(str(tiny_clip)), DatasetFolder(str(stated))
    embed_dataset(dataset, clip, tmp_path / "vectors")
    made = Candidates(
        prior=AnswerPrior.of_dataset(dataset),
        text_format="statement",
        foils=1,
        denials=False,
        sentences=Sentences.of_dataset(dataset),
    )
    vectors, out = VectorStore(tmp_path / "vectors"), tmp_path / "out"
    build_training_set(dataset, vectors, clip, out, pair_texts=made, kept_only=kept_only)
    candidates = CandidateSet(out)
    tokenizer = open_clip.SimpleTokenizer(context_length=TINY_CLIP["text_cfg"]["context_length"])

    def read(texts: list[str]) -> set[tuple[int, ...]]:
        return {tuple(filter(None, row)) for row in tokenizer(texts).tolist()}

    rights, foils = set[tuple[int, ...]](), set[tuple[int, ...]]()
    for epoch in range(3):
        batch = candidates.candidate_batch(range(len(candidates)), epoch)
        texts = [tuple(filter(None, row)) for row in batch.candidates.tokens.tolist()]
        rights |= {texts[which[0]] for which in batch.which.tolist()}
        foils |= {texts[which[1]] for which in batch.which.tolist()}
    colors = ("red", "blue")
    told = [(f"I see thing {n}: {color}", color == colors[n % 2]) for n in range(12) for color in colors]
    by_rules = [statement(f"Where is thing {n}?", ("here", "there")[n % 2]) for n in range(12)]
    if not kept_only:
        by_rules += [statement(f"What size is thing {n}?", ("small", "large")[n % 2]) for n in range(12)]
    assert rights == read([*(text for text, is_right in told if is_right), *by_rules])
    assert read([text for text, is_right in told if not is_right]) < foils


def test_without_the_column_nothing_changes(tiny_dialogues: Path) -> None:
    dataset = DatasetFolder(str(tiny_dialogues))
    assert not Sentences.of_dataset(dataset)
    prior = AnswerPrior.of_dataset(dataset)
    assert Candidates(prior=prior, text_format="statement", foils=1, denials=False).fingerprint == prior.sha256
