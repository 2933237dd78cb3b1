"""`dialog-gen run` with a MaMMUT: the loop from dialogues to a model to dialogues closes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.mammut import write_mammut
from helpers.rows import rows_of
from PIL import Image

from dialog_gen.clip.mammut.model import MammutForConditionalGeneration, MammutProcessor
from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.engines.base import EngineOptions, RefusedRequestError, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.models.registry import GeneratorModel, resolve_model
from dialog_gen.protocols.protocol import Sampling, conversation
from dialog_gen.shapes.render import render, render_png
from dialog_gen.shapes.scenes import draw_scene

QUESTIONS = ["What color is the star?", "How many circles are there?"]
IMAGES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mammut(tmp_path_factory.mktemp("run") / "mammut", questions=QUESTIONS)


@pytest.fixture(scope="module")
def model(folder: Path) -> GeneratorModel:
    return resolve_model(str(folder))


def scene(index: int) -> Image.Image:
    return render(draw_scene("test", 11, index))


def write_scenes(folder: Path) -> Path:
    folder.mkdir()
    for index in range(IMAGES):
        (folder / f"{index}.png").write_bytes(render_png(draw_scene("test", 11, index)))
    return folder


def test_a_run(dialog_gen_cli: Cli, folder: Path, tmp_path: Path) -> None:
    run = ["run", "--model", folder, "--images", write_scenes(tmp_path / "images"), "--out", tmp_path / "out"]
    said = dialog_gen_cli(*run, "--engine", "vllm").mistake
    assert "vLLM does not serve mammut's architecture: use --engine transformers" in said or "[vllm]" in said
    assert not (tmp_path / "out" / "data").exists()

    ended = dialog_gen_cli(*run, "--engine", "transformers", "--temperature", "0")
    assert ended.code == 0, ended.err
    rows = rows_of(tmp_path / "out")
    assert "accepted           4  100.0%" in ended.out
    assert [(row["model"], row["engine"]) for row in rows] == [("mammut", "transformers")] * IMAGES
    for index, row in enumerate(rows):
        assert [pair["user"] for pair in row["texts"]] == QUESTIONS
        assert [pair["assistant"] for pair in row["texts"]] == [written(folder, index, text) for text in QUESTIONS]


def written(folder: Path, index: int, question: str) -> str:
    """Through `generate`, one prompt at a time."""
    processor = MammutProcessor.from_pretrained(folder)
    generator: Any = MammutForConditionalGeneration.from_pretrained(folder).eval()
    inputs = processor(images=[scene(index)], text=[f"<image>{question}"])
    rows = generator.generate(**inputs, do_sample=False, max_new_tokens=24 - inputs["input_ids"].shape[1])
    return processor.tokenizer.decode(rows[0, inputs["input_ids"].shape[1] :].tolist())


def answers(model: GeneratorModel, tmp_path: Path, sampling: Sampling, prompts: list[str]) -> list[Any]:
    """An answer or an error of each prompt about a scene, all asked at once."""
    spec = EngineSpec(name="transformers", model=model, sampling=sampling, options=EngineOptions(logprobs=True))
    engine: Any = spec.start(tmp_path / "engine.log")
    engine._render = lambda messages, images: messages[-1].text  # the prompts are rendered already
    asked = [
        Request(messages=conversation(p), images=(scene(n),), image_sha256="", seed=n) for n, p in enumerate(prompts)
    ]

    async def ask() -> list[Any]:
        try:
            return await asyncio.gather(*(engine.answer(request) for request in asked), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(ask(), 120))


def test_what_the_engine_answers(model: GeneratorModel, tmp_path: Path) -> None:
    fits, full = "<image>" + "star " * 22, "<image>" + "star " * 23
    prompts = [f"<image>{QUESTIONS[0]} ", QUESTIONS[1], fits, full, "<image>" + "star " * 90]
    found = answers(model, tmp_path, Sampling(temperature=0, max_tokens=6), prompts)
    assert [type(answer) is RefusedRequestError for answer in found] == [False, False, False, True, True]
    assert all("as many as the model's 24 or more" in error.detail for error in found[3:])
    # Without an image in the prompt the answer knows nothing of it.
    assert [answer.saw_image for answer in found[:3]] == [True, False, True]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_end_at_the_context(model: GeneratorModel, tmp_path: Path, temperature: float) -> None:
    """However many tokens are wanted: 23 are there, for one there is room."""
    sampling = Sampling(temperature=temperature, max_tokens=4096)
    (answer,) = answers(model, tmp_path, sampling, ["<image>" + "star " * 22])
    assert answer.output_tokens == 1
    assert answer.finish_reason == "length"
    (longer,) = answers(model, tmp_path, sampling, ["<image>" + "star " * 17])
    assert longer.output_tokens == 6
    assert len(longer.tokens) == 6
    assert all(log_prob <= 0 for _, log_prob in longer.tokens)


def test_seeds_decide_what_is_drawn(model: GeneratorModel, tmp_path: Path) -> None:
    prompts = [f"<image>{QUESTIONS[0]} "] * 2
    sampling = Sampling(temperature=1.5, max_tokens=6)
    first, again = (answers(model, tmp_path, sampling, prompts) for _ in range(2))
    assert first == again
    assert first[0].text != first[1].text


def test_what_an_engine_needs(model: GeneratorModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(name: str) -> None:
        EngineSpec(name=name, model=model, sampling=Sampling(), options=EngineOptions()).check()

    monkeypatch.setattr("dialog_gen.engines.vllm.find_spec", lambda name: name)
    with pytest.raises(UsageError, match=r"vLLM does not serve mammut's architecture: use --engine transformers"):
        check("vllm")
    monkeypatch.setattr("dialog_gen.models.architectures.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a MaMMUT such as mammut needs an extra .*pip install .*\[train\]"):
        check("transformers")
