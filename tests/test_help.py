"""What `--help` of the three command lines says."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer.main

import dialog_eval.cli
import dialog_gen.cli.app
import dialog_train.cli
from dialog_gen.core.console import exit_code

APPS = {"dialog-gen": dialog_gen.cli.app.app, "dialog-train": dialog_train.cli.app, "dialog-eval": dialog_eval.cli.app}


def commands(name: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Words that call a command, and the command; groups are left out."""

    def below(words: tuple[str, ...], one: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        if not hasattr(one, "commands"):
            yield words, one
            return
        for word, child in one.commands.items():
            yield from below((*words, word), child)

    return below((name,), typer.main.get_command(APPS[name]))


ALL = [(words, one) for name in APPS for words, one in commands(name)]
NAMES = [" ".join(words) for words, _ in ALL]


def context_of(words: tuple[str, ...], arguments: list[str], **extra: Any) -> Any:
    """The parsed call of a command, which is not executed."""
    one = typer.main.get_command(APPS[words[0]])
    context = one.make_context(words[0], list(words[1:2]), resilient_parsing=True)
    for word in words[1:]:
        one = one.commands[word]  # type: ignore[attr-defined]
        last = word == words[-1]
        context = one.make_context(
            word, arguments if last else [], parent=context, **(extra if last else {"resilient_parsing": True})
        )
    return context


def help_of(words: tuple[str, ...]) -> str:
    return context_of(words, [], resilient_parsing=True).get_help()


@pytest.mark.parametrize("name", APPS)
def test_the_list_of_commands_cuts_no_description(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    one = typer.main.get_command(APPS[name])
    text = one.make_context(name, [], resilient_parsing=True).get_help()
    assert "..." not in text.split("\n\n", 2)[2].replace("...]", "").replace("[ARGS]...", "")
    said = " ".join(text.split())
    for word, command in one.commands.items():  # type: ignore[attr-defined]
        first = " ".join((command.help or "").split("\n\n")[0].split())
        sentence = first.split(". ")[0].rstrip(".")
        assert f" {word} {sentence}" in said


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_each_command_shows_each_option_once(
    words: tuple[str, ...], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(words)
    for parameter in command.params:
        for flag in parameter.opts if parameter.param_type_name == "option" else ():
            assert len(re.findall(rf"^  (?:-\w, )?{re.escape(flag)}\b(?!-)", text, re.M)) == 1, flag


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_each_example_is_a_call_of_its_command(
    words: tuple[str, ...], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('model = "m"\nimages = "photos"\nout = "out"\n')
    _, _, examples = help_of(words).rpartition("Example")
    lines = [line.strip() for line in examples.splitlines()[1:]]
    assert lines, "every command has an example"
    for line in lines:
        given = shlex.split(line)
        assert given[: len(words)] == list(words)
        # Parses the flags, converts their values and checks that the required ones are there; runs nothing.
        context_of(words, given[len(words) :])


def test_run_groups_its_options() -> None:
    headings = re.findall(r"^(\S.*):$", help_of(("dialog-gen", "run")), re.M)
    assert len(headings) >= 6
    assert headings[0] == "Options"
    assert headings[-1] == "Examples"


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["run", "-h"]])
def test_short_flag_and_module(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "dialog_gen", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: python -m dialog_gen")
    assert done.stderr == ""


@pytest.mark.parametrize("package", ["dialog_train", "dialog_eval"])
def test_the_other_packages_run_as_modules(package: str) -> None:
    done = subprocess.run([sys.executable, "-m", package, "-h"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:")


@pytest.mark.parametrize("name", APPS)
def test_a_number_that_is_none_is_told_in_our_words(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, whatever the command, and no words of the libraries that read the flags."""
    wrong = [
        (words, flag)
        for words, _ in ALL
        if words[0] == name
        for flag in re.findall(r"^  (?:-\w, )?(--[\w-]+) <(?:integer|number)>", help_of(words), re.M)
    ]
    assert wrong
    for words, flag in wrong:
        call = partial(typer.main.get_command(APPS[name]), [*words[1:], flag, "ten"], prog_name=name)
        assert exit_code(call, interrupted=None) == 2
        out, err = capfd.readouterr()
        assert out == ""
        told = re.escape(f"`{' '.join(words)} -h` explains the options.")
        assert re.fullmatch(rf"error: {flag} ten: must be a (whole )?number; {told}\n", err), (words, flag, err)


def test_interrupted_while_it_is_imported(tmp_path: Path) -> None:
    """Ctrl-C in the first seconds, too, is answered by one line and no traceback."""
    (tmp_path / "slow_command.py").write_text("raise KeyboardInterrupt\n")
    code = "from dialog_gen.core.start import start; start('slow_command')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted: nothing was begun\n"


def test_the_end_of_a_command_is_not_aborted_by_a_library(tmp_path: Path) -> None:
    """What Python does at the end is done; what C++ libraries do, which may abort the process, is not."""
    (tmp_path / "command.py").write_text(
        "import atexit, ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)\n"
        "def main():\n"
        "    atexit.register(print, 'ended')\n"
        "    sys.exit(3)\n"
    )
    code = "from dialog_gen.core.start import start; start('command')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (3, "ended\n", "")
