"""The GPU kernels of losses without a GPU: run by Triton's interpreter, and compiled by its compiler."""

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

POLYNOMIALS = """
import torch
from dialog_train.losses.chebyshev import polynomials
from dialog_train.losses.triton_kernels import series, sums

for dtype, error in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    values = (torch.rand(3, 10001, dtype=dtype) * 2 - 1).T[:, 1]  # not contiguous
    exact = polynomials(0.9 * values.double(), 20)
    assert (sums(values, 0.9, 20) - exact.sum(0)).abs().max() < error * len(values)
    coefficients = torch.rand(20, dtype=torch.float64)
    found = series(values, 0.9, coefficients)
    assert found.dtype == dtype
    assert (found - exact @ coefficients).abs().max() < 20 * error
"""
LOG_SUMS = """
import torch
from dialog_train.losses import log_sums as module
from dialog_train.losses import triton_kernels

module.kernels_for = lambda values: triton_kernels
torch.manual_seed(0)
for rows, columns, first in ((6, 2100, 3), (520, 65, 0), (1, 1, 0)):
    # float32 cannot hold exp(80 s) for s from -1.5 to 1.5 without regard to the greatest.
    values = (torch.rand(rows, columns, dtype=torch.float64) * 3 - 1.5).requires_grad_()
    scale = torch.tensor(80.0, dtype=torch.float64).requires_grad_()
    own = min(rows, columns - first)
    weights = [torch.randn(n, dtype=torch.float64) for n in (rows, columns, own)]
    logits = scale * values
    expected = (logits.logsumexp(1), logits.logsumexp(0), logits.diagonal(first))
    for has in ((True, True), (True, False), (False, True)):
        for dtype, error in ((torch.float64, 1e-11), (torch.float32, 2e-5))[: 1 + all(has)]:
            inputs = [x.detach().to(dtype).requires_grad_() for x in (values, scale)]
            found = module.log_sums(*inputs, first, rows=has[0], columns=has[1])
            kept = [i for i in range(3) if i == 2 or has[i]]
            totals = [sum((of[i] * weights[i].to(of[i].dtype)).sum() for i in kept) for of in (found, expected)]
            for i in kept:
                torch.testing.assert_close(found[i].double(), expected[i], rtol=error, atol=error)
            gradients = torch.autograd.grad(totals[0], inputs)
            exact = torch.autograd.grad(totals[1], (values, scale), retain_graph=True)
            for gradient, wanted in zip(gradients, exact):
                assert (gradient.double() - wanted).norm() < error * 10 * (wanted.norm() + 1), (has, dtype)
"""
NUMBERS = {
    "_sums": ["values", "sums", "size", "programs", "count"],
    "_series": ["values", "result", "coefficients", "size", "count"],
    "_row_log_sums": ["values", "result", "scale", "columns"],
    "_column_log_sums": ["values", "result", "scale", "rows", "columns"],
    "_log_sums_gradient": [
        *("values", "result", "of_scale", "scale", "row_sums", "column_sums", "row_gradients", "column_gradients"),
        "columns",
    ],
}
INTEGERS = {"size": "i64", "programs": "i32", "count": "i32", "rows": "i32", "columns": "i32"}
CONSTANTS: dict[str, dict[str, Any]] = {
    "_sums": {"FACTOR": 0.9, "BLOCK": 4096},
    "_series": {"FACTOR": 0.9, "BLOCK": 2048},
    "_row_log_sums": {"BLOCK": 1024},
    "_column_log_sums": {"SPLIT": 512, "ROWS": 32, "BLOCK": 64},
    "_log_sums_gradient": {"ROWS": True, "COLUMNS": True, "BLOCK": 1024},
}


@pytest.mark.parametrize("script", [POLYNOMIALS, LOG_SUMS], ids=["polynomials", "log sums"])
def test_in_the_interpreter(script: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", NUMBERS)
def test_compile_for_a_gpu(name: str, bits: int) -> None:
    """Triton brings its own assembler. The interpreter accepts more than the compiler does."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile  # noqa: A004

    from dialog_train.losses import triton_kernels

    signature = {number: INTEGERS.get(number, f"*fp{bits}") for number in NUMBERS[name]}
    signature |= dict.fromkeys(CONSTANTS[name], "constexpr")
    source: Any = ASTSource(getattr(triton_kernels, name), signature, CONSTANTS[name])
    made: Any = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert made.asm["cubin"]
