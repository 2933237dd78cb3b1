"""MaMMUT (arXiv 2303.16839): its training. The model is `dialog_gen.clip.mammut`'s."""
