"""What a run shows on a terminal: its own lines and bars, and nothing of what engines and libraries write."""

import re
from pathlib import Path

import pytest
from helpers.inputs import write_images
from helpers.plugins import write_plugin
from helpers.terminal import on_terminal

pytestmark = pytest.mark.slow

FLOOD = """
import asyncio, logging, os, subprocess, sys, warnings

from dialog_gen.engines.base import ENGINES, Answer, EngineEntry


def flood(when):
    print("NOISE on stdout", when)
    print("NOISE on stderr", when, file=sys.stderr)
    os.write(1, b"NOISE of C on stdout\\n")
    os.write(2, b"NOISE of C on stderr\\n")
    logging.getLogger("some.library").warning("NOISE in a log %s", when)
    warnings.warn("NOISE as a warning")
    return subprocess.Popen(["sh", "-c", "while echo NOISE of a child; do sleep 0.05; done"])


class Flood:
    name, version, deterministic = "flood", "1", True

    def __init__(self, child):
        self._child = child

    async def answer(self, request):
        await asyncio.sleep(0.3)
        text = "\\n".join(f"{i}. Q: What is at {i}? A: a thing." for i in (1, 2, 3))
        return Answer(text=text, finish_reason="stop", output_tokens=30, saw_image=True)

    async def close(self):
        self._child.kill()
        self._child.wait()


class FloodEntry(EngineEntry):
    name = "flood"
    description = "writes on all ways"
    needs = "name"

    def start(self, model, sampling, options):
        return Flood(flood("while it starts"))


ENGINES.register("flood")(FloodEntry())
"""


@pytest.mark.parametrize("engine", ["flood", "transformers"])
def test_only_our_own_lines(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 2)
    plugin = write_plugin(tmp_path / "plugin", {"flood": FLOOD}, "[dialog_gen.engines]\nflood = flood\n")
    monkeypatch.setenv("PYTHONPATH", str(plugin), prepend=":")
    words = ["--model", "shapes-llava", "--engine", engine, "--images", "images", "--out", "out", "--max-losses", "1"]
    code, said = on_terminal(tmp_path, "dialog_gen", "run", *words, "--keep-going", COLUMNS="100")
    assert code == 0, said
    shown = [
        line.strip()
        for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said))
        if line.strip() and "━" not in line
    ]
    assert "NOISE" not in said
    assert not [line for line in shown if re.search(r"warn|loading weights|deprecat|crash|Traceback", line, re.I)]
    # The line that says what starts, perhaps one that the images are not drawn ones, and the summary.
    assert len(shown) <= 14, shown
    assert (engine == "flood") == shown[0].startswith("out: 2 images"), shown
    if engine == "flood":
        log = (tmp_path / "out" / "engine.log").read_text()
        assert log.count("NOISE of C on stdout") == 1
        # While it answers, too.
        assert log.count("NOISE of a child") > 2
