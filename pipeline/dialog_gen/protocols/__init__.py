"""The questions for a generator, and the parsing of its answers."""
