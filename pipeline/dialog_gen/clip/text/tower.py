"""The text tower of an open_clip model, run only on the tokens that can change its output.

A causal transformer that is pooled at the end-of-text token gives the same vector whatever follows that token. So the
padding to open_clip's fixed context length can be left out; the result is exact, not an approximation. Texts of similar
length are encoded together in one pass, so that one long text does not pad all others. Towers of the commonest kinds
need no padding at all: see `packed` and `hf_packed`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.text import hf_packed
from dialog_gen.clip.text.packed import make_packable, run_packed, without_plans
from dialog_gen.clip.text.texts import Lengths, Texts, joined, passes
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
        self.packs = False
        if not self.is_native:
            is_hf = hasattr(source, "transformer") and hasattr(source, "pooler")
            if not is_hf and not hasattr(source, "pad_id"):
                raise TypeError(f"{type(model).__name__} has no text tower of a known kind")
            self.text: Any = source
            self.pad_id: int = source.config.pad_token_id if is_hf else source.pad_id
            self.packs = is_hf and hf_packed.make_packable(source)
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
        self.packs = self.whole is None and make_packable(self.transformer)

    def forward(self, *texts: Texts) -> tuple[Tensor, ...]:
        """Sets of N texts -> unit-norm text vectors (N, D) of each set.

        A text is at most as long as the context. If the tower sees padding (`whole` is set), texts must be padded to
        the context length; otherwise raises ValueError.
        """
        together = joined(texts, self.pad_id)
        vectors = normalize(self._vectors(together), dim=-1)
        return vectors.split([len(one) for one in texts])

    def encode(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L), padded at the end -> unit-norm text vectors (N, D).

        It reads the lengths from the device; raises ValueError as the forward does.
        """
        lengths: Lengths = (self._ends(tokens) + 1).numpy(force=True)
        real = int((tokens != self.pad_id).sum())
        return self(Texts(tokens, lengths, real < lengths.sum()))[0]

    def layers(self) -> tuple[str, list[nn.Module]]:
        """The name of the stack of transformer layers in this module, and the layers; "" and none if there is none."""
        stacks = [(name, module) for name, module in self.named_modules() if isinstance(module, nn.ModuleList)]
        name, stack = max(stacks, key=lambda pair: len(pair[1]), default=("", nn.ModuleList()))
        return name, list(stack)

    def _vectors(self, texts: Texts) -> Tensor:
        """Texts -> vectors (N, D), not unit-norm."""
        tokens = texts.tokens
        if self.whole is not None:
            if tokens.shape[1] != self.whole.context_length:
                raise ValueError(f"this tower sees padding: give all {self.whole.context_length} tokens")
            return self.whole(tokens)
        filled = tokens.is_cuda and torch.is_autocast_enabled("cuda")
        if self.packs and self.is_native:
            return self._projected(run_packed(self, texts, self._ends(tokens), filled=filled))
        # In a row, nothing masks the padding.
        if self.packs and len(texts) and texts.lengths.min() and not texts.may_hold_padding:
            return hf_packed.run_packed(self.text, texts, filled=filled)
        # A text without tokens has one of padding.
        lengths = np.maximum(texts.lengths, 1)
        order = lengths.argsort(kind="stable")
        sizes = passes(lengths[order], _PASS_COST_TOKENS.get(tokens.device.type, _PASS_COST_TOKENS_GPU))
        if len(sizes) <= 1:
            return self._encode(tokens[:, : lengths.max(initial=1)])
        longest = lengths[order][np.cumsum(sizes) - 1]
        ranks = torch.from_numpy(np.stack([order, order.argsort()])).to(tokens.device, non_blocking=True)
        with without_plans():
            vectors = [
                self._encode(tokens[rows, :length])
                for rows, length in zip(ranks[0].split(sizes), longest.tolist(), strict=True)
            ]
        return torch.cat(vectors)[ranks[1]]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles the layers of a tower that `packs`; the first steps then take longer."""
        for layer in self.layers()[1]:
            layer.compile(backend=backend)

    def _encode(self, tokens: Tensor) -> Tensor:
        if not self.is_native:
            return self.text(tokens)
        ends, length = self._ends(tokens), tokens.shape[1]
        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(tokens).to(dtype) + self.positional_embedding[:length].to(dtype)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])  # (N, L, width)
        # The norm treats each position alone: pooling first gives the same result with one position per text to norm.
        return self._projected(x[torch.arange(len(x), device=x.device), ends])

    def _projected(self, x: Tensor) -> Tensor:
        """States of the pooled tokens (N, width) -> vectors (N, D), not unit-norm."""
        x = self.ln_final(x)
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
            rows = [ids[text] for text in order[start : start + batch_size]]
            texts = Texts.of(rows, encoder.pad_id, 0 if tower.whole is None else encoder.context_length)
            parts.append(tower(texts.to(device))[0].float())
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
