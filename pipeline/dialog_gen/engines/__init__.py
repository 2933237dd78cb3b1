"""Engines: a conversation and an image in, an answer out."""
