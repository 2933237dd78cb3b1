"""Training of CLIP models and text decoders on dialogues that `dialog_gen` made.

    import dialog_train

    result = dialog_train.train("draft-shapes", system="draft", overrides=["optim.max_steps=100"])
    print(result.model, result.losses)

What this offers is imported when it is first used: `import dialog_train` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialog_train.api import TrainResult, load_recipe, train

__all__ = ["TrainResult", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("dialog_train.api"), name)
