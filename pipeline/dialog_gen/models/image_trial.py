"""The trial of a model before its engine starts: a drawn image goes through its own processor, without its weights."""

import resource
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dialog_gen.core.errors import UsageError
from dialog_gen.core.visible import visible
from dialog_gen.models.architectures import known_to_transformers
from dialog_gen.models.json_files import read_object
from dialog_gen.models.numbers import check_numbers
from dialog_gen.models.processor import image_token_id, load_processor, prompt_inputs
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.weights import tensor_shapes
from dialog_gen.models.without_weights import WithoutWeights, in_one_line, without_weights
from dialog_gen.protocols.protocol import Protocol
from dialog_gen.sources.pixels import UNLIMITED, PixelLimits

_SIZE_PX = (80, 60)
_MEMORY_BYTES = 4 << 30
"""For the trial: the largest image tiles of released models take a tenth."""
_WRITABLE = 5
"""The place of the pages that RLIMIT_DATA counts in /proc/self/statm."""
_SETTINGS = ("processor_config.json", "preprocessor_config.json")
_OWN_CODE = "contains custom code"
"""In transformers' message about a class that only the model's repository has."""


def try_image(
    model: GeneratorModel, protocols: Sequence[Protocol], limits: PixelLimits = UNLIMITED, *, images: int = 1
) -> None:
    """Puts so many drawn images and the first prompt of each protocol through the processor of a model with a folder.

    Raises UsageError if a number in the model's files is out of range, its weights lack something, its processor fails,
    or a prompt has other image tokens than the model makes of its images; MissingExtraError if the architecture needs
    an extra. A model that transformers does not know is not tried.
    """
    check_numbers(model.files, model.config)
    if not known_to_transformers(str(model.config.get("model_type"))):
        return
    model.architecture.check_installed(model.name)
    stored = tensor_shapes(model.files)
    try:
        with _bounded_memory():
            built = without_weights(model, stored)
            for protocol in protocols:
                _try(model, built, protocol, limits, images)
    except MemoryError:
        problem = f"it takes more than {_MEMORY_BYTES >> 30} GiB"
        if limits.least is not None and limits.least > drawn_image().width * drawn_image().height:
            raise UsageError(
                f"--min-pixels {limits.least}: the processor of {model.name} fails with an image of so many pixels "
                f"({problem}): give fewer, or leave it out."
            ) from None
        raise _fails(model, "the processor", problem) from None


def drawn_image() -> Image.Image:
    """A small image with something in it."""
    image = Image.new("RGB", _SIZE_PX, (90, 160, 220))
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=(220, 40, 30))
    return image


def _try(model: GeneratorModel, built: WithoutWeights, protocol: Protocol, limits: PixelLimits, images: int) -> None:
    messages = protocol.rehearsal(["an answer"] * len(protocol.turns))[0]
    one = "the image" if images == 1 else f"{images} images"
    with _explained("the processor", model):
        inputs = prompt_inputs(model, messages, [drawn_image()] * images, limits, return_tensors="pt")
        processor = load_processor(model.files, limits if model.architecture.takes_max_pixels else None)
        ids = [int(token) for token in inputs["input_ids"][0]]
    if not protocol.sampling.stop and not _has_end(model, built, processor):
        raise UsageError(
            f"no file of {model.name} names the token that ends an answer, so that answers would have no end: write "
            "eos_token into tokenizer_config.json, or fetch it again."
        )
    token, own = image_token_id(built.config, processor), getattr(processor, "image_token_id", None)
    found = ids.count(token) if token is not None else 0
    if found == 0 or (type(own) is int and ids.count(own) > found):
        raise UsageError(
            f"the prompt of {model.name} with {one} lacks the model's image token: {_named(model, built, token)}, and "
            f"{_in_prompt(processor, ids)}. Fetch config.json and the files of tokenizer and processor again, of one "
            "revision."
        )
    with _explained("the image tower", model):
        expected = built.image_features(inputs)
    if found < images or (expected is not None and found != expected):
        wanted = f"there are {images} images" if expected is None else f"the model makes {expected} of {one}"
        raise UsageError(
            f"the processor of {model.name} writes {found} image tokens into the prompt, and {wanted}: the settings of "
            f"the processor ({' or '.join(_SETTINGS)}) do not belong to config.json. Fetch them again, of one revision."
        )


def _has_end(model: GeneratorModel, built: WithoutWeights, processor: Any) -> bool:
    """Whether the engines know a token that ends an answer: that of generation_config.json, or the tokenizer's."""
    generation = model.files / "generation_config.json"
    if generation.is_file():
        ends = [read_object(generation).get("eos_token_id")]
    else:  # made of the configuration
        ends = [getattr(part, "eos_token_id", None) for part in (built.config, built.config.get_text_config())]
    return any(end not in (None, []) for end in (*ends, getattr(processor.tokenizer, "eos_token_id", None)))


@contextmanager
def _explained(what: str, model: GeneratorModel) -> Generator[None]:
    """Makes errors of any kind, which processors and models raise, a UsageError."""
    try:
        yield
    except (MemoryError, UsageError):
        raise
    except Exception as error:
        if "allocate memory" in str(error):  # torch's
            raise MemoryError from None
        raise _fails(model, what, in_one_line(error)) from error


def _named(model: GeneratorModel, built: WithoutWeights, token: int | None) -> str:
    key = next((key for key in ("image_token_id", "image_token_index") if key in model.config), None)
    if key is None:
        return f"config.json names none (the default is {getattr(built.config, 'image_token_id', None)})"
    return f"config.json says {key} = {visible(str(model.config[key]))}"


def _in_prompt(processor: Any, ids: Sequence[int]) -> str:
    """What stands for the image instead, as far as that is known."""
    own = getattr(processor, "image_token_id", None)
    if type(own) is int and own in ids:
        return f"the processor writes the token {own} ({visible(str(getattr(processor, 'image_token', '')))})"
    most, count = Counter(ids).most_common(1)[0] if ids else (None, 0)
    return f"the most frequent of its {len(ids)} tokens is {most} ({count} times)"


def _fails(model: GeneratorModel, what: str, problem: str) -> UsageError:
    if _OWN_CODE in problem:
        return UsageError(
            f"{what} of {model.name} needs code from its repository, which is never run: choose a version in the "
            "format of transformers, whose name often ends in -hf."
        )
    missing = [name for name in _SETTINGS if not (Path(model.files) / name).is_file()]
    lacks = f" The folder has no {' and no '.join(missing)}." if missing else ""
    return UsageError(
        f"{what} of {model.name} fails with a small image: {problem.rstrip('.')}.{lacks} Put the model's own "
        "config.json and files of tokenizer and image processor into the folder, of one revision."
    )


@contextmanager
def _bounded_memory() -> Generator[None]:
    """Bounds what this process may take in addition: absurd sizes in a file end in MemoryError, not in a full machine.

    The bound is the process's own, so it can be lifted again. It counts what is written to, not the address space:
    CUDA's libraries, and what a GPU's driver reserves, have tens of gigabytes of that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[_WRITABLE])
    bound = pages * resource.getpagesize() + _MEMORY_BYTES
    if soft == resource.RLIM_INFINITY or bound < soft:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
