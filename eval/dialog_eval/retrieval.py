"""Recall at the module path that other programs import."""

from dialog_eval.metrics.retrieval import recall_at_k

__all__ = ["recall_at_k"]
