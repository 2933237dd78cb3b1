"""Checks of a model before an engine is started: does its prompt hold what is asked, and does it take the images?"""

from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.core.visible import visible
from dialog_gen.models.preface import check_preface, shown_prompt
from dialog_gen.models.processor import prompt_ids
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.templates import render_chat
from dialog_gen.models.tokens import check_named_tokens
from dialog_gen.protocols.protocol import Conversation, Protocol, conversation, image_place

_SIDE_PX = 64
_BEGINNING = 6
_LEAST_CHARACTERS = 1000
# Whatever a template may change: case, spaces, line breaks, Markdown, signs of HTML and JSON, letters beyond ASCII.
_LINES = (
    'zqv{k}wkx: "Is it RED & <round>, or isn\'t it?"  Two spaces,\ta tab; a \\ and {{{{ braces }}}}.\n',
    "\n  - *Größe*: 1 < 2 > 0, 50 %, à côté; ÉTÉ, что это? 这是什么。これは何ですか。 क्या है 🐶👩\u200d🔬 [{number}]\n",
)


def check_prompts(model: GeneratorModel, protocol: Protocol | None = None, *, images: int = 1) -> None:
    """Raises UsageError unless each turn's prompt holds every text of the conversation and every image once.

    Also if the tokenizer is damaged, or does not know the image's token, or if a text of the protocol has a special
    token, which no prompt would hold. Without a protocol, one question is checked. The prompts of a model at an
    endpoint are not known.
    """
    if model.chat_template is None:
        return
    if model.folder is not None:
        check_named_tokens(model.folder, model.config)
    if protocol is not None:
        _check_texts(model, protocol)
    for messages, number in _conversations(protocol):
        marked = tuple(replace(message, text=_mark(k, len(message.text))) for k, message in enumerate(messages))
        check_preface(model, marked)
        _check_prompt(model, marked, number, images)


def _check_texts(model: GeneratorModel, protocol: Protocol) -> None:
    for place, text in protocol.texts:
        if found := model.tokens.found_in(text):
            raise UsageError(
                f"protocol {protocol.name}: {place} has {visible(found)}, a special token of {model.name}, which is "
                "removed from every text of a prompt: remove it, since the chat template writes such tokens itself."
            )


def _mark(k: int, characters: int) -> str:
    """A text that occurs nowhere else, at least as long as real ones; the same after a template has stripped it."""
    lines, length = list[str](), 0
    while length < max(characters, _LEAST_CHARACTERS):
        lines.append(_LINES[len(lines) % 2].format(k=k, number=len(lines)))
        length += len(lines[-1])
    return f"{''.join(lines)}wkx{k}zqv"


def _conversations(protocol: Protocol | None) -> Iterator[tuple[Conversation, int]]:
    """A conversation of each form of requests, and the number of its question; of texts, only the lengths matter."""
    if protocol is None:
        yield conversation(""), 1
        return
    turns = len(protocol.turns) if protocol.context == "dialogue" else 1
    for number in range(1, turns + 1):
        yield protocol.conversation([""] * number, [""] * (number - 1)), number
    if protocol.statement is not None:
        yield protocol.statement_conversation(""), 1


def check_several_images(model: GeneratorModel) -> None:
    """Raises UsageError if a model with a folder takes only one image in a prompt."""
    remedy = "Choose a model for several images, or --images-per-sample first."
    if not model.architecture.takes_several_images:
        raise UsageError(
            f"--images-per-sample all: {model.name} ({model.config.get('model_type')}) was made for one image in a "
            f"prompt. {remedy}"
        )
    image = Image.new("RGB", (_SIDE_PX, _SIDE_PX))
    try:
        # Of a single image, some processors make more tokens than of two.
        two, three = (len(prompt_ids(model, conversation("?"), [image] * number)) for number in (2, 3))
    # Processors raise errors of any kind.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"--images-per-sample all: the processor of {model.name} fails with several images: {problem}. {remedy}"
        ) from error
    if three <= two:
        raise UsageError(
            f"--images-per-sample all: the processor of {model.name} makes {three} tokens of a prompt with three "
            f"images, and {two} with two. {remedy}"
        )


def _check_prompt(model: GeneratorModel, messages: Conversation, number: int, images: int) -> None:
    from jinja2 import TemplateError

    template, named = model.chat_template or "", model.tokens.named
    try:
        prompt = render_chat(template, messages, named, images=images)
    # Templates for text only try to add strings to the list of contents.
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise UsageError(
            f"the chat template of {model.name} fails at question {number}: {error}. Is it made for images, and for "
            "a dialogue of user and assistant?"
        ) from None
    for place, message in enumerate(messages):
        if (count := prompt.count(message.text)) != 1:
            raise UsageError(
                f"{_problem(model, number)} {_held(prompt, messages, place, count)}{_shown(prompt, messages)}"
            )
    if not model.architecture.writes_placeholder:
        return
    try:
        without = render_chat(template, messages, named, images=0)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
        without = ""
    counts = {token: prompt.count(token) - without.count(token) for token in model.tokens.texts}
    added = {token: count for token, count in counts.items() if count > 0}
    written = prompt.count(model.placeholder)
    if not added and written > images:  # the template writes it whether there is an image or not
        added = {model.placeholder: written}
    if not added and written < images:
        what = "the image" if images == 1 else "each image"
        raise UsageError(f"{_problem(model, number)} holds no placeholder for {what}{_shown(prompt, messages)}")
    # Of the tokens around images, some stand once for all of them.
    wrong = [token for token, count in added.items() if count > images]
    if added and not wrong and max(added.values()) < images:
        wrong = [*added]
    if wrong:
        shown = "one image" if images == 1 else f"{images} images"
        raise UsageError(
            f"{_problem(model, number)} holds {visible(wrong[0])} {_times(added[wrong[0]])} for {shown}"
            f"{_shown(prompt, messages)}"
        )


def _what(messages: Conversation, place: int) -> str:
    if place == len(messages) - 1:
        return "question"
    if messages[place].example:
        return "examples"
    return "first question" if place == image_place(messages) else "earlier turns"


def _problem(model: GeneratorModel, number: int) -> str:
    return f"the chat template of {model.name} is not made for such messages: the prompt of question {number}"


def _times(count: int) -> str:
    return "not at all" if count == 0 else "once" if count == 1 else f"{count} times"


def _held(prompt: str, messages: Conversation, place: int, count: int) -> str:
    what, begins = _what(messages, place), messages[place].text[:_BEGINNING].lower()
    if count == 0 and begins in prompt.lower():
        return f"cuts or changes the {what}"
    return f"holds the {what} {_times(count)}"


def _shown(prompt: str, messages: Conversation) -> str:
    would_be = shown_prompt(prompt, messages)
    return f", where it belongs once. It would be {would_be}. Put the model's own template into its folder."
