"""Trains the CLIP of an embedded world: `python -m dialog_train.world_clip shapes-clip --out DIR` (see `make world`).

`shapes-clip` and `shapes2-clip` are open_clip models of 1.1 and 1.8 million parameters. They are trained like any
other by `train/clip.py`, with the contrastive loss, on scenes of the train split and their web captions; the image
tower of `shapes2-clip` learns what is where before that, by a loss that is then kept beside the contrastive one
(`dialog_train.world_layout`). Their tokenizers know every word of their world, but no caption contains a question, so
the embeddings of words such as "what", "how many" or "yes" keep their initial values. Dialogues can fill that gap.
"""

import argparse
import logging
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.core.tensors import sha256_of_weights
from dialog_gen.shapes.language import ask, describe, retrieval_captions, unique, web_caption
from dialog_gen.shapes.render import through_jpeg
from dialog_gen.shapes.second import captions
from dialog_gen.shapes.second.choices import choices
from dialog_gen.shapes.second.scenes import swapped
from dialog_gen.shapes.worlds import FIRST, SECOND, World
from dialog_train.config import LogSettings, OptimSettings, PixelSettings
from dialog_train.data.pixel_set import PixelBatch
from dialog_train.data.training_set import columns_of
from dialog_train.loop import fit
from dialog_train.system import Share
from dialog_train.systems.clip.config import ClipRecipe
from dialog_train.systems.clip.training import ClipTraining
from dialog_train.world_layout import ImageHeads, WithLayoutLoss, layout_targets, teach_layout

