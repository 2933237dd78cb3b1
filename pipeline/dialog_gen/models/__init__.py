"""Generators: the registry of models, checks of model folders, architectures and chat templates."""
