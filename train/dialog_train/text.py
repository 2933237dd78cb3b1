"""The text tower of an open_clip model, run on just the tokens that can change its output.

A causal transformer that is pooled at the end-of-text token gives the same vector whatever stands behind that token,
so a batch is cut to its longest text: exact, and the padding of open_clip's fixed context costs nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class TextTower(nn.Module):
    """The text side of an open_clip `CLIP` or `CustomTextCLIP`, by reference: training it trains the model.

    Holds modules and parameters under open_clip's own names.
    """

    def __init__(self, model: Any) -> None:
        """`model` is what `open_clip.create_model` returns. Raises TypeError for one without such a text tower."""
        super().__init__()
        # CLIP has the text tower's parts in itself, CustomTextCLIP in `text`.
        source = getattr(model, "text", model)
        self.is_native = hasattr(source, "token_embedding")
        if not self.is_native:
            if not hasattr(source, "transformer") or not hasattr(source, "pooler"):
                raise TypeError(f"{type(model).__name__} has no text tower of a known kind")
            self.text = source
            self.pad_id: int = source.config.pad_token_id
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
        plain = getattr(source, "cls_emb", None) is None and not getattr(source, "use_pad_mask", False)
        self.whole: Any = None if plain and mask is not None and self.pool_type in ("argmax", "eos") else source
        if self.whole is not None and self.whole is model:
            raise TypeError(f"a CLIP whose text tower pools by {self.pool_type!r} is not supported")

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L), L up to the context length, or just that if `whole` -> unit-norm text vectors (N, D)."""
        if not self.is_native:
            # Padding is masked, so columns of nothing else can go.
            length = int((tokens != self.pad_id).any(0).nonzero().max()) + 1
            return normalize(self.text(tokens[:, :length]), dim=-1)
        if self.whole is not None:
            if tokens.shape[1] != self.whole.context_length:
                raise ValueError(f"this tower sees padding: give all {self.whole.context_length} tokens")
            return normalize(self.whole(tokens), dim=-1)
        ends = self._ends(tokens)
        length = int(ends.max()) + 1
        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(tokens[:, :length]).to(dtype) + self.positional_embedding[:length].to(dtype)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])  # (N, L, width)
        # The norm works on each position alone: pooling first gives the same and norms one position a text.
        x = self.ln_final(x[torch.arange(len(x), device=x.device), ends])
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        return normalize(x, dim=-1)

    def _ends(self, tokens: Tensor) -> Tensor:
        """Where each text is pooled, (N,): as open_clip's `text_global_pool` does."""
        if self.pool_type == "argmax":
            return tokens.argmax(-1)
        return (tokens == self.eos_id).int().argmax(-1)
