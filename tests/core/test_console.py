"""What reaches a terminal, and how errors of any kind end a command."""

import logging
import os
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.terminal import on_terminal
from hypothesis import given
from hypothesis import strategies as st

from dialog_gen.core.console import exit_code, log_to_stderr, say_json
from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.visible import visible, visible_lines

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
CHARACTERS = st.one_of(
    st.characters(), st.sampled_from([chr(code) for code in range(0xA0)]), st.characters(categories=["Cf", "Cs"])
)


@given(st.text(CHARACTERS))
def test_no_character_gives_orders(text: str) -> None:
    shown = visible(text)
    shown.encode()  # raises an error for a lone surrogate
    for character in shown:
        assert unicodedata.category(character) not in ("Cc", "Zl", "Zp", "Cs")
        assert unicodedata.bidirectional(character) not in BIDI
    assert visible_lines(text).replace("\n", "\\n").replace("\t", "\\t") == shown


def test_the_escapes() -> None:
    assert visible("a\x1b]0;t\x07\n\r\t\x9b\x7f\u202e\udce9\U000e0001é日👩\u200d🚀") == (
        "a\\x1b]0;t\\x07\\n\\r\\t\\x9b\\x7f\\u202e\\udce9\\U000e0001é日👩\u200d🚀"
    )
    assert visible_lines("a\n\tb\r\n") == "a\n\tb\\r\n"


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    value = {"".join(map(chr, range(0x100))): "\u202e\ud800"}
    say_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert all(character == "\n" or " " <= character <= "~" for character in printed)


def raising(error: BaseException) -> Callable[..., Any]:
    def app(**_: Any) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("a\nb\x1b"), 2, r"error: a\nb\x1b"),
        (FailedCheckError("no"), 1, "error: no"),
        (
            OSError(28, "No space left on device", "x\n"),
            2,
            "error: OSError: [Errno 28] No space left on device: 'x\\n'; ",
        ),
        (MemoryError(), 2, "error: MemoryError; "),
        (
            UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"),
            2,
            "error: UnicodeEncodeError: 'utf-8' ",
        ),
        (RecursionError("deep"), 2, "internal error: RecursionError: deep ("),
        (KeyError("x"), 2, "internal error: KeyError: 'x' (dialog_gen.core.console:"),
        (GeneratorExit(), 2, "internal error: GeneratorExit ("),
        (type("PanicException", (BaseException,), {})("a\x1b]0;"), 2, r"internal error: PanicException: a\x1b]0; ("),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: BrokenPipeError: [Errno 32] Broken pipe; "),
    ],
)
def test_any_error_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(raising(error), interrupted="") == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
    monkeypatch.setenv("DIALOG_GEN_TRACEBACK", "1")
    assert exit_code(raising(error), interrupted="") == code
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):")


def test_errors_of_threads_and_destructors_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud:
        def __del__(self) -> None:
            raise KeyError("\x1b[2J")

    def fail() -> None:
        raise ValueError("a\n\x1b]0;PLANT\x07")

    def app(**_: object) -> int:
        log_to_stderr(plain=True)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Loud()
        return 0

    hooks = threading.excepthook, sys.unraisablehook
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        assert exit_code(app, interrupted="") == 0
    finally:
        root.handlers = handlers
    first, second = capsys.readouterr().err.splitlines()
    assert r"ValueError('a\n\x1b]0;PLANT\x07')" in first
    assert r"KeyError('\x1b[2J')" in second
    assert hooks == (threading.excepthook, sys.unraisablehook)


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda **_: 130, interrupted="nothing was lost") == 130
    assert capsys.readouterr().err == "interrupted: nothing was lost\n"


LOGS = """
import logging, warnings
from dialog_gen.core.console import log_to_stderr
log_to_stderr(plain={plain})
logging.getLogger("another.package").warning("%s", "\\x1b]0;PLANT\\x07\\nforged")
warnings.warn("\\x1b[2JPLANT\\nforged")
"""


@pytest.mark.parametrize("plain", [True, False])
def test_logs_and_warnings(plain: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGS.format(plain=plain)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "\x1b" not in done.stderr
    first, second = (line.strip() for line in done.stderr.splitlines())
    assert first.endswith(r"\x1b]0;PLANT\x07\nforged")
    assert second.endswith(r"UserWarning: \x1b[2JPLANT\nforged")


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_a_closed_stream_is_no_other_file(closed: list[int], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys\nfrom dialog_gen.core.console import exit_code, say, say_table\n"
        "def app(**_):\n"
        "    with open('data', 'w') as data:\n"
        "        assert data.fileno() > 2\n"
        "        for stream in (1, 2): os.write(stream, b'noise')\n"
        "        say('x'), say('y', err=True), say_table(['a'], [['b']])\n"
        "    return 7\n"
        "sys.exit(exit_code(app, interrupted=''))\n"
    )
    redirections = " ".join(f"{stream}>&-" for stream in closed)
    done = subprocess.run(["sh", "-c", f"{sys.executable} script.py {redirections}"], cwd=tmp_path)
    assert done.returncode == 7
    assert (tmp_path / "data").read_bytes() == b""


def test_a_reader_that_leaves_changes_nothing() -> None:
    script = (
        "import sys, time\nfrom dialog_gen.core.console import exit_code, say\n"
        "def app(**_):\n    time.sleep(0.5)\n    for n in range(9): say('x' * 9999)\n"
        "    say('went on', err=True)\n    return 1\n"
        "sys.exit(exit_code(app, interrupted=''))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"went on\n"
        assert process.wait() == 1


def test_a_full_disk_under_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dialog_gen", "gates"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "error: cannot write the output: No space left on device.\n")


def test_an_encoding_that_lacks_a_character() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from dialog_gen.core.console import say\nsay('caf\\xe9 \\u65e5')"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stdout) == (0, b"caf\xe9 \\u65e5\n"), done.stderr


def test_long_messages_are_broken_between_words_on_a_terminal_only(tmp_path: Path) -> None:
    path = "/a/folder/with/a/long/name" * 3
    script = (
        f"from dialog_gen.core.console import say\nsay('  expected {path} or, ' + 'word ' * 12 + 'end', wrap=True)\n"
    )
    (tmp_path / "long.py").write_text(script)
    code, said = on_terminal(tmp_path, "long", PYTHONPATH=f"{tmp_path}:{':'.join(sys.path)}", COLUMNS="40")
    lines = said.replace("\r", "").splitlines()
    assert code == 0
    assert lines[:2] == ["  expected", f"  {path}"]  # a path stays whole
    assert " ".join(" ".join(lines).split()) == f"expected {path} or, {'word ' * 12}end"
    assert [line for line in lines[2:] if len(line) > 40 or not line.startswith("  ")] == []
    piped = subprocess.run([sys.executable, "long.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert piped.stdout.count("\n") == 1
