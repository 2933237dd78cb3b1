"""A check of what a protocol puts before its first turn: does the model's chat template take it?"""

from dataclasses import replace
from itertools import takewhile
from typing import Literal

from dialog_gen.core.errors import UsageError
from dialog_gen.core.visible import visible
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.templates import render_chat
from dialog_gen.protocols.protocol import Conversation

_SHOWN = 600


def check_preface(model: GeneratorModel, messages: Conversation) -> None:
    """Raises UsageError unless the template has a role for the system prompt, and the image comes after the examples.

    `messages` have texts that occur nowhere else. Of a template that fails for other reasons, nothing is said here.
    """
    without_examples = tuple(message for message in messages if not message.example)
    if _rendered(model, tuple(message for message in without_examples if message.role != "system")) is None:
        return
    if messages[0].role == "system":
        _check_system(model, without_examples)
    if messages != without_examples:
        _check_examples(model, messages)


def shown_prompt(prompt: str, messages: Conversation) -> str:
    """The start of a prompt, quoted, with the role of a message in place of its text, which may be long."""
    for message in messages:
        prompt = prompt.replace(message.text, f"[{message.role}]")
    return repr(visible(prompt[:_SHOWN]))


def _check_system(model: GeneratorModel, messages: Conversation) -> None:
    text = messages[0].text
    prompt = _rendered(model, messages) or ""
    others = [_as(role, model, messages) for role in ("user", "assistant")]
    # A template that takes texts only writes the parts of a message as Python does.
    if prompt.count(text) != 1 or prompt in others or f"'text': {text!r}" in prompt:
        said = f" (the prompt would be {shown_prompt(prompt, messages)})" if prompt else ""
        raise UsageError(
            f"the chat template of {model.name} has no role for the protocol's system prompt{said}: leave `system` out "
            "of the protocol, and say the same in its turns."
        )


def _as(role: Literal["user", "assistant"], model: GeneratorModel, messages: Conversation) -> str | None:
    """The prompt if the system prompt had another role."""
    return _rendered(model, (replace(messages[0], role=role, example=True), *messages[1:]))


def _check_examples(model: GeneratorModel, messages: Conversation) -> None:
    examples = [message for message in messages if message.example]
    prompt = _rendered(model, messages)
    if prompt is None:
        raise UsageError(
            f"the chat template of {model.name} takes no dialogue before the question: leave `examples` out of the "
            "protocol."
        )
    if model.architecture.writes_placeholder and _image_start(model, messages, prompt) < prompt.find(examples[-1].text):
        raise UsageError(
            f"the chat template of {model.name} puts the image before the protocol's examples, as if they were about "
            f"it (the prompt would be {shown_prompt(prompt, messages)}): leave `examples` out of the protocol."
        )


def _image_start(model: GeneratorModel, messages: Conversation, prompt: str) -> int:
    """Where the image begins in the prompt; its length if that cannot be seen, which is an error elsewhere."""
    without = _rendered(model, messages, images=0)
    if without is None or without == prompt:  # the template writes a placeholder by itself
        return prompt.find(model.placeholder) % (len(prompt) + 1)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, without, strict=False)))


def _rendered(model: GeneratorModel, messages: Conversation, *, images: int = 1) -> str | None:
    """The prompt; None if the template does not allow such messages."""
    from jinja2 import TemplateError

    try:
        return render_chat(model.chat_template or "", messages, model.tokens.named, images=images)
    # Templates for text only try to add strings to the list of contents.
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
        return None
