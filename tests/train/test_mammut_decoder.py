"""MaMMUT's text decoder against open_clip's own blocks, torch's MultiheadAttention and generation without a cache."""

import copy
import math
from typing import Any

import pytest
import torch
from helpers.loops import CONTEXT, VOCABULARY
from helpers.mammut import END, START, make_mammut
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize
from transformers import DynamicCache

from dialog_gen.clip.mammut.decoder import CrossAttention, MammutText
from dialog_gen.clip.mammut.model import Mammut, MammutForConditionalGeneration
from dialog_gen.core.errors import UsageError

TEXTS = [[START, 5, 6, 7, END], [START, 8, END], [START, 9, 0, 3, 0, 0, 4, END]]
KINDS: list[dict[str, Any]] = [{}, {"ls_init_value": 0.5}, {"proj_type": "linear", "proj_bias": True}, {"layers": 2}]


def make(every: int = 2, **text: Any) -> Mammut:
    return make_mammut(every, spread=True, **text).model.double()


def padded(texts: list[list[int]], length: int = 0) -> Tensor:
    longest = max(length, *map(len, texts))
    return torch.tensor([text + [0] * (longest - len(text)) for text in texts])


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def project(decoder: MammutText, pooled: Tensor) -> Tensor:
    projection = decoder.text_projection
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


@pytest.mark.parametrize("text", KINDS)
@torch.no_grad()
def test_the_contrastive_pass_by_open_clips_blocks(text: dict[str, Any]) -> None:
    mammut = make(**text)
    decoder, tokens = mammut.text, padded(TEXTS, CONTEXT)
    expected: list[Tensor] = []
    for row, ids in zip(tokens, TEXTS, strict=True):
        mask = torch.zeros(CONTEXT, CONTEXT, dtype=torch.float64)
        mask[:, len(ids) :] = -math.inf
        x = (decoder.embedding.weight[row] + decoder.positional_embedding)[None]
        for block in decoder.blocks:
            x = block(x, attn_mask=mask)
        expected.append(project(decoder, decoder.ln_final(x)[0, : len(ids)].mean(0)))
    torch.testing.assert_close(mammut.encode_text(tokens), torch.stack(expected), rtol=1e-9, atol=1e-11)
    unit = mammut.encode_text(tokens, normalize=True)
    torch.testing.assert_close(unit, normalize(torch.stack(expected), dim=-1), rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_the_contrastive_pass_sees_no_padding_and_no_image() -> None:
    mammut = make()
    short, long = (mammut.encode_text(padded(TEXTS, length)) for length in (0, CONTEXT))
    torch.testing.assert_close(short, long, rtol=0, atol=1e-12)
    alone = [mammut.encode_text(torch.tensor([text]))[0] for text in TEXTS]
    torch.testing.assert_close(short, torch.stack(alone), rtol=0, atol=1e-12)
    # It attends in both directions: what comes last changes the first token, too.
    seen: list[Tensor] = []
    mammut.text.ln_final.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, 0]))
    for last in (6, 7):
        mammut.encode_text(torch.tensor([[START, 5, last]]))
    assert not torch.allclose(seen[0], seen[1])
    for parameter in mammut.text.cross_attention.parameters():
        parameter.fill_(math.nan)
    assert torch.equal(mammut.encode_text(padded(TEXTS)), short)


def reading_by_hand(layer: CrossAttention, x: Tensor, image: Tensor, heads: int) -> Tensor:
    own: Any = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True, dtype=torch.float64)
    state = {"out_proj.weight": layer.out.weight, "out_proj.bias": layer.out.bias}
    state["in_proj_weight"] = torch.cat([layer.queries.weight, layer.keys_and_values.weight])
    state["in_proj_bias"] = torch.cat([layer.queries.bias, layer.keys_and_values.bias])
    own.load_state_dict(state)
    source = layer_norm(image, image.shape[-1:], layer.image_norm.weight, layer.image_norm.bias)
    target = layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias)
    return own(target, source, source, need_weights=False)[0]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("text", KINDS[:2])
