"""The engine `transformers`: slower than vLLM, but it supports every architecture that transformers knows."""

from dialog_gen.core.output import quiet
from dialog_gen.engines.base import ENGINES, Engine, EngineEntry, EngineOptions
from dialog_gen.models.quantized import method_of
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.weights import check_index
from dialog_gen.protocols.protocol import Sampling


class TransformersEntry(EngineEntry):
    """Runs transformers' `generate` in this process."""

    name = "transformers"
    description = "transformers' generate with small batches; needs no extra"
    needs = "folder"
    default_rank = 1
    # The checks before a run have imported its packages; reading the weights is added.
    start_s = 2
    samples_per_request = True

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises MissingExtraError for a missing extra, and UsageError for weights that cannot be read here."""
        super().check(model, options)
        model.architecture.check_installed(model.name)
        check_index(model.files)

    def check_here(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises UsageError for quantised weights that transformers cannot read on this machine."""
        if method := method_of(model.config):
            with quiet():
                from dialog_gen.engines.transformers.quantized import check_quantized  # imports torch

                check_quantized(model, method)

    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Loads the model onto the first device."""
        from dialog_gen.engines.transformers.engine import TransformersEngine

        return TransformersEngine(model, sampling, options)


ENGINES.register("transformers")(TransformersEntry())
