"""Evaluating CLIP-like models: retrieval, VQA, zero-shot classification."""
