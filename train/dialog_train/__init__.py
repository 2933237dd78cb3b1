"""Training of CLIP models and text decoders on dialogues that `dialog_gen` made.

    import dialog_train

    result = dialog_train.train("draft-shapes", overrides=["optim.max_steps=100"])
    print(result.model, result.losses)

Its functions are imported on first use, so `import dialog_train` is fast.
"""

from typing import TYPE_CHECKING

from dialog_gen.core.lazy import lazy_names

if TYPE_CHECKING:
    from dialog_train.api import TrainResult as TrainResult
    from dialog_train.api import load_recipe as load_recipe
    from dialog_train.api import train as train

_API: dict[str, str] = dict.fromkeys(("TrainResult", "load_recipe", "train"), "dialog_train.api")

__all__ = [*_API]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _API)
