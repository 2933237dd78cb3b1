"""Metrics: recall, VQA accuracy, classification accuracy, confidence intervals."""
