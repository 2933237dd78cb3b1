"""The engine `vllm`: the fastest one on a GPU, for the architectures that vLLM supports."""

from importlib.util import find_spec

from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.engines.base import ENGINES, Engine, EngineEntry, EngineOptions
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling


class VllmEntry(EngineEntry):
    """Runs vLLM in this process and in child processes."""

    name = "vllm"
    description = "continuous batching; needs the extra vllm, or cpu on a machine without a GPU"
    needs = "folder"
    default_rank = 0
    extra = "vllm or cpu"

    def installed(self) -> bool:
        """Whether vLLM can be imported."""
        return find_spec("vllm") is not None

    def serves(self, model: GeneratorModel) -> bool:
        """False for MaMMUT and for BLIP-2 with a T5 decoder, which vLLM does not support."""
        return model.served_by_vllm

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises MissingExtraError if vLLM is not installed, and UsageError if it does not support the architecture."""
        super().check(model, options)
        if not self.installed():
            raise MissingExtraError("--engine vllm", "vllm", "on a machine without a GPU, see README: Install")
        if not self.serves(model):
            raise UsageError(f"vLLM does not serve {model.name}'s architecture: use --engine transformers.")

    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Starts vLLM's engine process on the visible devices."""
        from dialog_gen.engines.vllm.engine import VllmEngine

        return VllmEngine(model, sampling, options)


ENGINES.register("vllm")(VllmEntry())
