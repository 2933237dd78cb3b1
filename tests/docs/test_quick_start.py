"""The commands of the quick start and of the first training, run one after the other, on fewer images and steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.programs import forked_programs
from helpers.rows import rows_of
from helpers.shown import DOCS


def section(page: str, begin: str) -> str:
    """A page from a heading on."""
    return (DOCS / page).read_text(encoding="utf-8").partition(f"\n## {begin}")[2]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_quick_start_and_first_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = section("quick-start.md", "2. Get images")
    training = section("training.md", "In the embedded world").partition("\n## ")[0]
    script = "\n".join([*blocks(steps, "bash"), *blocks(training, "bash")])
    assert script.count("dialog-") == 11
    # Another engine for its start alone: vLLM's takes longer than all the rest.
    changes = {
        "shapes --limit 256": "shapes --limit 128",
        "shapes-test --limit 256": "shapes-test --limit 64",
        "images --out dialogues": "images --out dialogues --engine transformers",
        "max_steps=100": "max_steps=4",
    }
    for shown, run_here in changes.items():
        assert script.count(shown) == 1
        script = script.replace(shown, run_here)

    def run(*command: str) -> str:
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    with forked_programs() as programs:
        monkeypatch.setenv("PATH", programs, prepend=os.pathsep)
        run("bash", "-euc", script)
    assert len(rows_of(tmp_path / "dialogues")) > 120
    assert "{'user': " in run(sys.executable, "-c", "\n".join(blocks(steps, "python")))
    for made in ("report.html", "messages", "draft/model/open_clip_config.json", "table.html"):
        assert (tmp_path / made).exists(), made
