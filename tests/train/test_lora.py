"""LoRA on the text tower: what is trained, what is saved, and that peft reads the adapter."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.loops import TinyRows, make_clip, make_recipe, make_system, train, train_third_tower
from helpers.systems import check_resume, check_two_processes
from safetensors.torch import load_file
from torch.nn.functional import normalize

from dialog_gen.clip.base import SEARCH
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.config import LoraSettings, OptimSettings
from dialog_train.loop import fit
from dialog_train.lora import ADAPTER_FOLDER, add_lora
from dialog_train.optim import select_trainable
from dialog_train.text_tuning import PairBatches

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

LORA = {"rank": 2, "alpha": 3.0}
WEIGHTS = ("attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
WEIGHTS_FILE = "open_clip_model.safetensors"


def tokens() -> torch.Tensor:
    batch = TinyRows().batch(range(20), 1, concatenate=False, full_length=True)
    return torch.cat([batch.captions.tokens, batch.dialogues.tokens])


def test_an_update_by_hand() -> None:
    clip = make_clip()
    tower = TextTower(clip.model)
    before = tower.transformer.resblocks[2].mlp.c_fc.weight.detach().clone()
    add_lora(tower, LoraSettings(**LORA, layers=1, parts=("mlp",)))
    layer = tower.transformer.resblocks[2].mlp.c_fc
    assert torch.equal(layer.weight, before), "it starts as the weight"
    update = layer.parametrizations.weight[0]
    with torch.no_grad():
        update.lora_B.normal_()
    expected = before.double() + 1.5 * update.lora_B.double() @ update.lora_A.double()
    torch.testing.assert_close(layer.weight.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "layers", "weights"),
    [({}, (0, 1, 2), WEIGHTS), ({"layers": 1}, (2,), WEIGHTS), ({"parts": ("attention",)}, (0, 1, 2), WEIGHTS[:1])],
)
def test_only_the_updates_and_the_scale_are_trained(
    settings: dict[str, Any], layers: tuple[int, ...], weights: tuple[str, ...]
) -> None:
    clip = make_clip()
    optim = OptimSettings.model_validate({"lr": 1, "batch_size": 2, "lora": {**LORA, **settings}})
    trained = select_trainable(clip.model, TextTower(clip.model), optim)
    expected = {"logit_scale"}
    for layer in layers:
        for weight in weights:
            owner, _, name = weight.rpartition(".")
            path = f"transformer.resblocks.{layer}.{owner}.parametrizations.{name}.0"
            expected |= {f"{path}.lora_A", f"{path}.lora_B"}
    assert set(trained) == expected
    assert trained["transformer.resblocks.2.attn.parametrizations.in_proj_weight.0.lora_A"].shape == (2, 32)
    assert trained["transformer.resblocks.2.attn.parametrizations.in_proj_weight.0.lora_B"].shape == (96, 2)


@pytest.mark.parametrize("custom", [False, True])
def test_the_saved_model_gives_the_vectors_of_the_trained_one(tmp_path: Path, custom: bool) -> None:
    clip = make_clip(custom=custom)
    base = {name: value.clone() for name, value in clip.model.state_dict().items()}
    train(make_recipe(tmp_path, lora=LORA, ema_decay=0.5), clip)
    prefix = "text." if custom else ""
    saved = load_file(tmp_path / "model" / WEIGHTS_FILE)
    assert saved.keys() == base.keys()
    changed = {name for name in base if not torch.equal(saved[name], base[name])}
    expected = {f"{prefix}transformer.resblocks.{layer}.{weight}" for layer in range(3) for weight in WEIGHTS}
    assert changed == {*expected, "logit_scale"}
    reference = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    with torch.no_grad():
        found = TextTower(clip.model).eval().encode(tokens())
        wanted = normalize(reference.encode_text(tokens()), dim=-1)
        untuned = TextTower(make_clip(custom=custom).model).eval().encode(tokens())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (found - untuned).abs().max() > 1e-2
    # The weights below the updates are those of the start, to the last bit.
    for name, value in clip.model.state_dict().items():
        if name.endswith(".original"):
            plain = name.replace("parametrizations.", "").removesuffix(".original")
            assert torch.equal(value, base[plain])


def test_the_average_is_that_of_the_updates(tmp_path: Path) -> None:
    clip = make_clip()
    base = {name: value.clone() for name, value in clip.model.state_dict().items()}
    average = dict[str, torch.Tensor]()

    def step(number: int, values: dict[str, float]) -> None:
        for name, value in clip.model.state_dict().items():
            if ".lora_" in name:
                average[name] = average[name].lerp(value, 0.5) if name in average else start[name].lerp(value, 0.5)

    recipe = make_recipe(tmp_path, lora=LORA, ema_decay=0.5)
    system = make_system(recipe, clip)
    start = {name: value.clone() for name, value in clip.model.state_dict().items() if ".lora_" in name}
    fit(recipe, system, PairBatches(recipe, TinyRows(), full_length=False), on_step=step)
    saved = load_file(tmp_path / "model-ema" / WEIGHTS_FILE)
    path = "transformer.resblocks.1.attn.parametrizations.in_proj_weight.0"
    name = "transformer.resblocks.1.attn.in_proj_weight"
    wanted = base[name] + 1.5 * average[f"{path}.lora_B"] @ average[f"{path}.lora_A"]
    torch.testing.assert_close(saved[name], wanted, rtol=0, atol=1e-6)
    assert not torch.equal(saved[name], load_file(tmp_path / "model" / WEIGHTS_FILE)[name])


def test_a_third_tower_is_tuned_and_saved(tmp_path: Path) -> None:
    train_third_tower(tmp_path, {"lora": LORA})
    found = load_clip(str(tmp_path / "model"), needs=SEARCH)
    base = make_clip().model
    saved: Any = found.third  # type: ignore[attr-defined]
    assert torch.equal(saved.token_embedding.weight, base.token_embedding.weight)
    assert not torch.equal(
        saved.transformer.resblocks[0].mlp.c_fc.weight, base.transformer.resblocks[0].mlp.c_fc.weight
    )
    assert (tmp_path / "model" / ADAPTER_FOLDER / "adapter_config.json").is_file()


def test_resumes_exactly(tmp_path: Path) -> None:
    check_resume("helpers.loops:train_lora", tmp_path, stop=5)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    check_two_processes("helpers.loops:train_lora", tmp_path)


@pytest.mark.parametrize("custom", [False, True])
def test_peft_reads_the_adapter(tmp_path: Path, custom: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    clip = make_clip(custom=custom)
    train(make_recipe(tmp_path, lora=LORA), clip)
    model: Any = make_clip(custom=custom).model.eval()
    tuned = peft.PeftModel.from_pretrained(model, str(tmp_path / "model" / ADAPTER_FOLDER)).eval()
    with torch.no_grad():
        found = normalize(tuned.base_model.model.encode_text(tokens()), dim=-1)
        wanted = TextTower(clip.model).eval().encode(tokens())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    kinds = {name for name, module in tuned.named_modules() if isinstance(module, torch.nn.MultiheadAttention)}
    assert not any("visual" in name and ".base_layer" in name for name in kinds)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim.lora.rank=0"], "optim.lora.rank"),
        (["optim.lora.parts=[]"], "optim.lora.parts"),
        (["optim.lora.rank=4", "optim.train_last_layers=1"], "leave out train_last_layers"),
    ],
)
def test_refuses_recipes(overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_recipe("draft-shapes", overrides)


@pytest.mark.parametrize("name", ["close-shapes", "mammut-shapes"])
def test_is_for_text_towers(name: str) -> None:
    with pytest.raises(UsageError, match=r"optim.lora is for text towers"):
        load_recipe(name, ["optim.lora.rank=4"])


def test_refuses_more_layers_than_there_are() -> None:
    with pytest.raises(UsageError, match=r"optim.lora.layers = 4: the text tower has 3 layers"):
        add_lora(TextTower(make_clip().model), LoraSettings(layers=4))
