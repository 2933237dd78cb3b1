"""Prints the table of architectures and engines: prompts like the processors', and the outcome of a run."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.architectures import KINDS, random_model
from helpers.asked import IMAGES, asked_by_transformers, asked_by_vllm, pairs_of, run_arguments, true_ids
from helpers.rows import rows_of

from dialog_gen.models.registry import resolve_model
from dialog_gen.models.tokens import named_in

pytestmark = pytest.mark.bench
COLUMNS = ("architecture", "engine", "ids equal", "image tokens", "turns", "accepted")


def test_architectures(tmp_path: Path) -> None:
    rows = [COLUMNS]
    for name in KINDS:
        if name == "smolvlm2" and not find_spec("num2words"):
            continue
        folder = random_model(name, tmp_path / name)
        engines: dict[str, Callable[[], list[list[int]]]] = {
            "transformers": lambda name=name, folder=folder: asked_by_transformers(
                folder, pairs_of(name), tmp_path / "log"
            )[0],
            "vllm": lambda name=name, folder=folder: asked_by_vllm(folder, pairs_of(name)),
        }
        for engine, ask in engines.items():
            rows.append(row_of(name, engine, folder, ask, tmp_path / f"{name}-{engine}"))
            print(*rows[-1], flush=True)
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    assert [row for row in rows[1:] if row[2] != "yes" or row[5] != f"{len(IMAGES)} of {len(IMAGES)}"] == []


def row_of(
    name: str, engine: str, folder: Path, ask: Callable[[], list[list[int]]], place: Path
) -> tuple[str, str, str, str, str, str]:
    expected, asked = [true_ids(folder, *pair) for pair in pairs_of(name)], ask()
    config = resolve_model(str(folder)).config
    image = next(number for key, number in named_in(config).items() if key.startswith("image_token"))
    counts = dict.fromkeys(f"{ids.count(image)}" for ids in asked)
    command = [sys.executable, "-m", "dialog_gen", *run_arguments(folder, name, engine, place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    rows = rows_of(place / f"out-{engine}") if done.returncode == 0 else []
    turns = dict.fromkeys(f"{len(row['texts'])}" for row in rows)
    result = f"{len(rows)} of {len(IMAGES)}" if rows else done.stderr.strip().rpartition("\n")[2]
    return name, engine, "yes" if asked == expected else "no", " or ".join(counts), " or ".join(turns), result
