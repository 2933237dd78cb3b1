"""Small MaMMUTs: in memory for `TinyPixels`, and as model folders for the embedded world."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.clip.mammut.checkpoint import new_mammut
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_train.data.pixel_set import PixelBatches
from dialog_train.loop import FitResult, fit
from dialog_train.systems.clip.config import ClipRecipe
from dialog_train.systems.mammut.config import MammutRecipe
from dialog_train.systems.mammut.training import MammutBatches, MammutTraining
from helpers.loops import CONTEXT, VOCABULARY, make_clip
from helpers.pixels import TinyPixels, make_clip_recipe
from helpers.training import write_tiny_clip

START, END = 1, VOCABULARY - 1
"""The frame of the texts of `TinyPixels`."""
SPECIAL = ["[CLS]", "[UNK]", "[PAD]", "[SEP]"]
_SHARED = ClipRecipe.model_fields.keys() - {"loss"}
WORDS = ["a", "red", "blue", "star", "circle", "what", "color", "is", "the", "?"]


def make_mammut(every: int = 2, *, seed: int = 0, spread: bool = False, **text: Any) -> Clip:
    """Of the tiny CLIP of `helpers.loops`; with `spread` far from linear, and with no weight where it starts."""
    clip = new_mammut(make_clip(**text), ([START], [END]), 0, every, seed)
    return _spread(clip, seed) if spread else clip


def write_mammut(folder: Path, *, questions: Sequence[str] = (), seed: int = 0) -> Path:
    """A model folder with the shipped tokenizer, of images of 32 pixels and 24 tokens, that says random words."""
    clip = load_clip(str(write_tiny_clip(folder.with_name(f"{folder.name}-clip"), seed)))
    encoder = TextEncoder(clip.tokenizer)
    mammut = _spread(new_mammut(clip, (encoder.start, encoder.end), encoder.pad_id, 2, seed), seed)
    mammut.model.config.questions = list(questions)
    save_clip(mammut, folder, mammut.model.state_dict())
    return folder


def make_hf_clip(folder: Path, frame: str = "[CLS] $A [SEP]", pad: str = "[PAD]") -> Clip:
    """CLIP's own towers with a tokenizer of Hugging Face's, whose padding open_clip has no need to know."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    ids = [(token, vocabulary[token]) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    names = {"pad_token": pad, "unk_token": "[UNK]", "cls_token": "[CLS]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    clip = make_clip(vocab_size=len(vocabulary), hf_tokenizer_name="nowhere/at-all")
    return replace(clip, tokenizer=HFTokenizer(str(folder), context_length=CONTEXT))


def make_hf_mammut(folder: Path) -> Clip:
    """With the tokenizer that is written to `folder`."""
    clip = make_hf_clip(folder)
    encoder = TextEncoder(clip.tokenizer)
    return _spread(new_mammut(clip, (encoder.start, encoder.end), encoder.pad_id, 2, 0), seed=0)


def make_mammut_recipe(out: Path, **changes: Any) -> MammutRecipe:
    """Keys of `optim` or of the recipe itself."""
    own = {key: changes.pop(key) for key in list(changes) if key in MammutRecipe.model_fields.keys() - _SHARED}
    shared = make_clip_recipe(out, **changes).model_dump(exclude={"loss", "lock_image"})
    return MammutRecipe.model_validate({**shared, **own})


def train_mammut(
    out: Path, changes: dict[str, Any], clip: Clip | None = None, rows: TinyPixels | None = None, **options: Any
) -> FitResult:
    """A trainer for `helpers.systems`: with dialogues and cropped positions, where `changes` say nothing else."""
    recipe = make_mammut_recipe(out, **{"cropped_positions": True, **changes})
    system = MammutTraining(clip or make_mammut(recipe.cross_attention_every, seed=recipe.seed), recipe)
    batches = PixelBatches(recipe, rows or TinyPixels(), dialogues=recipe.dialogues, full_length=False)
    return fit(recipe, system, MammutBatches(recipe, batches), **options)


def _spread(clip: Clip, seed: int) -> Clip:
    generator = torch.Generator().manual_seed(7 + seed)
    for name, parameter in clip.model.named_parameters():
        if name != "logit_scale":
            # What scales stays around 1.
            mean = float(parameter.ndim == 1 and name.endswith(("weight", "gamma")))
            nn.init.normal_(parameter, mean, 0.3, generator=generator)
    return clip
