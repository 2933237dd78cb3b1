"""Model folders as others write them: good ones are not refused, and mean what they mean in their own layout."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.architectures import KINDS, edit_json
from helpers.cli import Cli
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import ENGINES, Answer, EngineOptions, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.transformers.engine import TransformersEngine
from dialog_gen.generation.model_report import model_report
from dialog_gen.models.processor import prompt_ids, prompt_inputs
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.protocol import Sampling, conversation

FolderOf = Callable[[str], Path]
Change = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]

IMAGE = Image.new("RGB", (80, 60), (9, 9, 99))


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def config(**changes: Any) -> Change:
    return lambda folder: edit_json(folder / "config.json", **changes)


def without(*keys: str) -> Change:
    def change(folder: Path) -> None:
        stored = read(folder / "config.json")
        (folder / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if k not in keys}))

    return change


def part(name: str, **changes: Any) -> Change:
    return lambda folder: edit_json(folder / "config.json", **{name: read(folder / "config.json")[name] | changes})


def tensors(changed: Callable[[Tensors], Tensors]) -> Change:
    def change(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        save_file(changed(stored), folder / "model.safetensors", {"format": "pt"})

    return change


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def shards(**index: Any) -> Change:
    def change(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        names = sorted(stored)
        half = len(names) // 2
        placed = dict[str, str]()
        for number, part_of in enumerate((names[:half], names[half:]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: stored[name] for name in part_of}, folder / file, {"format": "pt"})
            placed |= dict.fromkeys(part_of, file)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed, **index}))

    return change


def packed(stored: Tensors) -> Tensors:
    """The decoder's matrices as 4-bit formats store them."""
    new = Tensors()
    for name, tensor in stored.items():
        if tensor.ndim == 2 and re.search(r"^(?!.*visi(on|ual)).*\blayers\.", name):
            rows, columns = tensor.shape
            new[name.replace(".weight", ".qweight")] = torch.zeros(columns // 8, rows, dtype=torch.int32)
            new[name.replace(".weight", ".scales")] = torch.zeros(1, rows, dtype=torch.float16)
        else:
            new[name] = tensor
    assert len(new) > len(stored)
    return new


def quantized(**settings: Any) -> Change:
    return both(tensors(packed), config(quantization_config=settings))


def of_its_decoder(folder: Path) -> None:
    quantized(quant_method="awq", bits=4, group_size=128, version="gemm")(folder)
    part("text_config", quantization_config=read(folder / "config.json")["quantization_config"])(folder)
    without("quantization_config")(folder)


def in_two_files(folder: Path) -> None:
    """The layout before transformers 5."""
    stored = read(folder / "processor_config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(stored.pop("image_processor")))
    stored.pop("video_processor", None)
    (folder / "processor_config.json").write_text(json.dumps(stored))


def before_processor_config(folder: Path) -> None:
    """The layout until 2024."""
    in_two_files(folder)
    (folder / "processor_config.json").unlink()


def without_class_token(folder: Path) -> None:
    """As transformers 4.46 wrote it."""
    stored = read(folder / "processor_config.json")
    del stored["num_additional_image_tokens"]
    (folder / "processor_config.json").write_text(json.dumps(stored))


def more_tokens(folder: Path) -> None:
    """Fine-tuned with tokens of its own."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor.tokenizer.add_tokens(["<obj>", "</obj>"], special_tokens=True)
    processor.tokenizer.add_tokens(["zebra"])
    model.resize_token_embeddings(len(processor.tokenizer) + 5, pad_to_multiple_of=64)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def six_gigabytes(folder: Path) -> None:
    """With a tensor of that size, which occupies no disk: no file may be read or mapped into the bounded memory."""
    file, size = folder / "model.safetensors", 6 << 30
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header["unused"] = {"dtype": "U8", "shape": [size], "data_offsets": [len(data), len(data) + size]}
    new = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(new).to_bytes(8, "little") + new + data)
        out.truncate(8 + len(new) + len(data) + size)


def tied(folder: Path) -> None:
    """The decoder writes with its embeddings, and its own settings alone say so, as before transformers 5."""
    tensors(lambda stored: {name: t for name, t in stored.items() if "lm_head" not in name})(folder)
    part("text_config", tie_word_embeddings=True)(folder)
    without("tie_word_embeddings")(folder)


def no_named_end(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=None)
    both(config(eos_token_id=None), part("text_config", eos_token_id=None))(folder)


def without_tensors(*words: str) -> Change:
    return tensors(lambda stored: {name: t for name, t in stored.items() if not all(word in name for word in words)})


AWQ = quantized(quant_method="awq", bits=4, group_size=128, version="gemm", zero_point=True)
GOOD: dict[str, tuple[list[str], Change]] = {
    "weights of real size": (["llava-next-vicuna"], six_gigabytes),
    "no architectures": (["qwen2.5-vl"], without("architectures")),
    "architectures of null": (["gemma3"], config(architectures=None)),
    "torch_dtype": (["pixtral", "idefics3"], both(without("dtype"), config(torch_dtype="bfloat16"))),
    "awq": (["qwen2.5-vl", "llava-next-mistral"], AWQ),
    "awq of the decoder alone": (["internvl3"], of_its_decoder),
    "gptq": (["qwen2.5-vl"], quantized(quant_method="gptq", bits=4, group_size=128, desc_act=False)),
    "bitsandbytes": (["llava-next-vicuna"], quantized(quant_method="bitsandbytes", load_in_4bit=True)),
    "fp8": (["qwen3-vl"], quantized(quant_method="fp8", weight_block_size=[128, 128])),
    "compressed-tensors": (
        ["pixtral"],
        quantized(quant_method="compressed-tensors", format="pack-quantized", config_groups={}, ignore=["lm_head"]),
    ),
    "extra tensors": (
        ["llava-next-vicuna", "paligemma2"],
        tensors(lambda stored: stored | {"rotary.inv_freq": torch.zeros(4), "vision.position_ids": torch.zeros(1, 4)}),
    ),
    "tied embeddings": (["llava-next-mistral", "smolvlm2", "gemma3", "qwen3-vl"], tied),
    "shards without a size": (["qwen2.5-vl"], shards(metadata={})),
    "shards without metadata": (["paligemma2"], shards()),
    "shards of another size": (["internvl3"], shards(metadata={"total_size": 1})),
    "two files of settings": ([*KINDS], in_two_files),
    "only an image processor": (
        ["llava-next-vicuna", "llava-onevision", "qwen2.5-vl", "pixtral", "paligemma2"],
        before_processor_config,
    ),
    "without a class token": (["llava-next-vicuna", "llava-next-mistral"], without_class_token),
    "more tokens": (["llava-next-vicuna", "qwen2.5-vl", "gemma3"], more_tokens),
    "a tower without its unused head": (
        ["llava-onevision", "gemma3"],
        lambda folder: part("vision_config", vision_use_head=True)(folder),
    ),
    "a tower without its unused norm": (
        ["llava-next-vicuna", "llava-onevision"],
        without_tensors("vision_tower", "post_layernorm"),
    ),
    "no generation settings": (["gemma3"], lambda folder: (folder / "generation_config.json").unlink()),
    "one end of several beyond": (["gemma3"], lambda f: edit_json(f / "generation_config.json", eos_token_id=[1, 999])),
    "an end that only the tokenizer names": (["qwen2.5-vl"], no_named_end),
}


@pytest.mark.parametrize(
    ("variant", "kind"), [(variant, kind) for variant, (kinds, _) in GOOD.items() for kind in kinds]
)
def test_a_good_model_is_not_refused(variant: str, kind: str, folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of(kind), tmp_path / "mine")
    GOOD[variant][1](folder)
    assert "can be used" in str(model_report(str(folder)))


def answer_of(folder: Path) -> tuple[str, str, int]:
    """The transformers engine's greedy answer, why it ended, and the tokens of the prompt."""
    engine = TransformersEngine(resolve_model(str(folder)), Sampling(temperature=0, max_tokens=12), EngineOptions())
    request = Request(messages=conversation("What?"), images=(IMAGE,), image_sha256="0" * 64, seed=1)

    async def asked() -> Answer:
        try:
            return await engine.answer(request)
        finally:
            await engine.close()

    answer = asyncio.run(asked())
    assert answer.saw_image
    return answer.text, answer.finish_reason, answer.prompt_tokens or 0


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("only an image processor", "llava-next-vicuna"),
        ("only an image processor", "llava-onevision"),
        ("without a class token", "llava-next-mistral"),
        ("a tower without its unused head", "gemma3"),
        ("a tower without its unused norm", "llava-next-vicuna"),
        ("a tower without its unused norm", "llava-onevision"),
        ("shards without a size", "paligemma2"),
        ("no architectures", "qwen2.5-vl"),
    ],
)
def test_another_layout_gives_the_same_prompt_and_the_same_answer(
    variant: str, kind: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of(kind), tmp_path / "mine")
    GOOD[variant][1](folder)
    was, now = (prompt_ids(resolve_model(str(f)), conversation("What?"), [IMAGE]) for f in (folder_of(kind), folder))
    assert now == was
    assert answer_of(folder) == answer_of(folder_of(kind))


