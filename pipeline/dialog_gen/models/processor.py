"""Prompts as a model's own processor makes them, without its weights."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from dialog_gen.core.output import quiet
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.tokens import IMAGE
from dialog_gen.models.transformers_files import read_processor
from dialog_gen.protocols.protocol import Conversation
from dialog_gen.sources.pixels import UNLIMITED, PixelLimits


def load_processor(folder: Path, limits: PixelLimits | None = None) -> Any:
    """The processor of a model folder; takes seconds. `limits` are given to it. Raises errors of any kind."""
    changed = max((file.stat().st_mtime_ns for file in folder.glob("*.json")), default=0)
    return _loaded(folder, limits, changed)


@lru_cache(maxsize=4)
def _loaded(folder: Path, limits: PixelLimits | None, _changed_ns: int) -> Any:
    with quiet():
        return read_processor(folder, **(limits.processor_kwargs() if limits else {}))


def prompt_inputs(
    model: GeneratorModel,
    messages: Conversation,
    images: Sequence[Image.Image],
    limits: PixelLimits = UNLIMITED,
    **options: Any,
) -> Any:
    """What the processor makes of one prompt with its images, as the engines have it. Raises errors of any kind."""
    takes_limits = model.architecture.takes_max_pixels
    processor = load_processor(model.files, limits if takes_limits else None)
    prompt = model.render(messages, len(images))
    given = [image if takes_limits else limits.fit(image) for image in images]
    with quiet():
        return processor(images=[given], text=[prompt], add_special_tokens=model.tokens.added_to(prompt), **options)


def prompt_ids(
    model: GeneratorModel, messages: Conversation, images: Sequence[Image.Image], limits: PixelLimits = UNLIMITED
) -> list[int]:
    """The token ids of a prompt with its images, as the engines have them. Raises errors of any kind."""
    return [int(token) for token in prompt_inputs(model, messages, images, limits)["input_ids"][0]]


def image_token_id(config: Any, processor: Any) -> int | None:
    """The id of the token that stands for an image in prompts; None if neither says it.

    `config` is transformers' configuration. It has defaults for released models whose config.json leaves the id out.
    """
    named = getattr(config, "image_token_id", None)
    return processor.tokenizer.convert_tokens_to_ids(IMAGE) if named is None else named
