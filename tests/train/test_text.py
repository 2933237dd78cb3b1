import itertools

import numpy as np
import open_clip
import pytest
import torch
from helpers.varlen import varlen_attn
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.functional import cosine_similarity, normalize

from dialog_gen.clip.text import packed as packed_module
from dialog_gen.clip.text import tower as text_module
from dialog_gen.clip.text.packed import Packing, run_packed
from dialog_gen.clip.text.texts import Texts, passes
from dialog_gen.clip.text.tower import TextTower

TEXTS = ["a cat", "what is the cat doing on the old wooden table by the window?", "x"]
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def small_clip(*, custom: bool, **text: object) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return kind(**SMALL, text_cfg={**TEXT, **text}).double()


@pytest.mark.parametrize(
    ("custom", "text"),
    [
        (False, {}),
        (False, {"pool_type": "eos", "eos_id": 49407}),
        (False, {"proj_bias": True}),
        (True, {}),
        (True, {"pool_type": "eos", "eos_id": 49407}),
        (True, {"proj_bias": True}),
        (True, {"qk_norm": True}),
        (True, {"pool_type": "last"}),
        (True, {"no_causal_mask": True}),
        (True, {"embed_cls": True, "pad_id": 0}),
    ],
)
def test_equals_open_clip_on_padded_tokens(custom: bool, text: dict[str, object]) -> None:
    model = small_clip(custom=custom, **text)
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    expected = normalize(model.encode_text(tokens), dim=-1)
    found = TextTower(model).encode(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(vectors.square().sum(0)[:5].sum(), model.parameters(), allow_unused=True)
        for vectors in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is None:
            assert ours is None
            continue
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("copies", [1, 40])
def test_runs_no_token_beyond_those_of_the_texts(custom: bool, copies: int) -> None:
    model = small_clip(custom=custom)
    tower = TextTower(model)
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS).repeat_interleave(copies, 0)
    shapes: list[tuple[int, ...]] = []
    for block in tower.transformer.resblocks:
        block.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    found = tower.encode(tokens)
    assert shapes == [(int((tokens != 0).sum()), TEXT["width"])] * TEXT["layers"]
    torch.testing.assert_close(found, tower.encode(tokens[::copies]).repeat_interleave(copies, 0), rtol=0, atol=1e-12)


