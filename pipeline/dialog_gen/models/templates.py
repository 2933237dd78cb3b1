"""Chat templates of the released generators, and the rendering of conversations."""

from typing import Any, cast

from dialog_gen.protocols.protocol import Conversation

# As published with llava-hf/llava-1.5-7b-hf: the Vicuna form, `USER: <image>\n... ASSISTANT:`.
LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# LLaVA-1.5's training data has this sentence after questions with short answers (arXiv 2310.03744).
SHORT_ANSWER = "Answer the question using a single word or phrase."

# BLIP-2 was published without a template. This is the prompt of the paper (arXiv 2301.12597); with other prompts the
# model gives empty answers or repeats the question. The text has no placeholder for the image: its query tokens come
# before the text.
BLIP2_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + content['text'] }}"
    "{% else %}{{ ' Answer: ' + content['text'].rstrip('.') + '. ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' Answer:' }}{% endif %}"
)


def render_chat(chat_template: str, messages: Conversation) -> str:
    """Renders a conversation as the prompt for the next answer; the image is part of the first message.

    transformers renders the template in its sandbox. Raises jinja2's TemplateError if the template fails.
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
