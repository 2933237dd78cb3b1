"""CLOSE (arXiv 2211.09778): a text decoder is trained on CLIP's text vectors and used on its image vectors."""
