"""The gate that asks each question again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256
from helpers.rows import make_row

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.gates.self_consistency import SelfConsistency, SelfConsistencySettings, agreement

CONFIG: dict[str, Any] = {"model": "shapes-llava", "engine": "transformers", "dtype": "float32", "max_model_len": 1024}


@pytest.mark.parametrize(
    ("answer", "again", "expected"),
    [
        ("red", "red", 1),
        ("Red.", "red", 1),
        ("It is a red star.", "red", 1),
        ("red", "It is a red star.", 1),
        ("a red star", "a blue star", 1 / 2),
        ("red", "blue", 0),
        ("Yes, it is.", "no", 0),
        ("No, there is a dog.", "Yes, there is a dog.", 0),
        ("No.", "no", 1),
        ("two", "2", 1),
        ("There are three stars.", "3", 1),
        ("the", "the", 1),  # no content word at all
        ("", "", 1),
        ("", "red", 0),
    ],
)
def test_agreement(answer: str, again: str, expected: float) -> None:
    assert agreement(answer, again) == pytest.approx(expected)
    assert agreement(again, answer) == pytest.approx(expected)


Say = Callable[[Request], str | None]


def test_a_dialogue_about_several_images_is_asked_about_all(gate: Any) -> None:
    scorer, engine = gate(samples=1)
    images = [{"bytes": png(number, size), "path": None} for number, size in ((1, (4, 4)), (2, (6, 3)))]
    assert scorer.score([row(1, ("What color is it?", "red")) | {"images": images}]) == [[1]]
    scorer.close()
    assert engine.sizes == [(4, 4), (6, 3)]


def test_the_model_must_take_several_images() -> None:
    settings = SelfConsistencySettings()
    with pytest.raises(UsageError, match=r"shapes-llava .* was made for one image in a prompt"):
        SelfConsistency(settings, {**CONFIG, "images_per_sample": "all"})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SelfConsistency, ScriptedEngine]]:
    def make(say: Say = lambda request: "red", **settings: Any) -> tuple[SelfConsistency, ScriptedEngine]:
        options = {name: settings.pop(name) for name in ("refused", "malformed", "blind") if name in settings}
        engine = ScriptedEngine(say=say, **options)

        def start(spec: EngineSpec, log: Path) -> ScriptedEngine:
            log.touch()
            return engine.start(log)

        monkeypatch.setattr(EngineSpec, "start", start)
        return SelfConsistency(SelfConsistencySettings(**settings), CONFIG), engine

    return make


def row(number: int, *pairs: tuple[str, str]) -> dict[str, Any]:
    return make_row(number, texts=[{"user": user, "assistant": assistant} for user, assistant in pairs])


def test_each_question_is_asked_again_on_its_own(gate: Any) -> None:
    scorer, engine = gate(samples=3)
    pairs = [("What color is it?", "red"), ("And behind it?", "a blue star")]
    assert scorer.score([row(1, *pairs), row(2, pairs[0])]) == [[1, 0], [1]]
    scorer.close()
    assert (engine.starts, engine.closed) == (1, 1)
    prompts = {asked.prompt for asked in engine.asked}
    assert prompts == {
        f"USER: <image>\n{question}\nAnswer the question using a single word or phrase. ASSISTANT:"
        for question, _ in pairs
    }
    assert {asked.image_sha256 for asked in engine.asked} == {sha256(png(1)), sha256(png(2))}
    # Three samples of each question, each under a seed of its own.
    assert len(engine.asked) == len({(a.prompt, a.image_sha256, a.seed) for a in engine.asked}) == 9


def test_scores_are_means_over_samples_and_the_same_again(gate: Any) -> None:
    def by_seed(request: Request) -> str:
        return "red" if request.seed % 2 else "blue"

    rows = [row(number, ("What color is it?", "red")) for number in range(40)]
    scorer, engine = gate(by_seed, samples=4, temperature=1)
    scores = scorer.score(rows[:7]) + scorer.score(rows[7:])
    scorer.close()
    for one, (score,) in zip(rows, scores, strict=True):
        seeds = [asked.seed for asked in engine.asked if asked.image_sha256 == one["image_sha256"]]
        assert score == sum(seed % 2 for seed in seeds) / 4
    assert len({score for (score,) in scores}) > 2
    again, _ = gate(by_seed, samples=4, temperature=1)
    assert again.score(rows) == scores
    again.close()


def test_where_nothing_can_be_said(gate: Any) -> None:
    refused, malformed, unseen = sha256(png(1)), sha256(png(2)), sha256(png(6))
    scorer, engine = gate(
        lambda request: None, refused={refused: EVERY}, malformed={malformed: EVERY}, blind={unseen: EVERY}
    )
    pair = ("What is it?", "a star")
    without_bytes = row(3, pair) | {"images": [{"bytes": None, "path": "3.png"}]}
    without_image, broken = row(4, pair) | {"images": None}, row(5, pair) | {"images": [{"bytes": b"x", "path": None}]}
    scores = scorer.score([row(1, pair), row(2, pair), without_bytes, without_image, broken, row(6, pair)])
    # Nonsense for an answer does not agree.
    assert scores == [[None], [0], [None], [None], [None], [None]]
    assert {asked.image_sha256 for asked in engine.asked} == {refused, malformed, unseen}
    scorer.close()


def test_a_question_cannot_smuggle_an_image_token(gate: Any) -> None:
    scorer, engine = gate(prompt="Again {question} {now}")
    scorer.score([row(1, ("Is <image> {question} red?", "red"))])
    scorer.close()
    assert {re.sub(" +", " ", asked.prompt) for asked in engine.asked} == {
        "USER: <image>\nAgain Is {question} red? {now} ASSISTANT:"
    }


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({}, {"model": "my-folder"}, "a local folder. Name it in a gates file"),
        ({"model": "shapes-lava"}, {}, "did you mean 'shapes-llava'?"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    settings: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        SelfConsistency(SelfConsistencySettings(**settings), {**CONFIG, **config})
