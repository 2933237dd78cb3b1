"""The context of a run: how many tokens a protocol's prompts and answers can take with a model."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.models.architectures import known_to_transformers
from dialog_gen.models.dimensions import image_tokens
from dialog_gen.models.processor import prompt_ids
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.tokens import token_counter
from dialog_gen.models.transformers_files import read_configuration
from dialog_gen.protocols.protocol import Conversation, Protocol, conversation
from dialog_gen.sources.pixels import UNLIMITED, PixelLimits

_ANSWER = "\x1aanswer\x1a"
_LEAST = 2048
_STEP = 1024
_QUESTIONS = 8192
_CHARACTERS_PER_TOKEN = 2
"""Cautious: a word has more in all vocabularies of the registry."""
_UNKNOWN = 2048
"""The tokens of an image if nothing is known of it."""
_SIDE_PX = 2048
_SHAPES = ((1.0, 1.0), (2.0, 0.5), (0.5, 2.0), (1.16, 0.86))
"""Widths and heights of large images, as parts of a square's side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """The tokens of a run's requests at most, in each of them."""

    first: int
    """Of the longest single question, its image and its answer, without earlier turns."""
    whole: int
    """Of the longest request with all earlier answers, each as long as it may be."""
    image: int | None
    """Of the image of `first`, or of its two; None if that is not known, and then `first` has none."""
    several: bool = False
    """Whether a prompt can have several images: then `first` has two, and `whole` as many as it can have."""

    @property
    def rounded(self) -> int:
        """A context with room for every request."""
        return max(_LEAST, -(-self.whole // _STEP) * _STEP)


def needed(
    model: GeneratorModel, protocol: Protocol, max_tokens: int, limits: PixelLimits = UNLIMITED, images: int = 1
) -> Needed:
    """The tokens that the protocol can take with a model that has a folder.

    `max_tokens` are those of an answer, `images` is the maximum number of images in a prompt.
    """
    conversations = protocol.rehearsal([_ANSWER] * len(protocol.turns))
    if protocol.statement is not None:
        # The answer to a list of questions has questions, too.
        question = max((turn.user for turn in protocol.turns if turn.parse == "answer"), key=len, default="")
        conversations.append(protocol.statement_conversation(protocol.statement_text(question, _ANSWER)))
    image = most_image_tokens(model, limits)
    least, most = (0, _UNKNOWN * images) if image is None else (image, image)
    if images > 1 and (two := most_image_tokens(model, limits, 2)) is not None:
        # A processor may make fewer tokens of each of several images than of a single one.
        image = least = max(least, two)
        most = max(least, -(-two * images // 2))
    texts = [model.render(messages, images) for messages in conversations]
    alone = [model.render(_without_earlier(messages), min(images, 2)) for messages in conversations]
    count = token_counter(model.files) or _by_characters
    answers = [text.count(_ANSWER) * max_tokens for text in texts]
    whole = [count(text.replace(_ANSWER, "")) + more for text, more in zip(texts, answers, strict=True)]
    first = max(count(text.replace(_ANSWER, "")) for text in alone)
    return Needed(
        first=first + least + max_tokens, whole=max(whole) + most + max_tokens, image=image, several=images > 1
    )


def _without_earlier(messages: Conversation) -> Conversation:
    return (*(message for message in messages[:-1] if message.example or message.role == "system"), messages[-1])


def own_context(model: GeneratorModel) -> int | None:
    """The model's own maximum of tokens: that of its entry, or of its config.json; None if neither says it."""
    text: Any = model.config.get("text_config") or model.config
    found = model.max_model_len or text.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def check_given(model: GeneratorModel, given: int) -> None:
    """Raises UsageError if a context that the user gives (`--max-model-len`) is longer than the model's own."""
    if model.is_encoder_decoder or not known_to_transformers(str(model.config.get("model_type"))):
        return
    # config.json may leave out what transformers has as default.
    text: Any = read_configuration(model.files, model.config, ()).get_text_config(decoder=True)
    sizes = (model.max_model_len, getattr(text, "max_position_embeddings", None))
    longest = max((size for size in sizes if isinstance(size, int)), default=None)
    if longest is not None and given > longest * _stretched(text.to_dict()):
        raise UsageError(
            f"--max-model-len {given} is more than {model.name}'s own context of {longest} tokens: give at most "
            f"{longest}, or leave it out."
        )


def _stretched(text: dict[str, Any]) -> float:
    """By how much a configuration's scaling of positions lengthens the context at most."""
    scaling: Any = [text.get("rope_scaling"), text.get("rope_parameters")]
    # There may be one for each kind of layer.
    scaling += [inner for outer in scaling if isinstance(outer, dict) for inner in outer.values()]
    factors = [each.get("factor") for each in scaling if isinstance(each, dict)]
    return max([1.0, *(factor for factor in factors if isinstance(factor, int | float))])


def fitting_context(model: GeneratorModel, wanted: Needed) -> int | None:
    """The context for requests of these sizes: not above the model's own; None if the model's is not known to end."""
    if model.is_encoder_decoder:
        return None
    own = own_context(model)
    return min(own, wanted.rounded) if own is not None else wanted.rounded


def context_for_questions(model: GeneratorModel, images: int = 1) -> int:
    """A context with room for any single question about so many images at most: not above the model's own."""
    wanted = _QUESTIONS if images == 1 else _QUESTIONS * images // 2
    return min(own_context(model) or wanted, wanted)


def check_context(model: GeneratorModel, wanted: Needed, context: int | None) -> None:
    """Raises UsageError if a context has no room for a question, its image and its answer."""
    if context is None or model.is_encoder_decoder or model.architecture.ends_at_context or wanted.first <= context:
        return
    own = own_context(model)
    raised = f"give a larger --max-model-len ({model.name} has {own}), " if own and own > context else ""
    images = "two images" if wanted.several else "its image"
    raise UsageError(
        f"a question, {images} ({wanted.image or 'unknown'} tokens) and its answer take up to {wanted.first} tokens, "
        f"more than {model.name}'s context of {context}: {raised}lower --max-tokens, or choose a protocol of shorter "
        "questions."
    )


def most_image_tokens(model: GeneratorModel, limits: PixelLimits = UNLIMITED, images: int = 1) -> int | None:
    """The tokens that so many large images can take in a prompt, with those around them; None if that is not known.

    An image is processed unless the architecture has a fixed number; that takes seconds.
    """
    known = image_tokens(model.config)
    known = known and known * images
    if model.architecture.fixed_image_tokens and known is not None:
        return known
    try:
        asked = ([Image.new("RGB", size)] * images for size in _sizes())
        return max(len(prompt_ids(model, conversation("?"), each, limits)) for each in asked)
    # Processors raise errors of any kind; the engine, which needs one, will say what is wrong.
    except Exception:  # noqa: BLE001
        return known


def _sizes() -> list[tuple[int, int]]:
    return [(round(_SIDE_PX * width), round(_SIDE_PX * height)) for width, height in _SHAPES]


def _by_characters(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
