"""Three-stage alignment (jina-clip v1, arXiv 2405.20204): texts with texts beside captions with images."""
