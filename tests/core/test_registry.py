"""Registries: what a package's modules register, what others add through entry points, and what can be wrong."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    """A package with a registry and two modules that register, and a second distribution with entry points."""
    package = tmp_path / "colours_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text(
        "from dialog_gen.core.registry import Registry\nCOLOURS = Registry('colour', 'colours_of_a_test', base=int)\n"
    )
    (package / "blue.py").write_text("from colours_of_a_test.base import COLOURS\nCOLOURS.register('blue')(1)\n")
    (package / "red.py").write_text("from colours_of_a_test.base import COLOURS\nCOLOURS.register('red')(2)\n")
    (tmp_path / "more_colours.py").write_text(
        "from colours_of_a_test.base import COLOURS\nCOLOURS.register('green')(3)\nYELLOW = 4\nWHITE = 'no number'\n"
    )
    (tmp_path / "leaving_colours.py").write_text("raise SystemExit('line one\\nline two')\n")
    (tmp_path / "broken_colours.py").write_text("import no_such_module_anywhere\n")
    info = tmp_path / "more_colours-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-colours\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[colours_of_a_test]\ngreen = more_colours\nyellow = more_colours:YELLOW\ngrey = broken_colours\n"
        "pink = more_colours\nblack = leaving_colours\nwhite = more_colours:WHITE\nred = more_colours:YELLOW\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("colours_of_a_test.base").base.COLOURS
    for name in [name for name in sys.modules if "colours" in name]:
        del sys.modules[name]


def test_names_are_those_of_the_modules_then_those_of_other_packages(colours: Registry[int]) -> None:
    assert colours.names() == ["blue", "red", "black", "green", "grey", "pink", "white", "yellow"]
    assert colours.own() == {"blue": 1, "red": 2}


@pytest.mark.parametrize(("name", "value"), [("blue", 1), ("red", 2), ("green", 3), ("yellow", 4)])
def test_what_is_registered_is_found(colours: Registry[int], name: str, value: int) -> None:
    assert colours.get(name) == value


def test_an_unknown_name_names_the_known(colours: Registry[int]) -> None:
    with pytest.raises(UsageError, match=r"unknown colour 'blu'; did you mean 'blue'\? Known: black, blue, gre"):
        colours.get("blu")
    with pytest.raises(UsageError, match="--colour blu: unknown colour; did you mean 'blue'"):
        colours.get("blu", where="--colour")


def test_a_package_that_fails_to_import_is_named_only_where_it_is_asked_for(colours: Registry[int]) -> None:
    assert colours.get("red") == 2
    with pytest.raises(UsageError, match=r"colour 'grey' of the package more-colours cannot be imported.*no_such_mod"):
        colours.get("grey")


def test_a_module_that_does_not_register_its_name_is_named(colours: Registry[int]) -> None:
    with pytest.raises(UsageError, match=r"'pink' of the package more-colours .* registers no colour of that name"):
        colours.get("pink")


@pytest.mark.parametrize(
    ("name", "reason"), [("black", "SystemExit: line one line two"), ("white", "'white' is no int")]
)
def test_whatever_is_wrong_with_a_package_is_one_line(colours: Registry[int], name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{reason}. Repair or uninstall that package. Known: blue, red") as error:
        colours.get(name)
    assert "\n" not in str(error.value)


def test_all_leaves_out_what_is_broken_and_warns_once(colours: Registry[int], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert colours.all() == {"blue": 1, "red": 2, "green": 3, "yellow": 4}
    assert len([record for record in caplog.records if "cannot be imported" in record.message]) == 4


def test_a_name_that_is_taken_is_ignored_with_a_warning(
    colours: Registry[int], caplog: pytest.LogCaptureFixture
) -> None:
    assert colours.get("red") == 2
    assert list(colours.own()) == ["blue", "red"]
    assert "colour 'red' of the package more-colours is ignored: the name is taken" in caplog.text


def test_a_name_is_taken_once(colours: Registry[int]) -> None:
    assert colours.get("blue") == 1
    with pytest.raises(ValueError, match="two colours named 'blue'"):
        colours.register("blue")(7)


def test_threads_that_use_it_first_at_the_same_time_both_find_everything(
    colours: Registry[int], tmp_path: Path
) -> None:
    (tmp_path / "colours_of_a_test" / "slow.py").write_text(
        "import time\ntime.sleep(0.3)\nfrom colours_of_a_test.base import COLOURS\nCOLOURS.register('slow')(5)\n"
    )
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: colours.own(), range(2)))
    assert found == [{"blue": 1, "red": 2, "slow": 5}] * 2
