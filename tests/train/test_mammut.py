"""MaMMUT's training: its losses by hand, its positions, its system in the loop, and train/mammut.py as it is run."""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from helpers.inputs import png, write_tar
from helpers.loops import CONFIG, make_clip, make_recipe, train
from helpers.mammut import END, START, make_hf_clip, make_mammut, make_mammut_recipe, train_mammut
from helpers.pixels import TinyPixels, train_clip
from helpers.systems import check_resume, check_two_processes
from helpers.training import TINY_CLIP, write_recipe
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.mammut.model import Mammut, MammutForConditionalGeneration
from dialog_gen.core.errors import UsageError
from dialog_gen.protocols.protocol import load_protocol
from dialog_train.api import load_recipe
from dialog_train.data.pixel_set import Normalization, PixelBatch, PixelBatches
from dialog_train.losses import contrastive_loss, focal_contrastive_loss
from dialog_train.system import EVERYTHING, Share
from dialog_train.systems.mammut.training import MammutBatches, MammutTraining, cropped_positions, random_boxes

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("mammut-*.toml"))
TRAINER = "helpers.mammut:train_mammut"
LOSSES = ("contrastive_loss", "captioning_loss")

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


# Positions of regions


def table_of(side: int, width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randn(1 + side**2, width, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("side", [1, 2, 7])
def test_positions_of_the_whole_image_are_the_table(side: int) -> None:
    table = table_of(side).float()
    found = cropped_positions(table, torch.tensor([[0.0, 0, 1, 1]] * 2))
    torch.testing.assert_close(found, table.expand(2, -1, -1), rtol=0, atol=1e-6)


def test_positions_of_a_ramp_are_the_places_of_a_region() -> None:
    """What rises evenly over the image does so over each part of it."""
    side, box = 8, [0.25, 0.5, 0.75, 0.9]
    places = torch.tensor(
        [[(column + 0.5) / side, (row + 0.5) / side] for row in range(side) for column in range(side)]
    )
    table = torch.cat([torch.tensor([[5.0, 6.0]]), places])
    (found,) = cropped_positions(table, torch.tensor([box]))
    x1, y1, x2, y2 = box
    expected = [
        [x1 + (x2 - x1) * (column + 0.5) / side, y1 + (y2 - y1) * (row + 0.5) / side]
        for row in range(side)
        for column in range(side)
    ]
    torch.testing.assert_close(found, torch.tensor([[5.0, 6.0], *expected]), rtol=0, atol=1e-6)


def test_positions_are_interpolated_between_the_four_nearest() -> None:
    side, boxes = 4, [[0.1, 0.2, 0.7, 0.9], [0.5, 0.0, 1.0, 0.4]]
    table = table_of(side)
    found = cropped_positions(table, torch.tensor(boxes))
    for box, positions in zip(boxes, found, strict=True):
        assert torch.equal(positions[0], table[0])
        for cell, position in enumerate(positions[1:]):
            row, column = divmod(cell, side)
            # In units of cells from the centre of the first; the outermost go on to the edge.
            spots = [
                min(max((start + (end - start) * (place + 0.5) / side) * side - 0.5, 0), side - 1)
                for start, end, place in ((box[0], box[2], column), (box[1], box[3], row))
            ]
            expected = torch.zeros(3, dtype=torch.float64)
            for y in range(side):
                for x in range(side):
                    weight = max(0, 1 - abs(spots[0] - x)) * max(0, 1 - abs(spots[1] - y))
                    expected += weight * table[1 + y * side + x]
            torch.testing.assert_close(position, expected, rtol=0, atol=1e-6)


def test_gradients_flow_to_the_positions() -> None:
    table = table_of(3).requires_grad_()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.3, 0.4, 0.9]])
    cropped_positions(table, boxes).sum().backward()
    assert table.grad is not None
    # Each region's positions are weighted means of the table's.
    torch.testing.assert_close(table.grad.sum(0), torch.full((3,), 20.0, dtype=torch.float64), rtol=0, atol=1e-5)
    assert table.grad[0].tolist() == [2.0] * 3


def test_positions_are_of_a_square() -> None:
    with pytest.raises(ValueError, match="7 positions are no class token and a square"):
        cropped_positions(torch.zeros(7, 2), torch.tensor([[0.0, 0, 1, 1]]))


