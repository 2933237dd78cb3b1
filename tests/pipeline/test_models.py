import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.model_folders import BLIP2, LLAVA, TOKENIZER, model_folder, weights

from dialog_gen.core.errors import UsageError
from dialog_gen.models.folder import fingerprint
from dialog_gen.models.registry import MODELS, resolve_model
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE
from dialog_gen.models.transformers_files import read_processor
from dialog_gen.protocols.protocol import load_protocol


@pytest.mark.parametrize("name", MODELS.names())
def test_the_registry_names_protocols_that_exist(name: str) -> None:
    assert load_protocol(MODELS.get(name).protocol).turns


RELEASED = {
    *("llava-1.5-7b", "llava-1.5-13b", "blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl"),
    *("llava-next-mistral-7b", "llava-next-vicuna-7b", "llava-onevision-7b", "qwen2.5-vl-3b", "qwen2.5-vl-7b"),
    *("qwen3-vl-4b", "qwen3-vl-8b", "smolvlm2-256m", "smolvlm2-500m", "smolvlm2-2.2b", "internvl3-2b", "internvl3-8b"),
    *("gemma-3-4b", "paligemma2-3b"),
}


def test_the_registry_says_of_released_models_what_a_user_must_know() -> None:
    entries = {name: MODELS.get(name) for name in MODELS.names()}
    assert set(entries) >= RELEASED
    for name, entry in entries.items():
        if not entry.shipped:
            assert entry.source.count("/") == 1, name
            assert entry.licence, name
            assert 4 <= (entry.gpu_memory_gb or 0) <= 80, name
            assert any(map(str.isdigit, entry.image_tokens)), name
            assert load_protocol(entry.protocol).sampling.max_tokens > 0, name


def test_a_local_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    model = resolve_model(str(folder))
    assert (model.name, model.folder, model.shipped) == ("mine", folder, False)
    assert (model.chat_template, model.default_protocol) == (LLAVA_CHAT_TEMPLATE, "llava-3qa")
    assert model.served_by_vllm


def test_a_folders_revision_tells_its_content_not_its_place(tmp_path: Path) -> None:
    long = "w" * 1_000_000
    contents: list[dict[str, Any]] = [
        {"model__safetensors": weights(long)},
        {"model__safetensors": weights(long[:-1] + "x")},
        {"model__safetensors": weights(long[:-1])},
        {"model__safetensors": weights(long), "config": LLAVA | {"dtype": "float32"}},
        {"model__safetensors": weights(long), "chat_template__jinja": LLAVA_CHAT_TEMPLATE + "\n"},
        {"model__safetensors": weights(long), "tokenizer__json": TOKENIZER + " "},
    ]
    first = [resolve_model(str(model_folder(tmp_path / str(i), **c))).revision for i, c in enumerate(contents)]
    again = [resolve_model(str(model_folder(tmp_path / f"{i}x", **c))).revision for i, c in enumerate(contents)]
    assert first == again
    assert len(set(first)) == len(contents)


@pytest.mark.parametrize("name", [name for name, entry in MODELS.all().items() if entry.shipped])
def test_a_shipped_model_is_not_the_folder_that_bears_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shipped = Path(__file__).parents[2] / "pipeline/dialog_gen/shapes/checkpoints" / name
    if not (shipped / "model.safetensors").is_file():
        pytest.skip("not trained yet")
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / name)
    model = resolve_model(name)
    assert model.folder.samefile(shipped)
    assert (model.name, model.shipped, model.served_by_vllm) == (name, True, True)
    assert resolve_model(f"./{name}").folder == tmp_path / name


@pytest.mark.parametrize("decoder", ["opt", "t5"])
def test_blip2_needs_no_template_and_vllm_does_not_serve_t5(tmp_path: Path, decoder: str) -> None:
    config = {**BLIP2, "text_config": {"model_type": decoder}}
    model = resolve_model(str(model_folder(tmp_path / "blip2", config, chat_template__jinja=None)))
    assert (model.chat_template, model.default_protocol) == (BLIP2_CHAT_TEMPLATE, "blip2-two-turn")
    assert model.served_by_vllm is (decoder == "opt")


@pytest.mark.parametrize("file", ["chat_template__json", "processor_config__json", "tokenizer_config__json"])
def test_where_templates_are_found(tmp_path: Path, file: str) -> None:
    text = json.dumps({"chat_template": "{{ 'Describe:' }}"})
    folder = model_folder(tmp_path / "mine", BLIP2, chat_template__jinja=None, **{file: text})
    assert resolve_model(str(folder)).chat_template == "{{ 'Describe:' }}"


