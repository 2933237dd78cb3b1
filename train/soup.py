"""Model soups: writes the mean of several checkpoints' weights as a checkpoint (arXiv 2203.05482).

python train/soup.py --checkpoints runs/a/model runs/b/model runs/c/model --out runs/soup
python train/soup.py --checkpoints runs/*/model --out runs/soup --greedy --images data/held-out

--greedy adds one checkpoint after another, the best first, and keeps those that do not lower the score: the mean recall
at 1 of images and captions that no training saw, and that are not the test set.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_train.config import PixelSettings
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_sources import open_pixel_source
from dialog_train.data.vectors import DECODERS
from dialog_train.script import run_telling
from dialog_train.soups import Soup, greedy_soup, held_out_score, save_soup, uniform_soup


def main() -> int:
    """Runs the script and gives its exit code: see `run_telling`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--greedy", action="store_true", help="choose by held-out data; without it all are taken")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--images", help="held-out images with captions: webdataset tars, image files, Parquet")
    held_out.add_argument("--dialogues", help="held-out images with captions: a dialogues dataset")
    options = parser.parse_args()
    return run_telling(lambda: cook(options))


def cook(options: argparse.Namespace) -> str:
    """Makes and writes the soup, and tells of it."""
    if options.greedy != bool(options.images or options.dialogues):
        raise UsageError("--greedy and held-out data go together: give it and --images or --dialogues, or neither.")
    if options.out.exists():
        raise UsageError(f"--out {options.out} exists: choose another folder.")
    soup = greedy(options) if options.greedy else uniform_soup(options.checkpoints)
    save_soup(soup, options.out)
    return f"{options.out}: the mean of {', '.join(soup.ingredients)}"


def greedy(options: argparse.Namespace) -> Soup:
    """Chooses by the held-out data, whose pixels are kept only meanwhile."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with TemporaryDirectory() as work:
        source = open_pixel_source(PixelSettings(images=options.images, dialogues=options.dialogues, work=Path(work)))
        clip = load_clip(str(options.checkpoints[0]))
        rows = build_pixel_set(source, clip, Path(work) / "pixel_set", workers=DECODERS)
        return greedy_soup(options.checkpoints, held_out_score(rows, device))


if __name__ == "__main__":
    sys.exit(main())
