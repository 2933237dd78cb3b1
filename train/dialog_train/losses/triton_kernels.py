# ruff: noqa: ANN001, ANN202, N803 - Triton compiles its functions, and reads annotations as types of its own.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
"""GPU kernels for `chebyshev` and `log_sums`, which read a matrix of similarities once.

With TRITON_INTERPRET=1 they run on a CPU.
"""

import math
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

# Values of a program: 16 for each of its threads, so that sums within a thread outweigh those between threads; 8 where
# nothing is summed. More take so many registers that few programs run at a time.
_SUMS_BLOCK, _SERIES_BLOCK = 4096, 2048
_WARPS = 8
_ROW_BLOCK = 1024
# A program of columns takes this many, in tiles of rows, until its part of the rows is done.
_COLUMNS, _TILE_ROWS, _SPLIT = 64, 32, 512


@triton.jit
def _sums(values, sums, size, programs, count, FACTOR: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    places = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    # Outside, T_0 = T_1 = 0, and with them all others.
    x = tl.load(values + places, mask=inside, other=0.0) * FACTOR
    before = inside.to(x.dtype)
    last = x
    for k in range(count):
        tl.store(sums + k * programs + program, tl.sum(before, axis=0))
        after = 2 * x * last - before
        before = last
        last = after


@triton.jit
def _series(values, result, coefficients, size, count, FACTOR: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    x = tl.load(values + places, mask=inside, other=0.0) * FACTOR
    last = x * 0
    later = last
    for step in range(1, count):
        new = tl.load(coefficients + count - step) + 2 * x * last - later
        later = last
        last = new
    tl.store(result + places, tl.load(coefficients) + x * last - later, mask=inside)


@triton.jit
def _row_log_sums(values, result, scale, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(scale)
    greatest = tl.full((BLOCK,), -1e30, values.dtype.element_ty)
    total = tl.zeros((BLOCK,), values.dtype.element_ty)
    for start in range(0, columns, BLOCK):
        places = start + tl.arange(0, BLOCK)
        inside = places < columns
        x = tl.load(values + row * columns + places, mask=inside, other=0.0) * factor
        x = tl.where(inside, x, float("-inf"))
        new = tl.maximum(greatest, x)
        total = total * tl.exp(greatest - new) + tl.exp(x - new)
        greatest = new
    top = tl.max(greatest, axis=0)
    tl.store(result + row, top + tl.log(tl.sum(total * tl.exp(greatest - top), axis=0)))


@triton.jit
def _column_log_sums(  # type: ignore[no-untyped-def]
    values, result, scale, rows, columns, SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.program_id(1)
    factor = tl.load(scale)
    greatest = tl.full((ROWS, BLOCK), -1e30, values.dtype.element_ty)
    total = tl.zeros((ROWS, BLOCK), values.dtype.element_ty)
    for start in range(0, SPLIT, ROWS):
        row = split * SPLIT + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (places < columns)[None, :]
        x = tl.load(values + row.to(tl.int64)[:, None] * columns + places[None, :], mask=inside, other=0.0) * factor
        x = tl.where(inside, x, float("-inf"))
        new = tl.maximum(greatest, x)
        total = total * tl.exp(greatest - new) + tl.exp(x - new)
        greatest = new
    top = tl.max(greatest, axis=0)
    found = top + tl.log(tl.sum(total * tl.exp(greatest - top[None, :]), axis=0))
    tl.store(result + split.to(tl.int64) * columns + places, found, mask=places < columns)


@triton.jit
def _log_sums_gradient(  # type: ignore[no-untyped-def]
    values, result, of_scale, scale, row_sums, column_sums, row_gradients, column_gradients, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    places = part * BLOCK + tl.arange(0, BLOCK)
    inside = places < columns
    factor = tl.load(scale)
    x = tl.load(values + row * columns + places, mask=inside, other=0.0)
    found = x * 0
    if ROWS:
        found += tl.load(row_gradients + row) * tl.exp(x * factor - tl.load(row_sums + row))
    if COLUMNS:
        sums = tl.load(column_sums + places, mask=inside, other=0.0)
        found += tl.load(column_gradients + places, mask=inside, other=0.0) * tl.exp(x * factor - sums)
    found = tl.where(inside, found, 0.0)
    tl.store(result + row * columns + places, found * factor, mask=inside)
    tl.store(of_scale + row * tl.num_programs(1) + part, tl.sum(found * x, axis=0))


def sums(values: Tensor, factor: float, count: int) -> Tensor:
    """The sums of T_k(factor * value) for k < count: (count,) float64."""
    values, kernel = values.contiguous(), cast("Any", _sums)
    programs = math.ceil(values.numel() / _SUMS_BLOCK)
    found = values.new_empty(count, programs)
    with torch.cuda.device_of(values):
        kernel[(programs,)](values, found, values.numel(), programs, count, factor, _SUMS_BLOCK, num_warps=_WARPS)
    return found.double().sum(1)


def series(values: Tensor, factor: float, coefficients: Tensor) -> Tensor:
    """sum_k coefficients_k T_k(factor * value) of each value, in its type."""
    values, kernel = values.contiguous(), cast("Any", _series)
    result, typed = torch.empty_like(values), coefficients.to(values.dtype)
    programs, count = math.ceil(values.numel() / _SERIES_BLOCK), len(typed)
    with torch.cuda.device_of(values):
        kernel[(programs,)](values, result, typed, values.numel(), count, factor, _SERIES_BLOCK, num_warps=_WARPS)
    return result


def row_log_sums(values: Tensor, scale: Tensor) -> Tensor:
    """Logarithms of the sums of exp(scale * value) over each row: (B, M), () -> (B,)."""
    values, kernel = values.contiguous(), cast("Any", _row_log_sums)
    rows, columns = values.shape
    result = values.new_empty(rows)
    with torch.cuda.device_of(values):
        kernel[(rows,)](values, result, scale, columns, _ROW_BLOCK, num_warps=4)
    return result


def column_log_sums(values: Tensor, scale: Tensor) -> Tensor:
    """Logarithms of the sums of exp(scale * value) over each column: (B, M), () -> (M,)."""
    values, kernel = values.contiguous(), cast("Any", _column_log_sums)
    rows, columns = values.shape
    splits = math.ceil(rows / _SPLIT)
    result = values.new_empty(splits, columns)
    with torch.cuda.device_of(values):
        grid = (math.ceil(columns / _COLUMNS), splits)
        kernel[grid](values, result, scale, rows, columns, _SPLIT, _TILE_ROWS, _COLUMNS, num_warps=4)
    return result.logsumexp(0)


def log_sums_gradient(
    values: Tensor, scale: Tensor, of_rows: Tensor, of_columns: Tensor, row_gradients: Tensor, column_gradients: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients (B, M) of values and () of the scale, from those of the logarithms; either may be empty."""
    values, kernel = values.contiguous(), cast("Any", _log_sums_gradient)
    rows, columns = values.shape
    parts = math.ceil(columns / _ROW_BLOCK)
    result, of_scale = torch.empty_like(values), values.new_empty(rows, parts)
    sides = [side.contiguous() for side in (of_rows, of_columns, row_gradients, column_gradients)]
    with torch.cuda.device_of(values):
        has = (len(of_rows) > 0, len(of_columns) > 0)
        kernel[(rows, parts)](values, result, of_scale, scale, *sides, columns, *has, _ROW_BLOCK, num_warps=4)
    return result, of_scale.double().sum()
