"""MulT augmentation: its loss and crossmodal blocks by hand, its system in the loop, and train/mult.py as it is run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loops import make_clip
from helpers.mult import make_mult_recipe, train_mult
from helpers.pixels import TinyPixels
from helpers.systems import check_resume, check_two_processes
from helpers.training import write_recipe
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, normalize

from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tokens import padding_of
from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.losses.three_way import three_way_loss
from dialog_train.systems.mult.config import FusionSettings
from dialog_train.systems.mult.training import FUSION_FILE, CrossmodalBlock, Fusion, MultTraining, patches

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("mult-*.toml"))
TRAINER = "helpers.mult:train_mult"
SCALE = 14.3

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def features(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [normalize(torch.randn(6, 5, dtype=torch.float64, generator=generator), dim=-1) for _ in range(count)]


def by_hand(queries: torch.Tensor, candidates: torch.Tensor) -> float:
    """Mean cross entropy of each query among the candidates, and of each candidate among the queries."""
    total = 0.0
    for one, other in ((queries.tolist(), candidates.tolist()), (candidates.tolist(), queries.tolist())):
        for row, query in enumerate(one):
            scores = [SCALE * sum(p * q for p, q in zip(query, each, strict=True)) for each in other]
            total += (math.log(sum(map(math.exp, scores))) - scores[row]) / len(one) / 2
    return total


def test_loss_by_hand() -> None:
    images, texts, *fused = features(4)
    parts = three_way_loss(images, texts, fused, SCALE, a=0.5, b=0.2)
    expected = {
        "image_text_loss": 0.5 * by_hand(images, texts),
        "text_fused_loss": 0.2 * (by_hand(texts, fused[0]) + by_hand(texts, fused[1])) / 2,
        "fused_image_loss": 0.3 * (by_hand(fused[0], images) + by_hand(fused[1], images)) / 2,
    }
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, abs=1e-12)


WRONG_WEIGHTS = [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5), (-0.1, 0.5), (0.9, 0.3), (math.nan, 0.5)]


@pytest.mark.parametrize(("a", "b"), WRONG_WEIGHTS)
def test_weights_are_checked(tmp_path: Path, a: float, b: float) -> None:
    images, texts, fused = features(3)
    said = rf"0 < a, 0 < b and a \+ b < 1, got a = {a}, b = {b}"
    with pytest.raises(ValueError, match=said):
        three_way_loss(images, texts, [fused], SCALE, a=a, b=b)
    with pytest.raises(ValueError, match="finite" if math.isnan(a) else said):
        make_mult_recipe(tmp_path, weights={"a": a, "b": b})


def test_the_loss_needs_a_view() -> None:
    images, texts = features(2)
    with pytest.raises(ValueError, match="one view"):
        three_way_loss(images, texts, [], SCALE)


def block_by_hand(
    block: CrossmodalBlock, heads: int, target: torch.Tensor, source: torch.Tensor, padding: torch.Tensor
) -> torch.Tensor:
    """The equations of MulT's section 3.2, head by head and text by text."""
    weights = dict(block.named_parameters())

    def norm(name: str, rows: torch.Tensor) -> torch.Tensor:
        return layer_norm(rows, rows.shape[-1:], weights[f"{name}_norm.weight"], weights[f"{name}_norm.bias"])

    def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
        return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    results: list[torch.Tensor] = []
    for rows, others, ignored in zip(target, source, padding, strict=True):
        z, keys = norm("target", rows), norm("source", others[~ignored])
        matrices, biases = weights["attention.in_proj_weight"].chunk(3), weights["attention.in_proj_bias"].chunk(3)
        q, k, v = (x @ m.T + b for x, m, b in zip((z, keys, keys), matrices, biases, strict=True))
        parts = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
        attended = [((qs @ ks.T) / math.sqrt(qs.shape[-1])).softmax(-1) @ vs for qs, ks, vs in parts]
        hidden = norm("feed_forward", linear("attention.out_proj", torch.cat(attended, -1)) + z)
        results.append(linear("feed_forward.2", linear("feed_forward.0", hidden).clamp(min=0)) + hidden)
    return torch.stack(results)


