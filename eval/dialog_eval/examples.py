"""Items on which a model and the baseline differ, for a reader to look at: drawn at random, with small images."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from dialog_eval.options import MOST_EXAMPLES
from dialog_eval.results import Entry, Example, Examples, Shown

if TYPE_CHECKING:
    from dialog_eval.data.image_index import ImageIndex

# Of thumbnails: the longest side in pixels, and the WebP quality (0 to 100).
_SIDE, _QUALITY = 192, 70


def draw_examples(
    measure: str,
    baseline: str,
    values: npt.ArrayLike,
    baseline_values: npt.ArrayLike,
    build: Callable[[Sequence[int]], Sequence[Example]],
) -> Examples:
    """Draws wins and losses of a model; `values` and `baseline_values` are (items,), higher is better.

    `build` gives the examples of some items, by their places. The draw depends only on the values, and its first
    examples are a random choice, too.
    """
    differences = np.asarray(values, np.float64) - np.asarray(baseline_values, np.float64)
    wins, losses = np.flatnonzero(differences > 0), np.flatnonzero(differences < 0)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(places)[:MOST_EXAMPLES].tolist() for places in (wins, losses)]
    return Examples(
        baseline=baseline,
        measure=measure,
        win_count=len(wins),
        loss_count=len(losses),
        wins=list(build(drawn[0])) if drawn[0] else [],
        losses=list(build(drawn[1])) if drawn[1] else [],
    )


def with_thumbnails(entries: Iterable[Entry], index: "ImageIndex", most: int) -> list[Entry]:
    """The entries with the first `most` wins and losses of their examples, and thumbnails of the images in these.

    0 leaves out the examples. The images are read again, once; of a part of an image the part is shown.
    """
    from dialog_gen.sources.images import UnreadableImage, decode_image

    kept: list[Entry] = []
    for entry in entries:
        examples = entry.examples
        if examples is not None:
            examples = examples.model_copy(update={"wins": examples.wins[:most], "losses": examples.losses[:most]})
        kept.append(entry.model_copy(update={"examples": examples if most else None}))
    parts = [part for entry in kept if entry.examples for part in _parts(entry.examples)]
    wanted = {part.image_id for part in parts if part.image_id is not None}
    thumbnails: dict[str, str] = {}
    for image in index.read(wanted) if wanted else ():
        try:
            decoded = decode_image(image.data)
        except UnreadableImage:
            continue
        box = index.boxes.get(image.image_id)
        thumbnails[image.image_id] = _encoded(decoded.crop(box) if box else decoded)
    for part in parts:
        if part.image_id is not None:
            part.thumbnail = thumbnails.get(part.image_id)
    return kept


def _encoded(image: Image.Image) -> str:
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _parts(examples: Examples) -> list[Shown]:
    return [part for one in (*examples.wins, *examples.losses) for part in one.parts()]
