"""open_clip's text towers of Hugging Face's on one row of texts, small and random, against `encode_text`."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers.varlen import varlen_attn
from torch._dynamo.utils import counters
from torch.nn.functional import cosine_similarity, normalize
from transformers import BertConfig, M2M100Config, MT5Config, RobertaConfig, T5Config, XLMRobertaConfig

import dialog_gen.clip.open_clip.checkpoint  # noqa: F401 - T5 is known to open_clip from then on
from dialog_gen.clip.text import hf_packed
from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tower import TextTower

CONTEXT, VOCABULARY, PAD = 24, 120, 3
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# RoBERTa's positions count from after the padding id.
BERT |= {"max_position_embeddings": CONTEXT + PAD + 1}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2}
M2M = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
# configuration, pooler, projection
PACKED: dict[str, tuple[Any, str, str | None]] = {
    "bert-cls": (BertConfig, "cls_pooler", "linear"),
    "bert-mean": (BertConfig, "mean_pooler", "mlp"),
    "roberta-mean": (RobertaConfig, "mean_pooler", None),
    "roberta-cls": (RobertaConfig, "cls_pooler", "mlp"),
    "xlm-roberta-mean": (XLMRobertaConfig, "mean_pooler", "mlp"),
    "xlm-roberta-first": (XLMRobertaConfig, "cls_last_hidden_state_pooler", "linear"),
}
GROUPED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "t5": (T5Config, "mean_pooler", T5),
    "mt5": (MT5Config, "mean_pooler", T5),
    "m2m-100": (M2M100Config, "cls_pooler", M2M),
    "decoder": (BertConfig, "mean_pooler", {**BERT, "is_decoder": True}),
    "eager": (RobertaConfig, "mean_pooler", {**BERT, "attn_implementation": "eager"}),
}


def make_model(folder: Path, config: Any, pooler: str, proj: str | None, **sizes: Any) -> Any:
    eager = sizes.pop("attn_implementation", None)
    config(vocab_size=VOCABULARY, pad_token_id=PAD, **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "context_length": CONTEXT}
    text |= {"hf_pooler_type": pooler, "hf_proj_type": proj}
    torch.manual_seed(0)
    model: Any = open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=VISION, text_cfg=text)
    if eager:
        model.text.transformer.set_attn_implementation(eager)
    return model.eval()


def make_packed(folder: Path, kind: str, **sizes: Any) -> Any:
    config, pooler, proj = PACKED[kind]
    return make_model(folder, config, pooler, proj, **{**BERT, **sizes})


def random_texts(count: int, least: int = 1, most: int = CONTEXT) -> Texts:
    rng = np.random.default_rng(count)
    lengths = rng.integers(least, most + 1, count)
    lengths[0] = least
    return Texts.of([rng.integers(PAD + 1, VOCABULARY, n).astype(np.int32) for n in lengths], PAD, CONTEXT)


def gradient(model: Any, vectors: torch.Tensor) -> torch.Tensor:
    """That of a loss in which the texts differ, with respect to all weights; zeros where it does not depend on them."""
    grads = torch.autograd.grad(
        (vectors * vectors.roll(1, 1)).sum(), [*model.text.parameters()], materialize_grads=True
    )
    return torch.cat([value.flatten() for value in grads])


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("filled", [False, True])
def test_packed_equals_open_clip(tmp_path: Path, kind: str, filled: bool) -> None:
    model = make_packed(tmp_path, kind).double()
    for texts in (random_texts(1), random_texts(4, most=1), random_texts(5, least=CONTEXT), random_texts(30)):
        expected = model.encode_text(texts.tokens, normalize=True)
        wanted = gradient(model, expected)
        assert TextTower(model).packs
        found = normalize(hf_packed.run_packed(model.text, texts, filled=filled), dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient(model, found), wanted, rtol=1e-9, atol=1e-11)
        # The model itself still does what it did.
        assert torch.equal(model.encode_text(texts.tokens, normalize=True), expected)


@pytest.mark.parametrize("kind", ["bert-cls", "roberta-cls", "xlm-roberta-mean"])
def test_float32_and_bfloat16(tmp_path: Path, kind: str) -> None:
    model = make_packed(tmp_path, kind, hidden_size=128, num_hidden_layers=6, num_attention_heads=4)
    tower, texts = TextTower(model), random_texts(40)
    expected = model.encode_text(texts.tokens, normalize=True)
    wanted = gradient(model, expected)
    (found,) = tower(texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(model, found), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (half,) = tower(texts)
    half = normalize(half.float(), dim=-1)
    assert (half * expected).sum(1).min() > 0.9995
    assert cosine_similarity(gradient(model, half), wanted, dim=0) > 0.9995


def test_several_sets_are_one_row_without_a_mask(tmp_path: Path) -> None:
    model = make_packed(tmp_path, "xlm-roberta-mean").double()
    tower, first, second = TextTower(model), random_texts(7, most=9), random_texts(5, least=20)
    shapes: list[tuple[int, ...]] = []
    masks: list[object] = []

    def look(module: Any, inputs: Any, _: Any) -> None:
        shapes.append(tuple(inputs[0].shape))
        masks.append(inputs[1])

    for layer in model.text.transformer.encoder.layer:
        layer.register_forward_pre_hook(look, with_kwargs=True)
    found = tower(first, second[:3], second[3:])
    assert shapes == [(1, int(first.lengths.sum() + second.lengths.sum()), 32)] * 2
    assert masks == [None, None]
    assert [len(vectors) for vectors in found] == [7, 3, 2]
    for vectors, texts in zip(found, (first, second[:3], second[3:]), strict=True):
        torch.testing.assert_close(vectors, model.encode_text(texts.tokens, normalize=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", PACKED)
def test_a_text_that_holds_the_padding_id_is_masked_there(tmp_path: Path, kind: str) -> None:
    model = make_packed(tmp_path, kind).double()
    tower = TextTower(model)
    ids = [np.array(one, np.int32) for one in ([5, PAD, 7, 8], [5, 6, 7], [9, PAD])]
    texts = Texts.of(ids, PAD, CONTEXT)
    assert texts.may_hold_padding
    assert not Texts.of(ids[1:2], PAD, CONTEXT).may_hold_padding
    expected = model.encode_text(texts.tokens, normalize=True)
    for found in (tower(texts)[0], tower(texts[:2], texts[2:])[0], tower.encode(texts.tokens)):
        torch.testing.assert_close(found, expected[: len(found)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", GROUPED)
def test_others_stay_in_groups(tmp_path: Path, kind: str) -> None:
    config, pooler, sizes = GROUPED[kind]
    model = make_model(tmp_path, config, pooler, "linear", **sizes).double()
    tower, texts = TextTower(model), random_texts(30, least=2)
    assert not tower.packs
    expected = model.encode_text(texts.tokens, normalize=True)
    torch.testing.assert_close(tower(texts)[0], expected, rtol=0, atol=1e-12)


def test_an_encoder_of_another_class_stays_in_groups(tmp_path: Path) -> None:
    model = make_packed(tmp_path, "bert-mean")

    class Encoder(type(model.text)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model.text.__class__ = Encoder
    assert not TextTower(model).packs


@pytest.mark.parametrize("kind", PACKED)
def test_with_a_kernel_for_texts_of_different_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    used: list[int] = []

    def kernel(row: torch.Tensor, head_width: int) -> Any:
        used.append(head_width)
        return varlen_attn

    monkeypatch.setattr(hf_packed, "kernel", kernel)
    model = make_packed(tmp_path, kind).double()
    tower, texts = TextTower(model), random_texts(30)
    expected = model.encode_text(texts.tokens, normalize=True)
    for filled in (False, True):
        found = normalize(hf_packed.run_packed(tower.text, texts, filled=filled), dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient(model, found), gradient(model, model.encode_text(texts.tokens, True)))
    assert used == [16] * 4
    # It drops nothing, so it is not for training with dropout.
    tower.train()(texts)
    assert used == [16] * 4


@pytest.mark.parametrize("kind", ["bert-cls", "roberta-mean"])
@pytest.mark.parametrize("has_kernel", [False, True])
def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, has_kernel: bool) -> None:
    if has_kernel:
        monkeypatch.setattr(hf_packed, "kernel", lambda row, head_width: varlen_attn)
    model = make_packed(tmp_path, kind, num_hidden_layers=4).double()
    tower = TextTower(model)
    torch._dynamo.reset()
    counters.clear()
    tower.compile_blocks(backend="aot_eager")
    graphs: list[int] = []
    for count in (5, 30, 41, 52):
        texts = random_texts(count)
        found = normalize(hf_packed.run_packed(tower.text, texts, filled=True), dim=-1)
        ours = gradient(model, found)
        with torch.compiler.set_stance("force_eager"):
            expected = model.encode_text(texts.tokens, normalize=True)
            wanted = gradient(model, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)
        graphs.append(counters["stats"]["unique_graphs"])
    # For all layers, and once more for all other lengths of the row.
    assert 1 <= graphs[0] < graphs[1] == graphs[-1]
    assert graphs[-1] == 2 or not has_kernel


def test_dropout_in_attention() -> None:
    """All scores are equal, so each output is twice the share of keys that are left."""
    lengths = np.array([1, 6, 10, 10])
    packing = hf_packed.Packing.of(lengths, torch.device("cpu"), context=16, filled=False)
    q, v = torch.zeros(27, 2, 8), torch.ones(27, 2, 8)
    torch.manual_seed(0)
    found = torch.stack([hf_packed.bidirectional(q, q, v, packing, 1.0, dropout=0.5) for _ in range(400)])
    left = found * torch.from_numpy(np.repeat(lengths, lengths))[:, None, None] / 2
    torch.testing.assert_close(left, left.round(), rtol=0, atol=1e-5)
    assert found.mean((0, 3)).sub(1).abs().max() < 0.3
    assert abs(float(found.mean()) - 1) < 0.01


def test_trains_with_the_dropout_of_its_configuration(tmp_path: Path) -> None:
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_packed(tmp_path, "roberta-mean", **plain).train()
    texts = random_texts(30)
    expected = model.encode_text(texts.tokens, normalize=True)
    torch.testing.assert_close(TextTower(model).train()(texts)[0], expected, rtol=0, atol=1e-5)
    for name in plain:
        tower = TextTower(make_packed(tmp_path, "roberta-mean", **{**plain, name: 0.5})).train()

        def vectors(seed: int, tower: TextTower = tower) -> torch.Tensor:
            torch.manual_seed(seed)
            return tower(texts)[0]

        assert torch.equal(vectors(1), vectors(1))
        assert not torch.allclose(vectors(1), vectors(2), atol=1e-3)
        torch.testing.assert_close(tower.eval()(texts)[0], expected, rtol=0, atol=1e-5)


def test_copied_and_saved(tmp_path: Path) -> None:
    model = make_packed(tmp_path, "bert-cls").double()
    tower, texts = TextTower(model), random_texts(30)
    expected = model.encode_text(texts.tokens, normalize=True)
    twin = copy.deepcopy(tower)
    calls: list[int] = []
    twin.text.transformer.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(twin(texts)[0], expected, rtol=0, atol=1e-12)
    assert calls == [1]
    # Elsewhere transformers knows no such attention.
    model.text.config.save_pretrained(tmp_path)
    model.text.transformer.config.save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        assert hf_packed._registered() not in (folder / "config.json").read_text()


def test_texts_that_may_hold_the_padding_id_run_in_groups(tmp_path: Path) -> None:
    model = make_packed(tmp_path, "xlm-roberta-mean").double()
    tower, texts = TextTower(model), random_texts(30)
    shapes: list[int] = []
    model.text.register_forward_pre_hook(lambda module, inputs: shapes.append(len(inputs[0])))
    (found,) = tower(replace(texts, may_hold_padding=True))
    assert sum(shapes) == 30
    torch.testing.assert_close(found, tower(texts)[0], rtol=0, atol=1e-12)
    assert sum(shapes) == 30
