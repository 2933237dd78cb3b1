"""The tokens that an image takes in a prompt: by config.json, or, where they depend on its size, by the processor."""

import re
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import IMAGES_PER_PROMPT
from dialog_gen.generation.workload import Sizes
from dialog_gen.models.architectures import architecture_of
from dialog_gen.models.dimensions import image_tokens
from dialog_gen.models.processor import prompt_ids
from dialog_gen.models.without_weights import in_one_line
from dialog_gen.protocols.protocol import conversation
from dialog_gen.sources.base import SourceImage, open_source
from dialog_gen.sources.images import UnreadableImage, decode_image
from dialog_gen.sources.pixels import PixelLimits

USUAL = (640, 480)
"""Width and height of an image of which nothing is known."""
COUNT = re.compile(r"\d[\d_,]*(\.\d+)?([eE]\+?\d+)?")
"""A number of images, as a text."""
_SAMPLES = 16
_SAMPLES_FOR_MEAN = 256


def is_source(images: str | int | None) -> bool:
    """Whether images are given as a source, and not as a number."""
    return images is not None and not COUNT.fullmatch(str(images).strip())


def sizes_px(images: str | int | None, shard_size: int) -> list[tuple[int, int]]:
    """Widths and heights of typical images, the first ones of a source; empty for a number of images."""
    return _first_sizes(str(images), shard_size) if is_source(images) else []


def mean_images(wanted: str | float, images: str | int | None, size: int, sizes: Sizes) -> float:
    """The mean number of images of a dialogue: given, or that of the first samples of a source."""
    text, most = str(wanted), IMAGES_PER_PROMPT["all"]
    if text in ("first", "1"):
        return 1.0
    if not architecture_of(sizes.config).takes_several_images:
        raise UsageError(
            f"--images-per-sample {text}: {sizes.name} was made for one image in a prompt: choose a model for several "
            "images, or --images-per-sample first."
        )
    if text == "all" and is_source(images):
        samples = list[SourceImage]()
        for shard in open_source(str(images), shard_size=size, all_images=True):
            samples += shard.head(_SAMPLES_FOR_MEAN - len(samples)).read()
            if len(samples) >= _SAMPLES_FOR_MEAN:
                break
        return sum(min(len(sample.images), most) for sample in samples) / len(samples)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number <= most:
        raise UsageError(
            f"--images-per-sample {text}: give first, the mean number of images in a dialogue (1 to {most}), or, "
            "with a source in --images, all."
        )
    return number


def tokens_of_images(
    sizes: Sizes, widths_and_heights: Sequence[tuple[int, int]], images: float, limits: PixelLimits
) -> float | None:
    """The mean number of tokens that the images of a dialogue, `images` on average, take in a prompt together.

    `widths_and_heights` are those of typical images, and matter only if the number depends on them. None if that is not
    known. Raises UsageError if the model's processor fails.
    """
    model = sizes.model
    if model is None or not sizes.image_tokens_vary:
        return (known := image_tokens(sizes.config)) and known * images
    number = 1 if images == 1 else max(2, round(images))
    messages = conversation("?")
    alone = sizes.count_without_image(messages)

    @lru_cache
    def added(size: tuple[int, int]) -> int:
        return len(prompt_ids(model, messages, [Image.new("RGB", size)] * number, limits)) - alone

    try:
        counts = [added(size) for size in widths_and_heights]
    # Processors raise errors of any kind.
    except Exception as error:
        raise UsageError(
            f"the processor of {sizes.name} fails with an image of the usual size: {in_one_line(error)}. Put the "
            "model's own files of tokenizer and image processor into the folder."
        ) from error
    return sum(counts) / len(counts) / number * images


def _first_sizes(source: str, shard_size: int) -> list[tuple[int, int]]:
    """Widths and heights of the first images of a source that can be read."""
    found = list[tuple[int, int]]()
    for shard in open_source(source, shard_size=shard_size):
        for image in shard.head(_SAMPLES).read():
            try:
                found.append(decode_image(image.data).size)
            except UnreadableImage:
                continue
        if found:
            break
    return found
