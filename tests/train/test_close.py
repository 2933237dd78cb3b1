"""CLOSE: loss, adapters, noise, examples, texts, decoder and checkpoints."""

import json
import math
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import open_clip
import pytest
import torch
from helpers.close import COLORS, ColorRows, direction, make_close_recipe, make_decoder, train_decoder
from helpers.loops import WIDTH, make_clip
from helpers.training import scene_row, write_dialogues
from torch.nn.functional import normalize

from dialog_eval.metrics.vqa import vqa_accuracy
from dialog_gen.clip.close.adapters import Adapter, fit_adapter, load_adapter, save_adapter
from dialog_gen.clip.close.checkpoint import load_close
from dialog_gen.clip.close.decoder import word_tokenizer
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.api import load_recipe
from dialog_train.config import OptimSettings
from dialog_train.data.vectors import VectorStore, embed_dataset
from dialog_train.losses.next_token import IGNORED, next_token_loss, next_token_sums
from dialog_train.optim import learning_rate
from dialog_train.system import EVERYTHING, Share
from dialog_train.systems.close.examples import (
    Pair,
    captioning_example,
    entailment_example,
    vqa_example,
    wrong_answer,
)
from dialog_train.systems.close.texts import Texts, build_texts
from dialog_train.systems.close.training import CloseBatches, CloseTraining, fitted_adapter

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("close-*.toml"))


def rows_of(generator: int, rows: int, width: int = WIDTH) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(generator)), dim=-1)


# The loss


def test_loss_by_hand() -> None:
    # Two texts over three words: of two tokens, and of one.
    logits = torch.tensor([[[0.0, 0, 0], [math.log(2), 0, 0]], [[0, 0, math.log(6)], [9, 9, 9]]], dtype=torch.float64)
    targets = torch.tensor([[1, 0], [2, IGNORED]])
    sums = next_token_sums(logits, targets)
    expected = [[math.log(3) + math.log(2), 2], [math.log(8 / 6), 1]]
    torch.testing.assert_close(sums.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert next_token_loss(sums).item() == pytest.approx((math.log(3) + math.log(2) + math.log(8 / 6)) / 3, abs=1e-6)


def test_loss_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 5\)"):
        next_token_sums(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64))


