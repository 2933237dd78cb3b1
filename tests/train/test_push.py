"""`dialog-train push` against a stand-in of the Hub; what it published is read by open_clip and transformers."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.hub import TOKEN, Failure, Repo, StandIn, replaced_hub
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.clip.third_tower.checkpoint import new_third_tower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import sealed
from dialog_train.cli import run
from dialog_train.model_card import _public, read_figures
from dialog_train.push import push_checkpoint

REPO = "me/draft"
TRAINING: dict[str, Any] = {
    "steps": 400,
    "losses": {"loss": 2.5},
    "method": "DRAFT: aligns captions and dialogues.",
    "recipe": {
        "model": "shapes-clip",
        "optim": {"lr": 0.001, "ema_decay": None, "betas": [0.9, 0.98]},
        "data": {"dialogues": "/home/someone/secret/my-dialogues"},
    },
    "training_set": {"rows": 3031},
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with replaced_hub(tmp_path / "hf-home", monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "run/model"
    folder.mkdir(parents=True)
    save_clip(load_clip("shapes-clip"), folder)
    (tmp_path / "run/train.json").write_text(json.dumps(TRAINING))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def metric(name: str, mean: float) -> dict[str, Any]:
    return {"name": name, "values": [mean], "groups": None, "mean": mean, "low": mean - 0.02, "high": mean + 0.03}


def results(file: Path, own: str, **changes: Any) -> Path:
    common = {"task": "vqa", "dataset": "questions 0123", "protocol": "MC-18", "model": "m"}
    accuracies = ((own, "DRAFT", 0.685), ("b" * 64, "base", 0.198), ("c" * 64, "another", 0.777))
    entries: list[dict[str, Any]] = [
        {**common, "label": label, "weights_sha256": sha256, "metrics": [metric("accuracy", mean)], "notes": []}
        for sha256, label, mean in accuracies
    ]
    entries.append({**entries[0], "label": "blended", "blend": "weight", "metrics": [metric("accuracy", 0.555)]})
    entries[0]["notes"] = ["yes/no equals <always> [yes](http://evil.example)"]
    reference = {"name": 'always "yes"', "task": "vqa", "dataset": "questions 0123", "metric": "accuracy", "value": 0.1}
    content = {"format": "dialog-eval results 1", "baseline": "base", "entries": entries, "references": [reference]}
    file.write_text(json.dumps({**content, **changes}))
    return file


def test_publishes_the_checkpoint_with_its_card_in_one_commit(hub: StandIn, checkpoint: Path) -> None:
    before = contents(checkpoint)
    pushed = push_checkpoint(checkpoint.parent, REPO)
    assert contents(checkpoint) == before
    assert hub.repos[REPO].files == {**before, "README.md": pushed.card.encode()}
    assert (pushed.commit, pushed.url) == (hub.repos[REPO].head, f"{hub.url}/{REPO}")
    assert len(hub.repos[REPO].commits) == 2  # the Hub's own first one, and this
    assert push_checkpoint(checkpoint, REPO).commit == pushed.commit


def test_others_read_what_was_published(hub: StandIn, checkpoint: Path, tmp_path: Path) -> None:
    push_checkpoint(checkpoint, REPO, with_transformers=True)
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    for name, content in hub.repos[REPO].files.items():
        (pulled / name).write_bytes(content)
    ours, texts, pixels = load_clip(str(pulled)), ["a red circle", "Is there a star? yes"], torch.rand(2, 3, 64, 64)
    expected = ours.embed_texts(texts), ours.embed_images(pixels)

    model: Any = open_clip.create_model(f"local-dir:{pulled}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{pulled}")(texts)
    exported = AutoModel.from_pretrained(pulled).eval()
    inputs = AutoProcessor.from_pretrained(pulled)(text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        native = normalize(model.encode_text(tokens), dim=-1), normalize(model.encode_image(pixels), dim=-1)
        found = exported(**inputs, pixel_values=pixels)
    for texts_found, images_found in (native, (found.text_embeds, found.image_embeds)):
        torch.testing.assert_close(texts_found, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(images_found, expected[1], rtol=0, atol=1e-5)


def test_the_card_says_data_method_figures_and_limits(checkpoint: Path, tmp_path: Path) -> None:
    sha256 = load_clip(str(checkpoint)).weights_sha256
    file = results(tmp_path / "results.json", sha256)
    card = push_checkpoint(checkpoint, REPO, results=[file, file], licence="cc-by-4.0", dry_run=True).card
    words = card.replace("\\", "")
    assert f"SHA-256 of its weights: `{sha256}`" in card
    assert "license: cc-by-4.0" in card
    assert "Method: DRAFT: aligns captions and dialogues." in words
    for row in (
        "| dialogues | my-dialogues |",
        "| images in training | 3031 |",
        "| optim.lr | 0.001 |",
        "| optim.betas | 0.9, 0.98 |",
        "| accuracy | DRAFT (this model) | 0.685 | 0.665 to 0.715 |",
        "| accuracy | base (baseline) | 0.198 | 0.178 to 0.228 |",
        "| accuracy | always &quot;yes&quot; | 0.1 | no model |",
    ):
        assert words.count(row) == 1, row
    assert "## Limits" in card
    # Neither another model's figures, nor a blend's, nor a path, nor markup of others.
    assert r"equals &lt;always&gt; \[yes\]\(http\:\/\/evil" in card
    assert [text for text in ("0.777", "0.555", "secret", "ema_decay", "<always>") if text in words] == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://me:secret@host/a/dialogues/?token=secret#x", "dialogues"),
        ("s3://bucket", "bucket"),
        ("hf://buckets/secret/dialogues", "dialogues"),
        ("/secret/dialogues/", "dialogues"),
        ("../secret/dialogues", "dialogues"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        (0.5, 0.5),
    ],
)
def test_places_are_told_by_their_names_only(value: object, shown: object) -> None:
    assert _public(value) == shown


def test_figures_of_a_third_tower_are_those_with_its_own_beta(tmp_path: Path) -> None:
    def entry(label: str, mean: float, **blend: Any) -> dict[str, Any]:
        common = {"task": "vqa", "dataset": "d", "protocol": "MC-18", "model": "m", "weights_sha256": "a" * 64}
        return {**common, "label": label, "notes": [], "metrics": [metric("accuracy", mean)], **blend}

    entries = [
        entry(f"third, embedding blend {beta}{suffix}", beta / 2 + shift, **blend)
        for beta in (0.9, 0.5)
        for suffix, shift, blend in (("", 0.1, {"blend": "embedding", "beta": beta}), (", blind", 0.0, {}))
    ]
    file = results(tmp_path / "results.json", "", baseline=None, entries=entries)
    (found,) = read_figures([file], "a" * 64, 0.9)
    assert [(own.label, own.metrics[0].mean) for own in found.own] == [
        ("third, embedding blend 0.9", 0.55),
        ("third, embedding blend 0.9, blind", 0.45),
    ]
    # A model without a third tower is no blend, and its blends' figures without images are none of its own.
    with pytest.raises(UsageError, match="no figure of this checkpoint"):
        read_figures([file], "a" * 64)


@pytest.mark.parametrize("question_beta", [None, 0.0])
def test_as_the_card_says_what_was_tuned_is_loaded(tmp_path: Path, question_beta: float | None) -> None:
    clip = new_third_tower(
        load_clip("shapes-clip"), beta=1.0 if question_beta == 0 else 0.5, question_beta=question_beta
    )
    with torch.no_grad():
        for parameter in clip.third.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    save_clip(clip, tmp_path / "model")
    card = push_checkpoint(tmp_path / "model", REPO, dry_run=True).card
    code = card.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path / "model")), found)
    texts = ["the star is red"]
    tuned = clip.for_questions().embed_texts(texts)
    torch.testing.assert_close(found["clip" if question_beta is None else "questions"].embed_texts(texts), tuned)
    assert not torch.allclose(tuned, load_clip("shapes-clip").embed_texts(texts), atol=1e-3)
    assert ("questions" in found) == ("with the tower that was tuned" in card) == (question_beta is not None)
    assert "loads as the CLIP from which it was tuned" in card


def test_the_card_of_an_average_says_of_what(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint.parent / "train.json").unlink()
    mixed = tmp_path / "mixed"
    shutil.copytree(checkpoint, mixed)
    choice = {"beta": 0.4, "baseline": "b" * 64, "checkpoint": "c" * 64, "lowest_difference": 0.0, "accuracy": 0.7}
    (mixed / "choice.json").write_text(json.dumps(choice))
    words = push_checkpoint(mixed, REPO, dry_run=True).card.replace("\\", "")
    assert f"an average: 0.4 times the weights of {'b' * 12} and 0.6 times those of {'c' * 12} (SHA-256)" in words
    assert "No record of a training" not in words
    (mixed / "choice.json").unlink()
    (mixed / "soup.json").write_text(json.dumps({"ingredients": ["/secret/a/model", "b/model"], "tasted": []}))
    words = push_checkpoint(mixed, REPO, dry_run=True).card.replace("\\", "")
    assert "an average: the mean of 2 checkpoints: a/model, b/model." in words
    assert "secret" not in words
    for content in ("{", "[]", '{"ingredients": [1]}'):
        (mixed / "soup.json").write_text(content)
        with pytest.raises(UsageError, match=r"soup\.json is damaged: remove it"):
            push_checkpoint(mixed, REPO, dry_run=True)


def test_a_card_without_results_or_training_says_so(checkpoint: Path) -> None:
    (checkpoint.parent / "train.json").unlink()
    card = push_checkpoint(checkpoint, REPO, dry_run=True).card
    assert "no results of an evaluation were given" in card
    assert "No record of a training" in card
    assert "Nothing is recorded about the data" in card


def test_a_dry_run_needs_no_token_and_sends_nothing(
    hub: StandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run(["push", str(checkpoint), "--repo", REPO, "--dry-run"]) == 0
    assert hub.requests == []
    assert "nothing was sent" in capsys.readouterr().out
    card = (checkpoint / "README.md").read_text()
    assert "# draft" in card
    assert run(["push", str(checkpoint), "--repo", REPO]) == 2
    assert "no Hugging Face token" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_checkpoint(checkpoint, REPO)  # the card that is there is made again, not a foreign file
    assert hub.repos[REPO].files["README.md"].decode() == card


def test_the_token_is_never_printed(hub: StandIn, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.failures.append(Failure("POST /api/models/.*/commit/", 403))
    assert run(["push", str(checkpoint), "--repo", REPO, "--json"]) == 2
    hub.failures.clear()
    assert run(["push", str(checkpoint), "--repo", REPO, "--json"]) == 0
    printed = capsys.readouterr()
    assert "you sent" in printed.err
    assert TOKEN not in printed.err + printed.out + hub.repos[REPO].files["README.md"].decode()
    assert json.loads(printed.out)["commit"] == hub.repos[REPO].head


def add(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"\x80\x04")


def damage(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("optimizer.pt"), "optimizer.pt is no part of a checkpoint"),
        (add("pytorch_model.bin"), "may hold pickled code"),
        (add(".env"), "is no part of a checkpoint"),
        (lambda folder: (folder / "notes.txt").symlink_to("/etc/hostname"), "is a link"),
        (damage, "is damaged, its checksum"),
        (lambda folder: (folder.parent / "train.json").write_text("["), "train.json is damaged"),
    ],
    ids=["pickle", "bin", "secret", "link", "damaged", "damaged training"],
)
def test_refuses_what_is_no_intact_checkpoint(
    hub: StandIn, checkpoint: Path, change: Callable[[Path], object], message: str
) -> None:
    change(checkpoint)
    with pytest.raises(UsageError, match=message):
        push_checkpoint(checkpoint, REPO)
    assert hub.repos == {}


def test_refuses_a_folder_that_is_no_checkpoint(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a")
    with pytest.raises(UsageError, match=r"is no checkpoint: give the OUT of a training, or OUT/model\."):
        push_checkpoint(tmp_path, REPO)
    assert hub.repos == {}


def test_refuses_results_of_other_weights_or_another_layout(hub: StandIn, checkpoint: Path, tmp_path: Path) -> None:
    other = results(tmp_path / "other.json", "d" * 64)
    with pytest.raises(UsageError, match=r"has no figure of this checkpoint.*it has 'DRAFT', 'base', 'another'"):
        push_checkpoint(checkpoint, REPO, results=[other])
    for content in ("[", '{"format": "something"}'):
        (tmp_path / "layout.json").write_text(content)
        with pytest.raises(UsageError, match=r"is no results\.json of dialog-eval"):
            push_checkpoint(checkpoint, REPO, results=[tmp_path / "layout.json"])
    with pytest.raises(UsageError, match="cannot be read"):
        push_checkpoint(checkpoint, REPO, results=[tmp_path / "nowhere.json"])
    assert hub.repos == {}


def test_refuses_results_that_were_changed_or_are_no_numbers(checkpoint: Path, tmp_path: Path) -> None:
    """A card says that its figures were measured."""
    file = results(tmp_path / "results.json", load_clip(str(checkpoint)).weights_sha256)
    content = sealed(json.loads(file.read_text()))
    file.write_text(json.dumps(content))
    assert "685" in push_checkpoint(checkpoint, REPO, results=[file], dry_run=True).card
    content["entries"][0]["metrics"][0]["mean"] = 0.999
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"results\.json is damaged or was changed: its checksum"):
        push_checkpoint(checkpoint, REPO, results=[file], dry_run=True)
    content["entries"][0]["metrics"][0]["mean"] = float("nan")
    del content["sha256"]
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="NaN is not a finite number"):
        push_checkpoint(checkpoint, REPO, results=[file], dry_run=True)


def test_refuses_wrong_arguments(hub: StandIn, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="USER/NAME"):
        push_checkpoint(checkpoint, "draft")
    with pytest.raises(UsageError, match="is no folder"):
        push_checkpoint(tmp_path / "nowhere", REPO)
    with pytest.raises(UsageError, match="--licence is empty"):
        push_checkpoint(checkpoint, REPO, licence=" ")
    assert hub.requests == []


def test_a_repository_of_something_else_is_replaced_only_on_request(hub: StandIn, checkpoint: Path) -> None:
    theirs = {"config.json": b"{}", "model.safetensors": b"weights"}
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit(theirs)
    with pytest.raises(UsageError, match=r"holds no checkpoint of dialog-train but 'config.json'"):
        push_checkpoint(checkpoint, REPO)
    with pytest.raises(UsageError, match="exists and is public"):
        push_checkpoint(checkpoint, REPO, private=True, replace=True)
    assert hub.repos[REPO].files == theirs
    push_checkpoint(checkpoint, REPO, replace=True)
    assert set(hub.repos[REPO].files) == {*contents(checkpoint), "README.md"}
