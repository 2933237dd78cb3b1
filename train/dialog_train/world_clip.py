"""Trains the embedded world's CLIP: `python -m dialog_train.world_clip --out DIR` (see `make world`).

`shapes-clip` is an open_clip model of 1.1 million parameters, trained as CLIP is (arXiv 2103.00020, section 2.3): with
the contrastive loss alone, on scenes of the train split and their web captions. Its tokenizer knows every word of the
world, but captions hold no question: the vectors of "what", "how many" or "yes" are as the initialisation left them.
That gap is what dialogues can fill.
"""

import argparse
import logging
import math
import random
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from dialog_gen.clip import Clip, save_clip, sha256_of_weights
from dialog_gen.world.language import ask, describe, retrieval_captions, unique, web_caption
from dialog_gen.world.render import IMAGE_SIZE_PX, render, through_jpeg
from dialog_gen.world.scenes import draw_scene
from dialog_train.config import OptimSettings
from dialog_train.optim import learning_rate, parameter_groups
from dialog_train.text import TextTower

log = logging.getLogger(__name__)

NAME = "shapes-clip"
CONTEXT_LENGTH = 32
# Under a seed that `dialog-gen download shapes` does not use by default.
_SCENE_SEED = 20_232
_WIDTH = 128
_OPTIM = OptimSettings(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1, warmup_steps=100, batch_size=128)
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
    """A token a word and a digit, in lower case, for every word that the world uses anywhere."""
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
    """The model with random weights; writes its tokenizer to `folder`."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    config: dict[str, Any] = {
        "embed_dim": _WIDTH,
        # Larger patches do not learn where a thing is.
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


class CaptionedScenes(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of pixels (N, 3, H, W) and the token ids of a web caption each (N, L); never a scene twice."""

    def __init__(self, clip: Clip, batch_size: int) -> None:
        self._clip, self._batch_size = clip, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in count(0, self._batch_size):
            scenes = [draw_scene("train", _SCENE_SEED, i) for i in range(start, start + self._batch_size)]
            pixels = torch.stack([self._clip.preprocess(through_jpeg(render(scene))) for scene in scenes])
            rng = random.Random(f"web captions/{start}")
            yield pixels, self._clip.tokenizer([web_caption(scene, rng) for scene in scenes])


def train(folder: Path, *, steps: int = _STEPS, seed: int = 0) -> Clip:
    """The trained model (float32)."""
    torch.manual_seed(seed)
    clip = build(folder)
    model = clip.model.train()
    parameters = dict(model.named_parameters())
    groups = parameter_groups(model, parameters, _OPTIM.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=_OPTIM.lr, betas=_OPTIM.betas)
    loss_of = open_clip.ClipLoss()
    tower = TextTower(model)
    loader = DataLoader(CaptionedScenes(clip, _OPTIM.batch_size), batch_size=None, num_workers=1, prefetch_factor=8)
    started, sum_of_losses = time.perf_counter(), 0.0
    for step, (pixels, tokens) in enumerate(islice(loader, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, _OPTIM)
        images = model.encode_image(pixels, normalize=True)
        loss = loss_of(images, tower(tokens), model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        # As CLIP does, so that no pair weighs more than a hundredfold.
        model.logit_scale.data.clamp_(max=math.log(100))
        sum_of_losses += loss.item()
        if (step + 1) % 100 == 0:
            elapsed = time.perf_counter() - started
            log.info("step %d/%d loss %.4f %.0f s", step + 1, steps, sum_of_losses / 100, elapsed)
            sum_of_losses = 0.0
    model.eval()
    return clip


def main() -> None:
    """Trains it and writes the checkpoint, in float16."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    clip = train(arguments.out, steps=arguments.steps, seed=arguments.seed)
    save_clip(clip, arguments.out, {name: tensor.half() for name, tensor in clip.model.state_dict().items()})
    log.info("wrote %s: %s", arguments.out, ", ".join(sorted(path.name for path in arguments.out.iterdir())))


def _all_texts(number: int) -> Iterator[str]:
    """All that may be said or asked about a scene."""
    scene, rng = draw_scene("train", _SCENE_SEED, number), random.Random(number)
    yield from (web_caption(scene, rng), describe(scene, rng), unique(scene, rng), *retrieval_captions(scene, rng))
    for question in ask(scene, rng, 3):
        yield f"{question.question} {question.answer}"


if __name__ == "__main__":
    main()
