"""The text decoder: two passes over one set of weights (arXiv 2303.16839, section 3.1).

contrastive   every token attends to all tokens but not to the image; the mean over the tokens is the text's vector
captioning    a token attends to the tokens before it and, in every few layers, to the image; predicts the next token
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from dialog_gen.clip.text.tokens import padding_of


class CrossAttention(nn.Module):
    """Cross-attention from tokens to the image; `read` computes the image's keys and values once."""

    def __init__(self, width: int, heads: int, image_width: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(width)
        self.image_norm = nn.LayerNorm(image_width)
        self.queries = nn.Linear(width, width)
        self.keys_and_values = nn.Linear(image_width, 2 * width)
        self.out = nn.Linear(width, width)

    def read(self, image: Tensor) -> Tensor:
        """Image tokens (N, M, image width) -> keys and values (N, 2, heads, M, width / heads)."""
        both = self.keys_and_values(self.image_norm(image)).unflatten(-1, (2, self._heads, -1))
        return both.permute(0, 2, 3, 1, 4)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, L, width), and the result of `read` -> (N, L, width)."""
        queries = _split(self.queries(self.norm(x)), self._heads)
        keys, values = image.to(queries.dtype).unbind(1)
        return self.out(_joined(scaled_dot_product_attention(queries, keys, values)))


class MammutText(nn.Module):
    """The text tower of a CLIP as a decoder: its blocks, embeddings, final norm and projection, plus cross-attention.

    The token embedding has one more entry, `image_id`, with which every text of the captioning pass begins. The weights
    of the token embedding also predict the next token.
    """

    def __init__(self, clip: Any, image_width: int, cross_attention_every: int, pad_id: int) -> None:
        """`clip`: open_clip's `CLIP`; its modules are used, not copied, except the token embedding."""
        super().__init__()
        known: nn.Embedding = clip.token_embedding
        width = known.embedding_dim
        self.pad_id = pad_id
        self.image_id = known.num_embeddings
        self.embedding = nn.Embedding(known.num_embeddings + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[:-1] = known.weight
        self.positional_embedding: nn.Parameter = clip.positional_embedding
        self.blocks: Any = clip.transformer.resblocks
        self._heads: int = self.blocks[0].attn.num_heads
        self._every = cross_attention_every
        self.cross_attention = nn.ModuleList(
            CrossAttention(width, self._heads, image_width) for _ in range(len(self.blocks) // cross_attention_every)
        )
        self.ln_final: Any = clip.ln_final
        self.text_projection: Any = clip.text_projection

    @property
    def context_length(self) -> int:
        """The maximum number of tokens of a text."""
        return len(self.positional_embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        """The contrastive pass: token ids (N, L), padded at the end -> text vectors (N, D), not unit-norm."""
        kept = ~padding_of(tokens, self.pad_id)  # (N, L)
        x = self.embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = _attend(block, x, kept[:, None, None])
            x = _feed_forward(block, x)
        weights = kept.unsqueeze(-1).to(x.dtype)
        pooled = (self.ln_final(x) * weights).sum(1) / weights.sum(1)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(pooled)
        return pooled if self.text_projection is None else pooled @ self.text_projection

    def read(self, image: Tensor) -> Tensor:
        """Image tokens (N, M, image width) -> keys and values (N, cross layers, 2, heads, M, width / heads)."""
        return torch.stack([layer.read(image) for layer in self.cross_attention], 1)  # type: ignore[operator]

    def next_token_logits(self, tokens: Tensor, image: Tensor, kept: Tensor | None = None, cache: Any = None) -> Tensor:
        """The captioning pass: token ids (N, L) and the result of `read` -> logits (N, L, V) of the token after each.

        `cache` is transformers' `Cache` of the preceding tokens. `kept` (N, K) is False for padding; K is the number of
        all tokens, including those in the cache. Raises ValueError if K is more than the context length.
        """
        count = tokens.shape[1]
        total = count if cache is None else count + cache.get_seq_length()
        if total > self.context_length:
            raise ValueError(f"{total} tokens are more than the decoder's context of {self.context_length}")
        places = torch.arange(total, device=tokens.device)
        mask = (places <= places[total - count :, None])[None, None]  # (1, 1, L, K)
        if kept is None:
            positions = places[total - count :]
        else:
            positions = (kept.long().cumsum(-1) - 1).clamp_min(0)[:, total - count :]
            # A padding token attends to itself: with no token to attend to, the result would be NaN.
            mask = mask & (kept[:, None, None] | (places == places[total - count :, None])[None, None])
        x = self.embedding(tokens) + self.positional_embedding[positions]
        for layer, block in enumerate(self.blocks):
            x = _attend(block, x, mask, cache, layer)
            reader, rest = divmod(layer + 1, self._every)
            if not rest:
                x = x + self.cross_attention[reader - 1](x, image[:, reader - 1])
            x = _feed_forward(block, x)
        return linear(self.ln_final(x), self.embedding.weight)


def _attend(block: Any, x: Tensor, mask: Tensor, cache: Any = None, layer: int = 0) -> Tensor:
    """The first half of open_clip's ResidualAttentionBlock, with a cache of keys and values."""
    attention = block.attn
    parts = linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    queries, keys, values = (_split(part, attention.num_heads) for part in parts)
    if cache is not None:
        keys, values = cache.update(keys, values, layer)
    attended = _joined(scaled_dot_product_attention(queries, keys, values, attn_mask=mask))
    return x + block.ls_1(attention.out_proj(attended))


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, L, width) -> (N, heads, L, width / heads)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
