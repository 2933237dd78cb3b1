"""MaMMUT (arXiv 2303.16839): an image tower and one text decoder, which embeds texts in one pass and writes in another.

A model folder is one of Hugging Face's kind: `dialog_gen.clip.mammut.folder` says what is in it. As a `Clip` it is
searched with (`dialog_gen.clip.loader.load_clip`), and as a generator it answers questions about images
(`dialog-gen run --model`).
"""

MODEL_TYPE = "mammut"
"""What config.json calls it."""
PROTOCOL_FILE = "protocol.toml"
"""In a model folder: the questions that a run asks where no protocol is named."""
