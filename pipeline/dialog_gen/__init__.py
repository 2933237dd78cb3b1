"""Images go in, a vision-language model talks about them, the dialogues become a checked Parquet dataset."""

__version__ = "0.1.0"
