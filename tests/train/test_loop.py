import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.disk import full_at
from helpers.loops import CONFIG, RECIPES, VOCABULARY, TinyRows, make_clip, make_recipe, train
from helpers.trainings import run_training
from open_clip.hf_model import HFTextEncoder
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import DialogGenError, FailedCheckError, UsageError
from dialog_train.config import OptimSettings
from dialog_train.losses import chebyshev
from dialog_train.optim import learning_rate, parameter_groups, select_trainable
from dialog_train.systems.draft import DraftRecipe

ROOT = Path(__file__).parents[2]
WEIGHTS = "open_clip_model.safetensors"
STEPS = 12  # of make_recipe: 50 rows in batches of 8, two epochs


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def weights(out: Path, folder: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / folder / WEIGHTS)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def snapshot(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in clip.model.state_dict().items()}


class Stop(BaseException):
    """Like a kill, as far as it goes within a process."""


def stop_at(step: int) -> Any:
    def on_step(number: int, values: dict[str, float]) -> None:
        if number == step:
            raise Stop

    return on_step


def test_learns_and_leaves_a_report(tmp_path: Path) -> None:
    losses: list[float] = []
    recipe = make_recipe(tmp_path, epochs=5)
    result = train(recipe, on_step=lambda step, values: losses.append(values["loss"]))
    assert len(losses) == result.steps == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["steps"] == 30
    assert report["processes"] == 1
    assert report["method"] == "DRAFT: aligns captions and dialogues with the images of a frozen tower."
    assert report["recipe"]["optim"]["lr"] == recipe.optim.lr
    assert report["losses"]["loss"] == pytest.approx(sum(losses[-10:]) / 10)
    assert result.pairs_per_s > 0
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("custom", [False, True])
def test_trains_the_text_tower_and_nothing_else(tmp_path: Path, custom: bool) -> None:
    clip = make_clip(custom=custom)
    before = snapshot(clip)
    train(make_recipe(tmp_path), clip)
    visual = {name for name in before if name.startswith("visual.")}
    assert changed(before, weights(tmp_path)) == set(before) - visual


def test_the_model_loads_with_open_clip(tmp_path: Path) -> None:
    clip = make_clip()
    train(make_recipe(tmp_path / "out"), clip)
    (tmp_path / "tiny-of-test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-of-test.json")
    file = str(tmp_path / "out" / "model" / WEIGHTS)
    loaded, _, _ = open_clip.create_model_and_transforms("tiny-of-test", pretrained=file)
    tokens = torch.tensor([[1, 5, VOCABULARY - 1] + [0] * 9])
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_text(tokens), clip.model.encode_text(tokens), rtol=0, atol=0)


def test_no_decay_on_norms_biases_embeddings_and_logit_scale() -> None:
    clip = make_clip()
    trainable = select_trainable(clip.model, TextTower(clip.model), OptimSettings(lr=1, batch_size=2))
    groups = parameter_groups(clip.model, trainable, 0.3)
    names = {id(parameter): name for name, parameter in clip.model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] == 0.3 for p in group["params"]}
    kept = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    matrices = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert decayed == {f"transformer.resblocks.{n}.{m}" for n in range(3) for m in matrices} | {"text_projection"}
    assert {"token_embedding.weight", "positional_embedding", "logit_scale", "ln_final.weight"} < kept
    assert decayed | kept == set(trainable)
    assert not decayed & kept


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 1 / 4), (1, 2 / 4), (3, 1), (4, 1), (10, 0.5), (7, (1 + math.cos(math.pi / 4)) / 2), (16, 0)],
)
def test_warm_up_and_cosine(step: int, share: float) -> None:
    settings = OptimSettings(lr=2e-3, warmup_steps=4, batch_size=2)
    assert learning_rate(step, 16, settings) == pytest.approx(2e-3 * share, abs=1e-15)


