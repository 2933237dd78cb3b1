"""What a protocol puts before its first turn: a system prompt and examples."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_server import ChatServer, image_of
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from helpers.model_folders import BLIP2, LLAVA, model_folder
from helpers.runs import make_generator
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import Request
from dialog_gen.models.checks import check_prompts
from dialog_gen.models.context import needed
from dialog_gen.models.registry import GeneratorModel, resolve_model
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE
from dialog_gen.protocols.protocol import Protocol, load_protocol

SYSTEM = {"system": "Be short."}
EXAMPLES = {"examples": [{"user": "Who?", "assistant": "Me."}, {"user": "When?", "assistant": "Now."}]}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ c['text'] or '<image>' }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def protocol(*users: str, **others: Any) -> Protocol:
    return Protocol.model_validate({"name": "p", "turns": [{"user": user} for user in users or ("What?",)], **others})


def prompts(protocol: Protocol, template: str) -> list[str]:
    engine = ScriptedEngine(say=lambda request: "A dog.", chat_template=template)
    generator = make_generator(protocol, chat_template=template)
    dialogue = asyncio.run(generator.generate(engine, (Image.new("RGB", (5, 3)),), "ab" * 32))
    assert dialogue.reason is None
    assert [pair.user for pair in dialogue.pairs] == [turn.user for turn in protocol.turns]
    return [asked.prompt for asked in engine.asked]


def test_the_system_prompt_and_the_examples_come_before_every_request() -> None:
    both = protocol("What?", "Why?", **SYSTEM, **EXAMPLES)
    before = "Be short. USER: Who? ASSISTANT: Me. USER: When? ASSISTANT: Now. USER: <image>\nWhat? ASSISTANT:"
    assert prompts(both, LLAVA_CHAT_TEMPLATE) == [before, f"{before} A dog. USER: Why? ASSISTANT:"]
    alone = protocol("What?", "Why?", context="none", **SYSTEM, **EXAMPLES)
    assert prompts(alone, LLAVA_CHAT_TEMPLATE) == [before, before.replace("What?", "Why?")]
    assert prompts(protocol(**SYSTEM), CHATML) == [
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant"
    ]


def test_they_are_part_of_the_prompts_hash() -> None:
    every = [protocol(), protocol(**SYSTEM), protocol(**EXAMPLES), protocol(**SYSTEM, **EXAMPLES)]
    assert len({each.sha256 for each in every}) == 4
    assert protocol(system=None, examples=[], statement=None).sha256 == protocol().sha256


def with_template(folder: Path, template: str, config: Any = LLAVA) -> GeneratorModel:
    return resolve_model(str(model_folder(folder, config, chat_template__jinja=template)))


FOR_TEXTS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{{ c['text'] or '<image>' }}{% endfor %}{% endif %}{% endfor %}"
)
DROPS = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{% for c in m['content'] %}{{ c['text'] or '<image>' }}"
    "{% endfor %}{% endif %}{% endfor %}"
)
NO_SYSTEM = {
    "taken for an answer": (BLIP2_CHAT_TEMPLATE, "the prompt would be ' Answer: [system]"),
    "dropped": (DROPS, "the prompt would be '<image>[user]'"),
    "refused": (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
        "has no role for the protocol's system prompt: leave",
    ),
    "written as data": (FOR_TEXTS, "'type': 'text'"),
}


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_a_template_without_a_system_role_is_refused(tmp_path: Path, name: str) -> None:
    template, said = NO_SYSTEM[name]
    model = with_template(tmp_path / "mine", template, BLIP2 if template == BLIP2_CHAT_TEMPLATE else LLAVA)
    check_prompts(model, protocol())
    with pytest.raises(UsageError) as caught:
        check_prompts(model, protocol(**SYSTEM))
    assert "chat template of mine has no role for the protocol's system prompt" in str(caught.value)
    assert said in str(caught.value).replace('"', "'").replace("\\'", "'")


@pytest.mark.parametrize("template", [LLAVA_CHAT_TEMPLATE, CHATML])
def test_templates_with_a_system_role(tmp_path: Path, template: str) -> None:
    check_prompts(with_template(tmp_path / "mine", template), protocol("What?", "Why?", **SYSTEM, **EXAMPLES))


def test_the_image_belongs_to_the_real_question(tmp_path: Path) -> None:
    first = "{% for m in messages %}{% if loop.first %}<image>{% endif %}{{ m['content'][-1]['text'] }}\n{% endfor %}"
    collected = (
        "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' }}{% endfor %}"
        "{% endfor %}{% for m in messages %}{{ m['content'][-1]['text'] }}\n{% endfor %}"
    )
    model = with_template(tmp_path / "collected", collected)
    check_prompts(model, protocol())
    with pytest.raises(UsageError, match=r"puts the image before the protocol's examples.*'<image>\[user\]"):
        check_prompts(model, protocol(**EXAMPLES))
    # A template that writes the placeholder by itself always puts it there.
    with pytest.raises(UsageError, match=r"examples"):
        check_prompts(with_template(tmp_path / "first", first), protocol(**EXAMPLES))
    alone = "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}" + CHATML
    with pytest.raises(UsageError, match="takes no dialogue before the question: leave `examples` out"):
        check_prompts(with_template(tmp_path / "alone", alone), protocol(**EXAMPLES))


def test_the_context_has_room_for_them(tmp_path: Path) -> None:
    # A tokenizer whose tokens are not counted: half as many as characters are assumed.
    model = resolve_model(str(model_folder(tmp_path / "mine", tokenizer__json=None, tokenizer__model="x")))
    long = {"system": "word " * 500, "examples": [{"user": "word " * 500, "assistant": "word"}]}
    plain, longer = (needed(model, protocol("What?", "Why?", **more), 16) for more in ({}, long))
    assert longer.first - plain.first == longer.whole - plain.whole > 2000


def test_a_server_gets_them_as_messages(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('system = "Be short."\n[[examples]]\nuser = "Who?"\nassistant = "Me."\n[[turns]]\nuser = "What?"\n')
    with ChatServer(say=lambda body: "A dog.") as server:
        dialog_gen.generate(
            model="talker", images=write_images(tmp_path / "in", 1), out=tmp_path / "out", protocol=str(file),
            engine="openai", endpoint=server.url,
        )  # fmt: skip
        (body,) = server.asked
    assert [(message["role"], message["content"]) for message in body["messages"][:3]] == [
        ("system", "Be short."),
        ("user", [{"type": "text", "text": "Who?"}]),
        ("assistant", "Me."),
    ]
    assert [part["type"] for part in body["messages"][3]["content"]] == ["image_url", "text"]
    assert image_of({"messages": body["messages"][3:]})


WRONG = {
    "[[examples]]\nuser = 'a'": "examples.1.assistant: Field required",
    "[[examples]]\nuser = '<image>'\nassistant = 'b'": "examples.1.user: remove <image>",
    "[[examples]]\nuser = 'a'\nassistant = 'b'\nparse = 'answer'": "examples.1.parse: unknown key",
    "system = ''": "system: String should have at least 1 character",
    "system = '<image>'": "system: remove <image>",
}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_are_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(f"{text}\n[[turns]]\nuser = 'What?'\n")
    with pytest.raises(UsageError, match=WRONG[text]):
        load_protocol(str(tmp_path / "mine.toml"))


def test_a_request_has_one_message_with_the_image() -> None:
    seen: list[Request] = []

    def say(request: Request) -> str:
        seen.append(request)
        return "A dog."

    engine = ScriptedEngine(say=say)
    generator = make_generator(protocol("What?", "Why?", **SYSTEM, **EXAMPLES))
    asyncio.run(generator.generate(engine, (Image.new("RGB", (5, 3)),), "ab" * 32))
    assert [[message.example for message in request.messages].count(False) for request in seen] == [2, 4]