def test_regions_are_drawn_as_the_paper_says() -> None:
    boxes = random_boxes(np.random.default_rng(0), 20_000)
    assert boxes.shape == (20_000, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert sizes.min() > 0
    assert sizes.prod(1).min() >= 0.1
    rng = np.random.default_rng(1)
    slow: list[list[float]] = []
    while len(slow) < 20_000:
        x1, y1 = rng.uniform(), rng.uniform()
        x2, y2 = rng.uniform(x1, 1), rng.uniform(y1, 1)
        if (x2 - x1) * (y2 - y1) >= 0.1:
            slow.append([x1, y1, x2, y2])
    for ours, theirs in zip(np.hstack([boxes, sizes.prod(1, keepdims=True)]).T, _with_area(slow).T, strict=True):
        # Kolmogorov's distance of two samples of this size is above 0.02 once in three hundred.
        points = np.sort(np.concatenate([ours, theirs]))
        shares = [np.searchsorted(np.sort(some), points, side="right") / len(some) for some in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02


def _with_area(boxes: list[list[float]]) -> np.ndarray:
    rows = np.array(boxes)
    return np.hstack([rows, (rows[:, 2:] - rows[:, :2]).prod(1, keepdims=True)])


def test_each_image_has_one_region_whichever_process_takes_it(tmp_path: Path) -> None:
    recipe = make_mammut_recipe(tmp_path, cropped_positions=True)
    data = MammutBatches(recipe, PixelBatches(recipe, TinyPixels(), full_length=False))
    seen: list[Tensor] = []
    for step in (0, 1, data.steps_per_epoch):
        whole = data.batch(step, EVERYTHING)
        parts = [data.batch(step, Share(rank, 2)) for rank in (0, 1)]
        boxes = [batch.position_boxes for batch in (whole, *parts)]
        assert all(some is not None and some.dtype == torch.float32 for some in boxes)
        everything, *shares = [some for some in boxes if some is not None]
        assert torch.equal(torch.cat(shares), everything)
        assert [image for part in parts for image in part.image_ids] == whole.image_ids
        assert len(everything.unique(dim=0)) == 8
        seen.append(everything)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    plain = make_mammut_recipe(tmp_path)
    batches = PixelBatches(plain, TinyPixels(), full_length=False)
    assert MammutBatches(plain, batches).batch(0, EVERYTHING).position_boxes is None


# Losses


def captioning_by_hand(model: Any, batch: PixelBatch, images: Tensor) -> float:
    """Mean of -log p of each next token, text by text without padding, in float64."""
    total, count = 0.0, 0
    streams = [(batch.captions.tokens, [model.text.image_id, START])]
    if batch.dialogues is not None:
        streams.append((batch.dialogues.tokens, [model.text.image_id]))
    for tokens, begin in streams:
        for row, ids in enumerate(tokens.tolist()):
            text = [*begin, *ids[1 : ids.index(END) + 1]]
            rows = torch.tensor([text[:-1]])
            logits = model.text.next_token_logits(rows, model.text.read(images[row : row + 1]))[0]
            for place, target in enumerate(text[1:]):
                total -= math.log(logits[place].softmax(-1)[target].item())
                count += 1
    return total / count


@pytest.mark.parametrize("loss", ["focal", "clip"])
@pytest.mark.parametrize("dialogues", ["rotate", None])
@pytest.mark.parametrize("cropped", [False, True])
def test_losses_by_hand(tmp_path: Path, loss: str, dialogues: Any, cropped: bool) -> None:
    weights = {"contrastive_weight": 0.7, "captioning_weight": 1.3}
    recipe = make_mammut_recipe(tmp_path, cropped_positions=cropped, loss=loss, gamma=1.5, crop_area=1, **weights)
    clip = make_mammut(spread=True)
    system = MammutTraining(clip, recipe)
    batches = PixelBatches(recipe, TinyPixels(), dialogues=dialogues, full_length=False)
    batch = MammutBatches(recipe, batches).batch(0, EVERYTHING)
    with torch.no_grad():
        found = {name: value.item() for name, value in system.module(batch).items()}
        model = copy.deepcopy(clip.model).double()
        pixels = Normalization(clip.preprocess_config)(batch.pixels).double()
        vectors, patches = list[Tensor](), list[Tensor]()
        table = model.visual.positional_embedding.data
        for row, image in enumerate(pixels):
            if batch.position_boxes is not None:
                model.visual.positional_embedding.data = cropped_positions(table, batch.position_boxes[row][None])[0]
            vector, tokens = model.visual(image[None])
            vectors.append(normalize(vector, dim=-1))
            patches.append(tokens)
        texts = model.encode_text(batch.captions.tokens, normalize=True)
        given = torch.cat(vectors), texts, model.logit_scale.exp()
        expected = contrastive_loss(*given) if loss == "clip" else focal_contrastive_loss(*given, gamma=1.5)
        captioning = captioning_by_hand(model, batch, torch.cat(patches))
    by_hand = {"contrastive_loss": 0.7 * expected.item(), "captioning_loss": 1.3 * captioning}
    assert found == pytest.approx(by_hand, rel=2e-5)


def test_padding_changes_no_loss(tmp_path: Path) -> None:
    system = MammutTraining(make_mammut(spread=True), make_mammut_recipe(tmp_path))
    short, long = (
        system.module(TinyPixels().batch(range(8), 0, dialogues="rotate", full_length=full)) for full in (False, True)
    )
    assert {name: value.item() for name, value in short.items()} == pytest.approx(
        {name: value.item() for name, value in long.items()}, rel=1e-6
    )


@pytest.mark.parametrize("off", ["contrastive", "captioning"])
def test_a_weight_of_nothing_switches_a_part_off(tmp_path: Path, off: str) -> None:
    """What only that part trains stays as it is."""
    parts = {"contrastive": ("text.text_projection", "visual.proj"), "captioning": ("text.cross_attention.",)}
    clip, losses = make_mammut(), list[dict[str, float]]()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    changes = {"max_steps": 2, "weight_decay": 0, f"{off}_weight": 0}
    train_mammut(tmp_path, changes, clip, on_step=lambda step, values: losses.append(values))
    assert {each[f"{off}_loss"] for each in losses} == {0}
    for part, names in parts.items():
        own = [name for name in before if name.startswith(names)]
        assert [torch.equal(before[name], clip.model.state_dict()[name]) for name in own] == [part == off] * len(own)


# In the loop


@pytest.mark.parametrize("stop", [4, 9])
def test_resumed_equals_undisturbed(tmp_path: Path, stop: int) -> None:
    check_resume(TRAINER, tmp_path, stop=stop)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    check_two_processes(TRAINER, tmp_path)


@torch.no_grad()
def write(model: Mammut, pixels: Tensor, prompts: list[list[int]]) -> list[list[int]]:
    """What it writes about uint8 images behind prompts of one length."""
    generator: Any = MammutForConditionalGeneration(model.config, model).eval()
    normalized = Normalization({"mean": [0.5] * 3, "std": [0.5] * 3})(pixels)
    ids = torch.tensor(prompts)
    rows = generator.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=normalized, do_sample=False, max_new_tokens=6
    )
    texts = [row[ids.shape[1] :] for row in rows.tolist()]
    return [text[: text.index(END)] if END in text else text for text in texts]


def test_learns_to_find_and_to_write(tmp_path: Path) -> None:
    clip, losses, rows = make_mammut(), list[dict[str, float]](), TinyPixels(8)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    changes = {"max_steps": 150, "lr": 5e-3, "crop_area": 1, "cropped_positions": False, "gamma": 1}
    train_mammut(tmp_path, changes, clip, rows, on_step=lambda _, values: losses.append(values))
    for name in LOSSES:
        values = [each[name] for each in losses]
        assert sum(values[-5:]) < 0.5 * sum(values[:5]), name

    saved = load_file(tmp_path / "model" / "model.safetensors")
    state = clip.model.state_dict()
    assert {name.removeprefix("mammut.") for name in saved} == before.keys()
    assert [name for name in before if torch.equal(state[name], before[name])] == []
    assert all(torch.equal(saved[f"mammut.{name}"], value) for name, value in state.items())

    batch = rows.batch(range(8), 0, dialogues="rotate")
    captions = [[id_ for id_ in text[1:] if id_ not in (0, END)] for text in batch.captions.tokens.tolist()]
    image = clip.model.text.image_id
    # A caption begins with the start behind the image, a pair without it: the same model does not mix them up.
    assert write(clip.model, batch.pixels, [[image, START]] * 8) == captions
    for epoch in range(3):
        assert write(clip.model, batch.pixels, [[image, 20 + epoch]] * 8) == [[30 + row] for row in range(8)]
    with torch.no_grad():
        images = clip.model.encode_image(Normalization(clip.preprocess_config)(batch.pixels), normalize=True)
        texts = clip.model.encode_text(batch.captions.tokens, normalize=True)
    assert (images @ texts.T).argmax(0).tolist() == list(range(8))


def test_the_average_is_of_all_weights(tmp_path: Path) -> None:
    train_mammut(tmp_path, {"ema_decay": 0.9, "max_steps": 3})
    trained, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "model-ema"))
    assert trained.keys() == averaged.keys()
    assert [name for name, value in trained.items() if torch.equal(value, averaged[name])] == []


