"""Trains the embedded generators: `python -m dialog_gen.shapes.generators shapes-llava --out DIR` (`make world`).

`shapes-llava` has LLaVA-1.5's architecture (CLIP tower, two-layer projector, Llama) and `shapes-blip2` BLIP-2's (ViT,
Q-Former, OPT); both have the released file layout and prompt forms, and a few million parameters. They learn from
endless scenes of the train split. The checkpoints load in vLLM and in transformers; weights are bfloat16.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dialog_gen.core.tensors import save_tensors
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE, SHORT_ANSWER, render_chat
from dialog_gen.protocols.protocol import load_protocol
from dialog_gen.shapes.language import DESCRIBE_QUESTION, UNIQUE_QUESTION, ask, describe, unique
from dialog_gen.shapes.render import IMAGE_SIZE_PX, render, through_jpeg
from dialog_gen.shapes.scenes import COLORS, POSITIONS, SHAPES, SIZES, Scene, draw_scene

log = logging.getLogger(__name__)

# Scenes of the train split are drawn under a seed that `dialog-gen download shapes` does not use by default.
_SCENE_SEED = 20_231
_IGNORED_LABEL = -100
# One patch for each quadrant of the scene.
_PATCH_PX = IMAGE_SIZE_PX // 2
_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation to learn: the rendered prompt and the answer that follows it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one generator is made."""

    forms: dict[Callable[[Scene, random.Random], Exchange], float]
    """Form of conversation -> its share of the batches. A batch has one form, so that there is little padding."""
    build: Callable[[PreTrainedTokenizerFast], tuple[Any, Any]]
    tower: Callable[[Any], torch.nn.Module]
    """Model -> its vision tower."""
    patches: Callable[[Any, torch.Tensor], torch.Tensor]
    """Tower, pixels -> the patch vectors that the rest of the model receives, (batch, 4, width)."""
    bos: str
    vision_steps: int
    steps: int
    batch_size: int = 64
    peak_lr: float = 1e-3
    warmup_steps: int = 200


def three_questions(scene: Scene, rng: random.Random) -> Exchange:
    """The llava-3qa protocol."""
    questions = ask(scene, rng, 3)
    lines = [f"{i}. Q: {q.question} A: {q.answer}" for i, q in enumerate(questions, 1)]
    prompt = load_protocol("llava-3qa").turns[0].user
    return Exchange(render_chat(LLAVA_CHAT_TEMPLATE, [prompt]), " " + "\n".join(lines))


def short_answer(scene: Scene, rng: random.Random) -> Exchange:
    """A single question to a LLaVA, with or without the short-answer suffix."""
    question = ask(scene, rng, 1)[0]
    user = f"{question.question}\n{SHORT_ANSWER}" if rng.random() < 0.5 else question.question
    return Exchange(render_chat(LLAVA_CHAT_TEMPLATE, [user]), f" {question.answer}")


def first_turn(scene: Scene, rng: random.Random) -> Exchange:
    """The first turn of blip2-two-turn."""
    return Exchange(render_chat(BLIP2_CHAT_TEMPLATE, [DESCRIBE_QUESTION]), f" {describe(scene, rng)}")


def second_turn(scene: Scene, rng: random.Random) -> Exchange:
    """The second turn of blip2-two-turn, after a true first answer."""
    turns = [DESCRIBE_QUESTION, describe(scene, rng), UNIQUE_QUESTION]
    return Exchange(render_chat(BLIP2_CHAT_TEMPLATE, turns), f" {unique(scene, rng)}")


def one_question(scene: Scene, rng: random.Random) -> Exchange:
    """A single question to a BLIP-2."""
    question = ask(scene, rng, 1)[0]
    return Exchange(render_chat(BLIP2_CHAT_TEMPLATE, [question.question]), f" {question.answer}")


