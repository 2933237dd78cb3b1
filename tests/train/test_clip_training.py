"""CLIP from pixels: its system in the loop, where it starts from, and train/clip.py as it is run."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.evaluation import captions, write_split
from helpers.loops import CONFIG, PREPROCESS, make_clip
from helpers.pixels import TinyPixels, make_clip_recipe, train_clip
from helpers.systems import check_resume, check_two_processes
from helpers.training import TINY_CLIP, write_recipe
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dialog_eval.cli import app
from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip, new_clip
from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.systems.clip.training import ClipTraining

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train" / "clip.py"
RECIPES = sorted((ROOT / "train" / "recipes").glob("clip-*.toml"))
TRAINERS = [f"helpers.pixels:train_{name}" for name in ("clip", "siglip", "lit")]


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("stop", [4, 9])
def test_resumed_equals_undisturbed(tmp_path: Path, trainer: str, stop: int) -> None:
    check_resume(trainer, tmp_path, stop=stop)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS[:2])
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path, trainer: str) -> None:
    check_two_processes(trainer, tmp_path)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_step_is_that_of_open_clip(tmp_path: Path, loss: Any) -> None:
    recipe = make_clip_recipe(tmp_path, loss=loss)
    system = ClipTraining(make_clip(), recipe)
    batch = TinyPixels().batch(range(8), 0)
    parts = system.module(batch)
    sum(parts.values()).backward()

    extra = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0} if loss == "siglip" else {}
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG, **extra).double()
    mean, std = (torch.tensor(PREPROCESS[name]).view(3, 1, 1) for name in ("mean", "std"))
    tokens = TinyPixels().batch(range(8), 0, full_length=True).captions.tokens
    images, texts, *scalars = model((batch.pixels.double() / 255 - mean) / std, tokens)
    expected = (open_clip.loss.SigLipLoss() if extra else open_clip.ClipLoss())(images, texts, *scalars)
    expected.backward()
    torch.testing.assert_close(sum(parts.values()).double(), expected, rtol=1e-6, atol=0)
    wanted = {name: p.grad for name, p in model.named_parameters()}
    assert set(system.trainable) == set(wanted)
    for name, parameter in system.trainable.items():
        # Ours is float32, where an element that is a sum of large terms keeps few digits (here positional_embedding,
        # 0.026 in a gradient of norm 87): so it is measured on the scale of the whole gradient, which keeps 1e-6 of it.
        difference = (parameter.grad.double() - wanted[name]).norm()
        assert difference <= 1e-5 * wanted[name].norm(), name


def changed(before: dict[str, torch.Tensor], clip: Clip) -> set[str]:
    return {name for name, value in clip.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("custom", [False, True])
def test_learns_in_both_towers(tmp_path: Path, custom: bool) -> None:
    clip, losses = make_clip(custom=custom), []
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    result = train_clip(
        tmp_path, {"epochs": 6}, clip, on_step=lambda step, values: losses.append(values["contrastive_loss"])
    )
    assert result.steps == len(losses) == 36
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert changed(before, clip) == set(before)


def test_a_locked_image_tower_stays_as_it_is(tmp_path: Path) -> None:
    clip = make_clip()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    train_clip(tmp_path, {"lock_image": True, "train_last_layers": 1, "logit_scale": "fixed"}, clip)
    after = changed(before, clip)
    assert "transformer.resblocks.2.mlp.c_fc.weight" in after
    assert not any(name.startswith(("visual.", "logit_scale", "transformer.resblocks.1.")) for name in after)


def test_siglip_starts_as_published_and_saves_its_bias(tmp_path: Path) -> None:
    clip = make_clip()
    system = ClipTraining(clip, make_clip_recipe(tmp_path, loss="siglip"))
    assert system.clip.model.logit_bias.item() == -10
    assert system.clip.model.logit_scale.exp().item() == pytest.approx(10)
    train_clip(tmp_path, {"loss": "siglip", "max_steps": 3})
    found = load_clip(str(tmp_path / "model"))
    bias = found.model.logit_bias.item()
    assert -10 != bias == pytest.approx(-10, abs=0.1)
    # A model that has a bias keeps it, and what it was trained with.
    again = ClipTraining(found, make_clip_recipe(tmp_path, loss="siglip"))
    assert again.clip.model.logit_bias.item() == bias
    assert "logit_bias" not in ClipTraining(found, make_clip_recipe(tmp_path)).trainable


@pytest.mark.parametrize(
    ("clip", "changes", "said"),
    [
        (make_clip, {"train_last_layers": 1}, "set lock_image = true"),
        (lambda: make_clip(pool_type="last"), {}, "tiny cannot be trained"),
    ],
)
def test_refuses(tmp_path: Path, clip: Callable[[], Clip], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ClipTraining(clip(), make_clip_recipe(tmp_path, **changes))


def test_refuses_batch_norm_unless_it_is_locked(tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    clip = make_clip()
    clip.model.visual = open_clip.CLIP(**{**CONFIG, "vision_cfg": vision}).visual
    with pytest.raises(UsageError, match="batch norm"):
        ClipTraining(clip, make_clip_recipe(tmp_path))
    system = ClipTraining(clip, make_clip_recipe(tmp_path, lock_image=True))
    assert not system.module.train().get_submodule("visual").training


@pytest.mark.parametrize("source", ["name", "json", "folder"])
def test_new_models_are_random_and_follow_the_seed(tmp_path: Path, tiny_clip: Path, source: str) -> None:
    file = tmp_path / "tiny-of-json.json"
    file.write_text(json.dumps(TINY_CLIP))
    name = {"name": file.stem, "json": str(file), "folder": str(tiny_clip)}[source]
    if source == "name":
        open_clip.add_model_config(file)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (new_clip(name, seed) for seed in (1, 1, 2))
    # The random numbers of whoever asks go on as if nothing had been.
    assert torch.equal(torch.rand(1), expected)
    assert first.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert first.weights_sha256 != load_clip(str(tiny_clip)).weights_sha256
    assert first.model.encode_text(first.tokenizer(["a star"])).shape == (1, TINY_CLIP["embed_dim"])
    assert first.config == TINY_CLIP


def test_the_text_tower_of_a_new_model_is_random_too(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "a": 1, "star": 2}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[PAD]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertModel(BertConfig(vocab_size=len(words), pad_token_id=0, **sizes))
    bert.save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "hf_pooler_type": "mean_pooler"}
    (tmp_path / "x.json").write_text(json.dumps({**TINY_CLIP, "text_cfg": text}))
    new, same, other = (new_clip(str(tmp_path / "x.json"), seed) for seed in (1, 1, 2))
    weights = [clip.model.text.transformer.embeddings.word_embeddings.weight for clip in (new, same, other)]
    assert torch.equal(weights[0], weights[1])
    for one in (weights[2], bert.embeddings.word_embeddings.weight):
        assert not torch.equal(weights[0], one)


@pytest.mark.parametrize(
    ("content", "said"), [("{", "cannot be read"), ("[]", "needs embed_dim"), ('{"embed_dim": 3}', "needs embed_dim")]
)
def test_damaged_model_configuration(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        new_clip(str(tmp_path / "x.json"), 0)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_load(file: Path) -> None:
    recipe = load_recipe(file, system="clip")
    assert recipe.from_scratch
    if file.stem == "clip-vit-b-32":
        optim = recipe.optim
        assert (optim.batch_size, optim.lr, optim.weight_decay, optim.epochs) == (32768, 5e-4, 0.2, 32)


def test_recipes_are_shipped() -> None:
    assert {"clip-vit-b-32", "clip-shapes"} <= {file.stem for file in RECIPES}


@pytest.fixture
def clip_script(
    tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path, run_script: Callable[..., int]
) -> Callable[..., int]:
    write_recipe(tmp_path, tiny_clip, tiny_dialogues, top="from_scratch = true", optim="epochs = 1\nema_decay = 0.9")
    return functools.partial(run_script, "clip", "--config", "recipe.toml")


def test_from_images_to_a_model_and_its_average(
    clip_script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 80
    assert clip_script("--set", "optim.max_steps=5") == 0
    assert "5 steps, contrastive_loss" in capsys.readouterr().out
    assert clip_script("--set", "optim.max_steps=5", "--resume", "auto") == 0
    trained, averaged = (load_clip(str(tmp_path / "out" / name)) for name in ("model", "model-ema"))
    assert trained.weights_sha256 != averaged.weights_sha256

    # The average is a checkpoint like any other.
    write_split(tmp_path / "split")
    capsys.readouterr()
    app(
        [
            *("retrieval", "--checkpoint", "out/model-ema", "--baseline", "out/model", "--images", "split/images"),
            *("--captions", captions(tmp_path / "split"), "--out", "results.json", "--json"),
        ],
        standalone_mode=False,
    )
    models = json.loads(capsys.readouterr().out)["settings"]["models"]
    assert models["out, mean of weights"]["weights_sha256"] == averaged.weights_sha256


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=ViT-B-33", "unknown model 'ViT-B-33'"),
        ("pretrained=openai", "leave out pretrained = 'openai'"),
        ("data.images=nowhere", "one of `dialogues` and `images`"),
        ("data.crop_area=0", "data.crop_area"),
        ("loss=sigmoid", "'siglip'"),
        ("optim.batch_size=500", "48"),
    ],
)
def test_wrong_use(
    clip_script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert clip_script("--set", override) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "out").exists()
