"""What the command-line modules share: common arguments, how they print and log, and how errors end a command.

Everything that a command prints goes through this module, which makes control characters in it visible.
"""

import concurrent.futures.thread
import io
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.notices import NOTICES
from dialog_gen.core.plain_problems import plain_problem
from dialog_gen.core.terminal_images import drawn, way_of
from dialog_gen.core.version import __version__
from dialog_gen.core.visible import visible, visible_lines

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AllowLoopback = Annotated[bool, typer.Option("--allow-loopback", help="Also fetch from servers on this machine.")]
DatasetOption = Annotated[str, typer.Argument(metavar="DIR", help="Folder or fsspec URL that `run --out` wrote.")]

_INTERRUPTED = 130
_WRONG_USE = 2
_GRACE_S = 1
_STDERR = 2
_TRACEBACK = "DIALOG_GEN_TRACEBACK"
_PIPED_TABLE_WIDTH = 1000
_log = logging.getLogger(__name__)
# Typer's errors of wrong flags have a base, ClickException, that typer does not export.
_TyperError: Any = typer.BadParameter.__mro__[2]


def say(text: object, *, err: bool = False, wrap: bool = False) -> None:
    """Prints text and a line feed to stdout, or to stderr with `err`. Lines stay; control characters become visible.

    With `wrap`, lines wider than the terminal are broken between words; else the terminal breaks them anywhere.
    If the reader of a pipe has gone, as `head` does, the rest of the output is dropped and the command continues.
    """
    stream, lines = sys.stderr if err else sys.stdout, visible_lines(text)
    if wrap and stream.isatty():
        lines = "\n".join(_broken(line, shutil.get_terminal_size().columns) for line in lines.split("\n"))
    _write(f"{lines}\n", stream)


def _broken(line: str, width: int) -> str:
    """The line, broken between words; what continues it has its indent. A longer word, such as a path, stays whole."""
    if cell_len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    words, lines = line[len(indent) :].split(" "), list[str]()
    for word in words:
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return "\n".join(lines)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
]


def say_json(value: object) -> None:
    """Prints a value as JSON to stdout, in ASCII and without control characters."""
    # The one control character that json.dumps leaves as it is.
    say(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table to stdout. On a terminal it adapts to the width; in a pipe, nothing is wrapped or cut."""
    shown, terminal = io.StringIO(), sys.stdout.isatty()
    width = None if terminal else _PIPED_TABLE_WIDTH
    console = Console(file=shown, force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False)
    table = Table(*map(visible, columns), box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(visible, row))
    console.print(table)
    _write(shown.getvalue(), sys.stdout)


def say_image(image: Any, *, lines: int) -> None:
    """Prints an RGB image of Pillow to stdout, in at most so many lines; nothing where stdout shows no images."""
    way = way_of(os.environ) if sys.stdout.isatty() else None
    if way is not None:
        _write(drawn(image, way, columns=shutil.get_terminal_size().columns, lines=lines), sys.stdout)


def text_width() -> int | None:
    """The columns of the terminal that stdout is; None if it is none, where no line is to be broken."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        # What is buffered would be written, and fail, again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise DialogGenError(f"cannot write the output: {error.strerror}.") from error


class _OneLine(logging.Formatter):
    """One line per record, with control characters visible; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return visible_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return visible_lines(super().formatStack(stack_info))


def log_to_stderr(*, plain: bool = False) -> None:
    """Sets up logging, and Python's warnings, to stderr: one line per record, with `plain` without level and colours.

    Colours and breaks of lines are for terminals only. Does nothing if logging is set up already.
    """
    if plain or not sys.stderr.isatty():
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine("%(message)s" if plain else "%(levelname)-8s %(message)s"))
    else:
        handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)
        handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    NOTICES.setLevel(logging.INFO)
    warnings.showwarning = _log_warning


def _open_closed_streams() -> None:
    """Opens stdin, stdout and stderr on nothing where they are closed, as a daemon's are.

    Python has None for them. Else, the next files that are opened would get their descriptors, and what libraries print
    would go into these files.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(descriptor)
        sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open until the process ends
        sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


@contextmanager
def _lost_errors_logged() -> Generator[None]:
    """Errors that reach no caller, such as a thread's, are logged: Python prints them, raw, with a traceback."""

    def log(lost: Any) -> None:
        error = lost.exc_value or lost.exc_type
        _log.warning("an error was ignored: %r", error, exc_info=error if _shows_tracebacks() else None)

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = log
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)


