"""Training CLIP-like models on dialogue datasets."""
