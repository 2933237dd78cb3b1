"""The command that installs an extra, for each way in which the package itself was installed."""

import json
import shlex
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dialog_gen.core.errors import MissingExtraError
from dialog_gen.core.extras import install_command


def installed_from(monkeypatch: pytest.MonkeyPatch, folder: Path, origin: object) -> None:
    """A distribution with that record of its origin is found first."""
    info = folder / "dialog_gen-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dialog-gen\nVersion: 0.1.0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(folder))
    assert metadata.distribution("dialog-gen").read_text("METADATA") == (info / "METADATA").read_text()


def test_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_from(monkeypatch, tmp_path, {"url": "file:///home/me/my%20code", "dir_info": {"editable": True}})
    assert shlex.split(install_command("ray")) == ["pip", "install", "-e", "/home/me/my code[ray]"]


def test_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_from(monkeypatch, tmp_path, {"url": "file:///src/dialog-gen", "dir_info": {}})
    assert shlex.split(install_command("ray")) == ["pip", "install", "/src/dialog-gen[ray]"]


@pytest.mark.parametrize("url", ["file:///tmp/dialog_gen-0.1.0-py3-none-any.whl", "https://example.org/d.whl"])
def test_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    installed_from(monkeypatch, tmp_path, {"url": url, "archive_info": {}})
    pip, install, wanted = shlex.split(install_command("train"))
    requirement = Requirement(wanted)
    assert (pip, install) == ("pip", "install")
    assert (requirement.name, requirement.extras, requirement.url) == ("dialog-gen", {"train"}, url)


@pytest.mark.parametrize("origin", [None, [], "x"])
def test_a_package_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: object) -> None:
    installed_from(monkeypatch, tmp_path, origin)
    assert install_command("train") == "pip install 'dialog-gen[train]'"
    assert "pip install 'dialog-gen[train]'" in str(MissingExtraError("training", "train"))
