"""Formats of models to search with: which one a folder is, what it can do, and one from outside the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluation import IMAGES, SUBSET, captions, image_path, write_clips, write_split
from helpers.forks import run_module
from helpers.loops import make_recipe
from helpers.mammut import write_mammut
from PIL import Image

from dialog_gen.clip.base import FORMATS, GENERATION, SEARCH, TUNING, Capability
from dialog_gen.clip.loader import check_clip, load_clip, save_clip
from dialog_gen.core.errors import UsageError
from dialog_train.systems.third_tower.training import ThirdTower

TEXTS = ["a red circle", "", "is there a large blue square " * 5, "no"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each format but CLOSE's, whose own tests have one."""
    root = tmp_path_factory.mktemp("formats")
    base, tuned = write_clips(root)
    ThirdTower(load_clip(str(base)), make_recipe(root / "third", "third-tower", beta=0.75)).save(root / "third", {})
    return {"plain": base, "tuned": tuned, "third": root / "third", "mammut": write_mammut(root / "mammut")}


def test_the_out_of_a_training_names_its_model(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no checkpoint folder: [^.]+\.json and [^.]+\.safetensors\.$"):
        check_clip(str(tmp_path), needs=SEARCH)
    (tmp_path / "model").symlink_to(folders["plain"])
    with pytest.raises(UsageError, match=r"is no checkpoint folder: .* Its model is .*model\.$"):
        check_clip(str(tmp_path), needs=SEARCH)


@pytest.mark.parametrize(
    ("name", "needs", "found"),
    [
        ("plain", TUNING, "open_clip"),
        ("plain", SEARCH, "open_clip"),
        ("plain", GENERATION, "base writes no text, being a plain CLIP: give a CLOSE decoder or a MaMMUT"),
        ("third", SEARCH, "third_tower"),
        # The folder is that of a plain CLIP too.
        ("third", TUNING, "open_clip"),
        ("third", GENERATION, "third writes no text, being a CLIP with a third tower: give a CLOSE"),
        ("mammut", TUNING, "mammut"),
        ("mammut", SEARCH, "mammut"),
        ("mammut", GENERATION, "mammut"),
        (
            "close",
            SEARCH,
            "close embeds no images, being a CLOSE decoder: give a CLIP with a third tower or",
        ),
        ("close", TUNING, "close cannot be tuned as a CLIP, being a CLOSE decoder: give a MaMMUT or a plain CLIP"),
    ],
)
def test_what_is_needed_decides_the_format(
    folders: dict[str, Path], tmp_path: Path, name: str, needs: tuple[Capability, ...], found: str
) -> None:
    folder = folders.get(name, tmp_path / "close")
    if name == "close":
        folder.mkdir()
        (folder / "close.json").write_text("{}")
    if found in FORMATS.names():
        check_clip(str(folder), needs=needs)
        clip = load_clip(str(folder), needs=needs)
        assert (clip.format, clip.name) == (found, folder.name)
        return
    for look in (load_clip, check_clip):
        with pytest.raises(UsageError, match=found):
            look(str(folder), needs=needs)


def test_a_name_of_open_clip_is_a_plain_clip() -> None:
    with pytest.raises(UsageError, match="ViT-B-32 writes no text, being a plain CLIP"):
        check_clip("ViT-B-32", "openai", needs=GENERATION)


@pytest.mark.parametrize("name", ["plain", "third", "mammut"])
def test_what_is_saved_is_loaded(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    clip = load_clip(str(folders[name]), needs=SEARCH)
    save_clip(clip, tmp_path / name)
    again = load_clip(str(tmp_path / name), needs=SEARCH)
    assert type(again) is type(clip)
    assert (again.weights_sha256, again.beta) == (clip.weights_sha256, clip.beta)
    assert torch.equal(again.embed_texts(TEXTS), clip.embed_texts(TEXTS))


@pytest.mark.parametrize("name", ["plain", "mammut"])
def test_vectors_are_those_of_the_model(folders: dict[str, Path], name: str) -> None:
    clip = load_clip(str(folders[name]))
    image = Image.radial_gradient("L").convert("RGB")
    pixels = torch.stack([clip.preprocess(image.rotate(angle)) for angle in (0, 90, 45)])
    with torch.no_grad():
        images = clip.model.encode_image(pixels, normalize=True)
        texts = clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(clip.embed_images(pixels), images)
    torch.testing.assert_close(clip.embed_texts(TEXTS, batch_size=3), texts, rtol=0, atol=1e-5)


def test_a_writer_is_refused_where_there_is_none(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="base writes no text: a plain CLIP only embeds"):
        load_clip(str(folders["plain"])).writer("cpu")
    with pytest.raises(UsageError, match="base has one text tower"):
        load_clip(str(folders["plain"])).with_beta(0.5)


def test_registries_are_light() -> None:
    script = (
        "import sys\nfrom dialog_gen.clip import loader\nfrom dialog_gen.clip.base import CLIP_MODELS, FORMATS\n"
        "print(*sorted(FORMATS.names()), *CLIP_MODELS.names())\n"
        "print({'torch', 'open_clip', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    names, heavy = done.stdout.splitlines()
    assert {"close", "mammut", "open_clip", "third_tower", "shapes-clip"} <= set(names.split()), done.stderr
    assert heavy == "set()"


OUTSIDE = '''
"""A model that knows nothing but brightness and letters."""
import json
import torch
from torch import nn
from dialog_gen.clip.base import CLIP_MODELS, FORMATS, Clip, ClipFormat

SIDE, WIDTH = 4, 16

class Letters:
    context_length = 40
    encoder = {chr(code): code for code in range(2, 128)}
    def __call__(self, texts, context_length=40):
        rows = [[1, *(ord(letter) for letter in text)][:context_length] for text in texts]
        return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

class LetterTower(nn.Module):
    pad_id = 0
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, WIDTH)
    def forward(self, tokens):
        return (self.table(tokens) * (tokens != 0).unsqueeze(-1)).sum(1)

class Model(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.visual, self.text = nn.Linear(3 * SIDE * SIDE, WIDTH, bias=False), LetterTower()
    def encode_image(self, pixels):
        return self.visual(pixels.flatten(1))

def pixels_of(image):
    small = image.convert("RGB").resize((SIDE, SIDE))
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float().view(SIDE, SIDE, 3).permute(2, 0, 1)

class LetterFormat(ClipFormat):
    kind, can = "letter model", frozenset({"embed images", "embed texts"})
    def recognises(self, folder):
        return (folder / "letters.json").is_file()
    def load(self, folder):
        model = Model(json.loads((folder / "letters.json").read_text())["seed"]).eval()
        return Clip(model=model, preprocess=pixels_of, tokenizer=Letters(), name=folder.name, config={},
                    preprocess_config={}, weights_sha256="0" * 64)
    def save(self, clip, folder, changed):
        raise NotImplementedError

FORMATS.register("letters")(LetterFormat())
'''


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which another package adds a format and a model of that format."""
    site, model = tmp_path / "site", tmp_path / "my-model"
    info = site / "letters-1.dist-info"
    info.mkdir(parents=True)
    model.mkdir()
    (model / "letters.json").write_text('{"seed": 3}')
    (site / "letter_clip.py").write_text(
        f"{OUTSIDE}\nfrom pathlib import Path\nCLIP_MODELS.register('letters-small')(Path({str(model)!r}))\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[dialog_gen.clip_formats]\nletters = letter_clip\n[dialog_gen.clip_models]\nletters-small = letter_clip\n"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}


@pytest.mark.parametrize("checkpoint", ["my-model", "letters-small"])
def test_a_format_from_outside(tmp_path: Path, outside: dict[str, str], checkpoint: str) -> None:
    split = write_split(tmp_path / "split")
    given = tmp_path / checkpoint if checkpoint == "my-model" else checkpoint
    arguments = ["--checkpoint", given, "--images", split / "images", "--captions", captions(split), "--device", "cpu"]
    arguments += ["--out", tmp_path / "results.json", "--captions-per-image", "all"]
    done = run_module("dialog_eval.cli", "retrieval", *arguments, environment=outside)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "results.json").read_text())["entries"]
    assert (entry["model"], entry["weights_sha256"]) == ("my-model", "0" * 64)
    found = {metric["name"]: metric["values"] for metric in entry["metrics"]}["image R@5"]

    torch.manual_seed(3)
    image_matrix = torch.nn.Linear(48, 16, bias=False).weight.detach().double().numpy()
    table = torch.nn.Embedding(128, 16).weight.detach().double().numpy()
    content = json.loads(Path(captions(split)).read_text())
    numbers = [image["id"] for image in content["images"]]
    files = [Image.open(image_path(split, SUBSET, number)).convert("RGB").resize((4, 4)) for number in numbers]
    images = np.stack([image_matrix @ np.asarray(file, dtype=float).transpose(2, 0, 1).ravel() for file in files])
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    wanted = []
    for number in numbers:
        for text in [a["caption"] for a in content["annotations"] if a["image_id"] == number]:
            scores = images @ table[[1, *map(ord, text)][:40]].sum(0)
            wanted.append(float((scores > scores[numbers.index(number)]).sum() < 5))
    assert found == wanted
    assert 0 < np.mean(found) < 1, "a test that can tell"
    assert len(numbers) == IMAGES

    arguments[1] = tmp_path / "my-model"
    done = run_module("dialog_eval.cli", "generate", *arguments, "--tasks", "captioning", environment=outside)
    assert done.returncode == 2
    assert "writes no text, being a letter model: give a CLOSE decoder or a MaMMUT" in done.stderr


def test_a_format_that_cannot_be_imported(tmp_path: Path, outside: dict[str, str]) -> None:
    (tmp_path / "site" / "letter_clip.py").write_text("import no_such_module_anywhere\n")
    script = "from dialog_gen.clip.loader import load_clip\nload_clip('letters-small')"
    done = subprocess.run([sys.executable, "-c", script], env=outside, capture_output=True, text=True)
    assert "CLIP model 'letters-small' of the package letters cannot be imported (letter_clip)" in done.stderr
