"""The trial of a model with a drawn image: what cannot work is refused before an engine starts."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import KINDS, edit_json
from helpers.cli import Cli
from helpers.inputs import png
from safetensors.numpy import load_file, save_file

from dialog_gen.core.errors import UsageError
from dialog_gen.generation.model_report import model_report
from dialog_gen.models.image_trial import try_image
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.protocol import load_protocol

FolderOf = Callable[[str], Path]
Damage = Callable[[Path], None]


def tried(folder: Path, *, images: int = 1) -> None:
    model = resolve_model(str(folder))
    try_image(model, [load_protocol(model.default_protocol)], images=images)


@pytest.mark.parametrize("name", [*KINDS, "shapes-llava", "shapes-blip2"])
def test_a_good_model_passes(name: str, folder_of: FolderOf, capfd: pytest.CaptureFixture[str]) -> None:
    model = resolve_model(name if name.startswith("shapes") else str(folder_of(name)))
    protocol = load_protocol(model.default_protocol)
    capfd.readouterr()
    try_image(model, [protocol])
    if model.architecture.takes_several_images:
        try_image(model, [protocol], images=2)
        try_image(model, [protocol], images=3)
    assert capfd.readouterr() == ("", "")


def config(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **changes)


def generation(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "generation_config.json", **changes)


def processor(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "processor_config.json", **changes)


def images(**changes: Any) -> Damage:
    """Changes the settings of the image processor."""

    def damage(folder: Path) -> None:
        stored = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        edit_json(folder / "processor_config.json", image_processor=stored | changes)

    return damage


def part(name: str, **changes: Any) -> Damage:
    """Changes a part of config.json, such as text_config."""

    def damage(folder: Path) -> None:
        stored = json.loads((folder / "config.json").read_text())[name]
        edit_json(folder / "config.json", **{name: stored | changes})

    return damage


def without(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def without_key(key: str) -> Damage:
    def damage(folder: Path) -> None:
        stored = json.loads((folder / "config.json").read_text())
        del stored[key]
        (folder / "config.json").write_text(json.dumps(stored))

    return damage


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in sorted(tensors) if "layers.0" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def index_of_one_of_two_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for number, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        save_file({name: tensors[name] for name in half}, folder / f"model-{number}.safetensors", {"format": "pt"})
    listed = dict.fromkeys(names[: len(names) // 2], "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    (folder / "model.safetensors").unlink()


MANY = 10**9
FAULTS: dict[str, tuple[str, Damage, str]] = {
    "patches of half the side": (
        "qwen2.5-vl",
        images(patch_size=7),
        "patches of 294 numbers, and the model reads patches of 1176",
    ),
    "patches of twice the side": (
        "qwen3-vl",
        images(patch_size=32),
        "patches of 6144 numbers, and the model reads patches of 1536",
    ),
    "patches of one moment": (
        "qwen2.5-vl",
        images(temporal_patch_size=1),
        "patches of 588 numbers, and the model reads patches of 1176",
    ),
    "another image token": (
        "qwen2.5-vl",
        config(image_token_id=3),
        r"image_token_id = 3, and the processor writes",
    ),
    "a letter as image token": (
        "llava-onevision",
        config(image_token_index=40),
        "image_token_index = 40, and the",
    ),
    "the start as image token": (
        "llava-next-mistral",
        config(image_token_index=0),
        "image_token_index = 0, and the",
    ),
    "no image token": (
        "llava-next-mistral",
        without_key("image_token_index"),
        "config.json names none .the default",
    ),
    "an image token beyond": ("gemma3", config(image_token_index=10**6), "= 1000000 is no token of the tokenizer"),
    "a text as image token": (
        "internvl3",
        config(image_token_id="<image>"),
        "image_token_id = '<image>' is no id",
    ),
    "true as image token": ("pixtral", config(image_token_index=True), "image_token_index = True is no id of a token"),
    "an end beyond": (
        "qwen3-vl",
        generation(eos_token_id=10**6),
        "eos_token_id = 1000000 is outside the vocabulary",
    ),
    "a negative end": ("smolvlm2", generation(eos_token_id=-1), "eos_token_id = -1 is outside the vocabulary"),
    "all ends beyond": ("gemma3", config(eos_token_id=[999, 10**6]), r"eos_token_id = \[999, 1000000\] is outside"),
    "the decoder's end beyond": ("pixtral", part("text_config", eos_token_id=999), "eos_token_id = 999 is outside the"),
    "a text as end": (
        "llava-next-vicuna",
        generation(eos_token_id="</s>"),
        "eos_token_id = '</s>' is no id",
    ),
    "no processor": (
        "gemma3",
        without("processor_config.json"),
        "has no processor_config.json",
    ),
    "no image processor": (
        "qwen2.5-vl",
        without("processor_config.json"),
        "has no processor_config.json",
    ),
    "patches of 0": ("llava-next-mistral", part("vision_config", patch_size=0), "patch_size = 0 is no number from 1"),
    "patches of 0 in prompts": ("llava-next-mistral", processor(patch_size=0), "patch_size = 0 is no number from 1"),
    "patches as a text": ("llava-next-mistral", processor(patch_size="14"), "patch_size = '14' is no number from 1"),
    "huge patches": ("qwen3-vl", part("vision_config", patch_size=MANY), f"patch_size = {MANY} is no number from 1"),
    "smaller patches": ("llava-next-vicuna", processor(patch_size=7), "writes 70 image tokens .* the model makes 24"),
    "patches that differ": ("gemma3", part("vision_config", patch_size=7), "tensors? of another shape"),
    "fewer tokens": ("internvl3", processor(image_seq_length=2), "writes 10 image tokens .* the model makes 20"),
    "more tokens": (
        "idefics3",
        processor(image_seq_len=9),
        "writes 45 image tokens",
    ),
    "tokens without end": ("smolvlm2", processor(image_seq_len=MANY), f"image_seq_len = {MANY} is no number from 1"),
    "other tiles": (
        "llava-onevision",
        images(image_grid_pinpoints=[[28, 28]]),
        "image tower of mine fails with a small image",
    ),
    "endless tiles": ("llava-next-mistral", config(image_grid_pinpoints=[[MANY, MANY]]), f"pinpoints = {MANY} is no n"),
    "another merge": ("qwen2.5-vl", images(merge_size=1), "writes 24 image tokens .* the model makes 6"),
    "an image without end": ("llava-next-mistral", images(size={"shortest_edge": 10**6}), "takes more than 4 GiB"),
    "text alone": (
        "llava-next-mistral",
        config(model_type="llama"),
        r"\(llama\) is no model that answers",
    ),
    "text alone, named so": (
        "llava-next-mistral",
        config(model_type="llama", architectures=["LlamaForCausalLM"]),
        r"\(llama\) is no model that answers questions about images",
    ),
    "no generator": ("llava-next-mistral", config(model_type="clip"), r"\(clip\) is no model that answers questions"),
    "another architecture": (
        "gemma3",
        config(model_type="llava"),
        "the weights in .* lack",
    ),
    "a processor of its own": (
        "llava-onevision",
        processor(processor_class="OwnProcessor", auto_map={"AutoProcessor": "processing_own.OwnProcessor"}),
        "the processor of mine needs code from its repository, which is never run: choose",
    ),
    "an unknown class": (
        "qwen3-vl",
        config(architectures=["Foo"]),
        "architecture Foo, which transformers does not",
    ),
    "an unknown decoder": ("internvl3", part("text_config", model_type="x"), "cannot build the model .KeyError: 'x'"),
    "no context": (
        "qwen2.5-vl",
        part("text_config", max_position_embeddings=0),
        "max_position_embeddings = 0 is no",
    ),
    "a huge context": ("gemma3", part("text_config", max_position_embeddings=10**12), "= 1000000000000 is no number"),
    "a context as a text": ("pixtral", part("text_config", max_position_embeddings="4k"), "= '4k' is no number from 1"),
    "more layers": (
        "pixtral",
        part("text_config", num_hidden_layers=3),
        "lack .* tensors .* such as model",
    ),
    "endless layers": (
        "qwen3-vl",
        part("text_config", num_hidden_layers=MANY),
        f"num_hidden_layers = {MANY} is no",
    ),
    "another width": ("qwen2.5-vl", part("text_config", hidden_size=128), "tensors? of another shape"),
    "heads that do not fit": ("gemma3", part("vision_config", num_attention_heads=3), "cannot build the model"),
    "a tensor is missing": ("llava-onevision", without_a_tensor, "the weights in .* lack 1 tensor .* such as model."),
    "an index of half": (
        "idefics3",
        index_of_one_of_two_files,
        "the weights in .* lack",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_work_is_refused_in_one_line(
    fault: str, folder_of: FolderOf, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, damage, said = FAULTS[fault]
    folder = shutil.copytree(folder_of(name), tmp_path / "mine")
    damage(folder)
    capfd.readouterr()
    with pytest.raises(UsageError, match=said) as caught:
        model_report(str(folder))
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_was_wrong_can_be_mended_in_the_same_process(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("llava-next-vicuna"), tmp_path / "mine")
    processor(patch_size=7)(folder)
    with pytest.raises(UsageError, match="writes 70 image tokens"):
        tried(folder)
    processor(patch_size=14)(folder)
    tried(folder)


def test_a_run_and_its_dry_run_and_the_check_refuse_alike(
    folder_of: FolderOf, tmp_path: Path, dialog_gen_cli: Cli
) -> None:
    folder = shutil.copytree(folder_of("qwen2.5-vl"), tmp_path / "mine")
    config(image_token_id=3)(folder)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(1, (56, 48)))
    run = ("run", "--model", folder, "--images", tmp_path / "images", "--out", tmp_path / "out")
    for command in (run, (*run, "--dry-run"), (*run, "--engine", "transformers"), ("models", "--check", folder)):
        assert "image_token_id = 3, and the processor writes" in dialog_gen_cli(*command).mistake
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["qwen2.5-vl", "paligemma2", "idefics3"])
def test_what_libraries_warn_of_is_not_on_the_terminal(
    name: str, folder_of: FolderOf, tmp_path: Path, dialog_gen_cli: Cli
) -> None:
    """Their processors warn when they are loaded, when they are called, and when a configuration is read."""
    folder = folder_of(name)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(1, (56, 48)))
    given = ("--model", folder, "--images", tmp_path / "images")
    for command in (
        ("models", "--check", folder),
        ("run", *given, "--out", tmp_path / "out", "--dry-run", "--max-pixels", "10000"),
        ("plan", *given, "--gpu", "H100"),
    ):
        done = dialog_gen_cli(*command)
        # How many tokens an image takes with a Qwen, config.json does not say.
        assert done.err == "" or done.mistake.startswith("error: the speed of "), command


def test_help_imports_no_torch() -> None:
    script = "import sys, dialog_gen.cli.app, dialog_gen.generation.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
