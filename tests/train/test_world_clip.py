"""The embedded world's CLIP: the one that is shipped, and its recipe."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.second_world import seen
from torch.nn.functional import normalize

from dialog_eval.metrics.retrieval import retrieve
from dialog_gen.clip.base import CLIP_MODELS, Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.texts import joined
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.shapes.language import ANSWERS, QUESTION_KINDS, ask, describe, retrieval_captions, unique, web_caption
from dialog_gen.shapes.render import render, through_jpeg
from dialog_gen.shapes.scenes import draw_scene
from dialog_gen.shapes.second.captions import negated_captions
from dialog_gen.shapes.second.choices import choices
from dialog_gen.shapes.second.relations import decided
from dialog_gen.shapes.second.scenes import CELLS, COLORS, SHAPES, SIZES, TEXTURES
from dialog_gen.shapes.worlds import SECOND
from dialog_train import world_clip
from dialog_train.data.pixel_set import Normalization
from dialog_train.loop import fit
from dialog_train.system import EVERYTHING, Share
from dialog_train.world_layout import ImageHeads, LayoutTargets, layout, places, teach_layout

CHECKPOINTS = Path(str(CLIP_MODELS.get("shapes-clip"))).parent
SPEC = world_clip.CLIPS["shapes2-clip"]
SCENES = [draw_scene("test", 3, number) for number in range(200)]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("shapes-clip")


def test_loads_in_open_clip_as_it_is(clip: Clip) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP_MODELS.get('shapes-clip')}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CLIP_MODELS.get('shapes-clip')}")
    pixels = torch.stack([preprocess(render(scene)) for scene in SCENES[:4]])
    tokens = tokenizer(["a small red circle", "How many objects are there? 2"])
    with torch.no_grad():
        texts = normalize(model.eval().encode_text(tokens), dim=-1)
        torch.testing.assert_close(TextTower(clip.model).encode(tokens), texts, rtol=0, atol=1e-6)
        images = clip.model.encode_image(torch.stack([clip.preprocess(render(scene)) for scene in SCENES[:4]]))
        torch.testing.assert_close(model.encode_image(pixels), images)


def test_is_small() -> None:
    assert sum(file.stat().st_size for file in CLIP_MODELS.get("shapes-clip").iterdir()) < 3e6


def test_knows_every_word_of_the_world(clip: Clip) -> None:
    texts = [kind.template.format(color="red", shape="star", position="top left") for kind in QUESTION_KINDS.values()]
    texts += ANSWERS
    for number, scene in enumerate(SCENES):
        rng = random.Random(number)
        texts += [describe(scene, rng), unique(scene, rng), web_caption(scene, rng), *retrieval_captions(scene, rng)]
        texts += [f"{q.question} {q.answer}" for q in ask(scene, rng, 3)]
    assert not (clip.tokenizer(texts) == clip.tokenizer.tokenizer.unk_token_id).any()
    # And none of them is too long.
    assert (clip.tokenizer(texts)[:, -1] == clip.tokenizer.tokenizer.pad_token_id).all()


def test_captions_never_use_the_words_of_questions() -> None:
    captions = {word for n, scene in enumerate(SCENES) for word in web_caption(scene, random.Random(n)).split()}
    assert captions.isdisjoint({"what", "What", "where", "Where", "Is", "How", "many", "color", "shape", "yes", "no"})


def test_finds_images_it_never_saw(clip: Clip) -> None:
    captions = [retrieval_captions(scene, random.Random(n), 1)[0] for n, scene in enumerate(SCENES)]
    with torch.no_grad():
        pixels = torch.stack([clip.preprocess(through_jpeg(render(scene))) for scene in SCENES])
        images = clip.model.encode_image(pixels, normalize=True)
        texts = TextTower(clip.model).encode(clip.tokenizer(captions))
    found = retrieve(images, texts, torch.arange(len(SCENES)), [1])
    # Chance is half a percent.
    assert found.image_recall[1] > 0.5
    assert found.text_recall[1] > 0.5


@pytest.mark.slow
def test_both_trainings_of_the_second_are_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The layout's loss begins in the second where it ended in the first, instead of where it began."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(world_clip, "CLIPS", {"shapes2-clip": replace(SPEC, layout_steps=100, steps=3)})
    losses: list[dict[str, float]] = []
    monkeypatch.setattr(world_clip, "fit", lambda *args: losses.append(fit(*args).losses))
    with caplog.at_level("INFO"):
        world_clip.train("shapes2-clip", tmp_path / "clip")
    (said,) = [record.getMessage() for record in caplog.records if record.msg.startswith("layout step")]
    (found,) = losses
    assert set(found) == {"contrastive_loss", "layout_loss", "loss"}
    assert found["layout_loss"] < float(said.split("loss ")[1].split(",")[0])
    assert load_clip(str(tmp_path / "clip")).config["embed_dim"] == SPEC.width


@pytest.mark.slow
def test_the_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sys.argv", ["world_clip", "shapes-clip", "--out", str(tmp_path / "clip"), "--steps", "100"])
    with caplog.at_level("INFO"):
        world_clip.main()
    clip = load_clip(str(tmp_path / "clip"))
    assert clip.name == "clip"
    (said,) = [record.getMessage() for record in caplog.records if record.msg.startswith("step")]
    # Of 100 steps the mean; ln(128) = 4.85 is where it starts.
    assert float(said.split("loss ")[1].split()[0]) < 4.5


# --- the second world


@pytest.fixture(scope="module")
def second() -> Clip:
    # By its folder: its name needs the entry point of an installation.
    return load_clip(str(CHECKPOINTS / "shapes2-clip"))


def embedded(clip: Clip, scenes: Sequence[Any]) -> torch.Tensor:
    with torch.no_grad():
        pixels = torch.stack([clip.preprocess(through_jpeg(SECOND.render(scene))) for scene in scenes])
        return clip.model.encode_image(pixels, normalize=True)


def test_the_second_is_small(second: Clip) -> None:
    assert sum(file.stat().st_size for file in (CHECKPOINTS / "shapes2-clip").iterdir()) < 4e6
    assert second.config["vision_cfg"]["patch_size"] == 16


def test_the_second_knows_every_word_of_its_world(second: Clip) -> None:
    texts: list[str] = [*SECOND.answers]
    for split in SECOND.splits:
        for number in range(60):
            scene, rng = SECOND.draw_scene(split, 3, number), random.Random(number)
            texts += [SECOND.web_caption(scene, rng), *negated_captions(scene, rng)]
            texts += [f"{q.question} {q.answer}" for q in SECOND.ask(scene, rng, 8)]
            texts += [caption for choice in choices(scene, rng) for caption in choice.captions]
    tokens = second.tokenizer(texts)
    assert not (tokens == second.tokenizer.tokenizer.unk_token_id).any()
    assert (tokens[:, -1] == second.tokenizer.tokenizer.pad_token_id).all()


def test_the_second_finds_images_it_never_saw(second: Clip) -> None:
    scenes = [SECOND.draw_scene("test", 3, number) for number in range(200)]
    captions = [SECOND.retrieval_captions(scene, random.Random(n), 1)[0] for n, scene in enumerate(scenes)]
    with torch.no_grad():
        texts = TextTower(second.model).encode(second.tokenizer(captions))
    found = retrieve(embedded(second, scenes), texts, torch.arange(len(scenes)), [1])
    assert found.image_recall[1] > 0.7
    assert found.text_recall[1] > 0.7


def test_embeddings_of_the_second_tell_which_of_two_things_is_left_and_above(second: Clip) -> None:
    """A least-squares probe of the x and y of what has a color and a shape, on scenes of the test split."""
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]

    def data(split: str, count: int) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
        scenes = [SECOND.draw_scene(split, 9, number) for number in range(count)]
        return scenes, torch.cat([embedded(second, scenes), torch.ones(count, 1)], 1), torch.zeros(count, len(kinds), 2)

    (scenes, x, where), (unseen, x_test, _) = data("train", 1200), data("test", 300)
    for row, scene in enumerate(scenes):
        for o in scene.objects:
            where[row, kinds.index((o.color, o.shape))] += torch.tensor(o.center_px) - 48
    weights = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]), x.T @ where.flatten(1))
    told = (x_test @ weights).unflatten(1, (-1, 2))
    right = [
        told[row, kinds.index((a.color, a.shape)), axis] < told[row, kinds.index((b.color, b.shape)), axis]
        for row, scene in enumerate(unseen)
        for axis, relation in enumerate(("left of", "above"))
        for a, _, b in decided(scene, (relation,))
    ]
    assert len(right) > 500
    assert torch.stack(right).float().mean() > 0.95


def test_siblings_are_every_second_scene_and_differ_in_a_swap() -> None:
    scenes = world_clip.CLIPS["shapes2-clip"].scenes(range(64))
    siblings = 0
    for first, other in zip(scenes[::2], scenes[1::2], strict=True):
        words = [sorted(o.shape for o in scene.objects) for scene in (first, other)]
        siblings += words[0] == words[1] and first.background == other.background
        assert first != other
    assert siblings > 16


def test_the_layout_is_what_is_seen_in_the_pixels() -> None:
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    for number in range(60):
        scene = SECOND.draw_scene("train", 3, number)
        said = {
            (cell, layer, kinds[kind - 1], TEXTURES[texture - 1], SIZES[size - 1])
            for cell, layers in zip(CELLS, layout(scene), strict=True)
            for layer, (kind, texture, size) in enumerate(layers)
            if kind
        }
        found = seen(scene)
        behind = {j for f in found for j in f.in_front_of}
        assert said == {(f.cell, int(i in behind), (f.color, f.shape), f.texture, f.size) for i, f in enumerate(found)}


def test_places_are_those_seen_in_the_pixels() -> None:
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    for number in range(60):
        scene = SECOND.draw_scene("train", 3, number)
        wanted = torch.zeros(len(kinds), 3)
        for f in seen(scene):
            # In cells of 32 pixels, from the centre of an image of 96.
            wanted[kinds.index((f.color, f.shape))] += torch.tensor([1, (f.x - 48) / 32, (f.y - 48) / 32])
        torch.testing.assert_close(torch.tensor(places(scene)), wanted, rtol=0, atol=0.1)


@pytest.mark.slow
def test_the_image_tower_learns_a_layout_and_the_text_tower_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    clip = world_clip.build("shapes2-clip", tmp_path)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    with caplog.at_level("INFO"):
        teach_layout(clip, scene_seed=1, steps=60, batch_size=8, log_every=20)
    losses = [float(record.getMessage().split("loss ")[1].split(",")[0]) for record in caplog.records]
    assert len(losses) == 3
    assert losses[-1] < losses[0] / 1.5
    changed = {name for name, value in clip.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)


def test_the_contrastive_training_keeps_the_layout(tmp_path: Path) -> None:
    """Losses and gradients of the towers are the sums of both; the heads are not trained."""
    clip = load_clip(str(CHECKPOINTS / "shapes2-clip"))
    how = world_clip.recipe("shapes2-clip", tmp_path / "training", steps=1, seed=0)
    heads = ImageHeads(clip.config["embed_dim"])
    training = world_clip.ClipTraining(clip, how)
    batch = world_clip.CaptionedScenes(clip, how).batch(0, Share(0, 8))
    scenes = world_clip.CLIPS["shapes2-clip"].scenes(range(how.optim.batch_size))[: len(batch.image_ids)]
    assert isinstance(batch, world_clip.LayoutBatch)
    assert torch.equal(batch.cells, torch.tensor([layout(scene) for scene in scenes]))
    assert torch.equal(batch.places, torch.tensor([places(scene) for scene in scenes]))

    alone = training.module(batch)
    image = clip.model.visual(Normalization(clip.preprocess_config)(batch.pixels))
    wanted = {**alone, "layout_loss": heads.loss(image, LayoutTargets(batch.cells, batch.places))}
    kept = world_clip._training(clip, how, heads).module(batch)
    torch.testing.assert_close(kept, wanted)
    towers = [p for p in clip.model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(torch.stack([*losses.values()]).sum(), towers) for losses in (kept, wanted)]
    torch.testing.assert_close(*gradients)
    assert not any(p.requires_grad for p in heads.parameters())


def test_scenes_are_the_same_for_any_number_of_processes(clip: Clip) -> None:
    scenes = world_clip.CaptionedScenes(clip, world_clip.recipe("shapes-clip", Path("nowhere"), steps=4, seed=0))
    whole = scenes.batch(3, EVERYTHING)
    first, second = (scenes.batch(3, Share(rank, 2)) for rank in (0, 1))
    assert whole.image_ids == first.image_ids + second.image_ids
    assert torch.equal(whole.pixels, torch.cat([first.pixels, second.pixels]))
    both = joined([first.captions, second.captions], 0)
    assert torch.equal(whole.captions.tokens, both.tokens)
    assert whole.captions.lengths.tolist() == both.lengths.tolist()
    assert not set(whole.image_ids) & set(scenes.batch(2, EVERYTHING).image_ids)