def test_the_schedule_is_followed(tmp_path: Path) -> None:
    rates: list[float] = []
    recipe = make_recipe(tmp_path)
    train(recipe, on_step=lambda step, values: rates.append(values["lr"]))
    assert rates == [learning_rate(step, STEPS, recipe.optim) for step in range(STEPS)]


def test_warm_up_longer_than_the_training(tmp_path: Path) -> None:
    train(make_recipe(tmp_path, warmup_steps=100, max_steps=3))


def test_ema_follows_its_definition(tmp_path: Path) -> None:
    clip, decay = make_clip(), 0.8
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    parameter = clip.model.get_parameter(name)
    seen = [parameter.detach().double().clone()]
    train(
        make_recipe(tmp_path, ema_decay=decay),
        clip,
        on_step=lambda step, values: seen.append(parameter.detach().double().clone()),
    )
    expected = seen[0]
    for value in seen[1:]:
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(weights(tmp_path, "model-ema")[name].double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(weights(tmp_path)[name], weights(tmp_path, "model-ema")[name])


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 11, 12])
def test_resumed_equals_undisturbed(tmp_path: Path, stop: int) -> None:
    def recipe(name: str) -> Any:
        return make_recipe(tmp_path / name, ema_decay=0.9, save_every_steps=3)

    train(recipe("whole"))
    with pytest.raises(Stop):
        train(recipe("parts"), on_step=stop_at(stop))
    assert not (tmp_path / "parts" / "model").exists()
    steps: list[int] = []
    train(recipe("parts"), resume="auto", on_step=lambda step, values: steps.append(step))
    # What is done in a step is written after `on_step` heard of it.
    assert steps[0] == (stop - 1) // 3 * 3 + 1
    for folder in ("model", "model-ema"):
        whole, parts = (tmp_path / name / folder / WEIGHTS for name in ("whole", "parts"))
        assert parts.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "parts" / "checkpoints").exists()


def make_hf_clip(**options: Any) -> Clip:
    """A text tower of Hugging Face's, with dropout and a pooler that goes unused."""
    clip = make_clip(custom=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **sizes, **options)
    clip.model.text = HFTextEncoder("none", 16, config=config, pooler_type="mean_pooler", proj_type="linear")
    return clip


def test_resumes_with_dropout(tmp_path: Path) -> None:
    clips = []
    for name, stop in (("whole", None), ("parts", 5)):
        torch.manual_seed(3)
        recipe = make_recipe(tmp_path / name, save_every_steps=2, max_steps=7)
        if stop:
            with pytest.raises(Stop):
                train(recipe, make_hf_clip(), on_step=stop_at(stop))
        torch.manual_seed(3)
        clips.append(make_hf_clip())
        train(recipe, clips[-1], resume="auto")
    assert changed(snapshot(clips[0]), snapshot(clips[1])) == set()


