"""DRAFT-plus: tunes a CLIP's text tower on answers against foils. This script runs `dialog-train draft-plus`:

accelerate launch train/draft_plus.py --config draft-plus-vit-b-32 [--set optim.lr=3e-5 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["draft-plus", *sys.argv[1:]]))
