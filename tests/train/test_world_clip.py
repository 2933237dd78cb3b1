"""The embedded world's CLIP: the one that is shipped, and its recipe."""

import random
from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from dialog_eval.metrics.retrieval import retrieve
from dialog_gen.clip.base import CLIP_MODELS, Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.shapes.language import ANSWERS, QUESTION_KINDS, ask, describe, retrieval_captions, unique, web_caption
from dialog_gen.shapes.render import render, through_jpeg
from dialog_gen.shapes.scenes import draw_scene
from dialog_train import world_clip
from dialog_train.system import EVERYTHING, Share

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
        torch.testing.assert_close(TextTower(clip.model)(tokens), texts, rtol=0, atol=1e-6)
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
        texts = TextTower(clip.model)(clip.tokenizer(captions))
    found = retrieve(images, texts, torch.arange(len(SCENES)), [1])
    # Chance is half a percent.
    assert found.image_recall[1] > 0.5
    assert found.text_recall[1] > 0.5


@pytest.mark.slow
def test_the_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sys.argv", ["world_clip", "--out", str(tmp_path / "clip"), "--steps", "100"])
    with caplog.at_level("INFO"):
        world_clip.main()
    clip = load_clip(str(tmp_path / "clip"))
    assert clip.name == "clip"
    (said,) = [record.getMessage() for record in caplog.records if record.msg.startswith("step")]
    # Of 100 steps the mean; ln(128) = 4.85 is where it starts.
    assert float(said.split("loss ")[1].split()[0]) < 4.5


def test_scenes_are_the_same_for_any_number_of_processes(clip: Clip) -> None:
    scenes = world_clip.CaptionedScenes(clip, world_clip.recipe(Path("nowhere"), steps=4, seed=0))
    whole = scenes.batch(3, EVERYTHING)
    first, second = (scenes.batch(3, Share(rank, 2)) for rank in (0, 1))
    assert whole.image_ids == first.image_ids + second.image_ids
    assert torch.equal(whole.pixels, torch.cat([first.pixels, second.pixels]))
    assert torch.equal(whole.caption_tokens, torch.cat([first.caption_tokens, second.caption_tokens]))
    assert not set(whole.image_ids) & set(scenes.batch(2, EVERYTHING).image_ids)