def test_a_fixed_temperature_stays(tmp_path: Path) -> None:
    clip = make_mammut()
    before = clip.model.logit_scale.item()
    train_mammut(tmp_path, {"logit_scale": "fixed", "max_steps": 2}, clip)
    assert clip.model.logit_scale.item() == before


def test_what_is_new_starts_from_the_seed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    states = [make_mammut(seed=seed).model.state_dict() for seed in (1, 1, 2)]
    drawn = [name for name, value in states[0].items() if not torch.equal(value, states[2][name])]
    # The temperature and the towers are the CLIP's.
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(name.startswith(("text.cross_attention.", "text.embedding")) for name in drawn)
    assert len(drawn) > 3
    torch.manual_seed(0)
    make_clip()
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected)


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gamma": -1}, "gamma"),
        ({"contrastive_weight": 0, "captioning_weight": 0}, "both 0"),
        ({"captioning_weight": -1}, "captioning_weight"),
        ({"cross_attention_every": 0}, "cross_attention_every"),
        ({"loss": "siglip"}, "loss"),
        ({"train_last_layers": 1}, "MaMMUT trains all of its model"),
        ({"from_scratch": True, "pretrained": "openai"}, "from_scratch takes no weights"),
    ],
)
def test_wrong_recipes(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_mammut_recipe(tmp_path, **changes)


@pytest.mark.parametrize(
    ("frame", "pad", "said"),
    [
        ("$A [SEP]", "[PAD]", "its texts need one start token, and an end that is no padding"),
        ("[CLS] $A", "[PAD]", "its texts need one start token"),
        ("[CLS] [UNK] $A [SEP]", "[PAD]", "its texts need one start token"),
        ("[CLS] $A [SEP]", "[SEP]", "an end that is no padding"),
    ],
)
def test_texts_need_a_start_and_an_end(tmp_path: Path, frame: str, pad: str, said: str) -> None:
    clip = make_hf_clip(tmp_path, frame, pad)
    with pytest.raises(UsageError, match=said):
        MammutTraining(clip, make_mammut_recipe(tmp_path))


def test_the_padding_is_the_tokenizers(tmp_path: Path) -> None:
    """open_clip's own text tower pools at the end of a text, so that its configuration need not know the padding."""
    clip = make_hf_clip(tmp_path)
    assert "pad_id" not in clip.config["text_cfg"]
    model: Any = MammutTraining(clip, make_mammut_recipe(tmp_path)).model
    texts = clip.tokenizer(["a red star", "what color is the circle"])
    assert (texts == 2).any()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(texts)[:1], model.encode_text(texts[:1, :5]))


