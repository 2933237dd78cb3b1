"""MulT augmentation: a CLIP's towers beside a crossmodal transformer. It is `dialog-train mult`, as a file:

accelerate launch train/mult.py --config mult-vit-b-32 [--set weights.a=0.5 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["mult", *sys.argv[1:]]))