def print_result(content: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a command's result: `content` for programs, `text` for people."""
    if as_json:
        say_json(content)
    else:
        say(text, wrap=True)


def run_app(app: Callable[..., Any], *, interrupted: str, explain: Callable[[DialogGenError], str] = str) -> None:
    """Runs a typer app and exits with its code; see `exit_code`."""
    sys.exit(exit_code(app, interrupted=interrupted, explain=explain))


def exit_code(
    app: Callable[..., Any],
    *,
    interrupted: str | None,
    explain: Callable[[DialogGenError], str] = str,
    before_error: Callable[[BaseException], None] | None = None,
    after_error: Callable[[], None] | None = None,
) -> int:
    """Runs a typer app. Any error becomes one line on stderr; with DIALOG_GEN_TRACEBACK=1, a traceback precedes it.

    Returns 0, the code of a `DialogGenError`, 2 for wrong flags and for any other error, or 130 after Ctrl-C.
    `interrupted` is the message after Ctrl-C, None for no message. `explain` returns the message of an error.
    `before_error` is called with an error before it is printed, `after_error` afterwards.
    """
    _open_closed_streams()
    try:
        with _lost_errors_logged():
            code = app(standalone_mode=False)
    except SystemExit as ending:
        code = ending.code
        # Typer takes any broken pipe, of a connection too, for a reader of stdout that has gone.
        if isinstance(ending.__context__, OSError):
            code = ending.__context__
    except KeyboardInterrupt:
        code = _INTERRUPTED
    # The last resort: whatever it is, the user gets one line. Panics of Rust libraries are no `Exception`.
    except BaseException as error:  # noqa: BLE001
        code = error
    if isinstance(code, BaseException):
        if before_error:
            before_error(code)
        number = _report(code, explain)
        if after_error:
            after_error()
        if isinstance(code, DialogGenError) and code.ends_process:
            _end_at_once(number)
        return number
    if code == _INTERRUPTED and interrupted is not None:
        say(f"interrupted: {interrupted}", err=True)
        if _threads_go_on():
            _end_at_once(_INTERRUPTED)
    return code if isinstance(code, int) else int(code is not None)


def _report(error: Any, explain: Callable[[DialogGenError], str]) -> int:
    """Prints an error; returns the exit code."""
    if _shows_tracebacks():
        say("".join(traceback.format_exception(error)).rstrip("\n"), err=True)
    if isinstance(error, _TyperError):
        said, ctx = (_wrong_value(error) or error.format_message()).rstrip("."), getattr(error, "ctx", None)
        where = f"; `{ctx.command_path} -h` explains the options" if ctx else ""
        # Without any argument, typer's error is the help.
        is_help = type(error).__name__ == "NoArgsIsHelpError"
        say(said if is_help else f"error: {visible(said)}{where}.", err=True, wrap=True)
        return error.exit_code
    if isinstance(error, DialogGenError):
        say(f"error: {visible(explain(error))}", err=True, wrap=True)
        return error.exit_code
    said = visible(f"{type(error).__name__}: {error}".removesuffix(": "))
    if isinstance(error, OSError | UnicodeError | MemoryError):
        say(f"error: {said}; {_TRACEBACK}=1 shows where.", err=True, wrap=True)
    else:
        say(
            f"internal error: {said} ({_place(error)}); please report it; {_TRACEBACK}=1 shows the traceback.",
            err=True,
            wrap=True,
        )
    return _WRONG_USE


def _wrong_value(error: Any) -> str | None:
    """What is wrong with the value of an option, in our words; None for any other error of typer's."""
    found = getattr(error.__cause__, "errors", None)
    if found is None or error.param is None:
        return None
    problem = found()[0]
    return f"{max(error.param.opts, key=len)} {problem['input']}: {plain_problem(problem)}"


def _shows_tracebacks() -> bool:
    return os.environ.get(_TRACEBACK, "0") not in ("", "0")


def _place(error: BaseException) -> str:
    """The innermost module and line of our packages that an error passed through, such as dialog_gen.core.files:12."""
    places = [(str(frame.f_globals.get("__name__")), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if place[0].startswith("dialog_")]
    return ":".join(map(str, (own or places or [("unknown", 0)])[-1]))


def _threads_go_on() -> bool:
    """Whether there are still threads, a moment later, for which Python would wait at its end."""
    deadline = time.monotonic() + _GRACE_S
    # Python also waits for the threads of pools, which are daemons if a daemon started them.
    pooled: Collection[threading.Thread] = getattr(concurrent.futures.thread, "_threads_queues", {}).keys()
    others = set(threading.enumerate()) - {threading.current_thread()}
    threads = [thread for thread in others if not thread.daemon or thread in pooled]
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


def _end_at_once(code: int) -> None:
    """Ends the process without waiting for threads, which Python would do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
