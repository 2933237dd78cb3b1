import json
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import gates_of, make_row, shard_of, write_shard

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.writer import open_writer
from dialog_gen.shapes import truth
from dialog_gen.shapes.scenes import Scene, SceneObject
from dialog_gen.shapes.truth import GateTruth, Truth, load_scenes, measure_truth


def thing(color: str, shape: str, position: str, size: str = "small") -> SceneObject:
    return SceneObject(color=color, shape=shape, position=position, size=size, offset_px=(0, 0))


SCENES = {
    "image 0": Scene(objects=(thing("red", "circle", "top left"),), background="pink"),
    "image 1": Scene(
        objects=(thing("blue", "star", "top right"), thing("blue", "star", "bottom left", "large")), background="white"
    ),
}


def pairs(*texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"user": user, "assistant": assistant} for user, assistant in texts]


def dataset(out: Path, *shards: list[dict[str, Any]]) -> DatasetFolder:
    with open_writer(str(out), {}) as store:
        for number, rows in enumerate(shards):
            write_shard(store, shard_of(f"s{number}", len(rows)), rows)
    return DatasetFolder(str(out))


def measure(out: Path, image: int, *texts: tuple[str, str]) -> Truth:
    return measure_truth(dataset(out, [make_row(image, texts=pairs(*texts))]), SCENES)


@pytest.mark.parametrize(
    ("image", "user", "assistant", "kind", "true"),
    [
        (0, "What color is the circle?", "red", "color", True),
        (0, "What color is the circle?", "Red.", "color", True),
        (0, "What color is the circle?", "blue", "color", False),
        (0, "How many objects are there?", "1", "count", True),
        (0, "How many objects are there?", "2", "count", False),
        (0, "Is there a red star?", "no", "exists", True),
        (0, "Where is the red circle?", "in the top left", "where", True),
        (0, "What do you see in this image?", "a small red circle", "describe", True),
        (0, "What do you see in this image?", "a small blue circle", "describe", False),
        (0, "What makes this image unique?", "the red circle is small and in the top left", "unique", True),
        # Presupposes what is not there, or not once: no answer is true.
        (0, "What color is the star?", "red", "color", False),
        (1, "What color is the star?", "blue", "color", False),
        (1, "Where is the blue star?", "top right", "where", False),
        (1, "How many blue objects are there?", "2", "count_color", True),
        # Words that the world does not know.
        (0, "What color is the dog?", "red", "other", False),
        (0, "What color is the circle?", "crimson", "color", False),
        (0, "What color is the circle?", "the circle is red", "color", False),
        (0, "", "", "other", False),
    ],
)
def test_a_pair_is_judged(tmp_path: Path, image: int, user: str, assistant: str, kind: str, true: bool) -> None:
    measured = measure(tmp_path, image, (user, assistant))
    assert (measured.images, measured.asked, measured.true.total()) == (1, {kind: 1}, int(true))
    assert measured.rate == float(true)


def test_the_rate_is_of_all_pairs_of_all_accepted_rows(tmp_path: Path) -> None:
    circle, count, dog = "What color is the circle?", "How many objects are there?", "Is there a dog?"
    folder = dataset(
        tmp_path,
        [make_row(0, texts=pairs((circle, "red"), (circle, "blue"), (count, "1"))), make_row(5, "rejected")],
        [make_row(6, "unreadable")],
        [make_row(1, texts=pairs((count, "2"), (circle, "blue"), (dog, "no")))],
    )
    measured = measure_truth(folder, SCENES)
    assert measured.images == 2
    assert measured.asked == {"color": 3, "count": 2, "other": 1}
    assert {kind: measured.true[kind] for kind in measured.asked} == {"color": 1, "count": 2, "other": 0}
    assert measured.rate == 3 / 6


