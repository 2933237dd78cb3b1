import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from helpers.training import TINY_CLIP, write_tiny_clip
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from dialog_gen.clip.loader import check_clip, load_clip, save_clip
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, WEIGHTS_FILE
from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.core.tensors import sha256_of_weights
from dialog_train.data.derived import identity_of

IMAGE = Image.radial_gradient("L").convert("RGB").resize((50, 40))
TEXTS = ["a red star", "Is there a small blue circle?"]


@pytest.fixture
def tiny_name(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny CLIP's architecture under a name, as open_clip's own have one."""
    name = "tiny-registered"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, TINY_CLIP)
    return name


def outputs(model: object, preprocess: object, tokenizer: object) -> list[torch.Tensor]:
    with torch.no_grad():
        pixels, tokens = preprocess(IMAGE)[None], tokenizer(TEXTS)  # type: ignore[operator]
        return [pixels, tokens, model.encode_image(pixels), model.encode_text(tokens)]  # type: ignore[attr-defined]


def test_what_is_saved_loads_in_open_clip_and_here(tiny_clip: Path, tmp_path: Path, tiny_name: str) -> None:
    clip = load_clip(str(tiny_clip))
    save_clip(clip, tmp_path / "again")
    expected = outputs(clip.model, clip.preprocess, clip.tokenizer)
    weights = str(tmp_path / "again" / WEIGHTS_FILE)

    again = load_clip(str(tmp_path / "again"))
    by_file = load_clip(tiny_name, weights)
    local = f"local-dir:{tmp_path / 'again'}"
    model, _, preprocess = open_clip.create_model_and_transforms(local)
    by_name, _, _ = open_clip.create_model_and_transforms(tiny_name, pretrained=weights)
    tokenizer = open_clip.get_tokenizer(local)

    assert again.weights_sha256 == clip.weights_sha256 == by_file.weights_sha256
    assert again.preprocess_config == clip.preprocess_config
    assert not again.model.training
    for found in (
        outputs(again.model, again.preprocess, again.tokenizer),
        outputs(model.eval(), preprocess, tokenizer),
        outputs(by_name.eval(), preprocess, tokenizer),
        outputs(by_file.model, preprocess, by_file.tokenizer),
    ):
        for ours, theirs in zip(expected, found, strict=True):
            assert torch.equal(ours, theirs)


def test_a_model_is_the_same_wherever_it_was_loaded_from(tiny_clip: Path, tmp_path: Path, tiny_name: str) -> None:
    named = load_clip(tiny_name, str(tiny_clip / WEIGHTS_FILE))
    save_clip(named, tmp_path / "saved")
    saved = load_clip(str(tmp_path / "saved"))
    differing = {k for k, v in identity_of(saved).items() if v != identity_of(named)[k]}
    assert differing <= {"model", "transform"}


def test_saves_other_tensors_and_leaves_no_part(tiny_clip: Path, tmp_path: Path) -> None:
    clip = load_clip(str(tiny_clip))
    state = {name: value + 1 for name, value in clip.model.state_dict().items()}
    save_clip(clip, tmp_path / "new", state)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "checksums.json",
        CONFIG_FILE,
        WEIGHTS_FILE,
    ]
    found = load_file(tmp_path / "new" / WEIGHTS_FILE)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert load_clip(str(tmp_path / "new")).weights_sha256 == sha256_of_weights(state) != clip.weights_sha256


def test_hash_of_weights_sees_names_values_shapes_and_types_but_no_order() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    base = sha256_of_weights({"a": a, "b": b})
    assert sha256_of_weights({"b": b.clone(), "a": a}) == base
    others = [{"a": b, "b": a}, {"a": a, "c": b}, {"a": a + 1, "b": b}, {"a": a.reshape(2, 3), "b": b}]
    others.append({"a": a.view(torch.int32), "b": b})
    assert len({base, *map(sha256_of_weights, others)}) == 6


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that open_clip was asked for, in vain."""
    asked: list[str] = []

    def load(location: str, **_: object) -> None:
        asked.append(location)
        raise RuntimeError("no download in tests")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", load)
    monkeypatch.setattr("dialog_gen.clip.open_clip.checkpoint.download_pretrained", lambda config: "")
    return asked


@pytest.mark.parametrize("tag", ["openai", "laion400m_e31", "laion400m_e32"])
def test_wrong_activation_names_the_right_model(tag: str, loads: list[str]) -> None:
    with pytest.raises(
        UsageError, match="with QuickGELU, ViT-B-32 lacks it: use ViT-B-32-quickgelu, or allow_activation"
    ):
        load_clip("ViT-B-32", tag)
    assert loads == []
    for name, allow in (("ViT-B-32", True), ("ViT-B-32-quickgelu", False)):
        with pytest.raises(UsageError, match="no download"):
            load_clip(name, tag, allow_activation_mismatch=allow)
    assert loads == ["ViT-B-32", "ViT-B-32-quickgelu"]


def test_activation_the_other_way_round(loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no download"):
        load_clip("ViT-B-32", "laion2b_s34b_b79k")
    monkeypatch.setattr("dialog_gen.clip.open_clip.checkpoint.get_pretrained_cfg", lambda name, tag: {})
    with pytest.raises(UsageError, match="without QuickGELU, ViT-B-32-quickgelu has it: use ViT-B-32, or"):
        load_clip("ViT-B-32-quickgelu", "openai")
    assert loads == ["ViT-B-32"]


def test_wrong_names_and_files(tiny_clip: Path, tmp_path: Path, tiny_name: str) -> None:
    pickled = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1)}, pickled)
    other = tmp_path / "other"
    write_tiny_clip(other, seed=0)
    tensors = load_file(other / WEIGHTS_FILE)
    save_file({**tensors, "ln_final.weight": torch.ones(7)}, other / WEIGHTS_FILE)
    damaged = tmp_path / "damaged"
    write_tiny_clip(damaged, seed=0)
    (damaged / CONFIG_FILE).write_text(json.dumps({"something": 1}))
    (tmp_path / "empty").mkdir()
    for folder in (other, damaged):
        (folder / "checksums.json").unlink()  # as of another program

    for name, pretrained, words in (
        ("ViT-B32", "openai", "'ViT-B-32'"),
        ("quite something else", None, "unknown model"),
        ("ViT-B-32", None, "laion400m_e31"),
        ("ViT-B-32", "laion400m", "no pretrained tag 'laion400m'.*laion400m_e31"),
        (tiny_name, str(pickled), "convert it to safetensors"),
        (str(tiny_clip), "openai", "leave out pretrained"),
        (str(tmp_path / "empty"), None, f"needs {CONFIG_FILE} and {WEIGHTS_FILE}"),
        (str(damaged), None, "holds no model_cfg"),
        (str(other), None, r"do not fit other: .*ln_final.weight"),
        (str(tmp_path / "nowhere"), None, "unknown model"),
    ):
        with pytest.raises(UsageError, match=words):
            load_clip(name, pretrained)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path / "cut", seed=0)
    (folder / "checksums.json").unlink()  # as of another program
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="weights of cut are damaged"):
        load_clip(str(folder))


