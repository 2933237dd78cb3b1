import itertools

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dialog_gen.clip.text import tower as text_module
from dialog_gen.clip.text.tower import TextTower, passes

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
        (True, {"pool_type": "last"}),
        (True, {"no_causal_mask": True}),
        (True, {"embed_cls": True, "pad_id": 0}),
    ],
)
def test_equals_open_clip_on_padded_tokens(custom: bool, text: dict[str, object]) -> None:
    model = small_clip(custom=custom, **text)
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    expected = normalize(model.encode_text(tokens), dim=-1)
    found = TextTower(model)(tokens)
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
def test_runs_few_tokens_beyond_those_of_the_texts(monkeypatch: pytest.MonkeyPatch, custom: bool, copies: int) -> None:
    monkeypatch.setattr(text_module, "_PASS_COST_TOKENS", {"cpu": 100})
    model = small_clip(custom=custom)
    shapes: list[tuple[int, ...]] = []
    tower = TextTower(model)
    tower.transformer.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS).repeat_interleave(copies, 0)
    found = tower(tokens)
    lengths = [4, 16, 3]
    assert lengths == (tokens != 0).sum(1)[::copies].tolist()
    # Four tokens are too few for a pass of their own, half of 40 x 16 are not.
    assert shapes == ([(3, 16)] if copies == 1 else [(80, 4), (40, 16)])
    torch.testing.assert_close(found, tower(tokens[::copies]).repeat_interleave(copies, 0), rtol=1e-12, atol=1e-12)


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
        tower(open_clip.get_tokenizer("ViT-B-32")(TEXTS)[:, :30])
