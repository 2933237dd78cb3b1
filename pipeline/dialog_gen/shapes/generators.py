"""Trains the embedded generators: `python -m dialog_gen.shapes.generators shapes-llava --out DIR` (`make world`).

`shapes-llava` has LLaVA-1.5's architecture (CLIP tower, two-layer projector, Llama) and `shapes-blip2` BLIP-2's (ViT,
Q-Former, OPT); both have the file layout and prompt formats of the released models, and about two million parameters.
They are trained on an endless stream of scenes of the train split. The checkpoints load in vLLM and in transformers;
weights are bfloat16.
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
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from dialog_gen.core.tensors import save_tensors
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE, SHORT_ANSWER, render_chat
from dialog_gen.protocols.protocol import conversation, load_protocol
from dialog_gen.shapes.architectures import WIDTH, build_blip2, build_llava
from dialog_gen.shapes.language import DESCRIBE_QUESTION, UNIQUE_QUESTION, ask, describe, unique
from dialog_gen.shapes.render import render, through_jpeg
from dialog_gen.shapes.scenes import COLORS, POSITIONS, SHAPES, SIZES, Scene, draw_scene

log = logging.getLogger(__name__)

# Scenes of the train split are drawn under a seed that `dialog-gen download shapes` does not use by default.
_SCENE_SEED = 20_231
_IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Exchange:
    """A training example: the rendered prompt and the answer that follows it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """How one generator is built and trained."""

    forms: dict[Callable[[Scene, random.Random], Exchange], float]
    """Form of conversation -> its share of the batches. All examples of a batch have one form: less padding."""
    build: Callable[[PreTrainedTokenizerFast], tuple[Any, Any]]
    tower: Callable[[Any], torch.nn.Module]
    """Model -> its vision tower."""
    patches: Callable[[Any, torch.Tensor], torch.Tensor]
    """(tower, pixels) -> the patch vectors that the rest of the model receives, (batch, 4, width)."""
    bos: str
    vision_steps: int
    steps: int
    batch_size: int = 64
    peak_lr: float = 1e-3
    warmup_steps: int = 200


def three_questions(scene: Scene, rng: random.Random) -> Exchange:
    """The prompt of the protocol llava-3qa, and three questions with true answers."""
    questions = ask(scene, rng, 3)
    lines = [f"{i}. Q: {q.question} A: {q.answer}" for i, q in enumerate(questions, 1)]
    prompt = load_protocol("llava-3qa").turns[0].user
    return Exchange(render_chat(LLAVA_CHAT_TEMPLATE, conversation(prompt)), " " + "\n".join(lines))


def short_answer(scene: Scene, rng: random.Random) -> Exchange:
    """A single question to a LLaVA, with or without the short-answer suffix."""
    question = ask(scene, rng, 1)[0]
    user = f"{question.question}\n{SHORT_ANSWER}" if rng.random() < 0.5 else question.question
    return Exchange(render_chat(LLAVA_CHAT_TEMPLATE, conversation(user)), f" {question.answer}")


def first_turn(scene: Scene, rng: random.Random) -> Exchange:
    """The first turn of the protocol blip2-two-turn."""
    return Exchange(render_chat(BLIP2_CHAT_TEMPLATE, conversation(DESCRIBE_QUESTION)), f" {describe(scene, rng)}")


def second_turn(scene: Scene, rng: random.Random) -> Exchange:
    """The second turn of the protocol blip2-two-turn, after a true first answer."""
    turns = [DESCRIBE_QUESTION, describe(scene, rng), UNIQUE_QUESTION]
    return Exchange(render_chat(BLIP2_CHAT_TEMPLATE, conversation(*turns)), f" {unique(scene, rng)}")


def one_question(scene: Scene, rng: random.Random) -> Exchange:
    """A single question to a BLIP-2."""
    question = ask(scene, rng, 1)[0]
    return Exchange(render_chat(BLIP2_CHAT_TEMPLATE, conversation(question.question)), f" {question.answer}")


GENERATORS = {
    "shapes-llava": GeneratorSpec(
        forms={three_questions: 0.6, short_answer: 0.4},
        build=build_llava,
        tower=lambda model: model.model.vision_tower,
        patches=lambda tower, pixels: tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:],
        bos="<s>",
        vision_steps=500,
        steps=4000,
    ),
    "shapes-blip2": GeneratorSpec(
        forms={first_turn: 0.4, second_turn: 0.3, one_question: 0.3},
        build=build_blip2,
        tower=lambda model: model.vision_model,
        patches=lambda tower, pixels: tower(pixels).last_hidden_state[:, 1:],
        bos="</s>",
        vision_steps=500,
        steps=3000,
    ),
}


