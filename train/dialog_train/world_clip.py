"""Trains the embedded world's CLIP: `python -m dialog_train.world_clip --out DIR` (see `make world`).

`shapes-clip` is an open_clip model of 1.1 million parameters. It is trained like any other by `train/clip.py`, with
only the contrastive loss, on scenes of the train split and their web captions. Its tokenizer knows every word of the
world, but no caption contains a question, so the embeddings of words such as "what", "how many" or "yes" keep their
initial values. Dialogues can fill that gap.
"""

import argparse
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.core.tensors import sha256_of_weights
from dialog_gen.shapes.language import ask, describe, retrieval_captions, unique, web_caption
from dialog_gen.shapes.render import IMAGE_SIZE_PX, render, through_jpeg
from dialog_gen.shapes.scenes import draw_scene
from dialog_train.config import LogSettings, OptimSettings, PixelSettings
from dialog_train.data.pixel_set import PixelBatch
from dialog_train.data.training_set import columns_of
from dialog_train.loop import fit
from dialog_train.system import Share
from dialog_train.systems.clip.config import ClipRecipe
from dialog_train.systems.clip.training import ClipTraining

NAME = "shapes-clip"
CONTEXT_LENGTH = 32
# `dialog-gen download shapes` does not use this seed by default.
_SCENE_SEED = 20_232
_WIDTH = 128
_SCENES = "scenes of the train split, drawn as they are needed"
_OPTIM: dict[str, Any] = {"lr": 1e-3, "eps": 1e-8, "warmup_steps": 100, "batch_size": 128, "grad_clip": 1.0}
_STEPS = 2000
_PREPROCESS: dict[str, Any] = {
    "size": IMAGE_SIZE_PX,
    "mode": "RGB",
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def train_tokenizer(*, scenes: int = 4000) -> PreTrainedTokenizerFast:
    """A lower-case tokenizer with one token per word or digit, for every word that occurs in the world."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))  # noqa: S106
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator((text for i in range(scenes) for text in _all_texts(i)), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=CONTEXT_LENGTH,
    )


def build(folder: Path) -> Clip:
    """Creates the model with random weights and writes its tokenizer to `folder`."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    config: dict[str, Any] = {
        "embed_dim": _WIDTH,
        # With larger patches the model does not learn positions.
        "vision_cfg": {"image_size": IMAGE_SIZE_PX, "patch_size": 16, "width": _WIDTH, "layers": 3, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": NAME,
            "width": _WIDTH,
            "heads": 4,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": tokenizer.eos_token_id,
        },
    }
    model: Any = open_clip.CLIP(**config)
    return Clip(
        model=model,
        preprocess=image_transform_v2(PreprocessCfg(**_PREPROCESS), is_train=False),
        tokenizer=open_clip.tokenizer.HFTokenizer(str(folder), context_length=CONTEXT_LENGTH),
        name=NAME,
        config=config,
        preprocess_config=_PREPROCESS,
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


class CaptionedScenes:
    """`Data` of scenes of the train split, each with a web caption, drawn on demand; no scene is used twice."""

    def __init__(self, clip: Clip, recipe: ClipRecipe) -> None:
        self._tokenizer, self._batch_size = clip.tokenizer, recipe.optim.batch_size
        self.steps_per_epoch = recipe.optim.max_steps or 1
        self.fingerprint: dict[str, Any] = {"scenes": _SCENES, "seed": _SCENE_SEED}

    def batch(self, step: int, share: Share) -> PixelBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        start = step * self._batch_size
        numbers = range(start, start + self._batch_size)
        scenes = [draw_scene("train", _SCENE_SEED, number) for number in numbers]
        rng = random.Random(f"web captions/{start}")
        captions = [web_caption(scene, rng) for scene in scenes]
        mine = columns_of(share.rank, share.world_size, self._batch_size)
        images = [np.asarray(through_jpeg(render(scene))) for scene in scenes[mine]]
        return PixelBatch(
            image_ids=[str(number) for number in numbers[mine]],
            pixels=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            caption_tokens=self._tokenizer(captions[mine]),
            dialogue_tokens=None,
        )


def recipe(out: Path, *, steps: int, seed: int) -> ClipRecipe:
    """The recipe of the training."""
    return ClipRecipe(
        model=NAME,
        out=out,
        data=PixelSettings(images=_SCENES, work=out),
        optim=OptimSettings(**_OPTIM, max_steps=steps),
        log=LogSettings(tensorboard=False, every_steps=100),
        seed=seed,
    )


def train(folder: Path, *, steps: int = _STEPS, seed: int = 0) -> None:
    """Trains the model and writes it to `folder`, in float16."""
    torch.manual_seed(seed)
    clip = build(folder)
    with TemporaryDirectory() as work:
        how = recipe(Path(work) / "training", steps=steps, seed=seed)
        fit(how, ClipTraining(clip, how), CaptionedScenes(clip, how))
    save_clip(clip, folder, {name: tensor.half() for name, tensor in clip.model.state_dict().items()})


def main() -> None:
    """Trains it and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dialog_train").setLevel(logging.INFO)
    torch.set_num_threads(arguments.threads)
    train(arguments.out, steps=arguments.steps, seed=arguments.seed)


def _all_texts(number: int) -> Iterator[str]:
    """All that may be said or asked about a scene."""
    scene, rng = draw_scene("train", _SCENE_SEED, number), random.Random(number)
    yield from (web_caption(scene, rng), describe(scene, rng), unique(scene, rng), *retrieval_captions(scene, rng))
    for question in ask(scene, rng, 3):
        yield f"{question.question} {question.answer}"


if __name__ == "__main__":
    main()
