"""Converts texts to token ids, and token ids to the vectors of a text tower."""
