"""Benchmarks whose items compare a few images with a few texts; one module per family."""
