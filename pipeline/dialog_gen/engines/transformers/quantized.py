"""Whether transformers can read a model's quantised weights on this machine."""

from typing import Any

import torch
from transformers.quantizers.auto import AutoHfQuantizer

from dialog_gen.models.quantized import unreadable
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.transformers_files import read_configuration


def check_quantized(model: GeneratorModel, method: str) -> None:
    """Raises UsageError if transformers, or a package that it needs, cannot read them; `method` names their format."""
    model.architecture.register_with_transformers()
    config: Any = read_configuration(model.files, model.config, ())
    stored = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    # transformers would read such weights as if they were not quantised.
    if stored is None or not AutoHfQuantizer.supports_quant_method(stored):
        raise unreadable(model.name, method, "transformers", "it knows no such format", known=False)
    try:
        quantizer: Any = AutoHfQuantizer.from_config(stored, pre_quantized=True)
        quantizer.validate_environment(dtype=torch.float16, device_map=None, weights_only=True)
    # Each format has a library with errors of its own.
    except Exception as error:
        raise unreadable(model.name, method, "transformers", error, known=True) from error
