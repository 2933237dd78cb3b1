"""MulT augmentation: trains a CLIP together with a crossmodal transformer. This script runs `dialog-train mult`:

accelerate launch train/mult.py --config mult-vit-b-32 [--set weights.a=0.5 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["mult", *sys.argv[1:]]))
