"""Both engines on small random models of released architectures: the prompts are those of the models' processors."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import KINDS, edit_json
from helpers.asked import (
    IMAGES,
    ONE,
    about_several,
    asked_by_transformers,
    asked_by_vllm,
    pairs_of,
    request,
    run_arguments,
    started,
    true_ids,
)
from helpers.cli import Cli
from helpers.inputs import png, write_tar
from helpers.rows import rows_of
from PIL import Image
from transformers import AutoProcessor

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import Answer, RefusedRequestError
from dialog_gen.generation.model_report import model_report
from dialog_gen.models.checks import check_prompts, check_several_images
from dialog_gen.models.context import needed
from dialog_gen.models.processor import prompt_ids
from dialog_gen.models.registry import resolve_model
from dialog_gen.models.tokens import special_tokens
from dialog_gen.protocols.protocol import Message, Protocol, Sampling, conversation, load_protocol

pytestmark = pytest.mark.usefixtures("forked_vllm")
TAKE_SEVERAL = [name for name in KINDS if not name.startswith(("llava-next", "paligemma"))]


@pytest.mark.parametrize("name", KINDS)
def test_the_special_tokens_are_the_tokenizers(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(name)
    processor: Any = AutoProcessor.from_pretrained(folder)
    found = special_tokens(folder)
    assert dict(found.named) == processor.tokenizer.special_tokens_map
    assert set(processor.tokenizer.all_special_tokens) <= set(found.texts)


@pytest.mark.parametrize("name", KINDS)
def test_transformers_asks_what_the_processor_would(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    pairs = pairs_of(name)
    asked, answers = asked_by_transformers(folder, pairs, tmp_path / "log")
    expected = [true_ids(folder, *pair) for pair in pairs]
    assert asked == expected
    assert [answer.prompt_tokens for answer in answers] == [len(ids) for ids in expected]
    assert all(answer.saw_image for answer in answers)


@pytest.mark.parametrize("name", KINDS)
def test_vllm_asks_what_the_processor_would(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(name)
    pairs = pairs_of(name)
    assert asked_by_vllm(folder, pairs) == [true_ids(folder, *pair) for pair in pairs]


@pytest.mark.parametrize("name", TAKE_SEVERAL)
def test_transformers_asks_about_several_images_what_the_processor_would(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """In one batch with requests about other numbers of images."""
    folder, pairs = folder_of(name), about_several()
    model = resolve_model(str(folder))
    check_several_images(model)
    check_prompts(model, load_protocol("blip2-two-turn"), images=3)
    asked, answers = asked_by_transformers(folder, pairs, tmp_path / "log")
    assert asked == [true_ids(folder, *pair) for pair in pairs]
    assert all(answer.saw_image for answer in answers)


@pytest.mark.parametrize("name", TAKE_SEVERAL)
def test_vllm_asks_about_several_images_what_the_processor_would(name: str, folder_of: Callable[[str], Path]) -> None:
    folder, pairs = folder_of(name), about_several()
    if not resolve_model(str(folder)).architecture.vllm_takes_several_images:
        pytest.skip("the run refuses it")
    assert asked_by_vllm(folder, pairs) == [true_ids(folder, *pair) for pair in pairs]


def assert_plain_dialogues(rows: list[dict[str, Any]], folder: Path) -> None:
    """Of two turns, without a token of the model's own."""
    assert [len(row["texts"]) for row in rows] == [2, 2]
    own = resolve_model(str(folder)).tokens.texts
    assert not any(token in pair[side] for row in rows for pair in row["texts"] for side in pair for token in own)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *(("transformers", name) for name in ("qwen2.5-vl", "gemma3", "llava-next-mistral")),
        # It takes no several images; those that do run with them below.
        ("vllm", "llava-next-mistral"),
    ],
)
def test_a_run_makes_dialogues_of_two_turns(
    name: str, engine: str, folder_of: Callable[[str], Path], dialog_gen_cli: Cli, tmp_path: Path
) -> None:
    folder = folder_of(name)
    assert dialog_gen_cli(*run_arguments(folder, name, engine, tmp_path)).code == 0
    assert_plain_dialogues(rows_of(tmp_path / f"out-{engine}"), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "idefics3"])
