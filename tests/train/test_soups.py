import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.disk import full_at
from helpers.evaluation import change_clip
from helpers.inputs import write_tar
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, WEIGHTS_FILE
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.shapes.language import web_caption
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import Normalization
from dialog_train.data.pixel_sources import DialogueImages
from dialog_train.soups import average, greedy_soup, held_out_score, save_soup, uniform_soup

NAME = "text_projection"


@pytest.fixture(scope="module")
def checkpoints(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models that were tuned from one, and have its image tower."""
    root = tmp_path_factory.mktemp("checkpoints")
    return [change_clip(tiny_clip, root / f"run-{seed}" / "model", seed) for seed in range(3)]


def states(folders: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [load_clip(str(folder)).model.state_dict() for folder in folders]


def test_average_is_the_mean_and_leaves_what_is_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 50, generator=generator) * 10.0 ** torch.arange(-3, 4)[:, None]
    same, count = torch.randn(50, generator=generator), torch.tensor(3)
    found = average(iter({"a": value, "same": same, "count": count} for value in values))
    assert torch.equal(found["a"], values.double().mean(0).float())
    assert torch.equal(found["same"], same)
    assert torch.equal(found["count"], count)
    assert found["count"].dtype == torch.int64


@pytest.mark.parametrize("other", [{"a": torch.ones(2), "b": torch.ones(1)}, {}, {"a": torch.ones(1, 2)}])
def test_average_of_other_architectures(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UsageError, match="checkpoint 2 is of another architecture: "):
        average(iter([{"a": torch.ones(2)}, other]))


def test_uniform_soup_is_a_checkpoint(checkpoints: list[Path], tmp_path: Path) -> None:
    save_soup(uniform_soup(checkpoints), tmp_path / "soup")
    soup, ingredients = load_clip(str(tmp_path / "soup")).model.state_dict(), states(checkpoints)
    for name, value in soup.items():
        expected = sum(state[name].double() for state in ingredients) / 3
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=1e-7)
        if name.startswith("visual."):
            assert torch.equal(value, ingredients[0][name])
    assert not torch.equal(soup[NAME], ingredients[0][NAME])
    assert json.loads((tmp_path / "soup" / "soup.json").read_text()) == {
        "ingredients": [str(folder) for folder in checkpoints],
        "tasted": [],
    }


@pytest.mark.parametrize(
    ("liked", "chosen"),
    [
        # Alone 1 is the best, then 2, then 0: 2 is tried first.
        ({(1,): 5, (2,): 4, (0,): 3, (1, 2): 5, (0, 1, 2): 6}, [1, 2, 0]),
        ({(1,): 5, (2,): 4, (0,): 3, (1, 2): 4.9, (0, 1): 5.1}, [1, 0]),
        ({(1,): 5, (2,): 4, (0,): 3, (1, 2): 4.9, (0, 1): 4.9}, [1]),
    ],
)
def test_greedy_soup_is_recipe_1(
    checkpoints: list[Path], tmp_path: Path, liked: dict[tuple[int, ...], float], chosen: list[int]
) -> None:
    known = [state[NAME].double() for state in states(checkpoints)]

    def score(clip: Clip) -> float:
        """Which ones were averaged is told from the weights themselves."""
        found = clip.model.state_dict()[NAME].double()
        for some, value in liked.items():
            if torch.allclose(found, sum(known[n] for n in some) / len(some), rtol=0, atol=1e-6):  # type: ignore[arg-type]
                return value
        raise AssertionError

    soup = greedy_soup(checkpoints, score)
    assert soup.ingredients == [str(checkpoints[number]) for number in chosen]
    expected = sum(known[number] for number in chosen) / len(chosen)
    torch.testing.assert_close(soup.clip.model.state_dict()[NAME].double(), expected, rtol=0, atol=1e-6)
    save_soup(soup, tmp_path / "soup")
    tasted = json.loads((tmp_path / "soup" / "soup.json").read_text())["tasted"]
    assert [entry["score"] for entry in tasted] == [liked[(0,)], 5, 4, *list(liked.values())[3:]]


def test_held_out_score(checkpoints: list[Path], tiny_dialogues: Path, tmp_path: Path) -> None:
    clip = load_clip(str(checkpoints[0]))
    rows = build_pixel_set(DialogueImages(DatasetFolder(str(tiny_dialogues))), clip, tmp_path / "p")
    batch = rows.batch(range(48), 0, full_length=True)
    with torch.no_grad():
        images = normalize(clip.model.encode_image(Normalization(clip.preprocess_config)(batch.pixels)), dim=-1)
        texts = normalize(clip.model.encode_text(batch.captions.tokens), dim=-1)
    similarities = images @ texts.T
    hits = [[int(row.argmax()) == n for n, row in enumerate(matrix)] for matrix in (similarities, similarities.T)]
    expected = sum(map(sum, hits)) / 96
    assert expected > 0
    assert held_out_score(rows, torch.device("cpu"))(clip) == expected


def report(folder: Path, start: str) -> None:
    (folder.parent / "train.json").write_text(json.dumps({"weights_sha256": start}))


@pytest.mark.parametrize("wrong", ["one", "missing", "config", "damaged", "start", "more"])
def test_what_does_not_go_together(tiny_clip: Path, tmp_path: Path, wrong: str) -> None:
    folders = [change_clip(tiny_clip, tmp_path / f"{seed}" / "model", seed) for seed in range(2)]
    if wrong == "one":
        folders, said = folders[:1], "needs two checkpoints or more, got 1"
    elif wrong == "missing":
        folders[1], said = tmp_path, "is no checkpoint folder"
    elif wrong == "config":
        file = folders[1] / CONFIG_FILE
        file.write_text(file.read_text().replace('"quick_gelu": false', '"quick_gelu": true'))
        (folders[1] / "checksums.json").unlink()
        said = "of another configuration"
    elif wrong == "damaged":
        content = bytearray((folders[1] / WEIGHTS_FILE).read_bytes())
        content[-8] ^= 1
        (folders[1] / WEIGHTS_FILE).write_bytes(content)
        said = f"{WEIGHTS_FILE} is damaged"
    elif wrong == "start":
        for folder, start in zip(folders, "ab", strict=True):
            report(folder, start)
        said = "not trained from the same weights"
    else:
        (folders[1] / "third_tower.safetensors").write_bytes(b"")
        said = r"holds more than a CLIP \(third_tower.safetensors\)"
    with pytest.raises(UsageError, match=said):
        uniform_soup(folders)


def test_says_where_the_start_is_not_known(checkpoints: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    uniform_soup(checkpoints)
    assert caplog.text.count("it is not known what it was tuned from") == 3


@pytest.fixture
def soup(run_script: Callable[..., int]) -> Callable[..., int]:
    """Runs the script within this process, in `tmp_path`."""
    return functools.partial(run_script, "soup")


def test_a_full_disk(checkpoints: list[Path], tmp_path: Path) -> None:
    there = sorted(tmp_path.iterdir())
    with full_at(1000), pytest.raises(DialogGenError, match=r"cannot write .*/soup: .*; nothing was written"):
        save_soup(uniform_soup(checkpoints), tmp_path / "soup")
    assert sorted(tmp_path.iterdir()) == there


def test_script(
    soup: Callable[..., int], checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = [draw_scene("val", 0, number) for number in range(12)]
    texts = [web_caption(scene, random.Random(n)) for n, scene in enumerate(scenes)]
    members: dict[str, bytes] = {}
    for number, (scene, text) in enumerate(zip(scenes, texts, strict=True)):
        members |= {f"{number}.png": render_png(scene), f"{number}.txt": text.encode()}
    write_tar(tmp_path / "held" / "0.tar", members)
    names = ["--checkpoints", *map(str, checkpoints)]
    assert soup(*names, "--out", "uniform") == 0
    assert soup(*names, "--out", "greedy", "--greedy", "--images", "held") == 0
    assert f"uniform: the mean of {checkpoints[0]}" in capsys.readouterr().out
    greedy = json.loads((tmp_path / "greedy" / "soup.json").read_text())
    assert len(greedy["tasted"]) == 5
    assert greedy["tasted"][0]["checkpoints"] == [str(checkpoints[0])]
    best = max(entry["score"] for entry in greedy["tasted"][:3])
    assert [e["score"] for e in greedy["tasted"] if e["checkpoints"] == greedy["ingredients"]][-1] >= best
    for name in ("uniform", "greedy"):
        load_clip(str(tmp_path / name))
    for arguments, said in (
        (["--out", "uniform"], "uniform exists"),
        (["--out", "x", "--greedy"], "--greedy and held-out data go together"),
        (["--out", "x", "--images", "held"], "--greedy and held-out data go together"),
        (["--out", "x", "--greedy", "--images", "none"], "nothing is at"),
        (["--out", "x", "--greedy", "--images", "held", "--dialogues", "y"], "not both"),
    ):
        assert soup(*names, *arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
