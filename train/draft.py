"""DRAFT: tunes a CLIP's text tower on dialogues and captions. This script runs `dialog-train draft`:

accelerate launch train/draft.py --config draft-vit-b-32 [--set optim.lr=3e-5 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["draft", *sys.argv[1:]]))