def test_vllm_makes_dialogues_about_several_images(
    name: str, folder_of: Callable[[str], Path], dialog_gen_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    samples = tmp_path / "samples"
    samples.mkdir()
    numbers = [("a", 0), ("a", 1), ("a", 2), ("b", 3)]
    members = {f"{key}.{number}.png": png(number, (56, 48)) for key, number in numbers}
    write_tar(samples / "t.tar", members | {"a.cls": b"", "b.cls": b""})
    arguments = run_arguments(folder_of(name), name, "vllm", tmp_path)
    assert dialog_gen_cli(*arguments, "--images", str(samples), "--images-per-sample", "all").code == 0
    rows = rows_of(tmp_path / "out-vllm")
    assert [len(row["images"]) for row in rows] == [3, 1]
    assert_plain_dialogues(rows, folder_of(name))


@pytest.mark.parametrize(("name", "grows"), [("qwen2.5-vl", True), ("gemma3", True), ("llava-onevision", False)])
def test_the_context_has_room_for_the_images_of_a_prompt(
    name: str, grows: bool, folder_of: Callable[[str], Path]
) -> None:
    """OneVision makes fewer tokens of two images than of a single one, which it cuts into tiles."""
    model, protocol = resolve_model(str(folder_of(name))), load_protocol("blip2-two-turn")
    large = Image.new("RGB", (2048, 2048))
    one, two, ten = (len(true_ids(model.files, conversation("?"), *[large] * number)) for number in (1, 2, 10))
    assert (two > one) == grows
    alone, several = needed(model, protocol, 64), needed(model, protocol, 64, images=10)
    assert alone.first >= one
    assert several.first >= max(one, two)
    assert several.whole >= max(one, ten) + 2 * 64  # the answers of two turns


def answers_of(folder: Path, log: Path, sampling: Sampling) -> list[str]:
    engine = started("transformers", resolve_model(str(folder)), log)
    requests = [replace(request(ONE, image), sampling=sampling) for image in IMAGES]

    async def ask() -> list[Answer]:
        return await asyncio.gather(*(engine.answer(r) for r in requests))

    return [answer.text for answer in asyncio.run(ask())]


def test_the_protocol_decides_the_decoding_and_not_the_model(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    greedy = Sampling(temperature=0, max_tokens=24)
    plain = shutil.copytree(folder_of("qwen2.5-vl"), tmp_path / "plain")
    bent = shutil.copytree(plain, tmp_path / "bent")
    edit_json(
        bent / "generation_config.json",
        do_sample=True,
        temperature=1.9,
        repetition_penalty=1.9,
        no_repeat_ngram_size=1,
        num_beams=3,
        num_return_sequences=2,
        max_length=30,
    )
    expected = answers_of(plain, tmp_path / "log", greedy)
    assert answers_of(bent, tmp_path / "log", greedy) == expected
    penalty = greedy.model_copy(update={"repetition_penalty": 1.9})
    assert answers_of(bent, tmp_path / "log", penalty) == answers_of(plain, tmp_path / "log", penalty) != expected


def test_an_answer_ends_before_a_stop_text_and_top_k_limits_the_choice(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    greedy = Sampling(temperature=0, max_tokens=24)
    folder = folder_of("llava-next-vicuna")
    for text in answers_of(folder, tmp_path / "log", greedy):
        stop = text[5:7]
        stopped = greedy.model_copy(update={"stop": (stop,)})
        assert text[: text.index(stop)] in answers_of(folder, tmp_path / "log", stopped)
    one = Sampling(temperature=2, top_k=1, max_tokens=24)
    assert answers_of(folder, tmp_path / "log", one) == answers_of(folder, tmp_path / "log", greedy)


@pytest.mark.parametrize("said_by", ["option", "config.json"])
def test_transformers_stays_within_the_context(said_by: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("llava-next-vicuna"), tmp_path / "mine")
    prompt, room = len(true_ids(folder, ONE, IMAGES[0])), 5

    def answered(context: int) -> Answer:
        options = {"max_model_len": context} if said_by == "option" else {}
        if said_by == "config.json":
            text = json.loads((folder / "config.json").read_text())["text_config"]
            edit_json(folder / "config.json", text_config=text | {"max_position_embeddings": context})
        engine = started("transformers", resolve_model(str(folder)), tmp_path / "log", **options)
        sampling = Sampling(temperature=0, max_tokens=room + 20)
        return asyncio.run(engine.answer(replace(request(ONE, IMAGES[0]), sampling=sampling)))

    assert answered(prompt + room + 100).output_tokens > room
    cut = answered(prompt + room)
    assert (cut.output_tokens, cut.finish_reason, cut.prompt_tokens) == (room, "length", prompt)
    with pytest.raises(RefusedRequestError, match=f"a prompt of {prompt} tokens"):
        answered(prompt)


@pytest.mark.parametrize("name", KINDS)
def test_the_report_of_a_model_shows_what_would_be_asked(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(name)
    report = model_report(str(folder))
    protocol = load_protocol(resolve_model(str(folder)).default_protocol)
    assert len(report.prompts) == len(protocol.turns)
    assert all(turn.user in prompt for turn, prompt in zip(protocol.turns, report.prompts, strict=True))
    if placeholder := KINDS[name].placeholder:
        assert all(prompt.count(placeholder) == 1 for prompt in report.prompts)
    image = Image.new("RGB", (640, 480))
    assert report.tokens["640 x 480"] == len(true_ids(folder, conversation(protocol.turns[0].user), image))
    assert report.context == 2048
    assert str(report).startswith(f"{folder.name} (")


SYSTEM = Message("system", "Be short.")
EXAMPLE = (Message("user", "Q?", example=True), Message("assistant", "A.", example=True))
NO_SYSTEM = {"llava-next-mistral", "paligemma2", "pixtral"}
NO_EXAMPLES = {"paligemma2"}


@pytest.mark.parametrize("name", KINDS)
def test_system_prompts_and_examples_are_where_the_processor_has_them_or_refused(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    model = resolve_model(str(folder_of(name)))
    for preface, refused, said in (
        ((SYSTEM,), NO_SYSTEM, "has no role for the protocol's system prompt"),
        (EXAMPLE, NO_EXAMPLES, "leave `examples` out"),
        ((SYSTEM, *EXAMPLE), NO_SYSTEM | NO_EXAMPLES, "system|examples"),
    ):
        protocol = Protocol.model_validate(
            {
                "name": "p",
                "turns": [{"user": "What?"}, {"user": "Why?"}],
                "context": "none" if name == "paligemma2" else "dialogue",
                "system": preface[0].text if preface[0] is SYSTEM else None,
                "examples": [{"user": "Q?", "assistant": "A."}] if len(preface) > 1 else [],
            }
        )
        if name in refused:
            with pytest.raises(UsageError, match=said):
                check_prompts(model, protocol)
            continue
        check_prompts(model, protocol)
        for messages in protocol.rehearsal(["A dog."]):
            assert messages[: len(preface)] == preface
            assert prompt_ids(model, messages, [IMAGES[0]]) == true_ids(model.files, messages, IMAGES[0])
            if name in TAKE_SEVERAL:
                check_prompts(model, protocol, images=2)
                assert prompt_ids(model, messages, IMAGES) == true_ids(model.files, messages, *IMAGES)
