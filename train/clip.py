"""CLIP, SigLIP, LiT: trains an image tower and a text tower. This script runs `dialog-train clip`:

accelerate launch train/clip.py --config clip-vit-b-32 [--set loss=siglip ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["clip", *sys.argv[1:]]))