COLOR, COUNT = "What color is the circle?", "How many objects are there?"
# Of six pairs four are true. "length" marks one of the false, "leak" a true one and both false; one row is not gated.
GATED = [
    make_row(
        0,
        texts=pairs((COLOR, "red"), (COLOR, "blue"), (COUNT, "1")),
        gates=gates_of([["leak"], ["length", "leak"], []], leak=[0.0, None, 0.0], length=[1.0, 1.0, 1.0]),
    ),
    make_row(
        1,
        texts=pairs((COUNT, "2"), (COUNT, "3"), (COUNT, "2")),
        gates=gates_of([[], ["leak"], []], leak=[0.0, None, 0.0], length=[1.0, 1.0, 1.0]),
    ),
]


def test_what_gates_find(tmp_path: Path) -> None:
    measured = measure_truth(dataset(tmp_path, GATED, [make_row(0, texts=pairs((COLOR, "blue")))]), SCENES)
    assert (measured.true.total(), measured.asked.total()) == (4, 7)
    assert measured.gates == {
        "length": GateTruth(pairs=6, false=2, marked=1, marked_false=1),
        "leak": GateTruth(pairs=6, false=2, marked=3, marked_false=2),
        "all gates": GateTruth(pairs=6, false=2, marked=3, marked_false=2),
    }
    length, leak = measured.gates["length"], measured.gates["leak"]
    assert (length.precision, length.recall, length.kept, length.kept_rate) == (1, 1 / 2, 5 / 6, 4 / 5)
    assert (leak.precision, leak.recall, leak.kept, leak.kept_rate) == (2 / 3, 1, 3 / 6, 1)


def test_the_worked_example_of_gate_truth() -> None:
    gate = GateTruth()
    for true, marked in [(False, True)] * 2 + [(False, False)] * 2 + [(True, True)] + [(True, False)] * 5:
        gate.add(true=true, marked=marked)
    assert (gate.precision, gate.recall, gate.kept, gate.kept_rate) == (2 / 3, 2 / 4, 7 / 10, 5 / 7)
    assert (GateTruth().precision, GateTruth().recall, GateTruth().kept, GateTruth().kept_rate) == (0, 0, 0, 0)


def test_no_pair_is_no_truth(tmp_path: Path) -> None:
    assert measure_truth(dataset(tmp_path, [make_row(5, "rejected")]), SCENES).rate == 0


def test_an_image_of_another_world_is_no_truth_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scene for image image 2: give the world of these images"):
        measure(tmp_path, 2, ("How many objects are there?", "1"))


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    count = "How many objects are there?"
    dataset(
        tmp_path / "out",
        [make_row(5, "rejected")],
        [make_row(0, texts=pairs((count, "1"), (count, "3"))), make_row(1, texts=pairs((count, "2")))],
    )
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    records = [{"image_id": image_id, "scene": scene.to_json()} for image_id, scene in SCENES.items()]
    (shapes / "truth.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert load_scenes(shapes) == SCENES
    monkeypatch.setattr("sys.argv", ["truth", str(tmp_path / "out"), str(shapes), "--show", "1"])
    truth.main()
    assert capsys.readouterr().out.splitlines() == [
        "image 0   caption: caption 0",
        f"  {count} 1   [true]",
        f"  {count} 3   [FALSE]",
        "  count         66.7% of 3",
        "truth rate 66.7%: 2 of 3 pairs on 2 images",
    ]
    dataset(tmp_path / "gated", GATED)
    monkeypatch.setattr("sys.argv", ["truth", str(tmp_path / "gated"), str(shapes)])
    truth.main()
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-5:]] == [
        ["truth", "rate", "66.7%:", "4", "of", "6", "pairs", "on", "2", "images"],
        ["marked", "by", "pairs", "precision", "recall", "kept", "truth", "rate", "of", "kept"],
        ["leak", "3", "66.7%", "100.0%", "50.0%", "100.0%"],
        ["length", "1", "100.0%", "50.0%", "83.3%", "80.0%"],
        ["all", "gates", "3", "66.7%", "100.0%", "50.0%", "100.0%"],
    ]
