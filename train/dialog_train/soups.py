"""Model soups: one model whose weights are the mean of several fine-tuned models' weights (arXiv 2203.05482).

The models must have been tuned from the same weights: then they are usually in one basin of the loss, and so is their
mean. Unlike an ensemble, a soup costs nothing at inference.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import check_clip, load_clip, save_clip
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, WEIGHTS_FILE
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.checksums import check_checksums
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import whole_folder, write_json
from dialog_gen.core.tensors import load_tensors
from dialog_train.config import PixelSettings
from dialog_train.data.derived import read_json
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import Normalization, PixelRows
from dialog_train.data.pixel_sources import open_pixel_source
from dialog_train.data.vectors import DECODERS
from dialog_train.loop import REPORT_FILE

State = dict[str, Tensor]
Score = Callable[[Clip], float]
"""Higher is better. The data must be used neither in training nor in the test set."""

# Number of held-out images that are encoded together.
_BATCH_SIZE = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Soup:
    """A model, its ingredients, and the scores of the combinations that were tried."""

    clip: Clip
    ingredients: list[str]
    scores: list[tuple[list[str], float]]
    """The combinations that were tried, in order, each with its score."""


def make_soup(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    greedy: bool = False,
    images: str | None = None,
    dialogues: str | None = None,
) -> Soup:
    """Builds a soup of checkpoint folders and writes it to `out`.

    `greedy` selects checkpoints by held-out images with captions: `images` (webdataset tars, image files, Parquet) or
    `dialogues` (a dialogues dataset). Their pixels are stored in a temporary folder.

    Raises UsageError for checkpoints that cannot be averaged, for `greedy` without held-out data or the reverse, and if
    `out` exists; DialogGenError if the disk refuses a write.
    """
    if images and dialogues:
        raise UsageError("held-out data is one of --images and --dialogues, not both.")
    if greedy != bool(images or dialogues):
        raise UsageError("--greedy and held-out data go together: give it and --images or --dialogues, or neither.")
    if out.exists():
        raise UsageError(f"--out {out} exists: choose another folder.")
    if greedy:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with TemporaryDirectory() as work:
            source = open_pixel_source(PixelSettings(images=images, dialogues=dialogues, work=Path(work)))
            clip = load_clip(str(checkpoints[0]))
            rows = build_pixel_set(source, clip, Path(work) / "pixel_set", workers=DECODERS)
            soup = greedy_soup(checkpoints, held_out_score(rows, device))
    else:
        soup = uniform_soup(checkpoints)
    save_soup(soup, out)
    return soup


def uniform_soup(folders: Sequence[Path]) -> Soup:
    """Averages the weights of all checkpoints. Raises UsageError for checkpoints that cannot be averaged."""
    clip = _base(folders)
    clip.model.load_state_dict(average(_states(folders)))
    return Soup(clip=clip, ingredients=[str(folder) for folder in folders], scores=[])


def greedy_soup(folders: Sequence[Path], score: Score) -> Soup:
    """Adds one checkpoint after another, the best first, and keeps each that does not lower the score (recipe 1).

    Raises UsageError for checkpoints that cannot be averaged.
    """
    clip = _base(folders)
    scores: list[tuple[list[str], float]] = []

    def evaluate(chosen: Sequence[Path]) -> float:
        clip.model.load_state_dict(average(_states(chosen)))
        scores.append(([str(folder) for folder in chosen], score(clip)))
        _log.info("%.4f: %s", scores[-1][1], " + ".join(scores[-1][0]))
        return scores[-1][1]

    alone = {folder: evaluate([folder]) for folder in folders}
    first, *others = sorted(alone, key=lambda folder: alone[folder], reverse=True)
    chosen, best = [first], alone[first]
    for folder in others:
        if (found := evaluate([*chosen, folder])) >= best:
            chosen, best = [*chosen, folder], found
    clip.model.load_state_dict(average(_states(chosen)))
    return Soup(clip=clip, ingredients=[str(folder) for folder in chosen], scores=scores)


def average(states: Iterator[State]) -> State:
    """The mean of weights, computed in float64. A tensor that is equal in all states keeps its exact value.

    Raises UsageError for tensors of different names or shapes.
    """
    first = next(states)
    sums, count = {name: value.double() for name, value in first.items()}, 1
    for count, state in enumerate(states, 2):
        for name in sorted(first.keys() | state.keys()):
            here, there = (tuple(weights[name].shape) if name in weights else None for weights in (first, state))
            if here != there:
                raise UsageError(
                    f"checkpoint {count} is of another architecture: {name} is {there} there, {here} in 1."
                )
            sums[name] += state[name]
    return {name: (total / count).to(first[name].dtype) for name, total in sums.items()}


def held_out_score(rows: PixelRows, device: torch.device) -> Score:
    """Makes a score: the mean of image-to-text and text-to-image recall at 1 among all images of a held-out set."""

    def score(clip: Clip) -> float:
        model = clip.model.to(device).eval()
        tower, normalization = TextTower(model), Normalization(clip.preprocess_config).to(device)
        images: list[Tensor] = []
        texts: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH_SIZE):
                chosen = range(start, min(start + _BATCH_SIZE, len(rows)))
                batch = rows.batch(chosen, 0, full_length=tower.whole is not None).to(device)
                images.append(normalize(model.encode_image(normalization(batch.pixels)).float(), dim=-1))
                texts.append(tower(batch.captions)[0].float())
            both = torch.cat(images), torch.cat(texts)
            return (_recall_at_1(*both) + _recall_at_1(*reversed(both))) / 2

    return score


def save_soup(soup: Soup, folder: Path) -> None:
    """Writes a checkpoint folder and soup.json (ingredients and scores), atomically.

    Raises UsageError if `folder` exists, DialogGenError if the disk refuses a write.
    """
    tried = [{"checkpoints": names, "score": score} for names, score in soup.scores]
    # "tasted" is the key of files that were written before.
    content = {"ingredients": soup.ingredients, "tasted": tried}
    with whole_folder(folder) as part:
        write_json(part / "soup.json", content)
        save_clip(soup.clip, part)


def _recall_at_1(queries: Tensor, candidates: Tensor) -> float:
    hits = [
        (rows @ candidates.T).argmax(1) == torch.arange(start, start + len(rows), device=rows.device)
        for start, rows in zip(range(0, len(queries), _BATCH_SIZE), queries.split(_BATCH_SIZE), strict=True)
    ]
    return float(torch.cat(hits).double().mean())


def _base(folders: Sequence[Path]) -> Clip:
    """Checks that all checkpoints can be averaged, and loads the first one."""
    if len(folders) < 2:
        raise UsageError(f"a soup needs two checkpoints or more, got {len(folders)}.")
    starts: dict[str, Path] = {}
    for folder in folders:
        check_clip(str(folder))
        check_checksums(folder)
        if more := [file.name for file in folder.glob("*.safetensors") if file.name != WEIGHTS_FILE]:
            raise UsageError(f"{folder} holds more than a CLIP ({more[0]}), which would be lost: it cannot be used.")
        if _config(folder) != _config(folders[0]):
            raise UsageError(f"{folder} is of another configuration than {folders[0]}: see {CONFIG_FILE} in both.")
        report = folder.parent / REPORT_FILE
        if not report.exists():
            _log.warning("%s has no %s beside it: it is not known what it was tuned from", folder, REPORT_FILE)
        elif start := read_json(report, "training").get("weights_sha256"):
            starts[start] = folder
    if len(starts) > 1:
        one, other, *_ = starts.values()
        raise UsageError(f"{one} and {other} were not trained from the same weights: their mean is no model.")
    return load_clip(str(folders[0]))


def _config(folder: Path) -> object:
    return read_json(folder / CONFIG_FILE, "checkpoint")


def _states(folders: Sequence[Path]) -> Iterator[State]:
    """Yields the weights of each checkpoint."""
    for folder in folders:
        try:
            yield load_tensors(folder / WEIGHTS_FILE)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{folder / WEIGHTS_FILE} cannot be read: {error}.") from None
