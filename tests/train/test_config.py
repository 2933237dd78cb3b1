from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.losses import draft_loss
from dialog_train.systems.draft import DraftLossSettings

FOLDER = Path(__file__).parents[2] / "train" / "recipes"
RECIPES = sorted(set(FOLDER.glob("draft-*.toml")) - set(FOLDER.glob("draft-plus-*.toml")))
MINIMAL = """
model = "shapes-clip"
out = "runs/x"
[data]
dialogues = "d"
work = "w"
[optim]
lr = 1e-4
batch_size = 64
"""


def write(folder: Path, text: str = MINIMAL) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_load(file: Path) -> None:
    assert load_recipe(file, system="draft").data.dialogues


def test_recipes_are_shipped() -> None:
    assert {"draft-vit-b-32", "draft-shapes"} <= {file.stem for file in RECIPES}


def test_published_settings() -> None:
    recipe = load_recipe(next(file for file in RECIPES if file.stem == "draft-vit-b-32"), system="draft")
    assert (recipe.model, recipe.pretrained) == ("ViT-B-32-quickgelu", "laion400m_e31")
    assert (recipe.optim.batch_size, recipe.optim.lr, recipe.optim.weight_decay) == (1536, 1e-5, 0.1)


def test_loss_settings_are_the_keyword_arguments_of_the_loss() -> None:
    defaults = draft_loss.__kwdefaults__
    assert DraftLossSettings().model_dump() == defaults


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("optim.lr=3e-5", lambda r: r.optim.lr, 3e-5),
        ("out=runs/other one", lambda r: str(r.out), "runs/other one"),
        ('model="ViT-B-32"', lambda r: r.model, "ViT-B-32"),
        ("dialogues=concatenate", lambda r: r.dialogues, "concatenate"),
        ("loss.mmd_sigma=median", lambda r: r.loss.mmd_sigma, "median"),
        ("loss.mmd_sigma=[0.1, 0.4]", lambda r: r.loss.mmd_sigma, (0.1, 0.4)),
        ("caption_only=true", lambda r: r.caption_only, True),
        ("log.wandb = true", lambda r: r.log.wandb, True),
        ("pretrained=a=b", lambda r: r.pretrained, "a=b"),
    ],
)
def test_overrides(tmp_path: Path, override: str, get: Any, value: object) -> None:
    assert get(load_recipe(write(tmp_path), [override], system="draft")) == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path), ["seed=1", "seed=2"], system="draft").seed == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim.learning_rate=1"], "optim.learning_rate: unknown key"),
        (["optim.warmup=1"], "did you mean 'warmup_steps'"),
        (["mmd_weight=1"], "mmd_weight: unknown key"),
        (["loss.a=1.2"], r"loss.a: .* got 1.2"),
        (["loss.a=-0.1"], r"loss.a: .* got -0.1"),
        (["loss.direction=t2t"], "'t2i'"),
        (["optim.precision=fp8"], "'bf16'"),
        (["optim.ema_decay=1.0"], "ema_decay"),
        (["optim.batch_size=1"], "batch_size"),
        (["optim.betas=[0.9,1.5]"], r"optim.betas.2: .* got 1.5"),
        (["optim.lr=inf"], r"optim.lr: .*finite"),
        (["loss.mmd_sigma=0"], "loss.mmd_sigma"),
        (["loss.mmd_sigma=nan"], "loss.mmd_sigma"),
        (["loss.mmd_sigma=1e-9"], "loss.mmd_sigma"),
        (["context_length=1000000000"], r"context_length: .* 8192"),
        (["loss.mmd_sigma=[]"], "loss.mmd_sigma"),
        (["loss.mmd_sigma=[0.1,-1]"], "loss.mmd_sigma"),
        (["model.name=x"], "model is no table"),
        (["seed"], "KEY=VALUE"),
        (["=3"], "KEY=VALUE"),
    ],
)
def test_refuses(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_recipe(write(tmp_path), overrides, system="draft")


@pytest.mark.parametrize(
    ("text", "said"),
    [("model = ", "not valid TOML"), (MINIMAL.replace("lr = 1e-4", ""), "optim.lr"), ("[optim]\nlr=1", "model")],
)
def test_refuses_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_recipe(write(tmp_path, text), system="draft")
    with pytest.raises(UsageError, match="No such file"):
        load_recipe(tmp_path / "none.toml", system="draft")


def test_is_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path), system="draft")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_wrong_override_is_blamed_on_itself(tmp_path: Path) -> None:
    file = write(tmp_path)
    with pytest.raises(UsageError, match=r"^'optim.lr=fast': optim.lr: .* got 'fast'$"):
        load_recipe(file, ["seed=1", "optim.lr=fast"], system="draft")
    with pytest.raises(UsageError, match=r"^'optim.betas=\[0.9,1.5\]': optim.betas.2: .* got 1.5$"):
        load_recipe(file, ["optim.betas=[0.9,1.5]"], system="draft")
    file.write_text(file.read_text().replace("[optim]", "[optim]\neps = -1"))
    with pytest.raises(UsageError, match=r"^recipe file .*recipe.toml: optim.eps: .* got -1$"):
        load_recipe(file, ["seed=1"], system="draft")
    with pytest.raises(UsageError, match=r"^'optim.lr=fast', recipe file .*: optim.lr: .*; optim.eps: "):
        load_recipe(file, ["optim.lr=fast"], system="draft")