def test_of_several_templates_that_of_the_processor_is_used(tmp_path: Path) -> None:
    """Each file is read only if those before it have no template, as transformers' processor reads them."""
    folder = shutil.copytree(MODELS.get("shapes-llava").folder or "", tmp_path / "mine")
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    files = ["additional_chat_templates/default.jinja", "chat_template.jinja", "chat_template.json"]
    seen: set[str] = set()
    for file in [*files, "processor_config.json"]:
        path = folder / file
        template = f"{LLAVA_CHAT_TEMPLATE} {file}"
        stored = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(template if file.endswith("jinja") else json.dumps(stored | {"chat_template": template}))
        seen.add(fingerprint(folder))
        if file == "chat_template.json":  # transformers refuses this file beside a folder of templates
            shutil.rmtree(folder / "additional_chat_templates")
        of_processor = read_processor(folder).chat_template
        assert resolve_model(str(folder)).chat_template == of_processor == template
    assert len(seen) == len(files) + 1


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"config__json": None}, "holds no config.json"),
    "config is no json": ({"config__json": "{"}, "config.json cannot be read"),
    "config is no object": ({"config": []}, "config.json holds no JSON object"),
    "config of something else": ({"config": {"a": 1}}, "names no architecture"),
    "no weights": ({"model__safetensors": None}, "holds no weights: safetensors are needed"),
    "pickled weights": (
        {"model__safetensors": None, "pytorch_model__bin": "", "a__pt": ""},
        r"only pickled weights \(a.pt, pytorch_model.bin\), which can run code.*safetensors are needed",
    ),
    "no template": ({"chat_template__jinja": None}, "has no chat template .* Add the model's own"),
    "tokenizer config is no json": (
        {"chat_template__jinja": None, "tokenizer_config__json": "{"},
        "tokenizer_config.json cannot be read",
    ),
    "template is no jinja": ({"chat_template__jinja": "{% if %}"}, "fails: Expected an expression"),
    "template that refuses": ({"chat_template__jinja": "{{ raise_exception('no images') }}"}, "fails: no images"),
    "template for text, failing": (
        {"chat_template__jinja": "{% for m in messages %}{{ 'User: ' + m['content'] }}{% endfor %}"},
        "fails: .* Is it made for images",
    ),
    "template for text, printing": (
        {"chat_template__jinja": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
        "is made for text alone",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_explained(tmp_path: Path, name: str) -> None:
    files, message = BROKEN[name]
    folder = model_folder(tmp_path / "mine", **files)
    with pytest.raises(UsageError, match=f"mine.*{message}"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lava-1.5-7b", "unknown model 'lava-1.5-7b': did you mean 'llava-1.5-7b'. Known: blip2-flan-t5-xl, "),
        ("llava", "unknown model 'llava': did you mean 'llava-1.5-7b'. Known: "),
        ("./no-such", "unknown model './no-such'.* or an existing folder"),
        ("/no/such/folder", "unknown model '/no/such/folder'"),
        ("user/two words", "unknown model 'user/two words'"),
        ("user/", "unknown model 'user/'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_model(name)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    for name in (str(model_folder(tmp_path / "mine")), "shapes-llava"):
        with pytest.raises(UsageError, match="has no revision 'main'"):
            resolve_model(name, revision="main")


@pytest.fixture
def hangs_up() -> Iterator[str]:
    """The address of a server that closes every connection."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("network", ["offline", "refused", "hangs up"])
def test_no_network_is_a_usage_error(tmp_path: Path, hangs_up: str, network: str) -> None:
    """In a process of its own: the Hub's client reads its environment at import."""
    script = """if True:
        from dialog_gen.core.errors import UsageError
        from dialog_gen.models.registry import resolve_model
        for name in ("llava-1.5-7b", "nobody/nothing"):
            try:
                resolve_model(name)
            except UsageError as error:
                print(error)
    """
    endpoint = {"offline": "https://huggingface.co", "refused": "http://127.0.0.1:9", "hangs up": hangs_up}[network]
    env = os.environ | {"HF_HUB_OFFLINE": str(int(network == "offline")), "HF_ENDPOINT": endpoint}
    env |= {"HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    known, unknown = done.stdout.splitlines()
    assert "'llava-hf/llava-1.5-7b-hf' could not be fetched and is not in the local cache" in known
    assert "'nobody/nothing' could not be fetched" in unknown
    assert unknown.endswith("Check the network, or give the path of a local folder.")
