"""MaMMUT on disk: as a CLIP, as one of transformers' models, and what is said of folders that are damaged."""

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers.loops import CONFIG
from helpers.mammut import make_hf_mammut, write_mammut
from helpers.training import TINY_CLIP
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import check_clip, load_clip, new_clip, save_clip
from dialog_gen.clip.mammut.checkpoint import CHAT_TEMPLATE, new_mammut, protocol_toml
from dialog_gen.clip.mammut.model import register_mammut
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.models.registry import resolve_model
from dialog_gen.models.templates import render_chat
from dialog_gen.protocols.protocol import conversation, load_protocol

QUESTIONS = ["What color is the star?", "Is there a circle?"]
TEXTS = ["a red star", "what color is the circle ? blue", "the"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With CLIP's own tokenizer. Not to be written to."""
    return write_mammut(tmp_path_factory.mktemp("native") / "mammut", questions=QUESTIONS)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clip]:
    """With a tokenizer of Hugging Face's, and as it was before it was saved. Not to be written to."""
    root = tmp_path_factory.mktemp("hf")
    clip = make_hf_mammut(root / "tokenizer")
    save_clip(clip, root / "mammut", clip.model.state_dict())
    shutil.rmtree(root / "tokenizer")
    return root / "mammut", clip


@pytest.fixture(scope="module", params=["native", "hf"])
def folder(request: pytest.FixtureRequest, native: Path, hf: tuple[Path, Clip]) -> Path:
    return native if request.param == "native" else hf[0]


def images(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20 + 9 * n, 50, 3), np.uint8)) for n in range(count)]


@torch.no_grad()
def test_saved_and_loaded(hf: tuple[Path, Clip], folder: Path, tmp_path: Path) -> None:
    clip = hf[1] if folder == hf[0] else load_clip(str(folder))
    rng = torch.Generator().manual_seed(1)
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=rng) for name, value in clip.model.state_dict().items()
    }
    save_clip(clip, tmp_path / "again", state)
    clip.model.load_state_dict(state)
    again = load_clip(str(tmp_path / "again"))
    assert (again.name, again.config) == ("again", clip.config)
    assert again.weights_sha256 != clip.weights_sha256
    assert not again.model.training
    pixels = torch.stack([again.preprocess(image) for image in images()])
    assert torch.equal(again.tokenizer(TEXTS), clip.tokenizer(TEXTS))
    for normalize in (True, False):
        for found, expected in (
            (again.model.encode_image(pixels, normalize), clip.model.encode_image(pixels, normalize)),
            (
                again.model.encode_text(again.tokenizer(TEXTS), normalize),
                clip.model.encode_text(clip.tokenizer(TEXTS), normalize),
            ),
        ):
            assert torch.equal(found, expected)
            assert torch.allclose(found.norm(dim=-1), torch.ones(3)) == normalize
    # The tower that evaluation uses gives the same, and runs no padding.
    shapes: list[tuple[int, ...]] = []
    again.model.text.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    found = TextTower(again.model).encode(again.tokenizer(TEXTS))
    torch.testing.assert_close(found, clip.model.encode_text(clip.tokenizer(TEXTS), True))
    assert max(length for _, length in shapes) == 2 + max(len(ids_of(clip, text)) for text in TEXTS)
    # Without a change the bytes are the same.
    save_clip(again, tmp_path / "third", again.model.state_dict())
    assert {p.name for p in (tmp_path / "third").iterdir()} == {p.name for p in (tmp_path / "again").iterdir()}
    # transformers notes where it had a tokenizer from.
    differing = ("tokenizer_config.json", "checksums.json")
    for file in [file for file in (tmp_path / "again").iterdir() if file.name not in differing]:
        assert (tmp_path / "third" / file.name).read_bytes() == file.read_bytes(), file.name