def test_a_clip_can_be_changed_only_by_replacing_it(tiny_clip: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_clip(str(tiny_clip)).name = "other"  # type: ignore[misc]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_weights_that_cannot_be_downloaded_are_not_called_misfits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"^the weights 'laion2b\w*' of ViT-B-32 cannot be downloaded: [^\n]*\.$"):
        load_clip("ViT-B-32", "laion2b_s34b_b79k")
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("error", ["ConnectError", "ConnectTimeout"])
def test_without_a_network_there_are_no_retries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The Hub's client tries a file six times in 24 seconds, of which open_clip asks for three; a slow network may."""
    offline = list[bool]()

    def head(*_: object, **__: object) -> None:
        raise type(error, (OSError,), {})("[Errno -2] Name or service not known")

    def download(config: object) -> str:
        offline.append(constants.HF_HUB_OFFLINE)
        raise OSError("no network")

    monkeypatch.setattr("dialog_gen.core.hub_network._WAIT_S", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr("dialog_gen.clip.open_clip.checkpoint.download_pretrained", download)
    said = "https?://.* cannot be reached .*not known" if error == "ConnectError" else "no network"
    with pytest.raises(UsageError, match=rf"cannot be downloaded: {said}"):
        load_clip("ViT-B-32", "laion2b_s34b_b79k")
    assert offline == [error == "ConnectError"]
    assert not constants.HF_HUB_OFFLINE
    assert warnings_of(caplog) == []


def test_retries_of_a_download_are_not_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As the Hub's library tells them, each in two lines."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = logging.getLogger("huggingface_hub.utils._http")

    def download(config: object) -> str:
        hub.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://host/file")
        raise OSError("no network")

    monkeypatch.setattr("dialog_gen.clip.open_clip.checkpoint.download_pretrained", download)
    with pytest.raises(UsageError, match=r"cannot be downloaded: no network"):
        load_clip("ViT-B-32", "laion2b_s34b_b79k")
    assert warnings_of(caplog) == []
    hub.warning("what is not a retry")
    assert "what is not a retry" in caplog.text


@pytest.mark.parametrize("call", [lambda: load_clip("shapes-clip"), lambda: check_clip("ViT-B-32", "openai")])
def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"^the CLIP model \S+ needs an extra that is not installed: pip "):
        call()
