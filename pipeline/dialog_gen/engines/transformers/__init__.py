"""The engine `transformers`: slower than vLLM, but it supports every architecture that transformers knows."""

from dialog_gen.engines.base import ENGINES, Engine, EngineEntry, EngineOptions
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling


class TransformersEntry(EngineEntry):
    """Runs transformers' `generate` in this process."""

    name = "transformers"
    description = "transformers' generate with small batches; needs no extra"
    needs = "folder"
    default_rank = 1

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises MissingExtraError if the architecture needs an extra that is not installed."""
        super().check(model, options)
        model.architecture.check_installed(model.name)

    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Loads the model onto the first device."""
        from dialog_gen.engines.transformers.engine import TransformersEngine

        return TransformersEngine(model, sampling, options)


ENGINES.register("transformers")(TransformersEntry())