def random_texts(count: int, least: int = 3, most: int = 77) -> Texts:
    rng = np.random.default_rng(count)
    lengths = rng.integers(least, most + 1, count)
    # The tokenizer's end may also occur within a text: the first one counts.
    ids = [np.r_[49406, rng.integers(1, 49406, n - 2), 49407].astype(np.int32) for n in lengths]
    ids[0][len(ids[0]) // 2] = 49407
    return Texts.of(ids, 0, 77)


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": 49407}, {"ls_init_value": 0.5}])
@pytest.mark.parametrize("filled", [False, True])
def test_packed_equals_open_clip(count: int, text: dict[str, object], filled: bool) -> None:
    model = small_clip(custom=True, **text)
    tower, texts = TextTower(model), random_texts(count)
    expected = model.encode_text(texts.tokens, normalize=True)
    ends = (texts.tokens == 49407).int().argmax(1)
    found = normalize(tower._projected(run_packed(tower, texts, ends, filled=filled)), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = [parameter for parameter in model.text.parameters() if parameter.requires_grad]
    ours, theirs = (torch.autograd.grad((v * v.roll(1, 1)).sum(), weights) for v in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_several_sets_are_one_forward() -> None:
    model = small_clip(custom=False)
    tower, first, second = TextTower(model), random_texts(7, most=9), random_texts(5, least=20)
    calls: list[int] = []
    tower.transformer.resblocks[0].register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    found = tower(first, second[:3], second[3:])
    assert calls == [int(first.lengths.sum() + second.lengths.sum())]
    assert [len(vectors) for vectors in found] == [7, 3, 2]
    for vectors, texts in zip(found, (first, second[:3], second[3:]), strict=True):
        torch.testing.assert_close(vectors, model.encode_text(texts.tokens, normalize=True), rtol=0, atol=1e-12)


def test_float32_and_bfloat16() -> None:
    torch.manual_seed(0)
    sizes = {"width": 128, "heads": 4, "layers": 12}
    model = open_clip.CLIP(**{**SMALL, "embed_dim": 64}, text_cfg={**TEXT, **sizes})
    tower, texts = TextTower(model), random_texts(40)
    weights = [parameter for parameter in tower.parameters() if parameter.requires_grad]

    def gradient(vectors: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad((vectors * vectors.roll(1, 0)).sum(), weights)
        return torch.cat([value.flatten() for value in grads])

    expected = model.encode_text(texts.tokens, normalize=True)
    wanted = gradient(expected)
    (found,) = tower(texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(found), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (half,) = tower(texts)
    half = normalize(half.float(), dim=-1)
    assert (half * expected).sum(1).min() > 0.9995
    assert cosine_similarity(gradient(half), wanted, dim=0) > 0.9995


@given(lengths=st.lists(st.integers(1, 77), min_size=1, max_size=400))
def test_a_filled_row_has_one_of_few_lengths(lengths: list[int]) -> None:
    total = sum(lengths)
    packing = Packing.of(np.sort(lengths), torch.device("cpu"), context=77, filled=True)
    assert total <= len(packing.text) <= max(total * (1 + 1 / 16), total + 127)
    assert packing.lengths.sum() == len(packing.text)
    assert packing.longest % 128 == 0
    # The number of texts depends on the row's length, not on the number of tokens.
    full = [*np.sort(lengths), *[1] * (len(packing.text) - total)]
    assert len(packing.lengths) - len(lengths) == len(
        Packing.of(np.array(full), torch.device("cpu"), context=77, filled=True).lengths
    ) - len(full)


@pytest.mark.parametrize("copies", [1, 40])
def test_other_blocks_run_few_tokens_beyond_those_of_the_texts(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    monkeypatch.setattr(text_module, "_PASS_COST_TOKENS", {"cpu": 100})
    model = small_clip(custom=True, qk_norm=True)
    shapes: list[tuple[int, ...]] = []
    tower = TextTower(model)
    tower.transformer.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS).repeat_interleave(copies, 0)
    found = tower.encode(tokens)
    lengths = [4, 16, 3]
    assert lengths == (tokens != 0).sum(1)[::copies].tolist()
    # Four tokens are too few for a pass of their own, half of 40 x 16 are not.
    assert shapes == ([(3, 16)] if copies == 1 else [(80, 4), (40, 16)])
    torch.testing.assert_close(
        found, tower.encode(tokens[::copies]).repeat_interleave(copies, 0), rtol=1e-12, atol=1e-12
    )


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9), tokens_a_pass=st.integers(0, 20))
def test_passes_are_the_cheapest(lengths: list[int], tokens_a_pass: int) -> None:
    lengths.sort()

    def cost(sizes: list[int]) -> int:
        ends = list(itertools.accumulate(sizes))
        return sum(size * lengths[end - 1] + tokens_a_pass for size, end in zip(sizes, ends, strict=True))

    every_way = [
        [b - a for a, b in itertools.pairwise([0, *cuts, len(lengths)])]
        for count in range(len(lengths))
        for cuts in itertools.combinations(range(1, len(lengths)), count)
    ]
    sizes = passes(lengths, tokens_a_pass)
    assert sum(sizes) == len(lengths)
    assert cost(sizes) == min(map(cost, every_way))


def test_shares_parameters_with_the_model() -> None:
    model = small_clip(custom=False)
    tower = TextTower(model)
    assert tower.token_embedding.weight is model.token_embedding.weight
    names = {name for name, _ in tower.named_parameters()}
    assert names < {name for name, _ in model.named_parameters()}


def test_refuses_what_has_no_text_tower() -> None:
    with pytest.raises(TypeError, match="Linear"):
        TextTower(torch.nn.Linear(2, 2))


def test_a_tower_that_sees_padding_wants_all_of_it() -> None:
    tower = TextTower(small_clip(custom=True, no_causal_mask=True))
    assert tower.whole is not None
    with pytest.raises(ValueError, match="give all 77 tokens"):
        tower.encode(open_clip.get_tokenizer("ViT-B-32")(TEXTS)[:, :30])


@pytest.mark.parametrize(("has_kernel", "compiled"), [(True, False), (True, True), (False, True)])
def test_compiled_or_with_a_kernel_for_texts_of_different_lengths(
    monkeypatch: pytest.MonkeyPatch, has_kernel: bool, compiled: bool
) -> None:
    if has_kernel:
        monkeypatch.setattr(packed_module, "kernel", lambda row, head_width: varlen_attn)
    model, reference = (small_clip(custom=True, layers=3) for _ in range(2))
    tower = TextTower(model)
    if compiled:
        torch._dynamo.reset()
        counters.clear()
        tower.compile_blocks(backend="aot_eager")
    graphs: list[int] = []
    for count in (5, 30, 41):
        texts = random_texts(count)
        expected = reference.encode_text(texts.tokens, normalize=True)
        ends = (texts.tokens == 49407).int().argmax(1)
        found = normalize(tower._projected(run_packed(tower, texts, ends, filled=True)), dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        ours, theirs = (
            torch.autograd.grad((v * v.roll(1, 1)).sum(), [*of.text.parameters()])
            for of, v in ((model, found), (reference, expected))
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        graphs.append(counters["stats"]["unique_graphs"])
    if compiled:
        # For all layers, and once more for all other lengths of the row.
        assert 1 <= graphs[0] < graphs[1] == graphs[-1]
        assert graphs[-1] == 2 or not has_kernel
