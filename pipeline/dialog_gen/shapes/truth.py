"""Measures how many pairs about the embedded world are true: `python -m dialog_gen.shapes.truth DATASET SHAPES`.

This is the only module that compares dialogues with scene graphs; the pipeline never reads scene graphs.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from dialog_gen.core.console import say
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.files import open_regular
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.plural import count_of
from dialog_gen.core.visible import visible
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import marking_gates
from dialog_gen.shapes.worlds import FIRST, WORLDS, AnyScene, world_of
from dialog_gen.sources.base import open_source

_ALL = "all gates"


@dataclass(slots=True)
class GateTruth:
    """How well the marks of a gate find false pairs.

    Example: of 10 pairs, 4 are false; a gate marks 3 pairs, of which 2 are false. Precision is 2/3, recall is 2/4, 7/10
    of the pairs are kept, and 5/7 of the kept pairs are true (6/10 of all pairs are). A fraction whose denominator is 0
    is 0.
    """

    pairs: int = 0
    false: int = 0
    marked: int = 0
    marked_false: int = 0

    def add(self, *, true: bool, marked: bool) -> None:
        """Counts a pair, which is true or not and marked or not."""
        self.pairs += 1
        self.false += not true
        self.marked += marked
        self.marked_false += marked and not true

    @property
    def precision(self) -> float:
        """Fraction of the marked pairs that are false."""
        return _fraction(self.marked_false, self.marked)

    @property
    def recall(self) -> float:
        """Fraction of the false pairs that are marked."""
        return _fraction(self.marked_false, self.false)

    @property
    def kept(self) -> float:
        """Fraction of the pairs that are not marked."""
        return _fraction(self.pairs - self.marked, self.pairs)

    @property
    def kept_rate(self) -> float:
        """Fraction of true pairs among those that are not marked."""
        kept = self.pairs - self.marked
        return _fraction(kept - (self.false - self.marked_false), kept)


@dataclass(slots=True)
class Truth:
    """Counts of question-answer pairs by kind of question, and of the true ones among them."""

    images: int = 0
    asked: Counter[str] = field(default_factory=Counter[str])
    true: Counter[str] = field(default_factory=Counter[str])
    gates: dict[str, GateTruth] = field(default_factory=dict[str, GateTruth])
    """Gate -> the effect of its marks; "all gates" -> that of the marks of any gate. Only rows with gates count."""

    @property
    def rate(self) -> float:
        """Fraction of the pairs that are true; 0 if there are no pairs."""
        return _fraction(self.true.total(), self.asked.total())


def load_scenes(shapes: Path) -> dict[str, AnyScene]:
    """`image_id` -> scene graph, from a folder that `dialog-gen download` wrote for a world.

    Records of the first world name none. Raises UsageError for a folder without such a file, or with a damaged one.
    """
    path = shapes / "truth.jsonl"
    try:
        with open_regular(path) as file:
            records = map(parse_json, file)
            return {r["image_id"]: WORLDS[r.get("world", FIRST.name)].scene_from_json(r["scene"]) for r in records}
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): give the folder that `dialog-gen download` wrote for a world."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is damaged: download the world again.") from None


def scene_of(scenes: Mapping[str, AnyScene], image_id: str) -> AnyScene:
    """The scene graph of an image. Raises UsageError if there is none."""
    if image_id not in scenes:
        raise UsageError(f"truth.jsonl has no scene for image {image_id}: give the world of these images, all of it.")
    return scenes[image_id]


def check_images(dataset: DatasetFolder, shapes: Path) -> None:
    """Raises UsageError if dialogues are about other images than the world in `shapes` has: ids repeat in each split.

    A world without its images is not checked.
    """
    if not (shapes / "images").is_dir():
        return
    hashes = {
        image.image_id: hashlib.sha256(image.data).hexdigest()
        for shard in open_source(str(shapes / "images"), shard_size=1024)
        for image in shard.read()
    }
    for row in dataset.rows(["image_id", "image_sha256"]):
        if hashes.get(row["image_id"], row["image_sha256"]) != row["image_sha256"]:
            raise UsageError(
                f"the dialogues are about another image {row['image_id']} than that of {shapes}: give the world and "
                "the split of the dialogues."
            )


def measure_truth(dataset: DatasetFolder, scenes: Mapping[str, AnyScene]) -> Truth:
    """Judges every accepted pair of a dataset. Raises UsageError for an image without a scene graph."""
    truth = Truth()
    for row in dataset.rows(["image_id", "texts", "gates"]):
        scene = scene_of(scenes, row["image_id"])
        truth.images += 1
        for place, pair in enumerate(row["texts"]):
            kind = world_of(scene).question_kind(pair["user"])
            true = _is_true(scene, pair["user"], pair["assistant"])
            truth.asked[kind] += 1
            truth.true[kind] += true
            if row["gates"] is not None:
                scores = row["gates"][place]
                for score in scores:
                    truth.gates.setdefault(score["gate"], GateTruth()).add(true=true, marked=score["marked"])
                truth.gates.setdefault(_ALL, GateTruth()).add(true=true, marked=bool(marking_gates(scores)))
    return truth


def main() -> None:
    """Prints the truth rate by kind of question and in total, the effect of gates and, with --show, some dialogues."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", help="the folder that `dialog-gen run` wrote")
    parser.add_argument("shapes", type=Path, help="the folder that `dialog-gen download shapes` wrote")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N dialogues")
    arguments = parser.parse_args()
    try:
        dataset, scenes = DatasetFolder.existing(arguments.dataset), load_scenes(arguments.shapes)
        check_images(dataset, arguments.shapes)
        truth = measure_truth(dataset, scenes)
        if arguments.show:
            _show(dataset, scenes, arguments.show)
    except DialogGenError as error:
        parser.error(str(error))
    for kind, asked in truth.asked.most_common():
        say(f"  {kind:<12} {truth.true[kind] / asked:6.1%} of {asked}")
    say(
        f"truth rate {truth.rate:.1%}: {truth.true.total()} of {count_of(truth.asked.total(), 'pair')} "
        f"on {count_of(truth.images, 'image')}"
    )
    if truth.gates:
        say(f"{'marked by':<17} {'pairs':>7} {'precision':>10} {'recall':>7} {'kept':>7} {'truth rate of kept':>19}")
    for name, gate in sorted(truth.gates.items(), key=lambda item: item[0] == _ALL):
        precision = f"{gate.precision:.1%}" if gate.marked else "-"
        say(
            f"{name:<17} {gate.marked:>7} {precision:>10} {gate.recall:>7.1%} {gate.kept:>7.1%} {gate.kept_rate:>19.1%}"
        )


def _is_true(scene: AnyScene, question: str, answer: str) -> bool:
    return world_of(scene).judge(scene, question, answer)


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _show(dataset: DatasetFolder, scenes: Mapping[str, AnyScene], count: int) -> None:
    for row in islice(dataset.rows(["image_id", "caption", "texts"]), count):
        say(visible(f"{row['image_id']}   caption: {row['caption']}"))
        for pair in row["texts"]:
            verdict = "true" if _is_true(scenes[row["image_id"]], pair["user"], pair["assistant"]) else "FALSE"
            say(visible(f"  {pair['user']} {pair['assistant']}   [{verdict}]"))


if __name__ == "__main__":
    main()
