"""CLOSE: trains a text decoder on noisy text vectors of a frozen CLIP. This script runs `dialog-train close`:

accelerate launch train/close.py --config close-vit-l-14 [--set noise=0.08 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["close", *sys.argv[1:]]))
