import pytest

from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE, render_chat
from dialog_gen.protocols.protocol import conversation

LLAVA_ONE = "USER: <image>\nWhat is it? ASSISTANT:"
BLIP2_ONE = "Question: What is it? Answer:"
# Text of a model must not be read as a template.
JINJA = "{{ 7 * 7 }} {% if %} <b>&amp;</b>"


@pytest.mark.parametrize(
    ("template", "turns", "prompt"),
    [
        (LLAVA_CHAT_TEMPLATE, ["What is it?"], LLAVA_ONE),
        (LLAVA_CHAT_TEMPLATE, ["What is it?", "A cat.", "Why?"], f"{LLAVA_ONE} A cat. USER: Why? ASSISTANT:"),
        (LLAVA_CHAT_TEMPLATE, [JINJA, JINJA, "?"], f"USER: <image>\n{JINJA} ASSISTANT: {JINJA} USER: ? ASSISTANT:"),
        (BLIP2_CHAT_TEMPLATE, ["What is it?"], BLIP2_ONE),
        (BLIP2_CHAT_TEMPLATE, ["What is it?", "a cat", "Why?"], f"{BLIP2_ONE} a cat. Question: Why? Answer:"),
        (BLIP2_CHAT_TEMPLATE, ["What is it?", "A cat.", "Why?"], f"{BLIP2_ONE} A cat. Question: Why? Answer:"),
        (BLIP2_CHAT_TEMPLATE, [JINJA], f"Question: {JINJA} Answer:"),
    ],
)
def test_prompts(template: str, turns: list[str], prompt: str) -> None:
    assert render_chat(template, conversation(*turns)) == prompt


@pytest.mark.parametrize("turns", [[], ["Q", "A"]])
def test_the_user_speaks_last(turns: list[str]) -> None:
    with pytest.raises(ValueError, match=f"an odd number of turns, got {len(turns)}"):
        conversation(*turns)