def test_checkpoints_hold_no_pickle_and_two_are_kept(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(make_recipe(tmp_path, save_every_steps=2), on_step=stop_at(8))
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == ["step-00000004.safetensors", "step-00000006.safetensors"]
    with safe_open(tmp_path / "checkpoints" / files[1], "pt") as content:
        assert json.loads(content.metadata()["training"])["step"] == 6
        assert content.get_tensor("exp_avg_sq/logit_scale").dtype == torch.float32


def kill_half_way(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Stop):
        train(make_recipe(tmp_path, save_every_steps=2, **changes), on_step=stop_at(4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"lr": 1e-3}, "optim.lr: 0.003 there, 0.001 now"), ({"seed": 4}, "seed: 0 there, 4 now")],
)
def test_refuses_to_go_on_with_another_recipe(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    kill_half_way(tmp_path, {})
    with pytest.raises(UsageError, match=said):
        train(make_recipe(tmp_path, **changes), resume="auto")


def test_refuses_to_go_on_with_other_weights_or_rows(tmp_path: Path) -> None:
    kill_half_way(tmp_path, {})
    with pytest.raises(UsageError, match="weights_sha256"):
        train(make_recipe(tmp_path), make_clip(custom=True), resume="auto")
    with pytest.raises(UsageError, match="rows: 50 there, 51 now"):
        train(make_recipe(tmp_path), rows=TinyRows(51), resume="auto")


def forget(content: dict[str, Any], *path: str) -> None:
    *tables, option = path
    for table in tables:
        content = content[table]
    del content[option]


@pytest.mark.parametrize(
    ("option", "before", "now"),
    [
        (("mini_batch_size",), {}, {"mini_batch_size": 4}),
        (("lora",), {}, {"lora": {"rank": 2}}),
        (("lora", "layers"), {"lora": {"rank": 2}}, {"lora": {"rank": 2, "layers": 1}}),
    ],
)
@pytest.mark.parametrize("done", [False, True])
def test_an_option_that_was_unknown_counts_as_its_default(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: tuple[str, ...],
    before: dict[str, Any],
    now: dict[str, Any],
    done: bool,
) -> None:
    def without(recipe: Any, **options: Any) -> dict[str, Any]:
        content = dump(recipe, **options)
        forget(content, "optim", *option)
        for newer in ("loss", "caption_only", "context_length", "dialogues"):
            forget(content, newer)
        return content

    dump = DraftRecipe.model_dump
    with monkeypatch.context() as patch:
        patch.setattr(DraftRecipe, "model_dump", without)
        if done:
            train(make_recipe(tmp_path, **before))
        else:
            kill_half_way(tmp_path, before)
    with pytest.raises(UsageError, match=rf"another recipe \(recipe\.optim\.{option[0]}"):
        train(make_recipe(tmp_path, **now), resume="auto")
    with pytest.raises(UsageError, match=r"\(recipe\.caption_only: False there, True now\)"):
        train(make_recipe(tmp_path, **before, caption_only=True), resume="auto")
    assert train(make_recipe(tmp_path, **before), resume="auto").steps == STEPS


def test_logging_may_change_between_parts(tmp_path: Path) -> None:
    kill_half_way(tmp_path, {})
    log = {"tensorboard": False, "every_steps": 2}
    assert train(make_recipe(tmp_path, save_every_steps=5, log=log), resume="auto").steps == STEPS


def test_a_folder_with_a_training_is_not_overwritten(tmp_path: Path) -> None:
    kill_half_way(tmp_path / "half", {})
    train(make_recipe(tmp_path / "done", max_steps=2))
    for name in ("half", "done"):
        with pytest.raises(UsageError, match="--resume auto"):
            train(make_recipe(tmp_path / name, max_steps=2))


def test_one_training_at_a_time_in_a_folder(tmp_path: Path) -> None:
    """The second would write checkpoints of its own between those of the first."""
    done = train(make_recipe(tmp_path / "undisturbed"))

    def second(number: int, values: dict[str, float]) -> None:
        if number == 3:
            with pytest.raises(UsageError, match=r"another training is writing to .*/a: wait for it, or choose"):
                train(make_recipe(tmp_path / "a"), resume="auto")

    assert train(make_recipe(tmp_path / "a"), on_step=second).losses == done.losses


def test_memory_does_not_grow_with_the_shapes_of_batches(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """oneDNN would keep a program for each: 18 MB a step in the embedded world."""
    seen: list[bool] = []
    train(make_recipe(tmp_path), on_step=lambda number, values: seen.append(torch.backends.mkldnn.enabled))
    assert not [str(told.message) for told in recwarn if "oneDNN" in str(told.message)]
    assert seen == [False] * STEPS
    assert torch.backends.mkldnn.enabled


def test_a_completed_training_is_left_alone(tmp_path: Path) -> None:
    first = train(make_recipe(tmp_path))
    assert train(make_recipe(tmp_path), resume="auto", on_step=stop_at(1)) == first
    with pytest.raises(UsageError, match=r"optim.max_steps"):
        train(make_recipe(tmp_path, max_steps=40), resume="auto")


def test_a_training_whose_model_is_lost_is_not_complete(tmp_path: Path) -> None:
    train(make_recipe(tmp_path))
    model, report = tmp_path / "model" / WEIGHTS, tmp_path / "train.json"
    for file in (model, report):
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[whole.index(b"steps") + 2 if file == report else len(whole) // 2] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match=rf"{re.escape(file.name)} is damaged.*remove "):
            train(make_recipe(tmp_path), resume="auto")
        file.write_bytes(whole)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UsageError, match=r"model is missing: put it back, or remove .*train\.json"):
        train(make_recipe(tmp_path), resume="auto")


@pytest.mark.parametrize(("every", "saved"), [(1, 12), (12, 12), (12, 5)])
def test_stops_where_a_number_is_not_finite(tmp_path: Path, every: int, saved: int) -> None:
    """However late it is read, the error names the step, and the weights are those before it."""
    rows, clip = TinyRows(broken=17), make_clip()
    seen: list[float] = []
    weights = [snapshot(clip)]

    def on_step(step: int, values: Mapping[str, float]) -> None:
        seen.append(values["loss"])
        weights.append(snapshot(clip))

    recipe = make_recipe(tmp_path, max_steps=12, log={"tensorboard": False, "every_steps": every}, seed=1)
    with pytest.raises(FailedCheckError, match=r"step (\d+): .*loss is nan.*image-") as raised:
        train(recipe.model_copy(update={"save_every_steps": saved}), clip, rows, on_step=on_step)
    found = json.loads((tmp_path / "not-finite.json").read_text())
    number = found["step"]
    assert 1 < number < 5
    assert all(map(math.isfinite, seen[: number - 1]))
    assert all(map(math.isnan, seen[number - 1 : number]))
    assert len(seen) == (number if every == 1 else saved) - 1
    assert f"step {number}:" in str(raised.value)
    assert "image-17" in found["image_ids"]
    assert len(found["image_ids"]) == 8
    assert not changed(snapshot(clip), weights[number - 1])
    assert changed(weights[number - 1], weights[number - 2])
    assert not list((tmp_path / "checkpoints").glob("*"))


class _Reads(TorchDispatchMode):
    """Counts what waits for a GPU: values that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")
        self.count += any(name in str(func) for name in names)
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device_but_those_that_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only on a CPU are the values looked at, to compute fewer polynomials.
    monkeypatch.setattr(chebyshev, "_range", lambda values, count, sigma: (-chebyshev.REACH, chebyshev.REACH, count))
    counts: list[int] = []
    with _Reads() as reads:
        log = {"tensorboard": False, "every_steps": 4}
        train(make_recipe(tmp_path, log=log), on_step=lambda step, values: counts.append(reads.count))
    assert len(counts) == 12
    per_step = [after - before for before, after in itertools.pairwise(counts)]
    # A logged step is read before `on_step`, its means after it.
    waits = [bool(count) for count in per_step]
    assert waits == [step % 4 == 0 or step % 4 == 1 for step in range(2, 13)]


@pytest.mark.parametrize("kind", ["native", "custom", "hugging face"])
def test_last_layers_only(tmp_path: Path, kind: str) -> None:
    clip = make_hf_clip() if kind == "hugging face" else make_clip(custom=kind == "custom")
    before = snapshot(clip)
    train(make_recipe(tmp_path, train_last_layers=1), clip)
    after = changed(before, snapshot(clip))
    prefix = {"native": "", "custom": "text.", "hugging face": "text."}[kind]
    last = "transformer.encoder.layer.1." if kind == "hugging face" else "transformer.resblocks.2."
    tail = {"proj.weight"} if kind == "hugging face" else {"ln_final.weight", "ln_final.bias", "text_projection"}
    expected = {name for name in before if name.startswith(prefix + last)} | {prefix + name for name in tail}
    assert after == expected | {"logit_scale"}


def test_more_last_layers_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 3 layers"):
        train(make_recipe(tmp_path, train_last_layers=4))


def test_a_learned_logit_scale_stays_within_bounds(tmp_path: Path) -> None:
    clip = make_clip()
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(100) + 1)
    train(make_recipe(tmp_path, max_steps=2), clip)
    assert 4 < clip.model.logit_scale.item() <= math.log(100) + 1e-6


def test_caption_only_does_not_see_the_dialogues(tmp_path: Path) -> None:
    class Other(TinyRows):
        def batch(self, rows: Any, epoch: int, **options: Any) -> Any:
            batch = super().batch(rows, epoch, **options)
            batch.dialogues.tokens.clamp_(max=3)
            return batch

    values: list[dict[str, float]] = []
    for name, rows in (("one", TinyRows()), ("other", Other())):
        train(make_recipe(tmp_path / name, caption_only=True), rows=rows, on_step=lambda step, v: values.append(v))
    assert changed(weights(tmp_path / "one"), weights(tmp_path / "other")) == set()
    # It has no dialogues, so it reports no loss of them.
    assert all({name for name in v if name.endswith("_loss")} == {"image_caption_loss"} for v in values)
    assert all(v["image_caption_loss"] == pytest.approx(v["loss"]) for v in values)
    train(make_recipe(tmp_path / "with"))
    assert changed(weights(tmp_path / "one"), weights(tmp_path / "with"))


def test_gives_every_image_once_an_epoch(tmp_path: Path) -> None:
    rows = TinyRows(48)
    train(make_recipe(tmp_path), rows=rows)
    for epoch in (0, 1):
        assert sorted(row for order, e, *_ in rows.served if e == epoch for row in order) == list(range(48))
    assert rows.served[0][2:] == (False, False)


def test_what_the_tower_and_the_recipe_need_of_the_rows(tmp_path: Path) -> None:
    rows = TinyRows()
    train(
        make_recipe(tmp_path, max_steps=1, dialogues="concatenate"), make_clip(custom=True, no_causal_mask=True), rows
    )
    assert {served[2:] for served in rows.served} == {(True, True)}


def test_batch_larger_than_the_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="50"):
        train(make_recipe(tmp_path, batch_size=51))


def test_unknown_text_tower(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny cannot be trained"):
        train(make_recipe(tmp_path), make_clip(pool_type="last"))


@pytest.mark.parametrize("kind", RECIPES)
def test_bf16_is_near_float32(tmp_path: Path, kind: str) -> None:
    losses: dict[str, list[float]] = {"no": [], "bf16": []}
    for precision, seen in losses.items():
        recipe = make_recipe(tmp_path / precision, kind, precision=precision)
        train(recipe, on_step=lambda step, values, seen=seen: seen.append(values["loss"]))
        AcceleratorState._reset_state(reset_partial_state=True)
        assert {value.dtype for value in weights(tmp_path / precision).values()} == {torch.float32}
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        train(make_recipe(tmp_path, precision="fp16"))


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses: list[float] = []
    log = {"tensorboard": True, "every_steps": 4}
    train(make_recipe(tmp_path, log=log), on_step=lambda step, values: losses.append(values["mmd_loss"]))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "dialog-train")).Reload()
    assert {"loss", "image_dialogue_loss", "image_caption_loss", "lr"} <= set(events.Tags()["scalars"])
    points = events.Scalars("mmd_loss")
    assert [point.step for point in points] == [4, 8, 12]
    means = [sum(losses[start : start + 4]) / 4 for start in (0, 4, 8)]
    assert [point.value for point in points] == pytest.approx(means, rel=1e-5)


def test_says_where_more_processes_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    train(make_recipe(tmp_path, max_steps=1))
    assert "torchrun" in caplog.text


TRAINER = "helpers.loops:train_draft"


@pytest.mark.parametrize("full", ["checkpoint", "model"])
def test_a_full_disk(tmp_path: Path, full: str) -> None:
    changes = {"save_every_steps": 5 if full == "checkpoint" else None}
    train(make_recipe(tmp_path / "undisturbed", **changes))
    # A checkpoint is larger than the model: it holds the optimizer's state, too.
    room = (tmp_path / "undisturbed" / "model" / WEIGHTS).stat().st_size - 1
    recipe = make_recipe(tmp_path / "a", **changes)
    with full_at(room), pytest.raises(DialogGenError, match=r"cannot write .*/a: .*; --resume auto goes on") as caught:
        train(recipe)
    assert caught.value.exit_code == 2
    assert not [path.name for path in (tmp_path / "a").rglob("*.safetensors")]
    train(recipe, resume="auto")
    saved, expected = (tmp_path / out / "model" / WEIGHTS for out in ("a", "undisturbed"))
    assert saved.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    changes = {"ema_decay": 0.9, "save_every_steps": 4, "epochs": 5}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_training(TRAINER, whole, changes)
    # The property holds for each: the one that is drawn may differ from run to run.
    fatal = random.SystemRandom().randint(5, 29)
    run_training(TRAINER, parts, changes, killed_after=fatal)
    assert not (parts / "train.json").exists(), fatal
    steps = run_training(TRAINER, parts, changes, resume="auto")
    assert steps[0][0] > 1, fatal
    assert steps[-1][0] == 30
    for folder in ("model", "model-ema"):
        assert (parts / folder / WEIGHTS).read_bytes() == (whole / folder / WEIGHTS).read_bytes(), fatal


@pytest.mark.slow
@pytest.mark.parametrize("mmd_over", ["scalars", "positives"])
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path, mmd_over: str) -> None:
    loss = {"a": 0.3, "mmd_weight": 5.0, "mmd_over": mmd_over}
    changes = {"max_steps": 4, "save_every_steps": 1, "grad_clip": 1e6, "loss": loss}
    one, two = (run_training(TRAINER, tmp_path / str(count), changes, processes=count) for count in (1, 2))
    assert json.loads((tmp_path / "2" / "train.json").read_text())["processes"] == 2
    # Both processes tell of each step, and tell the same.
    assert sorted(step for step, _ in two) == sorted(2 * [step for step, _ in one])
    for step, values in two:
        assert values == pytest.approx(one[step - 1][1], rel=2e-5, abs=1e-7)
    first, second = (load_file(tmp_path / name / "first.safetensors") for name in "12")
    gradients = [name for name in first if name.startswith("exp_avg/")]
    assert "exp_avg/logit_scale" in gradients
    assert len(gradients) > 30
    for name in gradients:
        scale = first[name].norm().item()
        assert (first[name] - second[name]).norm().item() <= 1e-5 * scale + 1e-9, name


@pytest.mark.slow
def test_batch_that_does_not_split(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="divide by 2"):
        run_training(TRAINER, tmp_path / "out", {"batch_size": 9}, processes=2)


def test_trained_folder_is_a_model_again(tmp_path: Path) -> None:
    # Its tokenizer is open_clip's own, for lack of another.
    train(make_recipe(tmp_path))
    loaded = load_clip(str(tmp_path / "model"))
    assert changed(weights(tmp_path), loaded.model.state_dict()) == set()


@pytest.mark.parametrize("kind", RECIPES)
def test_compiles_the_layers_of_all_text_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    compiled: list[TextTower] = []
    monkeypatch.setattr(TextTower, "compile_blocks", lambda tower: compiled.append(tower))
    train(make_recipe(tmp_path, kind, max_steps=1, compile=True))
    assert len(compiled) == {"draft": 1, "third-tower": 2}[kind]


def test_compiles_only_the_layers_that_run_on_packed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    train(make_recipe(tmp_path / "bert", max_steps=1, compile=True), make_hf_clip())
    assert compiled == ["BertLayer", "BertLayer"]
    with pytest.raises(UsageError, match=r"optim\.compile: tiny has no text tower that can be compiled"):
        train(make_recipe(tmp_path / "decoder", max_steps=1, compile=True), make_hf_clip(is_decoder=True))
    assert len(compiled) == 2
