"""Chat templates of the released generators, and the rendering of conversations."""

from functools import lru_cache
from typing import Any, cast

from dialog_gen.protocols.protocol import Conversation, image_place

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


# PaliGemma was published without a template. A prompt is one line: "answer en what is it?" (arXiv 2412.03555).
# Its processors put the image, the start token and the final line break in their places.
PALIGEMMA_CHAT_TEMPLATE = (
    "{% if messages | length > 1 %}{{ raise_exception('the model takes one question: choose a protocol with "
    'context = "none"\') }}{% endif %}'
    "{% for content in messages[0]['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
    "{% endfor %}"
)


OWN_TEMPLATES = frozenset({LLAVA_CHAT_TEMPLATE, BLIP2_CHAT_TEMPLATE, PALIGEMMA_CHAT_TEMPLATE})


# Cached: the first turn is the same for every image, and a gate asks each question several times.
@lru_cache(maxsize=1024)
def render_chat(
    chat_template: str, messages: Conversation, variables: tuple[tuple[str, str], ...] = (), *, images: int = 1
) -> str:
    """Renders a conversation as the prompt for the next answer; the images are part of the message at `image_place`.

    `variables` are names and texts that the template may use, such as `bos_token`. transformers renders the template in
    its sandbox. Raises jinja2's TemplateError if the template fails, and TypeError if it is made for other messages.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = cast("Any", render_jinja_template)(
        [contents(messages, images=images)],
        chat_template=chat_template,
        add_generation_prompt=True,
        **dict(variables),
    )
    return rendered[0]


def contents(messages: Conversation, *, images: int = 1) -> list[dict[str, Any]]:
    """A conversation in the form that templates read; the images are part of the message at `image_place`."""
    content = [[{"type": "text", "text": message.text}] for message in messages]
    content[image_place(messages)][:0] = [{"type": "image"}] * images
    return [{"role": message.role, "content": parts} for message, parts in zip(messages, content, strict=True)]
