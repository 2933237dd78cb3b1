"""The engine `vllm`: the fastest one on a GPU, for the architectures that vLLM supports."""

from importlib.util import find_spec

from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.core.output import quiet
from dialog_gen.engines.base import (
    ENGINES,
    SPECIAL_OPTIONS,
    CoreAddress,
    Engine,
    EngineCore,
    EngineOptions,
    SharedEngineEntry,
)
from dialog_gen.models.quantized import method_of
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling


class VllmEntry(SharedEngineEntry):
    """Runs vLLM in this process and in child processes."""

    name = "vllm"
    description = "continuous batching; needs the extra vllm, or cpu on a machine without a GPU"
    needs = "folder"
    default_rank = 0
    samples_per_request = True
    structured = True
    start_s = 60
    extra = "vllm or cpu"
    knows = SPECIAL_OPTIONS

    def installed(self) -> bool:
        """Whether vLLM can be imported."""
        return find_spec("vllm") is not None

    def serves(self, model: GeneratorModel) -> bool:
        """False for MaMMUT and for BLIP-2 with a T5 decoder, which vLLM does not support."""
        return model.served_by_vllm

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises MissingExtraError if vLLM is not installed, and UsageError if it cannot serve the model so."""
        super().check(model, options)
        if not self.installed():
            raise MissingExtraError("--engine vllm", "vllm", "on a machine without a GPU, see README: Install")
        if not self.serves(model):
            raise UsageError(f"vLLM does not serve {model.name}'s architecture: use --engine transformers.")
        if options.images_per_prompt > 1 and not model.architecture.vllm_takes_several_images:
            raise UsageError(
                "--images-per-sample all: vLLM cuts each of several images into tiles, as if it were alone, and "
                f"{model.name} ({model.config.get('model_type')}) was trained with one tile for each: use --engine "
                "transformers, which does so, or --images-per-sample first."
            )
        model.architecture.check_installed(model.name)
        if options.kv_cache_dtype is not None or options.quantization is not None:
            # vLLM, torch and Triton say much when they are imported; the user's error should stand alone.
            with quiet():
                from dialog_gen.engines.vllm.engine import check_types  # imports vLLM, which takes seconds

                check_types(model, options)

    def check_here(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises UsageError for quantised weights that vLLM cannot read on this machine."""
        if method := method_of(model.config):
            with quiet():
                from dialog_gen.engines.vllm.engine import check_quantized

                check_quantized(model, options, method)

    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Starts vLLM's engine process on the visible devices."""
        from dialog_gen.engines.vllm.engine import VllmEngine

        return VllmEngine(model, sampling, options)

    def start_core(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions, clients: int) -> EngineCore:
        """Starts vLLM's engine process on the visible devices, for several clients."""
        from dialog_gen.engines.vllm.engine import start_core

        return start_core(model, options, clients)

    def connect(
        self, model: GeneratorModel, sampling: Sampling, options: EngineOptions, address: CoreAddress
    ) -> Engine:
        """A client of an engine process."""
        from dialog_gen.engines.vllm.engine import VllmEngine

        return VllmEngine(model, sampling, options, address)


ENGINES.register("vllm")(VllmEntry())
