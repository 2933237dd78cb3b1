"""MaMMUT: trains an image tower and a text decoder. This script runs `dialog-train mammut`:

accelerate launch train/mammut.py --config mammut-vit-b-32 [--set gamma=1 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["mammut", *sys.argv[1:]]))
