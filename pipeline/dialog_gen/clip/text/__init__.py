"""Texts as token ids, and as vectors of a text tower."""
