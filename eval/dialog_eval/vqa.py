"""VQA's accuracy under the name by which other programs import it."""

from dialog_eval.metrics.vqa import normalize_answer, vqa_accuracy

__all__ = ["normalize_answer", "vqa_accuracy"]
