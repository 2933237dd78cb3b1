import json
import math
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from helpers.loops import TinyRows, make_clip
from helpers.multitask import TinyTexts, make_stage, train_stage
from helpers.systems import Stopped, check_resume, check_two_processes, files_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_train.long_text import stretch_context
from dialog_train.loop import start
from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.system import EVERYTHING, Share
from dialog_train.systems.multitask.config import MultitaskRecipe
from dialog_train.systems.multitask.training import (
    MultitaskBatches,
    equal_texts,
    multitask_objective,
    prepare_sets,
    train_stages,
)

TRAINER = "helpers.multitask:train_stage"


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_what_is_left_out() -> None:
    #                    query, target, two wrong answers
    ids = torch.tensor([[1, 5, 6, 7], [2, 6, 5, 8], [1, 7, 9, 9], [3, 5, 6, 9]])
    targets = [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    wrong = [[0, 0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]
    expected = [a + b for a, b in zip(targets, wrong, strict=True)]
    assert equal_texts(ids, slice(0, 4)).int().tolist() == expected
    assert equal_texts(ids, slice(1, 3)).int().tolist() == expected[1:3]
    assert equal_texts(ids[:, :2], slice(0, 4)).int().tolist() == targets


@pytest.mark.parametrize("texts", ["pairs", "triplets"])
@pytest.mark.parametrize("captions", ["short", "long"])
@pytest.mark.parametrize("leave_out_equal", [False, True])
def test_losses_of_a_batch(tmp_path: Path, texts: str, captions: str, leave_out_equal: bool) -> None:
    recipe = make_stage(tmp_path, {"captions": captions, "leave_out_equal": leave_out_equal})
    rows = TinyTexts(negatives=2 if texts == "triplets" else 0)
    images = TinyRows()
    images.vectors = images.vectors.double()
    batch = MultitaskBatches(recipe, images, rows, full_length=False).batch(3, EVERYTHING)
    tower, scale = TextTower(make_clip().model).double(), torch.tensor(9.0, dtype=torch.float64)
    found = multitask_objective(recipe)(batch, tower, scale)

    chosen = rows.served[-1]
    assert len(chosen) == 6
    query, target, wrong = (tower.encode(tokens) if len(tokens) else None for tokens in _texts(batch.texts))
    # Equal are a query's own target and any other text of the same number; see TinyTexts.
    ids = batch.texts.text_ids.tolist()
    total = 0.0
    for i in range(6):
        forward = backward = 0.0
        for j in range(6):
            other_is_right = i != j and (ids[i][1] == ids[j][1] or ids[i][0] == ids[j][0])
            if not (leave_out_equal and other_is_right):
                forward += math.exp((query[i] @ target[j]).item() / 0.05)
                backward += math.exp((query[j] @ target[i]).item() / 0.05)
            for k in range(rows.negatives):
                if not (leave_out_equal and ids[j][2 + k] == ids[i][1]):
                    forward += math.exp((query[i] @ wrong[rows.negatives * j + k]).item() / 0.05)
        own = (query[i] @ target[i]).item() / 0.05
        total += math.log(forward) + math.log(backward) - 2 * own
    assert found["text_loss"].item() == pytest.approx(total / 6, abs=1e-9)
    tokens = (batch.images.captions if captions == "short" else batch.images.dialogues).tokens
    expected = contrastive_loss(batch.images.image_vectors, tower.encode(tokens), 9.0)
    assert found["image_text_loss"].item() == pytest.approx(expected.item(), abs=1e-12)
    assert list(found) == ["text_loss", "image_text_loss"]


def _texts(texts: Any) -> list[torch.Tensor]:
    return [texts.queries.tokens, texts.targets.tokens, texts.negatives.tokens]


def test_two_streams_in_orders_of_their_own(tmp_path: Path) -> None:
    recipe = make_stage(tmp_path, {"text_batch_size": 8})
    images, texts = TinyRows(40), TinyTexts(40)
    data = MultitaskBatches(recipe, images, texts, full_length=False)
    assert data.steps_per_epoch == 5
    for step in range(10):
        data.batch(step, EVERYTHING)
    of_images, of_texts = (
        [row for rows, *_ in images.served for row in rows],
        [row for rows in texts.served for row in rows],
    )
    for order in (of_images, of_texts):
        assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
        assert order[:40] != order[40:]
    assert of_images != of_texts
    # Two processes take halves of the same.
    halves = [data.batch(7, Share(rank, 2)) for rank in range(2)]
    whole = data.batch(7, EVERYTHING)
    assert halves[0].image_ids + halves[1].image_ids == whole.image_ids
    assert torch.equal(torch.cat([half.texts.text_ids for half in halves]), whole.texts.text_ids)
    assert {"duplicate_captions", "duplicate_targets"} == set(whole.statistics())


def test_batches_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="41 needs as many text triplets, there are 40: lower text_batch_size"):
        MultitaskBatches(make_stage(tmp_path, {"text_batch_size": 41}), TinyRows(), TinyTexts(), full_length=False)
    data = MultitaskBatches(make_stage(tmp_path, {"text_batch_size": 7}), TinyRows(), TinyTexts(), full_length=False)
    with pytest.raises(UsageError, match="divide by 2"):
        data.batch(0, Share(0, 2))


def test_both_losses_fall(tmp_path: Path) -> None:
    losses: list[dict[str, float]] = []
    train_stage(tmp_path, {"epochs": 6}, on_step=lambda step, values: losses.append(values))
    for name in ("text_loss", "image_text_loss"):
        first, last = (sum(values[name] for values in part) for part in (losses[:5], losses[-5:]))
        assert last < 0.8 * first, name
    assert losses[0]["loss"] == pytest.approx(losses[0]["text_loss"] + losses[0]["image_text_loss"], rel=1e-6)


@pytest.mark.parametrize("stop", [4, 7])
def test_resumed_equals_undisturbed(tmp_path: Path, stop: int) -> None:
    check_resume(TRAINER, tmp_path, stop=stop)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    check_two_processes(TRAINER, tmp_path)


def three_stages(out: Path, clip: Path, dialogues: Path, **changes: Any) -> MultitaskRecipe:
    content: dict[str, Any] = {"model": str(clip), "out": out, "save_every_steps": 2, "log": {"every_steps": 1}}
    content["data"] = {"dialogues": str(dialogues), "work": out.parent / "work"}
    content["optim"] = {"lr": 1e-3, "batch_size": 8, "max_steps": 5, "ema_decay": 0.9}
    content["stages"] = [
        {"texts": "pairs", "captions": "short"},
        {"texts": "pairs", "captions": "long", "context_length": 40, "text_batch_size": 12, "lr": 5e-4},
        {"texts": "triplets", "captions": "long", "context_length": 40, "max_steps": 3},
    ]
    return MultitaskRecipe.model_validate(content | changes)


def run(recipe: MultitaskRecipe, **options: Any) -> None:
    """As the script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        # Processes that decode cost more than these images.
        patch.setattr("dialog_train.data.prepare.DECODERS", 0)
        try:
            with start(recipe) as accelerator:
                clip = load_clip(recipe.model)
                train_stages(recipe, clip, prepare_sets(recipe, clip, accelerator), accelerator, **options)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, tiny_dialogues: Path) -> Path:
    """What an undisturbed training leaves. Not to be written to."""
    out = tmp_path_factory.mktemp("stages") / "whole"
    run(three_stages(out, tiny_clip, tiny_dialogues))
    return out


def test_each_stage_starts_from_the_model_of_the_one_before(whole: Path, tiny_clip: Path) -> None:
    reports = [json.loads((whole / f"stage-{n}" / "train.json").read_text()) for n in (1, 2, 3)]
    assert [report["steps"] for report in reports] == [5, 5, 3]
    assert [report["recipe"]["optim"]["lr"] for report in reports] == [1e-3, 5e-4, 1e-3]
    base, first, second, third = (
        load_clip(str(folder)) for folder in (tiny_clip, *(whole / f"stage-{n}" / "model" for n in (1, 2, 3)))
    )
    starts = [report["weights_sha256"] for report in reports]
    assert starts == [base.weights_sha256, stretch_context(first, 40).weights_sha256, second.weights_sha256]
    assert [c.tokenizer.context_length for c in (first, second, third)] == [24, 40, 40]
    # 48 images; 48 x 4 pairs and 48 x 3 triplets.
    assert [report["training_set"]["texts"]["rows"] for report in reports] == [192, 192, 144]
    for folder in ("model", "model-ema"):
        assert files_of(whole / folder) == files_of(whole / "stage-3" / folder)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{whole / 'model'}")
    assert model.positional_embedding.shape == (40, 32)
    assert model.encode_text(third.tokenizer(["a red circle " * 30])).isfinite().all()


def test_loss_curves_of_each_stage(whole: Path) -> None:
    for number, count in ((1, 5), (2, 5), (3, 3)):
        events = EventAccumulator(str(whole / f"stage-{number}" / "tensorboard" / "dialog-train")).Reload()
        assert [event.step for event in events.Scalars("text_loss")] == list(range(1, count + 1))
    assert not (whole / "tensorboard").exists()


def test_sets_hold_the_longest_texts(whole: Path) -> None:
    names = ("training_set", "text_pairs", "text_triplets")
    configs = [json.loads((whole.parent / "work" / name / "config.json").read_text()) for name in names]
    assert [config["tokenizer"]["context_length"] for config in configs] == [40, 40, 40]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 8, 12])
def test_stopped_in_any_stage(tmp_path: Path, whole: Path, tiny_clip: Path, tiny_dialogues: Path, stop: int) -> None:
    parts = three_stages(tmp_path / "parts", tiny_clip, tiny_dialogues)
    reports = [parts.out / f"stage-{number + 1}" / "train.json" for number in range((stop - 1) // 5)]
    steps: list[int] = []

    def on_step(step: int, values: dict[str, float]) -> None:
        steps.append(step)
        if len(steps) == stop:
            raise Stopped

    with pytest.raises(Stopped):
        run(parts, on_step=on_step)
    before = [report.stat().st_mtime_ns for report in reports]
    assert not (parts.out / "model").exists()
    with pytest.raises(UsageError, match="--resume auto"):
        run(parts)
    rest: list[int] = []
    run(parts, resume="auto", on_step=lambda step, values: rest.append(step))
    # Of the stage it was stopped in, what had been saved is not done again.
    assert rest[0] == (stop - 1) % 5 // 2 * 2 + 1
    assert [report.stat().st_mtime_ns for report in reports] == before
    for folder in ("model", "model-ema"):
        assert files_of(parts.out / folder) == files_of(whole / folder)


def test_what_is_complete_is_not_done_again(tmp_path: Path, whole: Path, tiny_clip: Path, tiny_dialogues: Path) -> None:
    copied = shutil.copytree(whole, tmp_path / "out")
    shutil.copytree(whole.parent / "work", tmp_path / "work")
    shutil.rmtree(copied / "model")
    run(
        three_stages(copied, tiny_clip, tiny_dialogues),
        resume="auto",
        on_step=lambda step, values: pytest.fail("it is complete"),
    )
    assert files_of(copied / "model") == files_of(whole / "model")
    changed = three_stages(copied, tiny_clip, tiny_dialogues, texts={"temperature": 0.1})
    with pytest.raises(UsageError, match=r"texts.temperature: 0.05 there, 0.1 now"):
        run(changed, resume="auto")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 10_000}, "a batch of 10000 needs as many"),
        ({"text_batch_size": 10_000}, "a batch of 10000 needs as many text triplets"),
        ({"context_length": 20}, "reads 40 tokens, and cannot read fewer"),
    ],
)
def test_a_mistake_in_the_last_stage_is_told_before_the_first(
    tmp_path: Path, whole: Path, tiny_clip: Path, tiny_dialogues: Path, change: dict[str, int], said: str
) -> None:
    recipe = three_stages(tmp_path / "out", tiny_clip, tiny_dialogues)
    stages = (*recipe.stages[:2], recipe.stages[2].model_copy(update=change))
    shutil.copytree(whole.parent / "work", tmp_path / "work")
    with pytest.raises(UsageError, match=said):
        run(recipe.model_copy(update={"stages": stages}))
    assert not (tmp_path / "out").exists()


def test_a_context_that_the_model_exceeds(tmp_path: Path, whole: Path, tiny_clip: Path, tiny_dialogues: Path) -> None:
    recipe = three_stages(tmp_path / "out", tiny_clip, tiny_dialogues)
    stages = (recipe.stages[0].model_copy(update={"context_length": 20}), *recipe.stages[1:])
    shutil.copytree(whole.parent / "work", tmp_path / "work")
    with pytest.raises(UsageError, match="reads 24 tokens, and cannot read fewer"):
        run(recipe.model_copy(update={"stages": stages}))
    assert not (tmp_path / "out").exists()
