"""What engines ask small random models, beside what the models' own processors would ask."""

import asyncio
import warnings
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor

from dialog_gen.engines.base import Answer, EngineOptions, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.models.registry import GeneratorModel, resolve_model
from dialog_gen.protocols.protocol import Conversation, Sampling, conversation, image_place

SAMPLING = Sampling(temperature=0, max_tokens=4)
QUESTION = "What is in the picture?\n\nSay it in one line."
ONE = conversation(QUESTION)
TWO = conversation(QUESTION, "A red star.", "Where is it?")
# The last is neither square nor a multiple of a patch.
IMAGES = [Image.new("RGB", size, (200, 30, 60)) for size in ((56, 56), (90, 47))]


Asked = tuple[Conversation, *tuple[Image.Image, ...]]
"""A conversation and its images."""


def pairs_of(name: str) -> list[Asked]:
    """Conversations of one and of two turns, each with both images; PaliGemma was trained for single questions."""
    return [(messages, image) for messages in ([ONE] if name == "paligemma2" else [ONE, TWO]) for image in IMAGES]


def about_several() -> list[Asked]:
    """Conversations of one and of two turns, each about two images, three and one."""
    several = [(*IMAGES,), (IMAGES[1], *IMAGES), (IMAGES[0],)]
    return [(messages, *images) for messages in (ONE, TWO) for images in several]


def true_ids(folder: Path, messages: Conversation, *images: Image.Image) -> list[int]:
    """The token ids that the model's processor gives, by its own rendering of its own template."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    if not processor.chat_template:
        (message,) = messages
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [int(token) for token in processor(images=[*images], text=[message.text])["input_ids"][0]]
    content: list[list[dict[str, Any]]] = [[{"type": "text", "text": message.text}] for message in messages]
    content[image_place(messages)][:0] = [{"type": "image", "image": image} for image in images]
    chat = [{"role": m.role, "content": parts} for m, parts in zip(messages, content, strict=True)]
    ids = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)[0]
    return [int(token) for token in ids]


def request(messages: Conversation, *images: Image.Image) -> Request:
    """A request of one conversation about an image or several."""
    return Request(messages=messages, images=images, image_sha256=f"{[image.size for image in images]}", seed=0)


def started(name: str, model: GeneratorModel, log: Path, **options: Any) -> Any:
    """An engine with a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        return EngineSpec(name=name, model=model, sampling=SAMPLING, options=EngineOptions(**options)).start(log)


def asked_by_transformers(folder: Path, pairs: list[Asked], log: Path) -> tuple[list[list[int]], list[Answer]]:
    """The token ids of each prompt that reached the model, and its answers."""
    engine = started("transformers", resolve_model(str(folder)), log)
    asked: list[list[int]] = []
    generate = engine._model.generate

    def noted(**inputs: Any) -> Any:
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        asked.extend([token for token, kept in zip(ids, mask, strict=True) if kept] for ids, mask in rows)
        return generate(**inputs)

    engine._model.generate = noted

    async def ask() -> list[Answer]:
        return await asyncio.gather(*(engine.answer(request(*pair)) for pair in pairs))

    answers = asyncio.run(ask())
    return asked, answers


def asked_by_vllm(folder: Path, pairs: list[Asked]) -> list[list[int]]:
    """The token ids of each prompt. Without an engine: vLLM's renderer makes them in the process that asks."""
    from vllm import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    from dialog_gen.engines.vllm.engine import engine_arguments, image_inputs, tokenizes

    model = resolve_model(str(folder))
    asked: list[list[int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        most = max(len(images) for _, *images in pairs)
        options = EngineOptions(max_model_len=1024, dtype="float32", images_per_prompt=most)
        arguments = engine_arguments(model, options)
        renderer: Any = renderer_from_config(AsyncEngineArgs(**arguments).create_engine_config())
        tokenize = tokenizes(renderer.get_tokenizer(), model)
        for messages, *images in pairs:
            token_ids = tokenize(model.render(messages, len(images)))
            prompt = {"prompt_token_ids": token_ids, **image_inputs(request(messages, *images))}
            (rendered,) = asyncio.run(renderer.render_cmpl_async([prompt]))
            asked.append([int(token) for token in rendered["prompt_token_ids"]])
    return asked


def run_arguments(folder: Path, name: str, engine: str, place: Path) -> tuple[str, ...]:
    """The arguments of `dialog-gen` for dialogues about two images with a small random model.

    Random weights give random letters, which are answers, and sometimes none: hence several attempts.
    """
    (place / "images").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(IMAGES):
        image.save(place / "images" / f"{number}.png")
    protocol = "paligemma-questions" if name == "paligemma2" else "blip2-two-turn"
    return (
        *("run", "--model", str(folder), "--images", str(place / "images"), "--out", str(place / f"out-{engine}")),
        *("--engine", engine, "--protocol", protocol, "--dtype", "float32", "--attempts", "20"),
        *("--temperature", "1.5", "--max-tokens", "16", "--max-losses", "0"),
    )