@torch.no_grad()
def test_the_captioning_pass_by_torchs_attention(every: int, text: dict[str, Any]) -> None:
    mammut = make(every, **text)
    decoder, tokens = mammut.text, torch.tensor([[decoder_id, 5, 6, 7] for decoder_id in (VOCABULARY, 3)])
    patches = mammut.visual(pictures(2))[1]  # (2, 4, 32)
    assert patches.shape == (2, 4, 32)
    causal = torch.full((4, 4), -math.inf, dtype=torch.float64).triu(1)
    x = decoder.embedding.weight[tokens] + decoder.positional_embedding[:4]
    for number, block in enumerate(decoder.blocks, 1):
        rows = block.ln_1(x)
        x = x + block.ls_1(block.attn(rows, rows, rows, attn_mask=causal, need_weights=False)[0])
        if number % every == 0:
            layer: Any = decoder.cross_attention[number // every - 1]
            x = x + reading_by_hand(layer, x, patches, heads=2)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    expected = decoder.ln_final(x) @ decoder.embedding.weight.T
    found = decoder.next_token_logits(tokens, mammut.read(pictures(2)))
    assert found.shape == (2, 4, VOCABULARY + 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_no_logit_knows_a_later_token() -> None:
    mammut = make()
    image, tokens = mammut.read(pictures(1)), torch.arange(2, 10)[None]
    before = mammut.text.next_token_logits(tokens, image)
    for place in range(8):
        changed = tokens.clone()
        changed[0, place] = 40
        after = mammut.text.next_token_logits(changed, image)
        same = [torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(before[0], after[0], strict=True)]
        assert same == [True] * place + [False] * (8 - place)


@pytest.mark.parametrize(("every", "reading"), [(1, [0, 1, 2]), (2, [1]), (3, [2])])
@torch.no_grad()
def test_only_some_layers_read_the_image(every: int, reading: list[int]) -> None:
    mammut = make(every)
    assert len(mammut.text.cross_attention) == len(reading)
    attended: list[list[Tensor]] = [[], [], []]
    for inputs, block in zip(attended, mammut.text.blocks, strict=True):
        block.ln_2.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
    tokens = torch.tensor([[VOCABULARY, 5, 6]])
    logits = [mammut.text.next_token_logits(tokens, mammut.read(pictures(1, seed))) for seed in (0, 1)]
    # What a layer makes of the image, all later ones see.
    assert [not torch.equal(*each) for each in attended] == [layer >= reading[0] for layer in range(3)]
    assert not torch.allclose(logits[0], logits[1])
    # Each layer reads what is its own.
    image = mammut.read(pictures(1))
    for number in range(len(reading)):
        other = image.clone()
        other[:, number] += 1
        assert not torch.allclose(mammut.text.next_token_logits(tokens, other), logits[0])


@torch.no_grad()
def test_left_padding_and_a_cache_change_no_logit() -> None:
    mammut = make()
    decoder, image = mammut.text, mammut.read(pictures(2))
    texts = [[VOCABULARY, 5, 6, 7, 8, 9], [VOCABULARY, 4, 3, 2]]
    alone = [decoder.next_token_logits(torch.tensor([text]), image[n : n + 1])[0] for n, text in enumerate(texts)]
    rows = torch.tensor([texts[0], [0, 0, *texts[1]]])
    kept = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    whole = decoder.next_token_logits(rows, image, kept)
    cache, pieces = DynamicCache(), list[Tensor]()
    for start, end in ((0, 3), (3, 5), (5, 6)):
        pieces.append(decoder.next_token_logits(rows[:, start:end], image, kept[:, :end], cache))
    for found in (whole, torch.cat(pieces, 1)):
        assert found.isfinite().all()
        torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(found[1, 2:], alone[1], rtol=0, atol=1e-10)


@torch.no_grad()
def test_more_tokens_than_the_context() -> None:
    mammut = make()
    image, row = mammut.read(pictures(1)), torch.ones(1, CONTEXT + 1, dtype=torch.int64)
    assert mammut.text.next_token_logits(row[:, 1:], image).shape[1] == CONTEXT
    with pytest.raises(ValueError, match="13 tokens are more than the decoder's context of 12"):
        mammut.text.next_token_logits(row, image)
    cache = DynamicCache()
    mammut.text.next_token_logits(row[:, 1:], image, None, cache)
    with pytest.raises(ValueError, match="13 tokens are more"):
        mammut.text.next_token_logits(row[:, :1], image, None, cache)


def test_the_table_has_the_images_token_behind_the_known_ones() -> None:
    clip = make_mammut()
    decoder = clip.model.text
    assert decoder.image_id == VOCABULARY == clip.model.config.image_token_id
    assert decoder.embedding.weight.shape == (VOCABULARY + 1, 32)
    assert decoder.embedding.weight[-1].std() < 0.05


def test_a_decoder_in_which_no_layer_would_read() -> None:
    with pytest.raises(UsageError, match="cross_attention_every = 4 leaves none of the 3 layers"):
        make_mammut(4)


# Generation, through transformers.


def make_generator() -> tuple[Any, Mammut]:
    mammut = make()
    # Its words depend on image and place rather than on the word before.
    with torch.no_grad():
        mammut.text.positional_embedding.mul_(5)
        layers: list[Any] = [layer.out for layer in mammut.text.cross_attention]
        for layer in [*layers, *(block.mlp.c_proj for block in mammut.text.blocks)]:
            layer.weight.mul_(4)
    return MammutForConditionalGeneration(mammut.config, mammut).eval(), mammut


PROMPTS = [[VOCABULARY, 5, 6, 7], [VOCABULARY], [VOCABULARY, 9], [VOCABULARY, START]]
NEW = 6


def inputs_of(prompts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    kept = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(kept)}


@torch.no_grad()
def greedy(mammut: Mammut, prompt: list[int], image: Tensor) -> list[int]:
    """One token at a time, each from all that stand before it."""
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW and ids[-1] != END:
        ids.append(int(mammut.text.next_token_logits(torch.tensor([ids]), image)[0, -1].argmax()))
    return ids[len(prompt) :]


def written(rows: Tensor, start: int) -> list[list[int]]:
    texts = [row[start:] for row in rows.tolist()]
    return [text[: text.index(END) + 1] if END in text else text for text in texts]


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_one_token_after_the_other(use_cache: bool) -> None:
    model, mammut = make_generator()
    pixels = pictures(len(PROMPTS))
    options = {"do_sample": False, "max_new_tokens": NEW, "use_cache": use_cache}
    found = model.generate(**inputs_of(PROMPTS), pixel_values=pixels, **options)
    expected = [greedy(mammut, prompt, mammut.read(pixels[n : n + 1])) for n, prompt in enumerate(PROMPTS)]
    assert written(found, 4) == expected
    assert len({tuple(text) for text in expected}) == len(PROMPTS), "a test that can tell"
    # What was read of the images serves as well as their pixels.
    image = mammut.read(pixels)
    assert torch.equal(model.generate(**inputs_of(PROMPTS), image=image, **options), found)


def test_beams_are_those_of_each_text_alone() -> None:
    model, mammut = make_generator()
    pixels = pictures(len(PROMPTS))
    options: dict[str, Any] = {"num_beams": 3, "do_sample": False, "max_new_tokens": NEW}
    together = written(model.generate(**inputs_of(PROMPTS), pixel_values=pixels, **options), 4)
    alone: list[list[int]] = []
    for number, prompt in enumerate(PROMPTS):
        ids: Any = torch.tensor([prompt])
        rows = model.generate(input_ids=ids, pixel_values=pixels[number : number + 1], use_cache=False, **options)
        alone += written(rows, len(prompt))
    assert together == alone
    singles = [greedy(mammut, prompt, mammut.read(pixels[n : n + 1])) for n, prompt in enumerate(PROMPTS)]
    assert together != singles, "a test that can tell"


def test_it_needs_an_image() -> None:
    model, _ = make_generator()
    with pytest.raises(ValueError, match="pixel_values or image"):
        model(input_ids=torch.tensor([[1]]))


def test_what_it_takes_of_a_clip_is_not_copied() -> None:
    clip = make_mammut()
    model = MammutForConditionalGeneration(clip.model.config, clip.model)
    assert model.mammut.text.embedding is clip.model.text.embedding
    state = copy.deepcopy(clip.model.state_dict())
    # `post_init` draws nothing anew.
    assert all(torch.equal(value, state[name]) for name, value in model.mammut.state_dict().items())