# Adapters


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Texts (300, 6), and images that are turned, shifted and noisy texts."""
    texts = rows_of(0, 300, 6)
    turn = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
    return texts, normalize(texts @ turn + 0.7 + 0.1 * noise, dim=-1)


def fit(kind: Any, pairs: tuple[torch.Tensor, torch.Tensor]) -> Adapter:
    texts, images = pairs
    return fit_adapter(kind, [(texts[:100], images[:100]), (texts[100:], images[100:])])


def test_none_is_normalised_noise() -> None:
    texts, normal = rows_of(0, 4), torch.randn(4, WIDTH)
    found = Adapter()(texts, normal, Adapter().noise_root(0.3))
    torch.testing.assert_close(found, normalize(texts + 0.3 * normal, dim=-1))
    torch.testing.assert_close(Adapter()(texts, normal, 0.0), texts)


def test_mean(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    texts, images = pairs
    expected = texts + (images - texts).mean(0)
    found = fit("mean", pairs)(texts, torch.zeros_like(texts), 0.1)
    torch.testing.assert_close(found, normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_linear_is_least_squares(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    texts, images = (part.double().numpy() for part in pairs)
    solution, *_ = np.linalg.lstsq(np.hstack([texts, np.ones((300, 1))]), images, rcond=None)
    adapter = fit("linear", pairs)
    assert adapter.matrix is not None
    assert adapter.shift is not None
    np.testing.assert_allclose(adapter.matrix, solution[:-1].T, atol=1e-5)
    np.testing.assert_allclose(adapter.shift, solution[-1], atol=1e-5)
    normal = torch.randn(300, 6, generator=torch.Generator().manual_seed(3))
    unit = normalize(torch.from_numpy(texts @ solution[:-1] + solution[-1]), dim=-1)
    expected = normalize(unit + 0.1 * normal, dim=-1)
    torch.testing.assert_close(adapter(pairs[0], normal, 0.1).double(), expected, rtol=0, atol=1e-5)


def test_covariance_of_the_noise(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    adapter = fit("cov", pairs)
    differences = (pairs[1] - pairs[0]).double().numpy()
    root = adapter.noise_root(0.2)
    assert isinstance(root, torch.Tensor)
    # The published code multiplies its draws by 3.
    expected = 9 * np.cov(differences.T, bias=True) + 0.04 * np.eye(6)
    np.testing.assert_allclose(root.double() @ root.double().T, expected, atol=1e-5)
    assert adapter.shift is not None
    np.testing.assert_allclose(adapter.shift, differences.mean(0), atol=1e-6)


def test_adapter_needs_more_pairs_than_dimensions() -> None:
    with pytest.raises(UsageError, match=r"dimensions \(16\), the dataset has 16"):
        fit_adapter("mean", [(rows_of(0, 16), rows_of(1, 16))])


def test_adapter_as_a_file(tmp_path: Path, pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    for kind in ("none", "mean", "linear", "cov"):
        adapter = fit(kind, pairs)
        save_adapter(adapter, tmp_path / "adapter.safetensors")
        found = load_adapter(tmp_path / "adapter.safetensors")
        assert found.kind == kind
        assert found.tensors().keys() == adapter.tensors().keys()
        assert all(torch.equal(part, adapter.tensors()[name]) for name, part in found.tensors().items())


# Examples and batches


def test_wrong_answers_are_of_the_question_type() -> None:
    pair = Pair("What color is the star?", "red")
    others = [Pair("Is it red?", "no"), Pair("What color is the sky?", "Red"), Pair("what color is it", "blue")]
    assert wrong_answer(pair, others) == "blue"
    assert wrong_answer(pair, others[:2]) is None
    assert entailment_example(pair, "blue") == ("entailment", "entailment: What color is the star? blue", "no")
    assert entailment_example(pair, None) == ("entailment", "entailment: What color is the star? red", "yes")


def test_targets_are_in_lower_case_so_that_vqa_counts_them() -> None:
    answer = vqa_example(Pair("Is it Red?", "Yes"))
    assert answer == ("vqa", "question: Is it Red?", "yes")
    assert vqa_accuracy(answer.target, ["yes"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert captioning_example("A red Star").target == "a red star"
    assert entailment_example(Pair("What?", "Red"), None).target == "yes"


def batches(**changes: Any) -> CloseBatches:
    recipe = make_close_recipe(Path("nowhere"), **changes)
    return CloseBatches(recipe, ColorRows(), make_decoder(recipe), Adapter())


def test_every_example_of_an_image_has_its_turn() -> None:
    data, row = batches(), ColorRows()[3]
    examples = [data.example(row, epoch) for epoch in range(5)]
    assert {e.task for e in examples} == {"vqa", "captioning", "entailment"}
    assert {e.target for e in examples if e.task == "vqa"} == {"black", "yes"}
    assert ("captioning", "caption:", "a black thing") in examples


def test_half_of_the_statements_are_contradictions() -> None:
    data = batches(tasks=["entailment"])
    rows = ColorRows(400)
    examples = [data.example(rows[number], 0) for number in range(400)]
    said_no = [e for e in examples if e.target == "no"]
    # Of the other questions, "Is it red?", none has an answer but yes.
    color = [e for e in examples if "What color" in e.prompt]
    assert 0.35 < len(said_no) / len(color) < 0.65
    for number, example in enumerate(examples):
        right = any(f"{pair.question} {pair.answer}" in example.prompt for pair in rows[number].pairs)
        assert right == (example.target == "yes")


def test_noise_follows_from_seed_and_step_and_is_shared() -> None:
    data = batches(noise=0.3, tasks=["vqa"])
    whole, again = data.batch(1, EVERYTHING), data.batch(1, EVERYTHING)
    assert torch.equal(whole.vectors, again.vectors)
    parts = [data.batch(1, Share(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.vectors for part in parts]), whole.vectors)
    assert parts[0].image_ids + parts[1].image_ids == whole.image_ids
    noiseless = batches(noise=0.0, tasks=["vqa"]).batch(1, EVERYTHING)
    assert noiseless.image_ids == whole.image_ids
    texts = torch.stack([torch.tensor(ColorRows()[int(i.split("-")[1])].vectors["caption"]) for i in whole.image_ids])
    torch.testing.assert_close(noiseless.vectors, texts.float(), rtol=0, atol=1e-3)
    assert (whole.vectors * noiseless.vectors).sum(1).max() < 0.95
    assert not torch.equal(whole.vectors, batches(noise=0.3, tasks=["vqa"], seed=1).batch(1, EVERYTHING).vectors)


def test_the_context_is_the_dialogue_if_asked_but_a_caption_is_written_from_its_own_vector() -> None:
    for tasks, sign in ((["vqa"], -1), (["captioning"], 1)):
        caption, dialogue = (batches(noise=0.0, tasks=tasks, context=c) for c in ("caption", "dialogue"))
        torch.testing.assert_close(dialogue.batch(0, EVERYTHING).vectors, sign * caption.batch(0, EVERYTHING).vectors)


def test_long_texts_are_cut_and_counted() -> None:
    decoder = {"width": 16, "layers": 1, "heads": 2, "max_prompt_tokens": 4, "max_target_tokens": 3}
    batch = batches(tasks=["captioning"], decoder=decoder).batch(0, EVERYTHING)
    assert batch.prompts.shape[1] == 3
    # "a red thing" and the end, which stays.
    assert batch.targets.shape[1] == 3
    assert batch.statistics() == {"truncated_texts": 0.5}
    assert set(batch.targets[:, -1].tolist()) == {1}


# The texts of a dataset


def test_vectors_are_those_of_open_clip(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path) -> None:
    clip, dataset = load_clip(str(tiny_clip)), DatasetFolder.existing(str(tiny_dialogues))
    summary = build_texts(dataset, clip, tmp_path)
    texts = Texts(tmp_path)
    assert len(texts) == summary.rows == 48
    reference = open_clip.create_model(f"local-dir:{tiny_clip}").eval()
    for found, row in zip(texts, dataset.rows(["image_id", "caption", "texts"]), strict=True):
        assert (found.image_id, found.caption) == (row["image_id"], row["caption"])
        assert found.pairs == [(pair["user"], pair["assistant"]) for pair in row["texts"]]
        joined = " ".join(f"{pair['user']} {pair['assistant']}" for pair in row["texts"])
        with torch.no_grad():
            wanted = normalize(reference.encode_text(clip.tokenizer([row["caption"], joined])), dim=-1)
        np.testing.assert_allclose(found.vectors["caption"].astype(np.float32), wanted[0], atol=1e-3)
        np.testing.assert_allclose(found.vectors["dialogue"].astype(np.float32), wanted[1], atol=1e-3)
    with pytest.raises(IndexError):
        texts[48]


def test_needs_no_images_and_leaves_out_what_has_no_texts(tmp_path: Path, tiny_clip: Path) -> None:
    rows = [scene_row(n, images=None) for n in range(3)]
    rows += [scene_row(3, images=None, caption=" "), scene_row(4, images=None, texts=[])]
    dialogues = write_dialogues(tmp_path / "set", {"a": rows})
    clip = load_clip(str(tiny_clip))
    summary = build_texts(DatasetFolder.existing(str(dialogues)), clip, tmp_path / "work")
    assert (summary.rows, summary.left_out) == (3, 2)
    file = tmp_path / "work" / "texts" / "a.arrow"
    before = file.stat().st_mtime_ns
    assert build_texts(DatasetFolder.existing(str(dialogues)), clip, tmp_path / "work").rows == 3
    assert file.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="dialog-gen gate"):
        build_texts(DatasetFolder.existing(str(dialogues)), clip, tmp_path / "kept", kept_only=True)


def test_adapter_is_fitted_to_pairs_of_one_image(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path) -> None:
    clip, dataset = load_clip(str(tiny_clip)), DatasetFolder.existing(str(tiny_dialogues))
    embed_dataset(dataset, clip, tmp_path / "vectors")
    build_texts(dataset, clip, tmp_path / "texts")
    texts, images = Texts(tmp_path / "texts"), VectorStore(tmp_path / "vectors")
    adapter = fitted_adapter(make_close_recipe(tmp_path, adapter="linear"), texts, images)
    stored = {row["image_id"]: row["vector"] for shard in images.shards() for row in images.read(shard).to_pylist()}
    x = np.array([[*row.vectors["caption"], 1] for row in texts], np.float64)
    y = np.array([stored[row.image_id] for row in texts], np.float64)
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert adapter.matrix is not None
    assert adapter.shift is not None
    np.testing.assert_allclose(x[:, :-1] @ adapter.matrix.double().numpy().T + adapter.shift.numpy(), fitted, atol=0.02)


# The decoder


def test_loss_is_that_of_transformers() -> None:
    decoder = make_decoder(make_close_recipe(Path("nowhere")))
    prompts, _ = decoder.token_ids(["question: What color is it?", "caption:"], None)
    targets, _ = decoder.token_ids(["a red thing", "yes"], None)
    labels = targets.masked_fill(targets == decoder.pad_id, IGNORED)
    vectors = rows_of(0, 2)
    loss = next_token_loss(next_token_sums(decoder(vectors, prompts, labels), labels))
    prefix = decoder.projection(vectors).reshape(2, 4, 16)
    embedded = torch.cat([prefix, decoder.t5.shared(prompts)], dim=1)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    expected = decoder.t5(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_padding_and_neighbours_change_nothing_that_is_written() -> None:
    decoder = make_decoder(make_close_recipe(Path("nowhere"))).eval()
    prompts = ["caption:", "question: What color is it?", "entailment: Is it red? yes"]
    vectors = rows_of(3, 3)
    together = decoder.write(vectors, prompts, beams=3, max_tokens=5)
    alone = [decoder.write(v[None], [p], beams=3, max_tokens=5)[0] for v, p in zip(vectors, prompts, strict=True)]
    assert together == alone


def test_one_beam_is_greedy_and_more_are_not_less_likely() -> None:
    decoder = make_decoder(make_close_recipe(Path("nowhere"))).eval()
    vectors, prompts = rows_of(5, 1), decoder.token_ids(["caption:"], None)[0]
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < 4 and ids[-1:] != [1]:
            logits = decoder(vectors, prompts, torch.tensor([[*ids, 0]]))
            ids.append(int(logits[0, -1].argmax()))
    expected = decoder.tokenizer.decode(ids, skip_special_tokens=True)
    assert decoder.write(vectors, ["caption:"], beams=1, max_tokens=4) == [expected]


def test_words() -> None:
    tokenizer = word_tokenizer(["What color is it? Red, isn't it", "blue"])
    ids = tokenizer(["what COLOR is blue?", "green"])["input_ids"]
    assert ids[0][-1] == ids[1][-1] == tokenizer.eos_token_id == 1
    assert ids[1][0] == tokenizer.unk_token_id
    assert tokenizer.pad_token_id == 0
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "what color is blue?"


def test_learns_from_texts_to_answer_for_images(tmp_path: Path) -> None:
    recipe = make_close_recipe(tmp_path, tasks=["vqa", "captioning"], max_steps=150, lr=1e-2, noise=0.1)
    decoder = make_decoder(recipe)
    train_decoder(recipe, make_clip(), decoder)
    # "Images" lie off the texts.
    images = normalize(torch.stack([direction(color) for color in range(8)]) + 0.05 * rows_of(9, 8), dim=-1)
    answers = decoder.eval().write(images, ["question: What color is it?"] * 8)
    assert sum(a == b for a, b in zip(answers, COLORS, strict=True)) >= 7
    captions = decoder.write(images, ["caption:"] * 8)
    assert sum(a == f"a {b} thing" for a, b in zip(captions, COLORS, strict=True)) >= 7


# Checkpoints


@pytest.fixture
def saved(tmp_path: Path, tiny_clip: Path) -> Path:
    recipe = make_close_recipe(tmp_path, model=str(tiny_clip), noise=0.3)
    CloseTraining(load_clip(str(tiny_clip)), make_decoder(recipe), Adapter(), recipe).save(tmp_path / "model", {})
    return tmp_path / "model"


def test_loads_without_network_or_pickle(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    close, decoder = load_close(saved), make_decoder(make_close_recipe(saved))
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, close.decoder.state_dict()[name]), name
    assert close.recipe == {
        "tasks": ["vqa", "captioning", "entailment"],
        "context": "caption",
        "noise": 0.3,
        "adapter": "none",
    }
    prompt = ["question: What color is it?"]
    assert close.decoder.write(rows_of(0, 1), prompt) == decoder.eval().write(rows_of(0, 1), prompt)
    assert load_close(saved).weights_sha256 == close.weights_sha256


def test_changed_parameters_are_saved_and_the_model_is_left_alone(tmp_path: Path, tiny_clip: Path) -> None:
    recipe = make_close_recipe(tmp_path, model=str(tiny_clip))
    decoder, clip = make_decoder(recipe), load_clip(str(tiny_clip))
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    changed = {name: parameter.detach() + 1 for name, parameter in decoder.named_parameters()}
    CloseTraining(clip, decoder, Adapter(), recipe).save(tmp_path / "other", changed)
    CloseTraining(clip, decoder, Adapter(), recipe).save(tmp_path / "own", {})
    other, own = load_close(tmp_path / "other"), load_close(tmp_path / "own")
    for name, value in other.decoder.named_parameters():
        torch.testing.assert_close(value, before[name] + 1)
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert other.weights_sha256 != own.weights_sha256


def edit(file: Path, place: list[str], value: object) -> None:
    content = json.loads(file.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: (m / "close.json").unlink(), "no folder that `dialog-train close` wrote: it has no close.json"),
        (lambda m: (m / "projection.safetensors").unlink(), "has no projection.safetensors"),
        (lambda m: (m / "adapter.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda m: (m / "close.json").write_text("[]"), "is damaged"),
        (lambda m: edit(m / "close.json", ["format"], "x"), "has the format 'x'"),
        (lambda m: edit(m / "close.json", ["clip", "weights_sha256"], "0" * 64), "put back the CLIP"),
        (lambda m: edit(m / "close.json", ["clip", "model"], "nowhere"), "unknown model 'nowhere'"),
        (lambda m: (m / "decoder" / "model.safetensors").unlink(), "cannot be loaded as a T5"),
    ],
)
def test_refuses_what_it_did_not_write(saved: Path, spoil: Any, said: str) -> None:
    spoil(saved)
    with pytest.raises(UsageError, match=said):
        load_close(saved)


# Recipes


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_load(file: Path) -> None:
    assert load_recipe(file, system="close").tasks


def test_published_settings() -> None:
    recipe = load_recipe(next(file for file in RECIPES if file.stem == "close-vit-l-14"), system="close")
    assert (recipe.model, recipe.pretrained, recipe.decoder.name) == (
        "ViT-L-14-quickgelu",
        "openai",
        "google-t5/t5-base",
    )
    optim = recipe.optim
    assert (optim.lr, optim.schedule, optim.batch_size, optim.warmup_steps) == (3e-4, "linear", 128, 0)
    assert (recipe.noise, recipe.decoder.prefix_vectors) == (0.04, 4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("noise=-1", "noise"),
        ("adapter=affine", "'linear'"),
        ('tasks=["vqa", "vqa"]', "tasks must be different"),
        ("tasks=[]", "tasks"),
        ("optim.train_last_layers=1", "train_last_layers is for text towers"),
        ("decoder.heads=3", "width must divide by heads"),
        ("dialogues=concatenate", "unknown key"),
    ],
)
def test_refuses_recipes(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_recipe(RECIPES[0], [override], system="close")


def test_linear_schedule() -> None:
    settings = OptimSettings(lr=2e-3, warmup_steps=4, batch_size=2, schedule="linear")
    rates = [learning_rate(step, 16, settings) for step in (0, 4, 10, 16)]
    assert rates == pytest.approx([5e-4, 2e-3, 1e-3, 0])
