"""The Python of docs/python-api.md, and training from the command line, run from a wheel outside of the repository."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/python-api.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh virtual environment with the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    venv.create(folder / "env", with_pip=True)
    (wheel,) = folder.glob("*.whl")
    python = folder / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, timeout=300)
    site = next((folder / "env/lib").glob("python*/site-packages"))
    # A folder that a .pth file names is searched last, and its own .pth files (an editable install) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env/bin"


def run(command: list[str | Path], cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_example_runs_from_a_wheel_and_so_does_training(installed: Path, tmp_path: Path) -> None:
    (example,) = EXAMPLE
    said = run([installed / "python", "-c", example], tmp_path)
    assert said.startswith("shapes-llava [{'user': ")
    assert {"image R@1", "text R@1"} <= set(eval(said.splitlines()[-1]))
    assert json.loads((tmp_path / "retrieval.json").read_text())["entries"]
    assert (tmp_path / "messages").is_dir()

    where = run([installed / "python", "-c", "import dialog_train; print(dialog_train.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    settings = ["data.dialogues=dialogues", "data.work=work", "out=again", "optim.batch_size=16", "optim.max_steps=4"]
    flags = [word for setting in settings for word in ("--set", setting)]
    said = run([installed / "dialog-train", "draft", "--config", "draft-shapes", *flags], tmp_path)
    assert said.startswith("again/model: 4 steps, ")
    assert (tmp_path / "again/model/open_clip_model.safetensors").read_bytes() == (
        tmp_path / "draft/model/open_clip_model.safetensors"
    ).read_bytes()