def build_llava(tokenizer: PreTrainedTokenizerFast) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA-1.5 of about two million parameters and its processor."""
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": _PATCH_PX,
            "projection_dim": _WIDTH,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": _WIDTH,
            "intermediate_size": 3 * _WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            # Small models of this depth learn little from the usual 0.02.
            "initializer_range": 0.08,
            **_token_ids(tokenizer),
        },
        image_token_index=cast("int", tokenizer.convert_tokens_to_ids("<image>")),
        image_seq_length=(IMAGE_SIZE_PX // _PATCH_PX) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE_PX}, crop_size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH_PX,
        vision_feature_select_strategy="default",
        # CLIP's class token, which the "default" strategy drops again.
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config), processor


def build_blip2(tokenizer: PreTrainedTokenizerFast) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """A BLIP-2 with an OPT of about two million parameters and its processor."""
    queries = 16
    config = Blip2Config(
        vision_config={
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": _PATCH_PX,
            "initializer_range": 0.02,
        },
        qformer_config={
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "encoder_hidden_size": _WIDTH,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": _WIDTH,
            "word_embed_proj_dim": _WIDTH,
            "ffn_dim": 3 * _WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "init_std": 0.05,
            **_token_ids(tokenizer),
        },
        num_query_tokens=queries,
        image_token_index=cast("int", tokenizer.convert_tokens_to_ids("<image>")),
    )
    processor = Blip2Processor(
        image_processor=BlipImageProcessor(size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}),
        tokenizer=tokenizer,
        num_query_tokens=queries,
        chat_template=BLIP2_CHAT_TEMPLATE,
    )
    model = Blip2ForConditionalGeneration(config)
    # They are zeros by default: equal queries would stay equal.
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    return model, processor


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


RECIPES = {
    "shapes-llava": Recipe(
        forms={three_questions: 0.6, short_answer: 0.4},
        build=build_llava,
        tower=lambda model: model.model.vision_tower,
        patches=lambda tower, pixels: tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:],
        bos="<s>",
        vision_steps=500,
        steps=4000,
    ),
    "shapes-blip2": Recipe(
        forms={first_turn: 0.4, second_turn: 0.3, one_question: 0.3},
        build=build_blip2,
        tower=lambda model: model.vision_model,
        patches=lambda tower, pixels: tower(pixels).last_hidden_state[:, 1:],
        bos="</s>",
        vision_steps=500,
        steps=3000,
    ),
}


def train_tokenizer(recipe: Recipe, *, scenes: int = 4000, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token; other text falls back to bytes."""
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    rng = random.Random(_SCENE_SEED)
    exchanges = [form(draw_scene("train", _SCENE_SEED, i), rng) for i in range(scenes) for form in recipe.forms]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((e.prompt.replace("<image>", "") + e.answer for e in exchanges), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{recipe.bos} $A", special_tokens=[(recipe.bos, backend.token_to_id(recipe.bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=recipe.bos,
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        # LlavaProcessor asks the tokenizer for its image token; Blip2Processor brings one and fails on another.
        extra_special_tokens={"image_token": "<image>"} if recipe.build is build_llava else {},
        padding_side="left",
    )


