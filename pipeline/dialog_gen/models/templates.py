"""Chat templates of the released generators, and how a conversation becomes a prompt."""

from collections.abc import Sequence
from typing import Any, cast

from transformers.utils.chat_template_utils import render_jinja_template

# As published with llava-hf/llava-1.5-7b-hf: the Vicuna form, `USER: <image>\n... ASSISTANT:`.
LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# What LLaVA-1.5's training data put behind questions with short answers (arXiv 2310.03744).
SHORT_ANSWER = "Answer the question using a single word or phrase."

# BLIP-2 was published without a template. This is the paper's prompt form (arXiv 2301.12597); others give empty or
# echoed answers. The image has no place in the text: its query tokens stand before it.
BLIP2_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + content['text'] }}"
    "{% else %}{{ ' Answer: ' + content['text'].rstrip('.') + '. ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' Answer:' }}{% endif %}"
)


def render_chat(chat_template: str, turns: Sequence[str]) -> str:
    """The prompt that asks for the next answer.

    `turns` alternates user, assistant, user, ... and ends with the user; the image belongs to the first turn. The
    template is rendered by transformers in its sandbox.
    """
    if len(turns) % 2 == 0:
        raise ValueError(f"a conversation to be answered ends with the user: an odd number of turns, got {len(turns)}")
    messages: list[dict[str, Any]] = []
    for i, text in enumerate(turns):
        image = [{"type": "image"}] if i == 0 else []
        content = [*image, {"type": "text", "text": text}]
        messages.append({"role": "assistant" if i % 2 else "user", "content": content})
    rendered, _ = cast("Any", render_jinja_template)(
        [messages], chat_template=chat_template, add_generation_prompt=True
    )
    return rendered[0]
