"""VQA accuracy at the module path that other programs import."""

from dialog_eval.metrics.vqa import normalize_answer, vqa_accuracy

__all__ = ["normalize_answer", "vqa_accuracy"]