def train_tokenizer(spec: GeneratorSpec, *, scenes: int = 4000, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token. Other text is encoded as bytes."""
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    rng = random.Random(_SCENE_SEED)
    exchanges = [form(draw_scene("train", _SCENE_SEED, i), rng) for i in range(scenes) for form in spec.forms]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((e.prompt.replace("<image>", "") + e.answer for e in exchanges), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{spec.bos} $A", special_tokens=[(spec.bos, backend.token_to_id(spec.bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=spec.bos,
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        # LlavaProcessor needs an image token in the tokenizer; Blip2Processor adds its own and fails if there is one.
        extra_special_tokens={"image_token": "<image>"} if spec.build is build_llava else {},
        padding_side="left",
    )


class Lessons(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches of new scenes for training. Images are encoded as JPEG first, as img2dataset stores them.

    A batch has the processor's inputs and `labels`, (batch, tokens), where prompts and padding are -100.
    """

    def __init__(self, spec: GeneratorSpec, processor: Any) -> None:
        self.spec, self.processor = spec, processor

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        size = self.spec.batch_size
        batch = start
        while True:
            yield self._batch(range(batch * size, (batch + 1) * size))
            batch += stride

    def _batch(self, indices: range) -> dict[str, torch.Tensor]:
        scenes = [draw_scene("train", _SCENE_SEED, i) for i in indices]
        rng = random.Random(f"lessons/{indices.start}")
        (form,) = rng.choices(list(self.spec.forms), list(self.spec.forms.values()))
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
    """Endless batches of pixels, (batch, 3, 64, 64), and the class of the object in each quadrant, (batch, 4)."""

    CLASSES = 1 + len(SHAPES) * len(COLORS) * len(SIZES)

    def __init__(self, spec: GeneratorSpec, processor: Any) -> None:
        self.spec, self.processor = spec, processor

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in count(0, self.spec.batch_size):
            # Negative indices give scenes that `Lessons` does not use.
            scenes = [draw_scene("train", _SCENE_SEED, -1 - i) for i in range(start, start + self.spec.batch_size)]
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


def train(spec: GeneratorSpec, *, steps: int, vision_steps: int, seed: int) -> tuple[Any, Any]:
    """Trains a model; returns it (in float32) and its processor.

    As in the released models, the vision tower is trained first and stays frozen while the rest is trained. Training
    both together was an order of magnitude slower.
    """
    torch.manual_seed(seed)
    model, processor = spec.build(train_tokenizer(spec))
    model.train()
    log.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    tower = spec.tower(model)
    object_head = torch.nn.Linear(WIDTH, LabelledPatches.CLASSES)
    position_head = torch.nn.Linear(WIDTH, len(POSITIONS))

    def vision_loss(batch: Any) -> torch.Tensor:
        pixels, classes = batch
        patches = spec.patches(tower, pixels).flatten(0, 1)
        positions = torch.arange(len(POSITIONS)).repeat(len(pixels))
        # Without the second term, patch vectors would not encode their position, and the model could not tell it.
        return cross_entropy(object_head(patches), classes.flatten()) + cross_entropy(position_head(patches), positions)

    vision_parameters = [*tower.parameters(), *object_head.parameters(), *position_head.parameters()]
    _optimize(vision_parameters, vision_loss, LabelledPatches(spec, processor), spec, vision_steps)
    tower.requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    _optimize(rest, lambda batch: model(**batch).loss, Lessons(spec, processor), spec, steps)
    return model.eval(), processor


def _optimize(
    parameters: list[torch.nn.Parameter],
    loss_of: Callable[[Any], torch.Tensor],
    batches: IterableDataset[Any],
    spec: GeneratorSpec,
    steps: int,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=spec.peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec.peak_lr, total_steps=steps, pct_start=min(0.5, spec.warmup_steps / steps), div_factor=100
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
    """Writes the checkpoint in bfloat16, with the parameter names of the released checkpoints.

    transformers 5 writes a LLaVA's vision weights as `vision_tower.*`. The released layout, which vLLM needs and
    transformers also reads, is `vision_tower.vision_model.*`.
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
    """Trains one generator and writes its checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=list(GENERATORS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="training steps of the whole model (default: those of the generator)")
    parser.add_argument(
        "--vision-steps", type=int, help="training steps of the vision tower alone (default: those of the generator)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    spec = GENERATORS[arguments.name]
    model, processor = train(
        spec,
        steps=spec.steps if arguments.steps is None else arguments.steps,
        vision_steps=spec.vision_steps if arguments.vision_steps is None else arguments.vision_steps,
        seed=arguments.seed,
    )
    save(model, processor, arguments.out)
    log.info("wrote %s: %s", arguments.out, json.dumps(sorted(p.name for p in arguments.out.iterdir())))


if __name__ == "__main__":
    main()
