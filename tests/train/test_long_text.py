import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.training import write_recipe
from torch.nn.functional import normalize

from dialog_gen.clip.base import SEARCH, Clip
from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.tensors import sha256_of_weights
from dialog_train.api import train
from dialog_train.data.training_set import TrainingSet
from dialog_train.long_text import stretch_context, stretch_positions

SIZES: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SHORT = ["a cat", "what is the cat doing on the old wooden table by the window?", ""]  # up to 16 tokens
LONG = "a cat and " * 60


def make_clip(*, custom: bool = False, **text: Any) -> Clip:
    torch.manual_seed(0)
    config = {**SIZES, "text_cfg": {**TEXT, **text}}
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
    return Clip(
        model=model,
        preprocess=None,
        tokenizer=open_clip.SimpleTokenizer(context_length=77),
        name="small",
        config={**config, "custom_text": True} if custom else config,
        preprocess_config={"size": 32},
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


def long_clip(embedding: torch.Tensor) -> torch.Tensor:
    """What Long-CLIP writes out for 77 -> 248, position by position (arXiv 2403.15378)."""
    rows = list(embedding[:20])
    for i in range(20, 76):
        rows += [embedding[i] + (embedding[i + 1] - embedding[i]) * quarter / 4 for quarter in range(4)]
    return torch.stack([*rows, *(embedding[76] + (embedding[76] - embedding[75]) * k / 4 for k in range(4))])


def test_positions_are_those_of_long_clip() -> None:
    embedding = torch.randn(77, 8, dtype=torch.float64)
    torch.testing.assert_close(stretch_positions(embedding, 248), long_clip(embedding), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(77, 512), (32, 33), (24, 40), (22, 1000)])
def test_positions_of_a_line_stay_on_it(old: int, new: int) -> None:
    line = torch.arange(old, dtype=torch.float64)[:, None]
    found = stretch_positions(line, new)[:, 0]
    assert len(found) == new
    assert torch.equal(found[:21], line[:21, 0])
    steps = found[20:].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, (old - 20) / (new - 20)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("custom", [False, True])
def test_short_texts_keep_their_vectors(custom: bool) -> None:
    clip = make_clip(custom=custom)
    longer = stretch_context(clip, 248)
    before, after = TextTower(clip.model), TextTower(longer.model)
    with torch.no_grad():
        assert torch.equal(after.encode(longer.tokenizer(SHORT)), before.encode(clip.tokenizer(SHORT)))
        # Beyond the kept positions they are others.
        text = [" ".join(["cat"] * 40)]
        assert not torch.allclose(after.encode(longer.tokenizer(text)), before.encode(clip.tokenizer(text)), atol=1e-4)
    assert longer.weights_sha256 != clip.weights_sha256
    assert (clip.tokenizer.context_length, clip.config["text_cfg"]["context_length"]) == (77, 77)
    assert clip.model.positional_embedding.shape[0] == 77 if not custom else True


@pytest.mark.parametrize("custom", [False, True])
def test_loads_in_open_clip_and_reads_all_tokens(tmp_path: Path, custom: bool) -> None:
    longer = stretch_context(make_clip(custom=custom), 248)
    save_clip(longer, tmp_path)
    loaded = load_clip(str(tmp_path))
    assert loaded.weights_sha256 == longer.weights_sha256
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    tokens = tokenizer([LONG, LONG[:-10] + " dog", *SHORT])
    assert tokens.shape == (5, 248)
    assert (tokens[0] != 0).sum() == 182
    with torch.no_grad():
        expected = normalize(model.eval().encode_text(tokens), dim=-1)
        torch.testing.assert_close(TextTower(loaded.model).encode(tokens), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(TextTower(longer.model).encode(tokens), expected, rtol=0, atol=1e-5)
    # They differ in their last word.
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)


def test_the_length_it_has_already() -> None:
    clip = make_clip()
    assert stretch_context(clip, 77) is clip


@pytest.mark.parametrize(
    ("text", "length", "said"),
    [
        ({}, 76, "small reads 77 tokens"),
        ({"no_causal_mask": True}, 248, "cannot be stretched"),
        ({"embed_cls": True, "pad_id": 0}, 248, "cannot be stretched"),
        ({"context_length": 20}, 77, "more than 20 positions"),
    ],
)
def test_refuses(text: dict[str, Any], length: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stretch_context(make_clip(custom=True, **text), length)


@pytest.mark.parametrize("system", ["draft", "third-tower"])
def test_a_training_reads_longer_texts_and_its_model_reloads(
    system: str,
    tmp_path: Path,
    tiny_clip: Path,
    tiny_dialogues: Path,
    fresh_accelerate: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialog_train.data.prepare.DECODERS", 0)
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, tiny_clip, tiny_dialogues)
    changes = ["context_length=26", "dialogues=concatenate"]
    base = load_clip(str(tiny_clip))
    result = train(recipe, system=system, overrides=[f"out={tmp_path / 'short'}", "dialogues=concatenate"])
    vectors = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("vectors/**/*.parquet")}
    shutil.rmtree(next(tmp_path.rglob("training_set")))
    result = train(recipe, system=system, overrides=changes)
    # The image vectors are those of the model as it was.
    assert vectors
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("vectors/**/*.parquet")} == vectors
    rows = TrainingSet(next(tmp_path.rglob("training_set")))
    texts = rows.batch(range(len(rows)), 0, concatenate=True).dialogues
    encoder = TextEncoder(base.tokenizer)
    ends = texts.tokens[torch.arange(len(texts)), torch.from_numpy(texts.lengths) - 1]
    assert (base.tokenizer.context_length, texts.lengths.max()) == (24, 26)
    assert ends.tolist() == encoder.end * len(texts)
    tuned = load_clip(str(result.model), needs=SEARCH)
    assert tuned.tokenizer.context_length == 26
    assert tuned.tokenizer([LONG])[0, -1] == encoder.end[0]
    # They differ in the last token that is read, which is beyond those that the model read before.
    found = tuned.embed_texts(["cat " * 23 + "dog", "cat " * 24])
    assert not torch.allclose(found[0], found[1], atol=1e-5)
