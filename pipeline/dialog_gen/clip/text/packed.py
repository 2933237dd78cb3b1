"""Runs open_clip's causal text towers on the tokens of many texts in one row, without padding between the texts.

All layers but attention treat each token alone, so they take the row as it is. Attention keeps the texts apart: on a
GPU in half precision by `torch.nn.attention.varlen`, elsewhere on the padded texts, which is exact too. The row has
one of a few lengths, so that compiled kernels and memory are used again: texts that nobody reads fill it up.
"""

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, linear, scaled_dot_product_attention

from dialog_gen.clip.text.texts import Lengths, Texts, passes

# Attention kernels work on this many positions at a time: a bound that is a multiple of it changes less often.
_BLOCK = 128
# At most one part in so many of the row is filler.
_FINENESS = 32
# The cost of one more group, as a number of tokens in attention.
_PASS_COST = {"cpu": 512}
_PASS_COST_GPU = 16_384
_HALF = (torch.float16, torch.bfloat16)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packing:
    """How T tokens of S texts lie in a row, one text after the other, from the shortest text to the longest."""

    lengths: Lengths
    """(S,) the number of tokens of each text; those of the texts that fill the row come last."""
    count: int
    """The number of texts that do not fill the row."""
    longest: int
    """No text is longer."""
    starts: Tensor
    """(S + 1,) int32: where each text starts, and T."""
    text: Tensor
    """(T,) int64: the text of each token."""
    position: Tensor
    """(T,) int64: the position of each token in its text."""

    @classmethod
    def of(cls, lengths: Lengths, device: torch.device, *, context: int, filled: bool) -> "Packing":
        """Packs texts of at least one token, sorted by length. `filled`: to a row of one of a few lengths.

        Reads nothing from the device.
        """
        count, total, longest = len(lengths), int(lengths.sum()), int(lengths.max(initial=1))
        if filled:
            step = max(_BLOCK, (1 << total.bit_length()) // (2 * _FINENESS))
            missing, size = -total % step, min(context, _BLOCK)
            # As many texts as the largest gap needs; in another they are shorter, or have no token.
            fillers = np.diff(np.minimum(np.arange(-(-step // size) + 1) * size, missing))
            lengths, total = np.concatenate([lengths, fillers]), total + missing
            longest = -(-longest // _BLOCK) * _BLOCK
        starts = _without_waiting(np.concatenate([[0], lengths.cumsum()]).astype(np.int32), device)
        places = torch.arange(total, device=device)
        text = torch.searchsorted(starts[1:], places, right=True)
        return cls(lengths, count, longest, starts, text, places - starts[text])

    @classmethod
    def sorting(cls, texts: Texts, *, context: int, filled: bool) -> "tuple[Packing, Tensor, Tensor]":
        """Packs texts in any order; also gives their order (N,) in the row, and the place (N,) of each in this order.

        A text without tokens has one of padding. Reads nothing from the device.
        """
        lengths, device = np.maximum(texts.lengths, 1), texts.tokens.device
        order = lengths.argsort(kind="stable")
        chosen = _without_waiting(np.stack([order, order.argsort()]), device)
        return cls.of(lengths[order], device, context=context, filled=filled), chosen[0], chosen[1]

    def ids(self, tokens: Tensor) -> Tensor:
        """Token ids of the texts (N, L) -> of the row (T,)."""
        length = tokens.shape[1]
        place = self.text.clamp(max=self.count - 1) * length + self.position.clamp(max=length - 1)
        return tokens.flatten().index_select(0, place)

    def places(self, positions: Tensor) -> Tensor:
        """A position in each text (N,) -> its place in the row (N,)."""
        return self.starts[: self.count] + positions

    @cached_property
    def groups(self) -> "list[Group]":
        """The texts in groups of similar length, for attention on padded texts."""
        counts = passes(self.lengths[: self.count], _PASS_COST.get(self.starts.device.type, _PASS_COST_GPU))
        fillers = [len(self.lengths) - self.count] * (len(self.lengths) > self.count)
        parts = np.split(self.lengths, np.cumsum([*counts, *fillers])[:-1])
        return [Group.of(lengths, self.starts.device) for lengths in parts]


@dataclass(frozen=True)
class Group:
    """Some texts that follow each other in the row, and their tokens as padded texts."""

    count: int
    longest: int
    tokens: int
    inside: Tensor | None
    """(tokens,) the place of each token among the padded texts; None if no text is shorter than another."""
    padded: Tensor | None
    """(count * longest,) the token at each place of the padded texts; any token where there is none."""

    @classmethod
    def of(cls, lengths: Lengths, device: torch.device) -> "Group":
        """The group of texts of these lengths."""
        count, longest, tokens = len(lengths), int(lengths.max()), int(lengths.sum())
        if tokens == count * longest:
            return cls(count, longest, tokens, None, None)
        places = np.arange(longest)
        padded = (lengths.cumsum() - lengths)[:, None] + np.minimum(places, np.maximum(lengths - 1, 0)[:, None])
        inside = np.flatnonzero(places < lengths[:, None])
        padded = np.minimum(padded.ravel(), tokens - 1)
        return cls(count, longest, tokens, *(_without_waiting(values, device) for values in (inside, padded)))

    def unpacked(self, row: Tensor) -> Tensor:
        """(tokens, C) -> (count, longest, C). The gradient must be zero after a text's end, where it is dropped."""
        if self.padded is not None:
            row = _Unpack.apply(row, self.inside, self.padded)  # type: ignore[assignment]
        return row.unflatten(0, (self.count, self.longest))

    @cached_property
    def mask(self) -> Tensor | None:
        """(count, 1, 1, longest) True at the places of tokens; None if no text is shorter than another."""
        if self.inside is None:
            return None
        mask = torch.zeros(self.count * self.longest, dtype=torch.bool, device=self.inside.device)
        return mask.index_fill_(0, self.inside, True).view(self.count, 1, 1, self.longest)

    def packed(self, texts: Tensor) -> Tensor:
        """(count, longest, C) -> (tokens, C)."""
        row = texts.flatten(0, 1)
        return row if self.inside is None else _Pack.apply(row, self.inside)  # type: ignore[return-value]


def make_packable(transformer: Any) -> bool:
    """Lets the blocks of a text tower's transformer take a `Packing` as their mask; False if they are of another kind.

    They become a subclass of their class, which does with other masks what it did. So their hooks, compiled calls and
    changed submodules stay in use.
    """
    if not all(_is_known(block) for block in transformer.resblocks):
        return False
    for block in transformer.resblocks:
        if not issubclass(type(block), _packable()):
            block.__class__ = _packable()
    return True


def _is_known(block: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    plain = type(block) in (ResidualAttentionBlock, _packable()) and not hasattr(block, "ln_1_kv")
    attention = block.attn
    return plain and isinstance(attention, nn.MultiheadAttention) and attention.bias_k is None and not attention.dropout


@cache
def _packable() -> Any:
    import open_clip.transformer

    # The name is what tools that wrap layers look for.
    class ResidualAttentionBlock(open_clip.transformer.ResidualAttentionBlock):
        def attention(
            self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Any = None
        ) -> Tensor:
            """As the base class does; with a `Packing` as the mask, causal within each text of a row (T, width)."""
            if not isinstance(attn_mask, Packing):
                return super().attention(q_x, k_x, v_x, attn_mask)
            attention = self.attn
            row = linear(q_x, attention.in_proj_weight, attention.in_proj_bias)
            return attention.out_proj(causal(row, attention.num_heads, attn_mask))

    return ResidualAttentionBlock


def run_packed(tower: Any, texts: Texts, ends: Tensor, *, filled: bool) -> Tensor:
    """The states (N, width) at the positions `ends` (N,) of N texts after all layers of a native `TextTower`."""
    packing, order, places = Packing.sorting(texts, context=len(tower.positional_embedding), filled=filled)
    dtype = tower.transformer.get_cast_dtype()
    x = embedding(packing.ids(texts.tokens[order]), tower.token_embedding.weight).to(dtype)
    x = x + embedding(packing.position, tower.positional_embedding).to(dtype)  # (T, width)
    for block in tower.transformer.resblocks:
        x = block(x, attn_mask=packing)
    return x.index_select(0, packing.places(ends[order])[places])


def causal(row: Tensor, heads: int, packing: Packing) -> Tensor:
    """Queries, keys and values of a row (T, 3 * width) -> causal attention within each text (T, width)."""
    attend = kernel(row, row.shape[1] // (3 * heads))
    if attend is not None:
        q, k, v = row.unflatten(-1, (3, heads, -1)).unbind(1)  # (T, heads, width / heads)
        bounds = packing.starts, packing.starts, packing.longest, packing.longest
        return attend(q, k, v, *bounds, window_size=(-1, 0)).flatten(1)
    return _causal_in_groups(row, heads, packing)


# Its shapes change with each batch: compiled code would be made anew each time.
@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _causal_in_groups(row: Tensor, heads: int, packing: Packing) -> Tensor:
    # A token does not see what is after it, so the padding needs no mask.
    return torch.cat(
        [
            group.packed(_padded_attention(group.unpacked(part), heads))
            for group, part in zip(packing.groups, row.split([group.tokens for group in packing.groups]), strict=True)
        ]
    )


def _padded_attention(texts: Tensor, heads: int) -> Tensor:
    """(N, L, 3 * width) -> (N, L, width)"""
    q, k, v = texts.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, L, width / heads)
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def without_plans() -> Any:
    """A context for attention on padded texts: not by cuDNN, which would plan anew for each shape."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def kernel(row: Tensor, head_width: int) -> Any:
    """The kernel for texts of different lengths, if there is one for such a row."""
    return _varlen() if row.is_cuda and row.dtype in _HALF and head_width % 8 == 0 else None


@cache
def _varlen() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        _log.info("this torch has no attention for texts of different lengths: it is done on padded texts")
        return None
    return varlen_attn


def _without_waiting(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _Unpack(torch.autograd.Function):
    """A gather whose gradient is a gather too, because no token is at two places that matter."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, inside: Tensor, padded: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return row.index_select(0, padded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0].index_select(0, inside), None, None


class _Pack(torch.autograd.Function):
    """A gather whose gradient is a copy to unique places."""

    @staticmethod
    def forward(ctx: Any, texts: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        ctx.shape = texts.shape
        return texts.index_select(0, inside)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient.new_zeros(ctx.shape).index_copy_(0, inside, gradient), None
