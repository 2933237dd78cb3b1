"""How much of what a generator said about the world is true: `python -m dialog_gen.world.truth DATASET SHAPES`.

The one place where dialogues meet the scene graphs; the pipeline never reads them.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from dialog_gen.store import DatasetFolder
from dialog_gen.world.language import judge, question_kind
from dialog_gen.world.scenes import Scene


@dataclass(slots=True)
class Truth:
    """Question-answer pairs by kind of question: all of them, and the true ones."""

    images: int = 0
    asked: Counter[str] = field(default_factory=Counter[str])
    true: Counter[str] = field(default_factory=Counter[str])

    @property
    def rate(self) -> float:
        """Fraction of the pairs that are true; 0 where there are none."""
        return self.true.total() / self.asked.total() if self.asked else 0.0


def load_scenes(shapes: Path) -> dict[str, Scene]:
    """image_id -> scene graph, of a folder that `dialog-gen download shapes` wrote."""
    with (shapes / "truth.jsonl").open(encoding="utf-8") as file:
        records = map(json.loads, file)
        return {record["image_id"]: Scene.from_json(record["scene"]) for record in records}


def measure_truth(dataset: DatasetFolder, scenes: dict[str, Scene]) -> Truth:
    """Judges every accepted pair of a dataset. Raises KeyError for an image that has no scene graph."""
    truth = Truth()
    for row in dataset.rows(["image_id", "texts"]):
        truth.images += 1
        for pair in row["texts"]:
            kind = question_kind(pair["user"])
            truth.asked[kind] += 1
            truth.true[kind] += judge(scenes[row["image_id"]], pair["user"], pair["assistant"])
    return truth


def main() -> None:
    """Prints the truth rate, in all and by kind of question, and the first dialogues where asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", help="what `dialog-gen run` wrote")
    parser.add_argument("shapes", type=Path, help="what `dialog-gen download shapes` wrote")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N dialogues")
    arguments = parser.parse_args()
    dataset, scenes = DatasetFolder.existing(arguments.dataset), load_scenes(arguments.shapes)
    if arguments.show:
        _show(dataset, scenes, arguments.show)
    truth = measure_truth(dataset, scenes)
    for kind, asked in truth.asked.most_common():
        print(f"  {kind:<12} {truth.true[kind] / asked:6.1%} of {asked}")
    print(f"truth rate {truth.rate:.1%}: {truth.true.total()} of {truth.asked.total()} pairs on {truth.images} images")


def _show(dataset: DatasetFolder, scenes: dict[str, Scene], count: int) -> None:
    for row in islice(dataset.rows(["image_id", "caption", "texts"]), count):
        print(f"{row['image_id']}   caption: {row['caption']}")
        for pair in row["texts"]:
            verdict = "true" if judge(scenes[row["image_id"]], pair["user"], pair["assistant"]) else "FALSE"
            print(f"  {pair['user']} {pair['assistant']}   [{verdict}]")


if __name__ == "__main__":
    main()
