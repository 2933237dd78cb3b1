"""Estimates how many images a GPU makes in a second, from the sizes of the model and the data sheet of the GPU.

Prefill is bound by arithmetic, decoding by reading the KV cache and the weights. With n prompt tokens, of which m are
not in the prefix cache, and a answer tokens an image:

    prefill = [2 m L + 2 l h n m + 2 v V + 4 l_v h_v v^2] / (FLOP/s x 0.52)            (fp8 weights: x 0.42)
    decode  = [a (n + a / 2) c + a W / b] / (bytes/s x 0.82)

L, V: weights in the layers of the decoder and of the image tower; l, h: layers and width of the decoder's heads
together; v: patches that the tower reads at a time, each tile of an image anew; c: bytes of a token in the KV cache;
W: bytes of the weights that each step reads; b: dialogues in flight, as many as the KV cache holds. The fractions are
those that engines reach: about half of the peak FLOP/s in large matrix products, four fifths of the bandwidth in
attention over a paged cache.

The lower estimate is one image in prefill + decode (in turn), the upper one in the longer of both (overlapped). For
LLaVA-1.5-7B on an H100 with 620 prompt and 120 answer tokens: 28 to 52 images/s in bf16; on such a GPU vLLM found room
for 117,088 tokens in its KV cache, the formula for 117,086.

Counting of FLOPs: arXiv:2001.08361, section 2.1; decoding bound by memory: arXiv:2211.05102, section 2.
"""

from dataclasses import dataclass

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.models.dimensions import Dimensions

_GIB = 2**30
_MEMORY_USED = 0.9
"""The default of --gpu-memory-utilization."""
_ACTIVATIONS = 1.4 * _GIB
_BANDWIDTH_REACHED = 0.82
_FLOPS_REACHED = 0.52
_FP8_FLOPS_REACHED = 0.42


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU by its maker's data sheet."""

    name: str
    memory_gib: float
    bandwidth: float
    """Bytes a second."""
    flops: float
    """Dense bf16 FLOP/s."""
    fp8_flops: float | None = None
    """Dense fp8 FLOP/s; None if the GPU has no such units."""


# The makers' data sheets, without sparsity: H100 SXM, H200 SXM, B200 SXM, A100 SXM, L40S, L4, A10, RTX 4090.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="H100", memory_gib=79.6, bandwidth=3.35e12, flops=989e12, fp8_flops=1979e12),
        Gpu(name="H200", memory_gib=139.8, bandwidth=4.8e12, flops=989e12, fp8_flops=1979e12),
        Gpu(name="B200", memory_gib=178.4, bandwidth=8.0e12, flops=2250e12, fp8_flops=4500e12),
        Gpu(name="A100", memory_gib=79.2, bandwidth=2.04e12, flops=312e12),
        Gpu(name="A100-40GB", memory_gib=39.4, bandwidth=1.555e12, flops=312e12),
        Gpu(name="L40S", memory_gib=44.5, bandwidth=0.864e12, flops=362e12, fp8_flops=733e12),
        Gpu(name="L4", memory_gib=22.0, bandwidth=0.3e12, flops=121e12, fp8_flops=242e12),
        Gpu(name="A10", memory_gib=22.0, bandwidth=0.6e12, flops=125e12),
        Gpu(name="RTX4090", memory_gib=23.5, bandwidth=1.008e12, flops=165e12, fp8_flops=330e12),
    )
}


def gpu_of(name: str) -> Gpu:
    """The GPU of that name, in any case. Raises UsageError if it is unknown."""
    found = GPUS.get(name.upper().replace(" ", ""))
    if found is None:
        known = did_you_mean(name.upper(), GPUS)
        raise UsageError(f"--gpu {name}: unknown GPU; {known}; or give the rate of one with --rate.")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Images a second of one GPU: between prefill and decoding in turn, and both overlapped."""

    in_turn: float
    overlapped: float
    prefill_s: float
    """Seconds an image."""
    decode_s: float
    """Seconds an image."""
    kv_cache_tokens: int
    in_flight: int
    """Dialogues that fit into the KV cache at a time."""


def speed(
    model: Dimensions,
    gpu: Gpu,
    *,
    prompt_tokens: float,
    new_tokens: float,
    output_tokens: float,
    requests: float = 1,
    fp8_cache: bool = False,
    fp8_weights: bool = False,
) -> Speed:
    """The estimate for dialogues of `requests` requests with these numbers of tokens an image, all requests together.

    `new_tokens` are the prompt tokens that the prefix cache does not have. Raises UsageError if the model does not fit.
    """
    weight_bytes, cache_bytes = (1 if fp8_weights else 2), (1 if fp8_cache else 2)
    read = (model.layer_parameters + model.head_parameters) * weight_bytes
    weights = read + 2 * (model.head_parameters + model.vision_parameters)
    token_bytes = model.cached_numbers * cache_bytes
    room = gpu.memory_gib * _GIB * _MEMORY_USED - weights - _ACTIVATIONS
    tokens = int(room // token_bytes)
    # The tokens of one request, whose prompt may hold the whole dialogue.
    prompt, answer = prompt_tokens / requests, output_tokens / requests
    in_flight = int(tokens // (prompt + answer))
    if in_flight < 1:
        raise UsageError(
            f"--gpu {gpu.name}: the model's weights take {weights / _GIB:.0f} GiB, and no dialogue of "
            f"{prompt + answer:.0f} tokens fits beside them. Give the --rate of one engine instead."
        )
    width = model.heads * model.head_dim
    flops = 2 * new_tokens * model.layer_parameters + 2 * model.layers * width * prompt * new_tokens
    tile = 2 * model.vision_tokens * model.vision_parameters
    tile += 4 * model.vision_layers * model.vision_hidden * model.vision_tokens**2
    flops += model.vision_tiles * tile
    reached = gpu.flops * _FLOPS_REACHED
    if fp8_weights and gpu.fp8_flops:
        reached = gpu.fp8_flops * _FP8_FLOPS_REACHED
    prefill = flops / reached
    decoded = output_tokens * ((prompt + answer / 2) * token_bytes + read / in_flight)
    decode = decoded / (gpu.bandwidth * _BANDWIDTH_REACHED)
    return Speed(
        in_turn=1 / (prefill + decode),
        overlapped=1 / max(prefill, decode),
        prefill_s=prefill,
        decode_s=decode,
        kv_cache_tokens=tokens,
        in_flight=in_flight,
    )