@torch.no_grad()
def test_as_one_of_transformers_models(folder: Path) -> None:
    register_mammut()
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
    processor: Any = AutoProcessor.from_pretrained(folder)
    clip = load_clip(str(folder))
    state = clip.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.mammut.state_dict().items())
    inputs = processor(images=images(), text=[f"<image>{text}" for text in TEXTS])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    expected = torch.stack([clip.preprocess(image) for image in images()])
    assert torch.equal(inputs["pixel_values"], expected)
    logits = model(**inputs).logits
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([[clip.model.text.image_id, *ids_of(clip, text)]])
        alone = clip.model.text.next_token_logits(ids, clip.model.read(expected[row : row + 1]))[0]
        torch.testing.assert_close(logits[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == special_ids(clip)
    # A folder that was written before generation settings were is no worse.
    assert (model.config.eos_token_id, model.config.pad_token_id) == special_ids(clip)


def special_ids(clip: Clip) -> tuple[int, int]:
    encoder = TextEncoder(clip.tokenizer)
    return encoder.end[-1], encoder.pad_id


def ids_of(clip: Clip, text: str) -> list[int]:
    """Without what the tokenizer puts around it."""
    encoder = TextEncoder(clip.tokenizer)
    (ids,), _ = encoder([text])
    return ids.tolist()[len(encoder.start) : len(ids) - len(encoder.end)]


def test_prompts_have_the_ids_of_the_training(folder: Path) -> None:
    clip = load_clip(str(folder))
    register_mammut()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    image = clip.model.text.image_id
    assert tokenizer.convert_tokens_to_ids("<image>") == image
    assert tokenizer.convert_tokens_to_ids("<other>") is None
    for question, answer in (("What color  is the star?", "red"), ("is the circle a star ?", "blue")):
        prompt = render_chat(CHAT_TEMPLATE, conversation(question))
        assert prompt == f"<image>{question} "
        ids = tokenizer.encode(prompt)
        assert ids == [image, *ids_of(clip, question)]
        # As the pair is trained on: what stands behind the image goes on with the answer.
        whole = [image, *ids_of(clip, f"{question} {answer}")]
        assert ids == whole[: len(ids)]
        assert tokenizer.decode([*whole[len(ids) :], *special_ids(clip)]) == answer
        assert tokenizer.encode(question) == ids[1:]
        two = render_chat(CHAT_TEMPLATE, conversation(question, answer, "why?"))
        assert tokenizer.encode(two) == [image, *ids_of(clip, f"{question} {answer} why?")]
    assert tokenizer.encode("<image>") == [image]


def test_a_prompt_that_is_too_long_shows(folder: Path) -> None:
    """All the context for the prompt, and one token more for what does not fit."""
    clip = load_clip(str(folder))
    register_mammut()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    context = clip.model.text.context_length
    for words, length in ((context - 1, context), (context, context + 1), (5 * context, context + 2)):
        assert len(tokenizer.encode("<image>" + " star" * words)) == length


def test_as_a_generator(native: Path, hf: tuple[Path, Clip]) -> None:
    model = resolve_model(str(native))
    assert (model.architecture.name, model.served_by_vllm, model.max_model_len) == ("a MaMMUT", False, 24)
    protocol = load_protocol(model.default_protocol)
    assert ([turn.user for turn in protocol.turns], protocol.context) == (QUESTIONS, "none")
    # Without questions, those that any generator is asked.
    assert resolve_model(str(hf[0])).default_protocol == "blip2-two-turn"


@pytest.mark.parametrize("question", ['Is it "red"?', "a \\ b\n{c} {}", "\U0001f600 é\t\x7f?", "1 {prompt_1"])
def test_any_question_can_be_asked(tmp_path: Path, question: str) -> None:
    (tmp_path / "protocol.toml").write_text(protocol_toml([question, "Why?"]), encoding="utf-8")
    protocol = load_protocol(str(tmp_path / "protocol.toml"))
    assert [protocol.user_text(number, [], []) for number in (0, 1)] == [question, "Why?"]


# What is damaged


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


CLIP = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "width": 64}}
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "is a damaged MaMMUT"),
    "half the weights": (lambda folder: truncate(folder / "model.safetensors"), "is a damaged MaMMUT"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "is no checkpoint folder"),
    "half the config": (lambda folder: truncate(folder / "config.json"), "is no checkpoint folder"),
    "a tensor less": (
        lambda folder: change_weights(folder, lambda state: state.pop("mammut.visual.proj")),
        "is a damaged MaMMUT",
    ),
    "a tensor more": (
        lambda folder: change_weights(folder, lambda state: state.update(x=torch.zeros(1))),
        "is a damaged MaMMUT",
    ),
    "another width": (change_config(clip=CLIP), "is a damaged MaMMUT"),
    "no clip": (change_config(clip={}), "is a damaged MaMMUT"),
    "a clip of words": (change_config(clip="ViT-B-32"), "is a damaged MaMMUT"),
    "an unknown key": (change_config(clip={**TINY_CLIP, "wings": 2}), "is a damaged MaMMUT"),
    "other preprocessing": (change_config(preprocess={"wings": 2}), "is a damaged MaMMUT"),
    "reads nowhere": (change_config(cross_attention_every=3), "leaves none of the 2 layers"),
    "reads at no interval": (change_config(cross_attention_every=0), "is a damaged MaMMUT"),
    "reads at words": (change_config(cross_attention_every="two"), "is a damaged MaMMUT"),
}


