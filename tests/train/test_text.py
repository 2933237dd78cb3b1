import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from dialog_train.text import TextTower

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
def test_runs_only_the_tokens_of_the_longest_text(custom: bool) -> None:
    model = small_clip(custom=custom)
    lengths: list[int] = []
    tower = TextTower(model)
    tower.transformer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    tower(tokens)
    assert lengths == [int((tokens != 0).sum(1).max())]


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