class Lessons(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches of new scenes; images pass through JPEG, as img2dataset stores them."""

    def __init__(self, recipe: Recipe, processor: Any) -> None:
        self.recipe, self.processor = recipe, processor

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        size = self.recipe.batch_size
        batch = start
        while True:
            yield self._batch(range(batch * size, (batch + 1) * size))
            batch += stride

    def _batch(self, indices: range) -> dict[str, torch.Tensor]:
        scenes = [draw_scene("train", _SCENE_SEED, i) for i in indices]
        rng = random.Random(f"lessons/{indices.start}")
        (form,) = rng.choices(list(self.recipe.forms), list(self.recipe.forms.values()))
        exchanges = [form(scene, rng) for scene in scenes]
        eos = self.processor.tokenizer.eos_token
        inputs = self.processor(
            images=[through_jpeg(render(s)) for s in scenes],
            text=[e.prompt + e.answer + eos for e in exchanges],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        answers = self.processor.tokenizer([e.answer + eos for e in exchanges], add_special_tokens=False)["input_ids"]
        labels = torch.full_like(inputs["input_ids"], _IGNORED_LABEL)
        for row, (mask, answer) in enumerate(zip(inputs["attention_mask"], answers, strict=True)):
            end = int(mask.nonzero()[-1]) + 1
            labels[row, end - len(answer) : end] = inputs["input_ids"][row, end - len(answer) : end]
        return {**inputs, "labels": labels}


class LabelledPatches(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Endless batches of pixels and, for each quadrant of the scene, the class of its object, (batch, 4)."""

    CLASSES = 1 + len(SHAPES) * len(COLORS) * len(SIZES)

    def __init__(self, recipe: Recipe, processor: Any) -> None:
        self.recipe, self.processor = recipe, processor

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in count(0, self.recipe.batch_size):
            # Negative indices: scenes that are not in any lesson.
            scenes = [draw_scene("train", _SCENE_SEED, -1 - i) for i in range(start, start + self.recipe.batch_size)]
            images = [through_jpeg(render(scene)) for scene in scenes]
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
            yield pixels, torch.tensor([self._classes(scene) for scene in scenes])

    @staticmethod
    def _classes(scene: Scene) -> list[int]:
        classes = [0] * len(POSITIONS)
        for o in scene.objects:
            look = (SHAPES.index(o.shape) * len(COLORS) + COLORS.index(o.color)) * len(SIZES) + SIZES.index(o.size)
            classes[POSITIONS.index(o.position)] = 1 + look
        return classes


def train(recipe: Recipe, *, steps: int, vision_steps: int, seed: int) -> tuple[Any, Any]:
    """The trained model (float32) and its processor.

    As in the released models, the vision tower is trained first and is frozen while the rest is trained; trained
    together they learned an order of magnitude more slowly.
    """
    torch.manual_seed(seed)
    model, processor = recipe.build(train_tokenizer(recipe))
    model.train()
    log.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    tower = recipe.tower(model)
    what, where = torch.nn.Linear(_WIDTH, LabelledPatches.CLASSES), torch.nn.Linear(_WIDTH, len(POSITIONS))

    def sees(batch: Any) -> torch.Tensor:
        pixels, classes = batch
        patches = recipe.patches(tower, pixels).flatten(0, 1)
        positions = torch.arange(len(POSITIONS)).repeat(len(pixels))
        # Without the second term, the patches would lose their position, and the rest of the model could not tell it.
        return cross_entropy(what(patches), classes.flatten()) + cross_entropy(where(patches), positions)

    learning = [*tower.parameters(), *what.parameters(), *where.parameters()]
    _optimize(learning, sees, LabelledPatches(recipe, processor), recipe, vision_steps)
    tower.requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    _optimize(rest, lambda batch: model(**batch).loss, Lessons(recipe, processor), recipe, steps)
    return model.eval(), processor


def _optimize(
    parameters: list[torch.nn.Parameter],
    loss_of: Callable[[Any], torch.Tensor],
    batches: IterableDataset[Any],
    recipe: Recipe,
    steps: int,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=recipe.peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_lr, total_steps=steps, pct_start=min(0.5, recipe.warmup_steps / steps), div_factor=100
    )
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8)
    started, total = time.perf_counter(), 0.0
    for step, batch in enumerate(islice(loader, steps), 1):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            log.info("step %d/%d loss %.4f %.0f s", step, steps, total / 100, time.perf_counter() - started)
            total = 0.0


def save(model: Any, processor: Any, folder: Path) -> None:
    """Writes the checkpoint in bfloat16 with the names that the released checkpoints carry.

    transformers 5 writes a LLaVA's vision weights as `vision_tower.*`; the released layout, the one vLLM reads, is
    `vision_tower.vision_model.*`, which transformers reads as well.
    """
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    released = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model.")
        else name: tensor
        for name, tensor in tensors.items()
    }
    save_tensors(released, weights)


def main() -> None:
    """Trains one generator and writes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="of the whole model (default: the recipe's)")
    parser.add_argument("--vision-steps", type=int, help="of the vision tower alone (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.name]
    model, processor = train(
        recipe,
        steps=recipe.steps if arguments.steps is None else arguments.steps,
        vision_steps=recipe.vision_steps if arguments.vision_steps is None else arguments.vision_steps,
        seed=arguments.seed,
    )
    save(model, processor, arguments.out)
    log.info("wrote %s: %s", arguments.out, json.dumps(sorted(p.name for p in arguments.out.iterdir())))


if __name__ == "__main__":
    main()
