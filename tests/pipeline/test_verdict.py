"""What a report says first about a dataset."""

from pathlib import Path
from typing import Any

import pytest
from helpers.pages import write_dataset
from helpers.rows import gates_of, make_row

import dialog_gen
from dialog_gen.inspect.verdict import share, verdict


def sound(number: int, **columns: Any) -> dict[str, Any]:
    """One of many rows about which there is nothing to say."""
    texts = [{"user": f"What is {number}?", "assistant": f"{number}"}]
    return make_row(number, texts=texts, gates=gates_of([[]], leak=[0.5]), image_sha256=f"{number:064}", **columns)


def marked(number: int) -> dict[str, Any]:
    return sound(number) | {"gates": gates_of([["self_consistency"]], leak=[0.5], self_consistency=[0.0])}


def found(out: Path, rows: list[dict[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
    said = verdict(dialog_gen.stats(write_dataset(out / "d", rows)))
    return said.line, [(finding.about, finding.text) for finding in said.findings]


def test_a_sound_dataset(tmp_path: Path) -> None:
    """That nothing stands out says nothing of the truth, unless the model was asked again."""
    rows = [sound(i) for i in range(200)]
    line = "All 200 images have a dialogue, the gates keep all 200 pairs: nothing stands out"
    unchecked = ", but no gate asked the model again whether its answers are true (self_consistency)"
    assert found(tmp_path, rows) == (f"{line}{unchecked}.", [])
    checked = {"gates": gates_of([[]], leak=[0.5], self_consistency=[1.0])}
    assert found(tmp_path / "checked", [row | checked for row in rows]) == (f"{line}.", [])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([make_row(i, "rejected") for i in range(900, 904)], []),
        (
            [make_row(i, "rejected", reason=["a_b", "c"][i % 3 == 0]) for i in range(900, 910)],
            [("losses", "4.8 % of the images were rejected, most often for “a b”.")],
        ),
        (
            [make_row(i, "unreadable", reason="x") for i in range(900, 910)],
            [("losses", "4.8 % of the images were unreadable, most often for “x”.")],
        ),
        ([marked(i) for i in range(300, 310)], []),
        (
            [marked(i) for i in range(300, 350)],
            [("gates", "Gates mark 20.0 % of the pairs; “self consistency” marks the most, 20.0 %.")],
        ),
        (
            [sound(i) | {"gates": None} for i in range(300, 400)],
            [("gates", "Gates scored only 66.7 % of the pairs.")],
        ),
        (
            [sound(i) | {"image_sha256": "0" * 64} for i in range(300, 311)],
            [("losses", "11 images repeat an earlier one.")],
        ),
        (
            [sound(i) | {"texts": [{"user": f"Is it {i}?", "assistant": "Yes."}]} for i in range(300, 400)],
            [("texts", "33.3 % of the answers are “yes”.")],
        ),
    ],
)
def test_findings(tmp_path: Path, rows: list[dict[str, Any]], said: list[tuple[str, str]]) -> None:
    line, findings = found(tmp_path, [sound(i) for i in range(200)] + rows)
    assert findings == said
    assert ("one thing to look at" in line, "nothing stands out" in line) == (bool(said), not said)


def test_questions_that_repeat(tmp_path: Path) -> None:
    rows = [
        sound(i) | {"texts": [{"user": f"What is {i % 3}?", "assistant": f"{i}"}], "gates": None} for i in range(200)
    ]
    line, findings = found(tmp_path, rows)
    assert line == "All 200 images have a dialogue: 2 things to look at."
    assert [about for about, _ in findings] == ["gates", "texts"]
    assert findings[1][1] == "The questions repeat: there are 3 different ones in 200 pairs."


def test_nothing_to_train_on(tmp_path: Path) -> None:
    line, findings = found(tmp_path, [make_row(0, "rejected")])
    assert line == "Nothing to train on: the only image has no dialogue."
    assert findings == [("losses", "100 % of the images were rejected, most often for “too few pairs”.")]


def test_reasons_that_are_equally_frequent_are_all_named(tmp_path: Path) -> None:
    rows = [make_row(i, "rejected", reason=reason) for i, reason in enumerate(("b", "a_c", "b", "a_c", "z"))]
    _, findings = found(tmp_path, rows)
    assert findings == [("losses", "100 % of the images were rejected, most often for “a c” and “b”.")]


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 0, "0 %"),
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (1, 10**6, "<0.1 %"),
        (10**6 - 1, 10**6, ">99.9 %"),
        (1, 3, "33.3 %"),
        (1, 2000, "0.1 %"),
    ],
)
def test_shares(part: int, whole: int, said: str) -> None:
    """0 % and 100 % are exactly that."""
    assert share(part, whole) == said
