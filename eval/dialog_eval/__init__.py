"""Evaluation of CLIP-like models: retrieval, VQA, zero-shot classification, generated texts.

results = dialog_eval.evaluate("retrieval", checkpoint="OUT/model", images="val2014", captions="captions.json")
dialog_eval.write_table(["results.json"], "table.md")
"""

from typing import TYPE_CHECKING

from dialog_gen.core.lazy import lazy_names

if TYPE_CHECKING:
    from dialog_eval.api import evaluate as evaluate
    from dialog_eval.api import write_table as write_table

_API: dict[str, str] = dict.fromkeys(("evaluate", "write_table"), "dialog_eval.api")

__all__ = [*_API]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _API)
