"""Dialogues that are true by construction: `python -m dialog_gen.shapes.oracle SHAPES --out DATASET`.

In place of a generator, the scene graphs ask and answer three questions about each image of a downloaded world. Such
dialogues are the upper bound of what a generator can give, and they stand in for one in `shapes-2`, which
has no generator of its own. With `--truth 0.7`, 30 % of the answers are replaced by others of the same kind, to measure
what false dialogues cost; with `--pairs 8`, each image has eight questions, to measure what longer dialogues give.
"""

import argparse
import hashlib
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dialog_gen.core.console import say
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.plural import count_of
from dialog_gen.core.version import __version__
from dialog_gen.dataset.record import PAIR_COLUMNS, SCHEMA_VERSION
from dialog_gen.dataset.shard_writer import ShardWriter
from dialog_gen.dataset.writer import open_writer
from dialog_gen.shapes.questions import Question
from dialog_gen.shapes.truth import load_scenes, scene_of
from dialog_gen.shapes.worlds import AnyScene, world_of
from dialog_gen.sources.base import SourceImage, open_source

PAIRS = 3
_MODEL, _ENGINE = "oracle", "scene graphs"


def write_dialogues(shapes: Path, out: str, *, seed: int = 0, truth: float = 1.0, pairs: int = PAIRS) -> int:
    """Writes a dataset with a row for each image of a downloaded world; gives the number of rows.

    `truth`: probability of each answer to stay true, from 0 to 1. `pairs`: questions about each image. Finished shards
    are kept; the same arguments give the same dialogues. Raises UsageError for an image without a scene graph, or whose
    scene offers fewer kinds of questions than `pairs`, for a truth or a number of pairs out of bounds, or if `out` has
    a dataset of another kind or of other images; and DialogGenError if the folder cannot be written.
    """
    if not 0 <= truth <= 1:
        raise UsageError(f"--truth {truth:g}: give the share of true answers, from 0 to 1.")
    if pairs < 1:
        raise UsageError(f"--pairs {pairs}: give the number of questions about each image, at least 1.")
    scenes, rows = load_scenes(shapes), 0
    config: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "images": str((shapes / "images").resolve()),
        "model": _MODEL,
        "engine": _ENGINE,
        "protocol": _protocol(pairs),
        "seed": seed,
    }
    if truth < 1:
        config["truth"] = truth
    with open_writer(out, config) as store:
        for shard in open_source(str(shapes / "images"), shard_size=1024):
            rows += shard.count
            if not store.claim(shard):
                continue
            writer = ShardWriter(store.staging(), shard)
            for index, image in enumerate(shard.read()):
                writer.add(index, _row(image, scenes, seed, truth, pairs), output_tokens=0)
            store.commit(writer.finish())
    return rows


def _protocol(pairs: int) -> str:
    return f"oracle-{pairs}qa"


def _row(image: SourceImage, scenes: Mapping[str, AnyScene], seed: int, truth: float, pairs: int) -> dict[str, Any]:
    scene = scene_of(scenes, image.image_id)
    world = world_of(scene)
    try:
        questions = world.ask(scene, random.Random(f"oracle/{seed}/{image.image_id}"), pairs)
    except ValueError as error:
        raise UsageError(f"--pairs {pairs} is too many for image {image.image_id}: {error}.") from None
    # A stream of its own, so that a lower truth asks the same questions and replaces the same answers and more.
    rng = random.Random(f"oracle truth/{seed}/{image.image_id}")
    texts = [
        {"user": asked.question, "assistant": _answer(asked, world.answer_groups, true=rng.random() < truth, rng=rng)}
        for asked in questions
    ]
    return {
        "image_id": image.image_id,
        "image_sha256": hashlib.sha256(image.data).hexdigest(),
        "images": [{"bytes": image.data, "path": image.path}],
        "url": image.url,
        "source_sha256": image.source_sha256,
        "caption": image.caption,
        "texts": texts,
        **dict.fromkeys(PAIR_COLUMNS),
        "model": _MODEL,
        "model_revision": None,
        "engine": _ENGINE,
        "engine_version": __version__,
        "protocol": _protocol(pairs),
        "prompt_sha256": sha256_json({"protocol": _protocol(pairs)}),
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 0, "seed": seed},
        "finish_reasons": ["stop"],
        "attempts": 1,
        "created_at": datetime.now(UTC),
    }


def _answer(asked: Question, groups: Sequence[Sequence[str]], *, true: bool, rng: random.Random) -> str:
    """The true answer, or a false one of the same group."""
    others = [answer for group in groups if asked.answer in group for answer in group if answer != asked.answer]
    wrong = rng.choice(others)
    return asked.answer if true else wrong


def main() -> None:
    """Writes the dataset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shapes", type=Path, help="the folder that `dialog-gen download` wrote for a world")
    parser.add_argument("--out", required=True, help="the dataset to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", type=float, default=1.0, help="share of answers that are true, from 0 to 1")
    parser.add_argument(
        "--pairs",
        type=int,
        default=PAIRS,
        help="questions about each image, each of another kind; all images offer up to 5 in shapes, and 8 in shapes-2",
    )
    arguments = parser.parse_args()
    try:
        rows = write_dialogues(
            arguments.shapes, arguments.out, seed=arguments.seed, truth=arguments.truth, pairs=arguments.pairs
        )
    except DialogGenError as error:
        parser.error(str(error))
    say(f"{arguments.out}: {count_of(rows, 'dialogue')} of {count_of(arguments.pairs, 'pair')}")


if __name__ == "__main__":
    main()
