"""Computes the image vectors of a dialogues dataset, once. This script runs `dialog-train embed`:

python train/embed.py --dialogues DIR --model ViT-B-32-quickgelu --pretrained laion400m_e32 --out DIR
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["embed", *sys.argv[1:]]))
