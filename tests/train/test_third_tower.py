import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.loops import CONTEXT, TinyRows, make_clip, make_recipe, make_system, train
from helpers.systems import check_resume, check_two_processes
from helpers.training import write_recipe, write_tiny_clip
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize, pad

from dialog_gen.clip.base import SEARCH, Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.third_tower.checkpoint import ThirdTowerClip
from dialog_gen.clip.third_tower.layout import CONFIG_FILE, WEIGHTS_FILE
from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.losses import third_tower_loss
from dialog_train.systems.third_tower.config import ThirdTowerLossSettings, ThirdTowerRecipe
from dialog_train.systems.third_tower.training import ThirdTower

SCRIPTS = Path(__file__).parents[2] / "train"
RECIPES = sorted((SCRIPTS / "recipes").glob("third-tower-*.toml"))
BASE_FILE = "open_clip_model.safetensors"
SCALE = 14.3


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def recipe_for(out: Path, **changes: Any) -> ThirdTowerRecipe:
    return make_recipe(out, "third-tower", **changes)


def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [normalize(torch.randn(6, 5, dtype=torch.float64, generator=generator), dim=-1) for _ in range(3)]


def by_hand(queries: torch.Tensor, candidates: torch.Tensor) -> float:
    """Mean cross entropy of each query among the candidates."""
    total = 0.0
    for row, query in enumerate(queries.tolist()):
        scores = [SCALE * sum(p * q for p, q in zip(query, other, strict=True)) for other in candidates.tolist()]
        total += math.log(sum(map(math.exp, scores))) - scores[row]
    return total / len(queries)


@pytest.mark.parametrize("direction", ["t2i", "i2t", "symmetric"])
def test_loss_by_hand(direction: Any) -> None:
    images, captions, dialogues = features()
    parts = third_tower_loss(images, captions, dialogues, SCALE, a=0.3, direction=direction)

    def expected(others: torch.Tensor) -> float:
        # Equation 4.3.1: the softmax runs over the other modality, for each dialogue.
        ways = {"t2i": by_hand(dialogues, others), "i2t": by_hand(others, dialogues)}
        return ways.get(direction, sum(ways.values()) / 2)

    assert list(parts) == ["image_dialogue_loss", "caption_dialogue_loss"]
    assert parts["image_dialogue_loss"].item() == pytest.approx(0.3 * expected(images), abs=1e-12)
    assert parts["caption_dialogue_loss"].item() == pytest.approx(0.7 * expected(captions), abs=1e-12)


@pytest.mark.parametrize(("options", "said"), [({"a": 1.2}, "1.2"), ({"a": -0.1}, "-0.1"), ({"direction": "x"}, "'x'")])
def test_loss_refuses(options: dict[str, Any], said: str) -> None:
    images, captions, dialogues = features()
    with pytest.raises(ValueError, match=said):
        third_tower_loss(images, captions, dialogues, SCALE, **options)


def test_settings_of_the_thesis_are_the_defaults() -> None:
    assert ThirdTowerLossSettings().model_dump() == third_tower_loss.__kwdefaults__
    recipes = {file.stem: load_recipe(file, system="third-tower") for file in RECIPES}
    assert recipes.keys() == {"third-tower-vit-b-32", "third-tower-shapes"}
    published = recipes["third-tower-vit-b-32"]
    assert (published.loss.a, published.beta, published.dialogues) == (0.65, 0.9, "concatenate")
    assert (published.optim.batch_size, published.optim.lr, published.optim.epochs) == (1024, 1e-5, 2)


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def loaded(folder: Path, clip: Clip) -> ThirdTowerClip:
    """A checkpoint without its tokenizer, which tiny ones lack."""
    found = load_clip(str(folder), needs=SEARCH)
    assert isinstance(found, ThirdTowerClip)
    assert changed(snapshot(clip.model), snapshot(found.model)) == set()
    return found


@pytest.mark.parametrize(("custom", "text"), [(False, {}), (True, {}), (True, {"no_causal_mask": True})])
def test_learns_and_leaves_the_base_as_it_was(tmp_path: Path, custom: bool, text: dict[str, Any]) -> None:
    clip, rows, losses = make_clip(custom=custom, **text), TinyRows(), list[float]()
    before = snapshot(clip.model)
    recipe = recipe_for(tmp_path, epochs=5, beta=0.8)
    train(recipe, clip, rows, on_step=lambda step, values: losses.append(values["loss"]))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert changed(before, snapshot(clip.model)) == set()
    # All pairs of an image in one text; what sees padding gets all of it.
    assert {served[2:] for served in rows.served} == {(True, bool(text))}

    found = loaded(tmp_path / "model", clip)
    first = make_system(recipe, clip).model.get_submodule("third")
    assert changed(snapshot(first), snapshot(found.third)) == set(snapshot(first))
    assert (found.beta, found.base.name, found.base.weights_sha256) == (0.8, "tiny", clip.weights_sha256)
    assert found.weights_sha256 != clip.weights_sha256
    assert not any(module.training for module in found.third.modules())


def test_what_is_saved_is_what_was_trained(tmp_path: Path) -> None:
    clip = make_clip()
    recipe = recipe_for(tmp_path, ema_decay=0.5)
    states: list[dict[str, torch.Tensor]] = []
    system = make_system(recipe, clip)
    assert isinstance(system, ThirdTower)
    system.save(tmp_path / "first", {})
    train(recipe, clip, on_step=lambda step, values: None)
    for folder in ("first", "model", "model-ema"):
        states.append(snapshot(loaded(tmp_path / folder, clip).third))
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(
            ["open_clip_config.json", BASE_FILE, CONFIG_FILE, WEIGHTS_FILE, "checksums.json"]
        )
    first, last, average = states
    assert changed(first, snapshot(system.model.get_submodule("third"))) == set()
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    assert (last[name] - average[name]).norm() < (last[name] - first[name]).norm()
    assert changed(last, average) == set(last)