def randomized(module: torch.nn.Module) -> Any:
    """In float64, with no weight at the 0 or 1 that it starts from."""
    torch.manual_seed(0)
    module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_a_crossmodal_block_by_hand() -> None:
    block = randomized(CrossmodalBlock(8, 2))
    target, source = (torch.randn(3, length, 8, dtype=torch.float64) for length in (5, 4))
    padding = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)
    torch.testing.assert_close(block(target, source, padding), block_by_hand(block, 2, target, source, padding))


@pytest.mark.parametrize("view", ["rows", "columns"])
def test_the_fusion_by_hand(view: Any) -> None:
    """Keys and values are the source's first sequence in every layer; what is padding counts for nothing."""
    settings = FusionSettings(width=8, layers=2, heads=2, patch_size=2)
    fusion = randomized(Fusion(settings, token_width=6, joint_width=3))
    pixels = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    tokens, lengths = torch.randn(2, 5, 6, dtype=torch.float64), [5, 3]
    padding = torch.arange(5) >= torch.tensor(lengths).unsqueeze(-1)

    def positions(length: int) -> torch.Tensor:
        angles = [[place / 10_000 ** (2 * (i // 2) / 8) for i in range(8)] for place in range(length)]
        rows = [[math.cos(x) if i % 2 else math.sin(x) for i, x in enumerate(row)] for row in angles]
        return torch.tensor(rows, dtype=torch.float64)

    places = [(y, x) for y in (0, 2) for x in (0, 2, 4)]
    order = places if view == "rows" else sorted(places, key=lambda place: place[::-1])
    expected: list[torch.Tensor] = []
    for image, text, length in zip(pixels, tokens, lengths, strict=True):
        cut = torch.stack([image[:, y : y + 2, x : x + 2].flatten() for y, x in order])
        first = fusion.patch_embedding(cut) + positions(6), fusion.token_projection(text[:length]) + positions(length)
        pooled: list[torch.Tensor] = []
        for blocks, start, source in ((fusion.image_from_text, *first), (fusion.text_from_image, *first[::-1])):
            z, nothing = start[None], torch.zeros(1, len(source), dtype=torch.bool)
            for block in blocks:
                z = block_by_hand(block, 2, z, source[None], nothing)
            pooled.append(z[0].mean(0))
        expected.append(fusion.projection.weight @ torch.cat(pooled))
    # Sines and cosines are taken in float32.
    torch.testing.assert_close(fusion(pixels, tokens, padding, view), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_patches_of_an_image() -> None:
    pixels = torch.arange(8).reshape(1, 1, 2, 4)
    rows, columns = (patches(pixels, 1, view).flatten().tolist() for view in ("rows", "columns"))
    assert (rows, columns) == ([0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7])


def test_padding_is_what_follows_a_text() -> None:
    tokens = torch.tensor([[1, 0, 5, 9], [1, 9, 0, 0]])
    assert padding_of(tokens, 0).tolist() == [[False] * 4, [False, False, True, True]]


@pytest.mark.parametrize("stop", [4, 9])
def test_resumed_equals_undisturbed(tmp_path: Path, stop: int) -> None:
    check_resume(TRAINER, tmp_path, stop=stop)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    check_two_processes(TRAINER, tmp_path)


@pytest.mark.parametrize(("custom", "text"), [(False, {}), (True, {}), (True, {"no_causal_mask": True})])
def test_learns_in_all_encoders(tmp_path: Path, custom: bool, text: dict[str, Any]) -> None:
    clip, losses = make_clip(custom=custom, **text), list[dict[str, float]]()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    first = MultTraining(make_clip(custom=custom, **text), make_mult_recipe(tmp_path)).model.get_submodule("fusion")
    train_mult(tmp_path, {"epochs": 6}, clip, on_step=lambda step, values: losses.append(values))
    for name in ("image_text_loss", "text_fused_loss", "fused_image_loss"):
        values = [each[name] for each in losses]
        assert sum(values[-5:]) < 0.85 * sum(values[:5]), name

    # What is saved is an open_clip checkpoint as it was trained, with the fusion beside.
    saved, fusion = load_clip(str(tmp_path / "model")), load_file(tmp_path / "model" / FUSION_FILE)
    after = saved.model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(after[name], clip.model.state_dict()[name])] == []
    assert [name for name in before if torch.equal(after[name], before[name]) and name != "text.attn_mask"] == []
    assert fusion.keys() == first.state_dict().keys()
    assert [name for name, value in first.state_dict().items() if torch.equal(value, fusion[name])] == []


def test_the_average_is_of_all_encoders(tmp_path: Path) -> None:
    train_mult(tmp_path, {"ema_decay": 0.9, "max_steps": 3})
    for file in (FUSION_FILE, "open_clip_model.safetensors"):
        trained, averaged = (load_file(tmp_path / name / file) for name in ("model", "model-ema"))
        assert trained.keys() == averaged.keys()
        assert any(not torch.equal(value, averaged[name]) for name, value in trained.items())


def test_padding_changes_nothing(tmp_path: Path) -> None:
    system = MultTraining(make_clip(), make_mult_recipe(tmp_path, views=["rows", "columns"]))
    short, long = (system.module(TinyPixels().batch(range(8), 0, full_length=full)) for full in (False, True))
    assert {name: value.item() for name, value in short.items()} == pytest.approx(
        {name: value.item() for name, value in long.items()}, rel=1e-5
    )


def test_the_fusion_starts_from_the_seed(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    systems = [MultTraining(make_clip(), make_mult_recipe(tmp_path, seed=seed)) for seed in (1, 1, 2)]
    torch.manual_seed(5)
    first, same, other = (system.trainable["fusion.projection.weight"] for system in systems)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lock_image": True}, "MulT trains all its encoders"),
        ({"loss": "siglip"}, "MulT trains all its encoders"),
        ({"heads": 3}, "multiple of heads = 3"),
        ({"views": ["rows", "rows"]}, "names one twice"),
        ({"views": []}, "views"),
        ({"patch_size": 5}, "fusion.patch_size = 5 does not divide the model's images of 32 x 32 pixels"),
        ({"train_last_layers": 1}, "lock_image"),
    ],
)
def test_refuses(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, UsageError), match=said):
        MultTraining(make_clip(), make_mult_recipe(tmp_path, **changes))


def test_shipped_recipes_load() -> None:
    recipes = {file.stem: load_recipe(file, system="mult") for file in RECIPES}
    assert recipes.keys() == {"mult-vit-b-32", "mult-shapes"}
    # Against the same steps of train/clip.py.
    ours, plain = recipes["mult-shapes"], load_recipe(RECIPES[0].with_name("clip-shapes.toml"), system="clip")
    assert (ours.optim, ours.data, ours.from_scratch) == (plain.optim, plain.data, plain.from_scratch)


@pytest.fixture
def mult_script(
    run_script: Callable[..., int], tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path
) -> Callable[..., int]:
    """Runs the script with a tiny recipe."""
    write_recipe(
        tmp_path,
        tiny_clip,
        tiny_dialogues,
        top="from_scratch = true",
        tables="[fusion]\nwidth = 8\nlayers = 1\nheads = 2\npatch_size = 16",
    )
    return lambda *arguments: run_script("mult", "--config", "recipe.toml", *arguments)


def test_from_images_to_a_model(
    mult_script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mult_script() == 0
    assert "3 steps, image_text_loss" in capsys.readouterr().out
    assert load_clip(str(tmp_path / "out" / "model")).tokenizer(["a star"]).shape[0] == 1
    assert (tmp_path / "out" / "model" / FUSION_FILE).is_file()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["weights.a=0.5", "weights.b=0.5"], "weights: needs 0 < a, 0 < b and a + b < 1, got a = 0.5, b = 0.5"),
        (["fusion.patch_size=7"], "fusion.patch_size = 7 does not divide"),
        (["fusion.view=['rows']"], "views"),
        (["loss=siglip"], 'needs loss = "clip"'),
    ],
)
def test_wrong_use(
    mult_script: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    said: str,
) -> None:
    assert mult_script(*(part for override in overrides for part in ("--set", override))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "out").exists()
