"""Multi-task alignment of a CLIP's text tower, in stages. This script runs `dialog-train multitask`:

accelerate launch train/multitask.py --config multitask-vit-b-32 [--set stages.3.lr=1e-6 ...] [--resume auto]
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["multitask", *sys.argv[1:]]))
