"""What softmax losses need of similarities: logarithms of sums over rows and columns, and the matching pairs."""

from typing import Any

import torch
from torch import Tensor

from dialog_train.losses.kernels import kernels_for


def log_sums(
    similarities: Tensor, scale: Tensor, first: int, *, rows: bool = True, columns: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities s (B, M) and a scale () -> log sum exp(scale s) of each row (B,) and column (M,), and scale s (B,).

    The last are those of matching pairs, (i, first + i). The matrix of logits is not kept for the gradients. What is
    not asked for is empty. There is no second derivative.
    """
    return _LogSums.apply(similarities, scale, first, rows, columns)  # type: ignore[no-any-return]


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, similarities: Tensor, scale: Tensor, first: int, rows: bool, columns: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_rows, of_columns = similarities.new_empty(0), similarities.new_empty(0)
        if kernels := kernels_for(similarities):
            of_rows = kernels.row_log_sums(similarities, scale) if rows else of_rows
            of_columns = kernels.column_log_sums(similarities, scale) if columns else of_columns
        else:
            logits = similarities * scale
            of_rows = logits.logsumexp(1) if rows else of_rows
            of_columns = logits.logsumexp(0) if columns else of_columns
        ctx.save_for_backward(similarities, scale, of_rows, of_columns)
        ctx.first = first
        return of_rows, of_columns, similarities.diagonal(first) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        similarities, scale, of_rows, of_columns = ctx.saved_tensors
        if kernels := kernels_for(similarities):
            found, of_scale = kernels.log_sums_gradient(similarities, scale, of_rows, of_columns, *gradients[:2])
        else:
            parts = [
                torch.addcmul(-sums, similarities, scale).exp_().mul_(gradient)
                for sums, gradient in ((of_rows[:, None], gradients[0][:, None]), (of_columns, gradients[1]))
                if len(sums)
            ]
            found = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
            of_scale = torch.linalg.vecdot(found, similarities).double().sum()
            found.mul_(scale)
        # In place: as an operation of its own it would have a gradient of B x M zeros.
        found.diagonal(ctx.first).add_(gradients[2] * scale)
        of_scale = of_scale + (gradients[2] * similarities.diagonal(ctx.first)).double().sum()
        return found, of_scale.to(scale.dtype), None, None, None