def test_a_norm_that_the_model_reads_is_missed(folder_of: FolderOf, tmp_path: Path) -> None:
    """Gemma reads its SigLIP's last layer through it."""
    folder = shutil.copytree(folder_of("gemma3"), tmp_path / "mine")
    without_tensors("vision_tower", "post_layernorm")(folder)
    with pytest.raises(UsageError, match=r"lack 2 tensors .*post_layernorm"):
        model_report(str(folder))


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (("layers.1", "q_proj"), "layers.1.self_attn.q_proj.weight"),
        (("layers.1", "q_proj.qweight"), "layers.1.self_attn.q_proj.weight"),
        (("layers.0", "input_layernorm"), "layers.0.input_layernorm.weight"),
        (("multi_modal_projector.linear_1.bias",), "multi_modal_projector.linear_1.bias"),
    ],
)
def test_quantised_weights_that_lack_a_matrix_are_refused(
    lost: tuple[str, ...], named: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of("llava-next-mistral"), tmp_path / "mine")
    both(AWQ, without_tensors(*lost, "language_model" if "layers" in lost[0] else ""))(folder)
    with pytest.raises(UsageError, match=f"lack 1 tensor .*{re.escape(named)}"):
        model_report(str(folder))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_quantised_weights_that_an_engine_cannot_read_are_refused_before_it_starts(
    engine: str, folder_of: FolderOf, tmp_path: Path, dialog_gen_cli: Cli
) -> None:
    folder = shutil.copytree(folder_of("llava-next-mistral"), tmp_path / "mine")
    quantized(quant_method="of tomorrow", bits=3)(folder)
    IMAGE.save(tmp_path / "a.png")
    result = dialog_gen_cli(
        *("run", "--model", str(folder), "--images", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")),
        *("--engine", engine),
    )
    assert result.code == 2
    assert re.search(
        r"cannot read the weights of mine here, which are quantised \(of tomorrow\)", " ".join(result.err.split())
    )
    assert not (tmp_path / "out").exists()
    # The machines of a cluster may have what this one lacks.
    resolved = resolve_model(str(folder))
    spec = EngineSpec(name=engine, model=resolved, sampling=Sampling(), options=EngineOptions())
    spec.check(here=False)
    with pytest.raises(UsageError, match="which are quantised"):
        spec.check()


@pytest.mark.parametrize("kernel", [True, False])
def test_vllm_on_a_cpu_may_lack_the_kernel_for_packed_weights(
    kernel: bool, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from vllm.platforms import current_platform

    from dialog_gen.engines.vllm import engine

    folder = shutil.copytree(folder_of("llava-next-mistral"), tmp_path / "mine")
    AWQ(folder)
    monkeypatch.setattr(engine, "_has_packed_kernel", lambda: kernel)
    spec = EngineSpec(
        name="vllm", model=resolve_model(str(folder)), sampling=Sampling(), options=EngineOptions(dtype="bfloat16")
    )
    if kernel or not current_platform.is_cpu():
        spec.check()
    else:
        with pytest.raises(UsageError, match=r"quantised \(awq\): .* no kernel for weights of 4 bits"):
            spec.check()


def test_an_index_that_transformers_cannot_read_is_refused_before_it_starts(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of("paligemma2"), tmp_path / "mine")
    GOOD["shards without metadata"][1](folder)
    model = resolve_model(str(folder))
    with pytest.raises(UsageError, match=r'index.json has no metadata.*add "metadata": \{\} to it'):
        ENGINES.get("transformers").check(model, EngineOptions())
    ENGINES.get("vllm").check(model, EngineOptions())
    edit_json(folder / "model.safetensors.index.json", metadata={})
    ENGINES.get("transformers").check(model, EngineOptions())
    assert answer_of(folder) == answer_of(folder_of("paligemma2"))


def without_index(folder: Path) -> None:
    shards(metadata={})(folder)
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("change", "said", "mended"),
    [
        (
            without_index,
            "lacks model.safetensors.index.json, .* in its 2 files: fetch it, or use another engine",
            shards(metadata={}),
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
            "has its weights in consolidated.safetensors, and transformers reads model.safetensors: rename the file",
            lambda folder: (folder / "consolidated.safetensors").rename(folder / "model.safetensors"),
        ),
    ],
)
def test_weights_that_transformers_does_not_find_are_for_vllm_alone(
    change: Change, said: str, mended: Change, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folder_of("paligemma2"), tmp_path / "mine")
    change(folder)
    report = model_report(str(folder))
    assert report.engines["vllm"] is None
    assert re.search(said, report.engines["transformers"] or "")
    assert "\n  engines: vllm\n  not with transformers: " in str(report)
    with pytest.raises(UsageError, match=said):
        ENGINES.get("transformers").check(resolve_model(str(folder)), EngineOptions())
    monkeypatch.setattr(type(ENGINES.get("vllm")), "installed", lambda _: False)
    with pytest.raises(UsageError, match=f"no engine can use mine: .*{said}"):
        model_report(str(folder))
    shutil.copy(folder_of("paligemma2") / "model.safetensors", folder) if change is without_index else None
    mended(folder)
    assert model_report(str(folder)).engines["transformers"] is None


def test_the_check_of_a_model_knows_formats_that_no_engine_reads(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("llava-next-mistral"), tmp_path / "mine")
    quantized(quant_method="of tomorrow", bits=3)(folder)
    with pytest.raises(UsageError, match=r"no engine can use mine: .*quantised \(of tomorrow\).*; vLLM cannot read"):
        model_report(str(folder))


def test_the_check_of_a_model_says_that_another_machine_may_read_it(folder_of: FolderOf, tmp_path: Path) -> None:
    """bitsandbytes needs its package, which is not installed, and vLLM reads it on a GPU alone."""
    folder = shutil.copytree(folder_of("llava-next-vicuna"), tmp_path / "mine")
    quantized(quant_method="bitsandbytes", load_in_4bit=True)(folder)
    report = model_report(str(folder))
    assert all("quantised (bitsandbytes)" in str(problem) for problem in report.engines.values())
    assert str(report).startswith("mine (LlavaNextForConditionalGeneration) can be used, though not on this machine\n")


def test_a_tied_decoder_writes_with_its_embeddings(folder_of: FolderOf, tmp_path: Path) -> None:
    """The reference has the same matrix twice, and says that they are not tied."""
    given, untied = (shutil.copytree(folder_of("llava-next-vicuna"), tmp_path / name) for name in ("given", "untied"))
    tied(given)

    def twice(stored: Tensors) -> Tensors:
        (embeddings,) = (tensor for name, tensor in stored.items() if name.endswith("embed_tokens.weight"))
        (head,) = (name for name in stored if name.endswith("lm_head.weight"))
        return stored | {head: embeddings.clone()}

    tensors(twice)(untied)
    assert answer_of(given) == answer_of(untied)


def test_an_answer_ends_with_the_end_that_only_the_tokenizer_names(folder_of: FolderOf, tmp_path: Path) -> None:
    """The tokenizer's end becomes the token that the model writes first."""
    folder = shutil.copytree(folder_of("qwen2.5-vl"), tmp_path / "mine")
    inputs = prompt_inputs(resolve_model(str(folder)), conversation("What?"), [IMAGE], return_tensors="pt")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    written = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    first = AutoProcessor.from_pretrained(folder).tokenizer.convert_ids_to_tokens(int(written[0, -1]))
    assert answer_of(folder)[1] == "length"
    no_named_end(folder)
    edit_json(folder / "tokenizer_config.json", eos_token=first)
    assert answer_of(folder)[:2] == ("", "stop")


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "llava-next-vicuna"])
@pytest.mark.parametrize(
    "change",
    [
        no_named_end,
        # The engines read generation_config.json alone where there is one.
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=None),
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=[]),
    ],
)
def test_a_model_that_names_no_end_at_all_is_refused(
    kind: str, change: Change, folder_of: FolderOf, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of(kind), tmp_path / "mine")
    change(folder)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UsageError, match="no file of mine names the token that ends an answer"):
        model_report(str(folder))


@pytest.mark.parametrize(("kept", "said"), [(True, "beside the weights: merge it"), (False, "an adapter alone: merge")])
def test_an_adapter_is_refused(kept: bool, said: str, folder_of: FolderOf, tmp_path: Path) -> None:
    """peft in the environment would make transformers apply it; vLLM would not."""
    folder = shutil.copytree(folder_of("llava-next-vicuna"), tmp_path / "mine")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not kept:
        (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=said):
        resolve_model(str(folder))
