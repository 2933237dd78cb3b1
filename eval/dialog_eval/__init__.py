"""Evaluating CLIP-like models: retrieval, VQA, zero-shot classification, generated texts.

import dialog_eval

results = dialog_eval.evaluate("retrieval", checkpoint="OUT/model", images="val2014", captions="captions.json")
dialog_eval.write_table(["results.json"], "table.md")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialog_eval.api import evaluate, write_table

__all__ = ["evaluate", "write_table"]


def __getattr__(name: str) -> Any:
    """Imports the API when it is first used: `import dialog_eval` and its submodules stay light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dialog_eval import api

    return getattr(api, name)
