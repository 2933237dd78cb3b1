"""Where texts end in a batch of token ids: within them the id of the padding may mean something."""

import torch
from torch import Tensor


def last_tokens(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (N, L), padded behind -> the place of the last token of each text (N,)."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(tokens != pad_id, places, 0).amax(-1)


def padding_of(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (N, L) -> True behind the last token of each text (N, L)."""
    return torch.arange(tokens.shape[1], device=tokens.device) > last_tokens(tokens, pad_id).unsqueeze(-1)