def test_cropped_positions_are_of_square_images(tmp_path: Path) -> None:
    # As many patches as a square has.
    wide: dict[str, Any] = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": [32, 128]}}
    clip = replace(make_hf_clip(tmp_path), model=open_clip.CLIP(**wide), config=wide)
    MammutTraining(clip, make_mammut_recipe(tmp_path))
    with pytest.raises(UsageError, match="square images: tiny has 2 x 8 patches"):
        MammutTraining(clip, make_mammut_recipe(tmp_path, cropped_positions=True))


def test_shipped_recipes_load() -> None:
    recipes = {file.stem: load_recipe(file, system="mammut") for file in RECIPES}
    assert recipes.keys() == {"mammut-vit-b-32", "mammut-shapes"}
    # Against the same steps of train/clip.py.
    ours, plain = recipes["mammut-shapes"], load_recipe(RECIPES[0].with_name("clip-shapes.toml"), system="clip")
    assert (ours.model, ours.optim, ours.from_scratch) == (plain.model, plain.optim, plain.from_scratch)


# The other trainings


@pytest.mark.parametrize("kind", ["draft", "third-tower"])
def test_its_text_tower_can_be_tuned(tmp_path: Path, kind: str) -> None:
    """What is written is a MaMMUT again."""
    train(make_recipe(tmp_path, kind, max_steps=2, save_every_steps=1), make_mammut())
    weights = load_file(tmp_path / "model" / "model.safetensors")
    saved = {name.removeprefix("mammut."): value for name, value in weights.items()}
    before = make_mammut().model.state_dict()
    changed = {name for name, value in saved.items() if not torch.equal(value, before[name])}
    assert saved.keys() == before.keys()
    assert bool(changed) == (kind == "draft")
    assert all(name.startswith(("text.", "logit_scale")) for name in changed)
    assert not any("cross_attention" in name for name in changed)


