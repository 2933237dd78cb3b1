"""The time that self-consistency adds to `dialog-gen run`, against a pass of its own afterwards: `make bench`.

Figures are printed; see docs/performance.md.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import pytest
from helpers.inputs import write_tar
from helpers.rows import rows_of

from dialog_gen.gates.apply import gate
from dialog_gen.generation.run import generate
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene

pytestmark = [pytest.mark.bench, pytest.mark.slow]

IMAGES, ROUNDS = 512, 5
GATE = "self_consistency"


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_self_consistency_in_a_run_against_a_pass_of_its_own(tmp_path: Path) -> None:
    """(run with the gate - run) / (pass of the gate); every engine's start is in its figure, as for a user."""
    images = tmp_path / "images"
    write_tar(images / "0.tar", {f"{i:06d}.png": render_png(draw_scene("test", 5, i)) for i in range(IMAGES)})

    def run(out: Path, gates: str | None = None) -> None:
        generate(model="shapes-llava", images=images, out=out, engine="vllm", dtype="float32", gates=gates)

    # First imports, before the clock runs.
    run(tmp_path / "warm", GATE)
    ratios: list[float] = []
    for number in range(ROUNDS):
        plain, gated = tmp_path / f"plain-{number}", tmp_path / f"gated-{number}"
        ways: dict[str, Callable[[], object]] = {
            "run": partial(run, plain),
            "pass": partial(gate, plain, GATE),
            "run with gate": partial(run, gated, GATE),
        }
        # In turn first: whatever else the machine does should not favour one of them.
        order = list(ways) if number % 2 else ["run with gate", "run", "pass"]
        took = {name: seconds_of(ways[name]) for name in order}
        added = took["run with gate"] - took["run"]
        assert rows_of(gated) == rows_of(plain)
        ratios.append(added / took["pass"])
        print(
            f"\nrun {took['run']:.1f} s, with {GATE} {took['run with gate']:.1f} s: adds {added:.1f} s; "
            f"a pass of its own {took['pass']:.1f} s: ratio {ratios[-1]:.2f}"
        )
    print(f"median ratio {median(ratios):.2f}")
    assert median(ratios) <= 0.5
