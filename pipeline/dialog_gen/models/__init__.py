"""Generators: those known by name, what must be true of a model folder, and chat templates."""
