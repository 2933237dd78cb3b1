"""Generators: those known by name, what must be true of a model folder, architectures and chat templates."""
