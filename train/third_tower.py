"""CLIP-3Modal: trains a third tower on dialogues. This script runs `dialog-train third-tower`:

accelerate launch train/third_tower.py --config third-tower-vit-b-32 [--set loss.a=0.8 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["third-tower", *sys.argv[1:]]))
