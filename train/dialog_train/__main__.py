"""Runs `dialog-train` for `python -m dialog_train ...` and `accelerate launch -m dialog_train ...`."""

import sys

from dialog_train.cli import run

if __name__ == "__main__":
    sys.exit(run())