@pytest.mark.parametrize("stop", [3, 7])
def test_resume(tmp_path: Path, stop: int) -> None:
    check_resume("helpers.loops:train_third_tower", tmp_path, stop=stop)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    check_two_processes("helpers.loops:train_third_tower", tmp_path)


def test_open_clip_loads_the_base(tmp_path: Path) -> None:
    clip = make_clip()
    train(recipe_for(tmp_path, max_steps=2), clip)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    assert changed(snapshot(clip.model), snapshot(model)) == set()
    # Where a plain CLIP is all that is asked for, this is one.
    assert load_clip(str(tmp_path / "model")).weights_sha256 == clip.weights_sha256


def test_last_layers_only(tmp_path: Path) -> None:
    clip = make_clip()
    recipe = recipe_for(tmp_path, train_last_layers=1, logit_scale="fixed")
    first = snapshot(make_system(recipe, clip).model.get_submodule("third"))
    train(recipe, clip)
    after = changed(first, snapshot(loaded(tmp_path / "model", clip).third))
    last = {name for name in first if name.startswith("transformer.resblocks.2.")}
    assert after == last | {"ln_final.weight", "ln_final.bias", "text_projection"}
    with pytest.raises(UsageError, match="has 3 layers"):
        train(recipe_for(tmp_path / "more", train_last_layers=4))


def test_captions_go_to_the_text_tower_and_dialogues_to_the_third(tmp_path: Path) -> None:
    clip, other = make_clip(), make_clip()
    system = make_system(recipe_for(tmp_path, loss={"a": 0.2}), clip)
    third = system.model.get_submodule("third")
    with torch.no_grad():
        for parameter in third.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other.model.load_state_dict({**other.model.state_dict(), **third.state_dict()})
    batch = TinyRows().batch(range(8), 0, concatenate=True)
    found = system.module(batch)
    with torch.no_grad():
        captions, dialogues = (
            normalize(model.encode_text(pad(tokens, (0, CONTEXT - tokens.shape[1]))), dim=-1)
            for model, tokens in ((clip.model, batch.captions.tokens), (other.model, batch.dialogues.tokens))
        )
        scale = clip.model.logit_scale.exp()
        expected = third_tower_loss(batch.image_vectors, captions, dialogues, scale, a=0.2)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=0)


def test_the_frozen_tower_has_no_dropout() -> None:
    system = make_system(recipe_for(Path("nowhere")), make_clip())
    assert isinstance(system, ThirdTower)
    system.module.train()
    training = {name: module.training for name, module in system.module.named_children()}
    assert training == {"text": False, "third": True}
    assert not any(parameter.requires_grad for parameter in system.module.get_submodule("text").parameters())


def test_a_text_tower_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny cannot have a third tower"):
        train(recipe_for(tmp_path), make_clip(pool_type="last"))


def test_the_script(
    run_script: Callable[..., int],
    tiny_clip: Path,
    tiny_dialogues: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len((SCRIPTS / "third_tower.py").read_text().splitlines()) <= 80
    write_recipe(tmp_path, tiny_clip, tiny_dialogues, top="save_every_steps = 2")
    call = functools.partial(run_script, "third_tower", "--config", "recipe.toml")
    assert call() == 0
    assert "out/model: 3 steps, image_dialogue_loss" in capsys.readouterr().out
    assert isinstance(load_clip("out/model", needs=SEARCH), ThirdTowerClip)
    assert call("--resume", "auto") == 0
    assert call() == 2
    assert "--resume auto" in capsys.readouterr().err
    assert call("--set", "loss.a=2") == 2
    assert "loss.a" in capsys.readouterr().err


def spoil_json(folder: Path, **changes: object) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**content, **changes}))


def spoil_weights(folder: Path, **changes: torch.Tensor) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({**tensors, **changes}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), f"{CONFIG_FILE} is damaged"),
        (lambda folder: spoil_json(folder, beta=1.5), "beta: must be at most 1"),
        (lambda folder: spoil_json(folder, weights="../x"), "weights: Extra inputs"),
        (lambda folder: spoil_weights(folder, other=torch.ones(1)), "they differ in other"),
        (lambda folder: spoil_weights(folder, text_projection=torch.ones(3, 3)), "they differ in text_projection"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"x" * 20), "cannot be read"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "cannot be read"),
        (lambda folder: write_tiny_clip(folder, seed=5), "beside another model"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, tiny_clip: Path, spoil: Any, said: str) -> None:
    system = make_system(recipe_for(tmp_path), load_clip(str(tiny_clip)))
    system.save(tmp_path / "model", {})
    assert isinstance(load_clip(str(tmp_path / "model"), needs=SEARCH), ThirdTowerClip)
    # As of another program: checksums would find any damage first.
    (tmp_path / "model" / "checksums.json").unlink()
    spoil(tmp_path / "model")
    with pytest.raises(UsageError, match=said):
        load_clip(str(tmp_path / "model"), needs=SEARCH)


def test_other_checkpoints_are_plain(tiny_clip: Path) -> None:
    assert type(load_clip(str(tiny_clip), needs=SEARCH)) is Clip
