"""Runs text towers of BERT's kind, which open_clip takes from Hugging Face, on the tokens of many texts in one row.

As in `packed`, there is no padding between the texts. The layers are those of transformers; the function that they call
for attention, by transformers' interface for such functions, keeps the texts apart. Dropout stays where it is and as
likely as it is, in attention too; the random numbers are others than on padded texts.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dialog_gen.clip.text.packed import Packing, kernel, without_plans
from dialog_gen.clip.text.texts import Texts

# Transformers' names of the kinds of model whose positions can be given, and whether they count from the padding id.
_COUNTS_FROM_PADDING = {"bert": False, "roberta": True, "xlm-roberta": True}


def make_packable(text: Any) -> bool:
    """Lets the layers of a `HFTextEncoder` take a `Packing`; False if they or the pooling are of another kind.

    Without a `Packing` they do what they did.
    """
    from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler

    known = type(text) is HFTextEncoder and type(text.pooler) in (MeanPooler, ClsPooler, ClsLastHiddenStatePooler)
    if not known:
        return False
    config = text.transformer.config
    attention = config._attn_implementation  # noqa: SLF001 - transformers has no public name to read it
    if config.model_type not in _COUNTS_FROM_PADDING or config.is_decoder:
        return False
    if attention not in ("sdpa", _registered()):
        return False
    text.transformer.set_attn_implementation(_registered())
    return True


def run_packed(text: Any, texts: Texts, *, filled: bool) -> Tensor:
    """The vectors (N, D) of N texts, none of which is empty or holds the padding id, by a packable `HFTextEncoder`."""
    config = text.transformer.config
    first = config.pad_token_id + 1 if _COUNTS_FROM_PADDING[config.model_type] else 0
    packing, order, places = Packing.sorting(texts, context=config.max_position_embeddings - first, filled=filled)
    ids, positions = packing.ids(texts.tokens[order])[None], packing.position[None] + first
    with without_plans():
        row = text.transformer(input_ids=ids, position_ids=positions, packing=packing).last_hidden_state[0]
    return text.proj(_pooled(text, row, packing).index_select(0, places))


def _pooled(text: Any, row: Tensor, packing: Packing) -> Tensor:
    """The states of a row (T, width) -> of its texts (N, width), pooled as open_clip does."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    starts = packing.starts[: packing.count + 1]
    if not hasattr(text.pooler, "cls_token_position"):
        # A half-precision sum of many states would lose digits.
        wide = row if row.dtype == torch.float64 else row.float()
        return torch.segment_reduce(wide, "mean", offsets=starts, unsafe=True).to(row.dtype)
    states: Any = row.index_select(0, starts[:-1]).unsqueeze(1)  # (N, 1, width)
    head = text.transformer.pooler
    output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=None if head is None else head(states))
    return text.pooler(output, None)


@cache
def _registered() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        packing: Packing | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if packing is None:
            return sdpa_attention_forward(module, query, key, value, mask, **options)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return bidirectional(q, k, v, packing, options["scaling"], options["dropout"])[None], None

    name = "sdpa_or_packed"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def bidirectional(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float, dropout: float = 0) -> Tensor:
    """Queries, keys and values of a row (T, heads, head width) -> attention within each text, of that shape."""
    # The kernel has no dropout.
    attend = None if dropout else kernel(q, q.shape[-1])
    if attend is not None:
        bounds = packing.starts, packing.starts, packing.longest, packing.longest
        return attend(q, k, v, *bounds, scale=scale, window_size=(-1, -1))
    return _bidirectional_in_groups(q, k, v, packing, scale, dropout)


# As in `packed`, its shapes change with each batch.
@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _bidirectional_in_groups(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float, dropout: float) -> Tensor:
    sizes = [group.tokens for group in packing.groups]
    parts = zip(packing.groups, *(x.flatten(1).split(sizes) for x in (q, k, v)), strict=True)
    found = []
    for group, *rows in parts:
        texts = (group.unpacked(row).unflatten(-1, q.shape[1:]).transpose(1, 2) for row in rows)
        attended = scaled_dot_product_attention(*texts, attn_mask=group.mask, dropout_p=dropout, scale=scale)
        found.append(group.packed(attended.transpose(1, 2)))
    return torch.cat(found)
