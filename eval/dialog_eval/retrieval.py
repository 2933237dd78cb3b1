"""Recall under the name by which other programs import it."""

from dialog_eval.metrics.retrieval import recall_at_k

__all__ = ["recall_at_k"]