def test_its_image_tower_is_tuned_here_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tiny is a MaMMUT: `dialog-train mammut` trains it"):
        train_clip(tmp_path, {}, make_mammut())


# train/mammut.py


@pytest.fixture
def mammut_script(
    run_script: Callable[..., int], tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path
) -> Callable[..., int]:
    """Runs the script with a tiny recipe, changed by what is given: "key=value"."""
    write_recipe(tmp_path, tiny_clip, tiny_dialogues, top="from_scratch = true")

    def run(*changes: str) -> int:
        return run_script("mammut", "--config", "recipe.toml", *(part for c in changes for part in ("--set", c)))

    return run


def test_from_dialogues_to_a_model_and_on(
    mammut_script: Callable[..., int],
    tmp_path: Path,
    tiny_clip: Path,
    tiny_dialogues: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mammut_script("cropped_positions=true") == 0
    assert "3 steps, contrastive_loss" in capsys.readouterr().out
    clip = load_clip(str(tmp_path / "out" / "model"))
    texts = ["a star", "is there a circle"]
    assert torch.equal(clip.tokenizer(texts), load_clip(str(tiny_clip)).tokenizer(texts))
    # What it asks is what was asked most often.
    rows = [row for file in sorted(tiny_dialogues.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    asked = Counter(pair["user"] for row in rows for pair in row["texts"])
    protocol = load_protocol(str(tmp_path / "out" / "model" / "protocol.toml"))
    found = [turn.user for turn in protocol.turns]
    counts = sorted(asked.values(), reverse=True)
    assert [asked[question] for question in found] == counts[:3]
    assert (protocol.context, len(set(found))) == ("none", 3)

    # It goes on from there: a step that changes nothing gives it again.
    settings = [f"model={tmp_path / 'out' / 'model'}", "from_scratch=false", "out=on"]
    assert mammut_script(*settings, "cross_attention_every=1") == 2
    assert "reads the image every 2 layers: set cross_attention_every = 2" in capsys.readouterr().err
    assert mammut_script(*settings, "optim.lr=1e-30", "optim.weight_decay=0") == 0
    assert load_protocol(str(tmp_path / "on" / "model" / "protocol.toml")).turns == protocol.turns
    state = load_clip(str(tmp_path / "on" / "model")).model.state_dict()
    for name, value in clip.model.state_dict().items():
        torch.testing.assert_close(state[name], value, msg=name)


def test_from_images_alone(mammut_script: Callable[..., int], tmp_path: Path) -> None:
    members = {}
    for number in range(9):
        members |= {f"{number}.png": png(number, (40, 32)), f"{number}.txt": f"picture {number}".encode()}
    write_tar(tmp_path / "images" / "00000.tar", members)
    text = (tmp_path / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(re.sub("dialogues = .*", 'images = "images"', text))
    assert mammut_script() == 0
    clip = load_clip(str(tmp_path / "out" / "model"))
    assert isinstance(clip.model, Mammut)
    assert not (tmp_path / "out" / "model" / "protocol.toml").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["gamma=-1"], "gamma"),
        (["loss=siglip"], "loss"),
        (["cross_attention_every=3"], "cross_attention_every = 3 leaves none of the 2 layers to read the image"),
        (["contrastive_weight=0", "captioning_weight=0"], "both 0: nothing would be learned"),
        (["optim.train_last_layers=1"], "MaMMUT trains all of its model"),
        (["lock_image=true"], "lock_image"),
        (["model=RN50"], "MaMMUT needs a ViT and CLIP's own text tower"),
    ],
)
def test_wrong_use(
    mammut_script: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    said: str,
) -> None:
    if "model=RN50" in changes:
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
        (tmp_path / "resnet.json").write_text(json.dumps({**TINY_CLIP, "vision_cfg": vision}))
        changes = ["model=resnet.json"]
    assert mammut_script(*changes) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "out").exists()
