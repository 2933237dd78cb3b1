"""Images go in, a vision-language model talks about them, the dialogues become a checked Parquet dataset."""

from dialog_gen.core.version import __version__

__all__ = ["__version__"]
