"""`dialog-gen view`: the report in a browser, made on the fly."""

import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from helpers.cli import Cli
from helpers.pages import read, write_dataset
from helpers.rows import make_row

import dialog_gen


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked to show. There is no display, unless a test says so."""
    found: list[str] = []

    def open_it(address: str) -> bool:
        found.append(address)
        return True

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(webbrowser, "open", open_it)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_with_a_display_it_opens_a_browser(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    write_dataset(tmp_path / "d", [make_row(i) for i in range(3)])
    code, out, err = dialog_gen_cli("view", tmp_path / "d")
    assert (code, err) == (0, "")
    *_, how, path = out.splitlines()
    assert opened == [Path(path).as_uri()]
    assert how == "opened in your browser:"
    assert Path(path).is_relative_to(tmp_path / "tmp")
    assert [row["id"] for row in read(Path(path)).rows] == ["image 0", "image 1", "image 2"]


def test_without_a_display_it_says_where_the_page_is(tmp_path: Path, opened: list[str], dialog_gen_cli: Cli) -> None:
    """A browser for terminals would take over the terminal."""
    for name in ("a", "b"):
        write_dataset(tmp_path / name, [make_row(i) for i in range(3)])
    code, out, err = dialog_gen_cli("view", tmp_path / "a", "--compare", tmp_path / "b")
    assert (code, err, opened) == (0, "", [])
    *_, how, path = out.splitlines()
    assert how == "no browser can be opened here; open this file in one:"
    assert read(Path(path)).data["comparison"]["found"] == 3


def refuses(_: str) -> bool:
    return False


def fails(_: str) -> bool:
    raise webbrowser.Error("could not locate runnable browser")


@pytest.mark.parametrize("browser", [refuses, fails])
@pytest.mark.usefixtures("opened")
def test_a_browser_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Callable[[str], bool]
) -> None:
    monkeypatch.setenv("BROWSER", "none")
    monkeypatch.setattr(webbrowser, "open", browser)
    assert not dialog_gen.view(write_dataset(tmp_path / "d", [make_row(0)])).opened


@pytest.mark.usefixtures("opened")
def test_a_dataset_elsewhere(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [make_row(0)])
    fsspec.filesystem("memory").put(str(tmp_path / "d"), "/view", recursive=True)
    assert read(Path(dialog_gen.view("memory://view").report.out)).data["of"] == 1


def test_a_mistake_leaves_nothing(tmp_path: Path, opened: list[str], dialog_gen_cli: Cli) -> None:
    write_dataset(tmp_path / "d", [make_row(0)])
    (tmp_path / "d" / "data" / "s0.parquet").write_bytes(b"PAR1" * 9)
    for directory, said in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "d", "cannot be read")):
        code, out, err = dialog_gen_cli("view", directory)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert list((tmp_path / "tmp").iterdir()) == []
    assert opened == []
