"""Chat templates of the released generators, and how a conversation becomes a prompt."""

from typing import Any, cast

from dialog_gen.protocols.protocol import Conversation

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


def render_chat(chat_template: str, messages: Conversation) -> str:
    """The prompt that asks for the answer to the last message; the image stands in the first.

    The template is rendered by transformers in its sandbox. Raises jinja2's TemplateError where the template fails.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    content = [[{"type": "text", "text": message.text}] for message in messages]
    content[0].insert(0, {"type": "image"})
    rendered, _ = cast("Any", render_jinja_template)(
        [[{"role": message.role, "content": parts} for message, parts in zip(messages, content, strict=True)]],
        chat_template=chat_template,
        add_generation_prompt=True,
    )
    return rendered[0]
