"""Data that trainings read: image vectors, token ids and pixels, computed once and memory-mapped."""