# `dialog-gen download` does not use this seed by default.
_SCENE_SEED = 20_232
_HEAD_WIDTH = 32
_SCENES = "scenes of the train split, drawn as they are needed"
_OPTIM: dict[str, Any] = {"lr": 1e-3, "eps": 1e-8, "warmup_steps": 100, "batch_size": 128, "grad_clip": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldClip:
    """How the CLIP of a world is built and trained."""

    world: World[Any]
    width: int
    """Of both towers and of the embeddings."""
    all_texts: Callable[[Any, random.Random], Iterator[str]]
    """All that may be said or asked about a scene, for the tokenizer."""
    scenes: Callable[[range], list[Any]]
    """Numbers -> scenes of the train split."""
    image_layers: int
    text_layers: int
    context_length: int
    steps: int
    layout_steps: int = 0
    """Steps in which the image tower alone learns where things are; if there are any, that loss stays beside the
    contrastive one. See `dialog_train.world_layout`."""


def _texts_of_first(scene: Any, rng: random.Random) -> Iterator[str]:
    yield from (web_caption(scene, rng), describe(scene, rng), unique(scene, rng), *retrieval_captions(scene, rng))
    for question in ask(scene, rng, 3):
        yield f"{question.question} {question.answer}"


def _texts_of_second(scene: Any, rng: random.Random) -> Iterator[str]:
    yield from (captions.web_caption(scene, rng), *captions.negated_captions(scene, rng))
    for question in SECOND.ask(scene, rng, 5):
        yield f"{question.question} {question.answer}"
    for choice in choices(scene, rng):
        yield from choice.captions


def _scenes_of_first(numbers: range) -> list[Any]:
    return [FIRST.draw_scene("train", _SCENE_SEED, number) for number in numbers]


def _scenes_of_second(numbers: range) -> list[Any]:
    """The scenes with even numbers; each is followed by one that differs in an exchange, if there is any.

    Without such siblings, most images of a batch differ in what they contain, and the model need not learn where things
    are (hard negatives of ARO's NegCLIP, 2210.01936).
    """
    found: list[Any] = []
    for number in numbers:
        other = swapped(found[-1], random.Random(number)) if number % 2 and found else None
        found.append(other or SECOND.draw_scene("train", _SCENE_SEED, number))
    return found


CLIPS: Final = {
    "shapes-clip": WorldClip(
        world=FIRST,
        width=128,
        all_texts=_texts_of_first,
        scenes=_scenes_of_first,
        image_layers=3,
        text_layers=2,
        context_length=32,
        steps=2000,
    ),
    "shapes2-clip": WorldClip(
        world=SECOND,
        width=160,
        all_texts=_texts_of_second,
        scenes=_scenes_of_second,
        image_layers=3,
        text_layers=2,
        context_length=64,
        steps=2000,
        layout_steps=12000,
    ),
}


def _preprocess(spec: WorldClip) -> dict[str, Any]:
    return {
        "size": spec.world.image_size_px,
        "mode": "RGB",
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def train_tokenizer(spec: WorldClip, *, scenes: int = 4000) -> PreTrainedTokenizerFast:
    """A lower-case tokenizer with one token per word or digit, for every word that occurs in the world."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))  # noqa: S106
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "<s>", "</s>"], show_progress=False)
    drawn = ((spec.world.draw_scene("train", _SCENE_SEED, i), random.Random(i)) for i in range(scenes))
    backend.train_from_iterator((text for scene, rng in drawn for text in spec.all_texts(scene, rng)), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=spec.context_length,
    )


def build(name: str, folder: Path) -> Clip:
    """Creates the model with random weights and writes its tokenizer to `folder`."""
    spec = CLIPS[name]
    tokenizer = train_tokenizer(spec)
    tokenizer.save_pretrained(folder)
    preprocess = _preprocess(spec)
    config: dict[str, Any] = {
        "embed_dim": spec.width,
        "vision_cfg": {
            "image_size": spec.world.image_size_px,
            # With larger patches the model does not learn positions.
            "patch_size": 16,
            "width": spec.width,
            "layers": spec.image_layers,
            "head_width": _HEAD_WIDTH,
        },
        "text_cfg": {
            "context_length": spec.context_length,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": name,
            "width": spec.width,
            "heads": spec.width // _HEAD_WIDTH,
            "layers": spec.text_layers,
            "pool_type": "eos",
            "eos_id": tokenizer.eos_token_id,
        },
    }
    model: Any = open_clip.CLIP(**config)
    return Clip(
        model=model,
        preprocess=image_transform_v2(PreprocessCfg(**preprocess), is_train=False),
        tokenizer=open_clip.tokenizer.HFTokenizer(str(folder), context_length=spec.context_length),
        name=name,
        config=config,
        preprocess_config=preprocess,
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutBatch(PixelBatch):
    """Images of scenes, with the tensors of `LayoutTargets`."""

    cells: Tensor
    places: Tensor


class CaptionedScenes:
    """`Data` of scenes of the train split, each with a web caption, drawn on demand; no scene is used twice."""

    def __init__(self, clip: Clip, recipe: ClipRecipe) -> None:
        self._spec = CLIPS[recipe.model]
        self._encoder, self._batch_size = TextEncoder(clip.tokenizer), recipe.optim.batch_size
        self.steps_per_epoch = recipe.optim.max_steps or 1
        self.fingerprint: dict[str, Any] = {"scenes": _SCENES, "seed": _SCENE_SEED}

    def batch(self, step: int, share: Share) -> PixelBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        start = step * self._batch_size
        numbers = range(start, start + self._batch_size)
        world, scenes = self._spec.world, self._spec.scenes(numbers)
        rng = random.Random(f"web captions/{start}")
        texts = [world.web_caption(scene, rng) for scene in scenes]
        mine = columns_of(share.rank, share.world_size, self._batch_size)
        images = [np.asarray(through_jpeg(world.render(scene))) for scene in scenes[mine]]
        make = partial(LayoutBatch, **layout_targets(scenes[mine])._asdict()) if self._spec.layout_steps else PixelBatch
        return make(
            image_ids=[str(number) for number in numbers[mine]],
            pixels=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            captions=Texts.of(self._encoder(texts[mine])[0], self._encoder.pad_id),
            dialogues=None,
        )


def recipe(name: str, out: Path, *, steps: int, seed: int) -> ClipRecipe:
    """The recipe of the training."""
    return ClipRecipe(
        model=name,
        out=out,
        data=PixelSettings(images=_SCENES, work=out),
        optim=OptimSettings(**_OPTIM, max_steps=steps),
        log=LogSettings(tensorboard=False, every_steps=100),
        seed=seed,
    )


def train(name: str, folder: Path, *, steps: int | None = None, seed: int = 0) -> None:
    """Trains the model and writes it to `folder`, in float16."""
    torch.manual_seed(seed)
    clip = build(name, folder)
    heads = None
    if CLIPS[name].layout_steps:
        heads = teach_layout(clip, scene_seed=_SCENE_SEED, steps=min(CLIPS[name].layout_steps, steps or sys.maxsize))
    with TemporaryDirectory() as work:
        how = recipe(name, Path(work) / "training", steps=CLIPS[name].steps if steps is None else steps, seed=seed)
        fit(how, _training(clip, how, heads), CaptionedScenes(clip, how))
    save_clip(clip, folder, {name: tensor.half() for name, tensor in clip.model.state_dict().items()})


def _training(clip: Clip, how: ClipRecipe, heads: ImageHeads | None) -> ClipTraining:
    training = ClipTraining(clip, how)
    if heads is not None:
        training.module = WithLayoutLoss(training.module, heads)
    return training


def main() -> None:
    """Trains it and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=list(CLIPS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="training steps (default: those of the model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dialog_train").setLevel(logging.INFO)
    torch.set_num_threads(arguments.threads)
    train(arguments.name, arguments.out, steps=arguments.steps, seed=arguments.seed)


if __name__ == "__main__":
    main()
