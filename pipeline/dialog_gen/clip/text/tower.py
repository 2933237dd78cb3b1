"""The text tower of an open_clip model, run only on the tokens that can change its output.

A causal transformer that is pooled at the end-of-text token gives the same vector whatever follows that token,
so the padding to open_clip's fixed context can go: exact, no approximation. Texts of similar length are encoded
together, in as many passes as are worth their cost, so that one long text does not pad all others.
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

# The cost of one more pass, in tokens: hundreds of kernels to launch on a GPU, a few calls on a CPU.
_TOKENS_A_PASS = {"cpu": 32}
_TOKENS_A_PASS_GPU = 2048


class TextTower(nn.Module):
    """The text side of an open_clip `CLIP` or `CustomTextCLIP`, by reference: training it trains the model.

    Holds modules and parameters under open_clip's own names. Beside the towers of open_clip and of Hugging Face, `text`
    of the model may be any module that maps token ids (N, L) to vectors, masks the padding and names it as `pad_id`.
    """

    def __init__(self, model: Any) -> None:
        """`model` is what `open_clip.create_model` returns. Raises TypeError for one without such a text tower."""
        super().__init__()
        # CLIP has the text tower's parts in itself, CustomTextCLIP in `text`.
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
        # A class token at the end, or attention in both directions, sees the padding.
        if getattr(source, "output_tokens", False):
            raise TypeError("a text tower that gives its tokens too, as CoCa's does, is not supported")
        plain = getattr(source, "cls_emb", None) is None and not getattr(source, "use_pad_mask", False)
        if not plain or mask is None or self.pool_type not in ("argmax", "eos"):
            if source is model:
                raise TypeError(f"a CLIP whose text tower pools by {self.pool_type!r} is not supported")
            self.whole = source

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L), L up to the context length, or just that if `whole` -> unit-norm text vectors (N, D)."""
        if self.whole is not None:
            if tokens.shape[1] != self.whole.context_length:
                raise ValueError(f"this tower sees padding: give all {self.whole.context_length} tokens")
            return normalize(self.whole(tokens), dim=-1)
        ends = self._ends(tokens)
        order = ends.argsort()
        lengths: list[int] = (ends[order] + 1).tolist()
        sizes = passes(lengths, _TOKENS_A_PASS.get(tokens.device.type, _TOKENS_A_PASS_GPU))
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
        # The norm works on each position alone: pooling first gives the same and norms one position a text.
        x = self.ln_final(x[torch.arange(len(x), device=x.device), ends])
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection

    def _ends(self, tokens: Tensor) -> Tensor:
        """The last token that matters of each text, (N,): where it is pooled, as in open_clip's `text_global_pool`."""
        if not self.is_native:
            # Padding is masked, so columns of nothing else can go.
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
    """Token ids of N texts, as `encoder` gave them -> unit-norm vectors (N, D), float32, on the tower's device.

    `advance` is called with the number of texts of each batch.

    Raises UsageError, with the model's `name`, where a vector is not finite.
    """
    device = next(tower.parameters()).device
    # Texts of one length together: a batch costs what its longest text costs.
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
    """Unit-norm vectors (N, D) of each text tower -> the unit-norm sum of share times vector; one tower's are as is."""
    first, *others = vectors
    if not others:
        return first
    rest = zip(shares[1:], others, strict=True)
    return normalize(shares[0] * first + sum(share * of_tower for share, of_tower in rest), dim=-1)


def passes(lengths: Sequence[int], tokens_a_pass: int) -> list[int]:
    """The number of texts in each pass, for texts sorted by length: the fewest tokens, with padding and cost of passes.

    Exact, by dynamic programming over the distinct lengths.
    """
    distinct, counts = np.unique(np.asarray(lengths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.zeros(len(before), np.int64)
    start = np.zeros(len(before), np.int64)
    for end in range(1, len(before)):
        tokens = least[:end] + (before[end] - before[:end]) * distinct[end - 1]
        start[end] = tokens.argmin()
        least[end] = tokens[start[end]] + tokens_a_pass
    sizes: list[int] = []
    end = len(distinct)
    while end:
        sizes.append(int(before[end] - before[start[end]]))
        end = start[end]
    return sizes[::-1]
