"""Which blend a sweep chooses, and the checkpoint that it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import captions, vqa_files
from helpers.results import entry

from dialog_eval.choosing import choose_blend
from dialog_eval.results import Entry, Results
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError

ITEMS = 400


def hits(share: float) -> list[float]:
    return (np.arange(ITEMS) < ITEMS * share).astype(float).tolist()


def point(beta: float, recall: float, accuracy: float | None, *, text_recall: float | None = None) -> list[Entry]:
    label = {1.0: "base", 0.0: "tuned"}.get(beta, f"tuned, weight blend {beta:g}")
    how: dict[str, Any] = {} if beta in (0, 1) else {"blend": "weight", "beta": beta}
    found = entry(label, hits(recall), metric="image R@1", task="retrieval", **how)
    text = entry(label, hits(recall if text_recall is None else text_recall), metric="text R@1", **how)
    found.metrics += text.metrics
    return [found] if accuracy is None else [found, entry(label, hits(accuracy), **how)]


def results(*points: list[Entry]) -> Results:
    entries = [entry for point in points for entry in point]
    entries.append(entry("tuned, embedding blend 0.5", hits(1), blend="embedding", beta=0.5))
    entries.append(entry("tuned, blind", hits(1)))
    return Results(baseline="base", entries=entries, settings={"models": {"base": {}, "tuned": {}}})


def test_the_best_answers_of_those_that_retrieve_as_well() -> None:
    sweep = results(
        point(1, 0.5, 0.2), point(0, 0.4, 0.9), point(0.2, 0.5, 0.7), point(0.4, 0.5, 0.8), point(0.8, 0.6, 0.3)
    )
    chosen = choose_blend(sweep, 0.005)
    assert (chosen.beta, chosen.accuracy) == (0.4, 0.8)
    assert chosen.lowest == 0
    assert choose_blend(sweep, 0.2).beta == 0


def test_the_accuracy_of_other_tasks_does_not_count() -> None:
    sweep = results(point(1, 0.5, 0.2), point(0.2, 0.5, 0.7), point(0.4, 0.5, 0.6))
    sweep.entries.append(entry("tuned, weight blend 0.4", hits(0.9), task="choice", blend="weight", beta=0.4))
    chosen = choose_blend(sweep, 0.005)
    assert (chosen.beta, chosen.accuracy) == (0.2, 0.7)


def test_both_directions_and_the_interval_count() -> None:
    """One direction loses a point of 400 items, which is 1 +- 1: its interval begins below -0.5."""
    sweep = results(point(1, 0.5, 0.2), point(0.3, 0.5, 0.9, text_recall=0.49), point(0.6, 0.5, 0.5))
    assert choose_blend(sweep, 0.005).beta == 0.6
    assert choose_blend(sweep, 0.03).beta == 0.3


def test_without_questions_the_least_share_of_the_baseline() -> None:
    assert choose_blend(results(point(1, 0.5, None), point(0.3, 0.5, None), point(0.6, 0.7, None)), 0.0).beta == 0.3


def test_refuses() -> None:
    with pytest.raises(UsageError, match=r"beta 0\.6\) may lose 1[0-9]\.\d points of R@1, and 0\.5 are allowed"):
        choose_blend(results(point(1, 0.5, 0.2), point(0.3, 0.3, 0.9), point(0.6, 0.4, 0.5)), 0.005)
    with pytest.raises(UsageError, match="--captions"):
        choose_blend(results([entry("base", hits(0.5))], [entry("tuned", hits(0.5))]), 0.0)


def test_sweep_writes_the_checkpoint(dialog_eval: Cli, clips: tuple[Path, Path], split: Path, tmp_path: Path) -> None:
    """With a limit that nothing exceeds; the weights against those of both files."""
    base, tuned = clips
    common = ["--images", split / "images", "--checkpoint", tuned, "--baseline", base, "--out", tmp_path / "r.json"]
    questions, answers = vqa_files(split)
    files = ["--questions", questions, "--annotations", answers, "--image-list", captions(split)]
    common += ["--device", "cpu", "--captions", captions(split), *files]
    choose = [*common, "--betas", "0.3,0.7", "--blend", "weight", "--choose", tmp_path / "c"]
    assert dialog_eval("sweep", *choose, "--most-loss", "100").code == 0
    told = json.loads((tmp_path / "c" / "choice.json").read_text())
    assert told["beta"] in (0, 0.3, 0.7)
    states = [load_clip(str(folder)).model.state_dict() for folder in (base, tuned, tmp_path / "c")]
    for name, value in states[2].items():
        expected = states[1][name]
        if value.is_floating_point() and not name.startswith("visual."):
            expected = told["beta"] * states[0][name] + (1 - told["beta"]) * expected
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    assert "exists already" in dialog_eval("sweep", *choose).mistake
