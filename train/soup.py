"""Model soups: writes the mean of several checkpoints' weights. This script runs `dialog-train soup`:

python train/soup.py --checkpoints runs/a/model runs/b/model runs/c/model --out runs/soup
python train/soup.py --checkpoints runs/*/model --out runs/soup --greedy --images data/held-out
"""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run(["soup", *sys.argv[1:]]))
