"""The text tower of an open_clip model, run only on the tokens that can change its output.

A causal transformer that is pooled at the end-of-text token gives the same vector whatever follows that token. So the
padding to open_clip's fixed context length can be left out; the result is exact, not an approximation. Texts of similar
length are encoded together in one pass, so that one long text does not pad all others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from torch.nn.utils.rnn import pad_sequence

from dialog_gen.clip.text.tokens import Ids, TextEncoder, last_tokens
from dialog_gen.core.errors import UsageError

# The cost of one more pass, as a number of tokens: hundreds of kernel launches on a GPU, a few calls on a CPU.
_PASS_COST_TOKENS = {"cpu": 32}
_PASS_COST_TOKENS_GPU = 2048


class TextTower(nn.Module):
    """The text tower of an open_clip `CLIP` or `CustomTextCLIP`. It shares the modules: training it trains the model.

    Modules and parameters have open_clip's names. Apart from the towers of open_clip and of Hugging Face, `model.text`
    may be any module that maps token ids (N, L) to vectors (N, D), masks the padding, and has the padding id as
    `pad_id`.
    """

    def __init__(self, model: Any) -> None:
        """`model` is what `open_clip.create_model` returns. Raises TypeError if it has no such text tower."""
        super().__init__()
        # In CLIP, the parts of the text tower are attributes of the model; in CustomTextCLIP, of `model.text`.
        source = getattr(model, "text", model)
        self.is_native = hasattr(source, "token_embedding")
        self.whole: Any = None
        if not self.is_native:
            is_hf = hasattr(source, "transformer") and hasattr(source, "pooler")
            if not is_hf and not hasattr(source, "pad_id"):
                raise TypeError(f"{type(model).__name__} has no text tower of a known kind")
            self.text: Any = source
            self.pad_id: int = source.config.pad_token_id if is_hf else source.pad_id
            return
        self.token_embedding: nn.Embedding = source.token_embedding
        self.positional_embedding: nn.Parameter = source.positional_embedding
        self.transformer: Any = source.transformer
        self.ln_final: Any = source.ln_final
        self.text_projection: Any = source.text_projection
        self.pool_type: str = getattr(source, "text_pool_type", None) or source.pool_type
        self.eos_id: int = getattr(source, "text_eos_id", None) or source.eos_id
        self.pad_id = getattr(source, "pad_id", 0)
        self.attn_mask: Any
        mask: Tensor | None = source.attn_mask
        self.register_buffer("attn_mask", mask, persistent=False)
        # A tower with a class token at the end, or without a causal mask, sees the padding: it must be run as a whole.
        if getattr(source, "output_tokens", False):
            raise TypeError("a text tower that gives its tokens too, as CoCa's does, is not supported")
        plain = getattr(source, "cls_emb", None) is None and not getattr(source, "use_pad_mask", False)
        if not plain or mask is None or self.pool_type not in ("argmax", "eos"):
            if source is model:
                raise TypeError(f"a CLIP whose text tower pools by {self.pool_type!r} is not supported")
            self.whole = source

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) -> unit-norm text vectors (N, D).

        L is at most the context length. If the tower sees padding (`whole` is set), L must be the context length;
        otherwise raises ValueError.
        """
        if self.whole is not None:
            if tokens.shape[1] != self.whole.context_length:
                raise ValueError(f"this tower sees padding: give all {self.whole.context_length} tokens")
            return normalize(self.whole(tokens), dim=-1)
        ends = self._ends(tokens)
        order = ends.argsort()
        lengths: list[int] = (ends[order] + 1).tolist()
        sizes = passes(lengths, _PASS_COST_TOKENS.get(tokens.device.type, _PASS_COST_TOKENS_GPU))
        if len(sizes) == 1:
            return normalize(self._encode(tokens[:, : lengths[-1]], ends), dim=-1)
        groups, longest = order.split(sizes), np.asarray(lengths)[np.cumsum(sizes) - 1]
        vectors = [
            self._encode(tokens[rows, :length], ends[rows])
            for rows, length in zip(groups, longest.tolist(), strict=True)
        ]
        return normalize(torch.cat(vectors)[order.argsort()], dim=-1)

    def _encode(self, tokens: Tensor, ends: Tensor) -> Tensor:
        if not self.is_native:
            return self.text(tokens)
        length = tokens.shape[1]
        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(tokens).to(dtype) + self.positional_embedding[:length].to(dtype)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])  # (N, L, width)
        # The norm treats each position alone: pooling first gives the same result with one position per text to norm.
        x = self.ln_final(x[torch.arange(len(x), device=x.device), ends])
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection

    def _ends(self, tokens: Tensor) -> Tensor:
        """Index of the last relevant token of each text (N,): where open_clip's `text_global_pool` pools."""
        if not self.is_native:
            # Padding is masked, so columns that contain only padding can be left out.
            return last_tokens(tokens, self.pad_id)
        if self.pool_type == "argmax":
            return tokens.argmax(-1)
        return (tokens == self.eos_id).int().argmax(-1)


def encode_ids(
    tower: TextTower,
    encoder: TextEncoder,
    ids: Sequence[Ids],
    name: str,
    *,
    batch_size: int = 256,
    advance: Callable[[int], object] = lambda texts: None,
) -> Tensor:
    """Token ids of N texts from `encoder` -> unit-norm vectors (N, D), float32, on the tower's device.

    After each batch, calls `advance` with its number of texts. Raises UsageError, which mentions the model's `name`, if
    a vector is not finite.
    """
    device = next(tower.parameters()).device
    # Sorted by length, because the longest text of a batch determines its cost.
    order = sorted(range(len(ids)), key=lambda text: len(ids[text]))
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = [torch.from_numpy(ids[text]).long() for text in order[start : start + batch_size]]
            tokens = pad_sequence(rows, batch_first=True, padding_value=encoder.pad_id)
            if tower.whole is not None:
                tokens = pad(tokens, (0, encoder.context_length - tokens.shape[1]), value=encoder.pad_id)
            parts.append(tower(tokens.to(device)).float())
            advance(len(rows))
        vectors = torch.cat(parts)
        if not bool(vectors.isfinite().all()):
            raise UsageError(f"{name} gives vectors that are not finite: its weights are damaged.")
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order, device=device), vectors)


def mixed(shares: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    """Unit-norm vectors (N, D) of each text tower -> their sum, weighted by `shares`, unit-norm (N, D).

    The vectors of a single tower are returned unchanged.
    """
    first, *others = vectors
    if not others:
        return first
    rest = zip(shares[1:], others, strict=True)
    return normalize(shares[0] * first + sum(share * of_tower for share, of_tower in rest), dim=-1)


def passes(lengths: Sequence[int], pass_cost_tokens: int) -> list[int]:
    """Divides texts, sorted by length, into passes with the least total cost; returns the number of texts in each pass.

    The cost is the number of tokens with padding, plus `pass_cost_tokens` per pass. Exact, by dynamic programming over
    the distinct lengths.
    """
    distinct, counts = np.unique(np.asarray(lengths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.zeros(len(before), np.int64)
    start = np.zeros(len(before), np.int64)
    for end in range(1, len(before)):
        tokens = least[:end] + (before[end] - before[:end]) * distinct[end - 1]
        start[end] = tokens.argmin()
        least[end] = tokens[start[end]] + pass_cost_tokens
    sizes: list[int] = []
    end = len(distinct)
    while end:
        sizes.append(int(before[end] - before[start[end]]))
        end = start[end]
    return sizes[::-1]