def copy_unchecked(folder: Path, to: Path) -> None:
    """A copy as of another program: without checksums, which would find any damage first."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("checksums.json"))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage(native: Path, tmp_path: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    copy_unchecked(native, tmp_path / "mammut")
    damage(tmp_path / "mammut")
    with pytest.raises(UsageError, match=said) as error:
        load_clip(str(tmp_path / "mammut"))
    assert "\n" not in str(error.value)


def pad_with_another(file: Path) -> None:
    file.write_text(file.read_text().replace("[PAD]", "[UNK]"))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tokenizer.json", Path.unlink),
        ("tokenizer.json", truncate),
        ("tokenizer_config.json", truncate),
        ("tokenizer_config.json", pad_with_another),
    ],
)
def test_a_damaged_tokenizer(hf: tuple[Path, Clip], tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    copy_unchecked(hf[0], tmp_path / "mammut")
    damage(tmp_path / "mammut" / file)
    with pytest.raises(UsageError, match="is a damaged MaMMUT"):
        load_clip(str(tmp_path / "mammut"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: truncate(folder / "config.json"), "config.json cannot be read"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"), "fails: Expected an expression"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_damage_to_a_generator(native: Path, tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    copy_unchecked(native, tmp_path / "mammut")
    damage(tmp_path / "mammut")
    with pytest.raises(UsageError, match=said):
        resolve_model(str(tmp_path / "mammut"))


def test_a_damaged_protocol(native: Path, tmp_path: Path) -> None:
    shutil.copytree(native, tmp_path / "mammut")
    (tmp_path / "mammut" / "protocol.toml").write_text("[[turns]\n")
    with pytest.raises(UsageError, match=r"protocol\.toml"):
        load_protocol(resolve_model(str(tmp_path / "mammut")).default_protocol)


def test_where_a_clip_is_named(native: Path) -> None:
    check_clip(str(native))
    with pytest.raises(UsageError, match="leave out pretrained = 'openai'"):
        check_clip(str(native), "openai")
    with pytest.raises(UsageError, match="leave out pretrained = 'openai'"):
        load_clip(str(native), "openai")
    with pytest.raises(UsageError, match="is no checkpoint folder"):
        new_clip(str(native), 0)


# What cannot become one

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (open_clip.CLIP, {"vision_cfg": RESNET}, "MaMMUT needs a ViT and CLIP's own text tower"),
        (open_clip.CustomTextCLIP, {}, "MaMMUT needs a ViT and CLIP's own text tower"),
    ],
)
def test_towers_of_other_kinds(native: Path, kind: Any, changes: dict[str, Any], said: str) -> None:
    clip = load_clip(str(native))
    config = {**CONFIG, **changes}
    other = replace(clip, model=kind(**config), config=config)
    with pytest.raises(UsageError, match=said):
        new_mammut(other, ([1], [2]), 0, 1, 0)


def test_what_no_layer_would_read(native: Path) -> None:
    clip = replace(load_clip(str(native)), model=open_clip.CLIP(**CONFIG), config=CONFIG)
    with pytest.raises(UsageError, match="cross_attention_every = 4 leaves none of the 3 layers"):
        new_mammut(clip, ([1], [2]), 0, 4, 0)
