"""open_clip's text towers of Hugging Face's, of BERT's and T5's kind, small and random, without a network."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.loops import CONFIG, PREPROCESS
from helpers.training import write_recipe
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import BertConfig, MT5Config, PreTrainedTokenizerFast, T5Config

import dialog_gen.clip.open_clip.checkpoint  # noqa: F401 - T5 is known to open_clip from then on
from dialog_eval.models import Models
from dialog_gen.clip.base import SEARCH, Clip
from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.clip.text.tokens import TextEncoder, join_ids
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.clip.third_tower.checkpoint import ThirdTowerClip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.tensors import sha256_of_weights
from dialog_train.config import OptimSettings
from dialog_train.hf_export import export_hf
from dialog_train.optim import select_trainable
from dialog_train.text_tuning import TextTuning

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "star",
    "is",
    "there",
    "what",
    "how",
    "many",
    "?",
    "yes",
    "no",
]
TEXTS = ["a red circle", "is there a blue star ? no", "what", "how many " * 20]
CONTEXT = 16
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2}
# kind -> configuration, pooler, special tokens in order of their ids, how a text is framed
KINDS: dict[str, tuple[Any, str, list[str], str]] = {
    "bert-cls": (BertConfig, "cls_pooler", ["[CLS]", "[SEP]", "[UNK]", "[PAD]"], "[CLS] $A [SEP]"),
    "bert-mean": (BertConfig, "mean_pooler", ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[CLS] $A [SEP]"),
    "t5": (T5Config, "mean_pooler", ["[PAD]", "[EOS]", "[UNK]"], "$A [EOS]"),
    "mt5-unframed": (MT5Config, "mean_pooler", ["[UNK]", "[PAD]"], ""),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_tower(folder: Path, kind: str) -> None:
    """Configuration and tokenizer, as a repository of the Hub holds them."""
    config, _, special, frame = KINDS[kind]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    if frame:
        ids = [(token, vocabulary[token]) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {**BERT, "max_position_embeddings": CONTEXT} if config is BertConfig else T5
    config(vocab_size=len(vocabulary), pad_token_id=vocabulary["[PAD]"], **sizes).save_pretrained(folder)


def make_hf_clip(folder: Path, kind: str) -> Clip:
    write_tower(folder, kind)
    text = {"hf_proj_type": "linear", "hf_pooler_type": KINDS[kind][1], "hf_tokenizer_name": "nowhere/at-all"}
    text |= {"context_length": CONTEXT}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        here = {"hf_model_name": str(folder), "hf_model_pretrained": False}
        model = open_clip.CustomTextCLIP(**{**CONFIG, "text_cfg": {**text, **here}}).eval()
    return Clip(
        model=model,
        preprocess=None,
        tokenizer=HFTokenizer(str(folder), context_length=CONTEXT),
        name=kind,
        config={**CONFIG, "text_cfg": {**text, "hf_model_name": "nowhere/at-all"}},
        preprocess_config=PREPROCESS,
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


@pytest.fixture(params=KINDS)
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> Clip:
    return make_hf_clip(tmp_path / "tower", request.param)


@pytest.fixture
def checkpoint(clip: Clip, tmp_path: Path) -> Path:
    save_clip(clip, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_without_the_padding(clip: Clip) -> None:
    model, tokens = clip.model.double(), clip.tokenizer(TEXTS)
    pad_id = TextEncoder(clip.tokenizer).pad_id
    assert model.text.config.pad_token_id == pad_id
    ends = (tokens != pad_id).sum(1)
    assert ends.min() < CONTEXT == ends.max()
    expected = normalize(model.encode_text(tokens), dim=-1)
    tower = TextTower(model)
    assert tower.whole is None
    torch.testing.assert_close(tower.encode(tokens), expected, rtol=0, atol=1e-12)
    # Without the text that has no padding, none of it is run.
    shapes: list[tuple[int, ...]] = []
    layer = model.text.transformer.block[0] if "t5" in clip.name else model.text.transformer.encoder.layer[0]
    layer.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    short = tower.encode(tokens[:3])
    assert tower.packs == ("bert" in clip.name)
    assert shapes == [(1, int(ends[:3].sum())) if tower.packs else (3, int(ends[:3].max()))]
    torch.testing.assert_close(short, expected[:3], rtol=0, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(vectors[:3].square().sum(0)[:5].sum(), model.text.proj.weight)[0]
        for vectors in (short, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_token_ids(clip: Clip) -> None:
    encoder = TextEncoder(clip.tokenizer)
    *_, special, frame = KINDS[clip.name]
    before, _, after = frame.partition("$A")
    assert encoder.start == [special.index(token) for token in before.split()]
    assert encoder.end == [special.index(token) for token in after.split()]
    ids, cut = encoder(TEXTS)
    assert cut == [False, False, False, True]
    words = [[len(special) + WORDS.index(word) for word in text.split()] for text in TEXTS]
    room = CONTEXT - len(encoder.start) - len(encoder.end)
    assert [row.tolist() for row in ids] == [[*encoder.start, *some[:room], *encoder.end] for some in words]
    joined = join_ids(ids[:2], encoder.start, encoder.end, CONTEXT)
    assert joined.tolist() == [*encoder.start, *words[0], *words[1], *encoder.end]


def test_saved_and_loaded_without_a_network(clip: Clip, checkpoint: Path, tmp_path: Path) -> None:
    again = load_clip(str(checkpoint))
    assert (again.weights_sha256, again.config) == (clip.weights_sha256, clip.config)
    save_clip(again, tmp_path / "third")
    for found in (again, load_clip(str(tmp_path / "third"))):
        tokens = found.tokenizer(TEXTS)
        assert torch.equal(tokens, clip.tokenizer(TEXTS))
        with torch.no_grad():
            assert torch.equal(found.model.encode_text(tokens), clip.model.encode_text(tokens))


@pytest.mark.parametrize("script", ["draft", "third_tower"])
def test_trains_and_is_evaluated(
    run_script: Callable[..., int], clip: Clip, checkpoint: Path, tiny_dialogues: Path, tmp_path: Path, script: str
) -> None:
    write_recipe(tmp_path, "checkpoint", tiny_dialogues)
    assert run_script(script, "--config", "recipe.toml", "--set", "out=out") == 0
    tuned = load_clip(str(tmp_path / "out" / "model"), needs=SEARCH)
    tokens = clip.tokenizer(TEXTS)
    with torch.no_grad():
        before, after = (normalize(model.encode_text(tokens), dim=-1) for model in (clip.model, tuned.model))
        if isinstance(tuned, ThirdTowerClip):
            assert torch.equal(before, after)
            third = tuned.third.encode(tokens)
            assert not torch.allclose(third, before, atol=1e-3)
            after = normalize(0.9 * before + 0.1 * third, dim=-1)
        else:
            assert not torch.allclose(before, after, atol=1e-3)
    models = Models(tuned, "tuned")
    found = models.text_vectors(models.variants[0], models.encode_texts(TEXTS))
    torch.testing.assert_close(found, after, rtol=0, atol=1e-5)


def test_last_layers(clip: Clip) -> None:
    trainable = select_trainable(
        clip.model, TextTower(clip.model), OptimSettings(lr=1, batch_size=2, train_last_layers=1)
    )
    layer = "block.1." if "t5" in clip.name else "encoder.layer.1."
    others = {"logit_scale", "text.proj.weight"}
    others |= {"text.transformer.final_layer_norm.weight"} if "t5" in clip.name else set()
    others |= {f"text.transformer.pooler.dense.{n}" for n in ("weight", "bias")} if "cls" in clip.name else set()
    inside = {name for name, _ in clip.model.named_parameters() if name.startswith(f"text.transformer.{layer}")}
    assert inside
    assert set(trainable) == inside | others


def test_low_rank_updates_are_merged(clip: Clip, tmp_path: Path) -> None:
    tokens = clip.tokenizer(TEXTS)
    names = set(clip.model.state_dict())
    optim = OptimSettings.model_validate({"lr": 1, "batch_size": 2, "lora": {"rank": 2, "layers": 1}})
    tuning = TextTuning(clip, lambda *_: {}, optim)
    before = tuning.tower.eval().encode(tokens)
    layer = "block.1." if "t5" in clip.name else "encoder.layer.1."
    updates = [name for name in tuning.trainable if name != "logit_scale"]
    assert all(name.startswith(f"text.transformer.{layer}") for name in updates)
    assert len(updates) >= 12
    with torch.no_grad():
        for name in updates:
            tuning.trainable[name].normal_(std=0.3)
        tuned = tuning.tower.encode(tokens)
    tuning.save(tmp_path / "tuned", {})
    saved = load_clip(str(tmp_path / "tuned")).model
    assert set(saved.state_dict()) == names
    torch.testing.assert_close(TextTower(saved).eval().encode(tokens), tuned, rtol=0, atol=1e-5)
    assert not torch.allclose(before, tuned, atol=1e-3)


def test_is_no_clip_model_of_transformers(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot become a CLIPModel"):
        export_hf(clip, tmp_path / "hf")
