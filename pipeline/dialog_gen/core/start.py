"""How the command lines start and end."""

import atexit
import importlib
import os
import sys
from contextlib import suppress

_INTERRUPTED = 130


def start(module: str) -> None:
    """Imports a command line, which takes seconds, and runs its `main`. Ctrl-C during the import is one line, too.

    The process then ends without the destructors of C++ libraries. With a thread of such a library's pool still
    starting, they abort the process, at times, after everything is done: a script would take that for a failure.
    """
    ending = _Ending()
    # What is registered first is called last, after all that Python does at its end.
    atexit.register(ending.now)
    try:
        main = importlib.import_module(module).main
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was begun\n")
        sys.exit(_INTERRUPTED)
    try:
        main()
    except SystemExit as error:
        ending.code = error.code or 0
        raise


class _Ending:
    """Ends the process with an exit code, once there is one."""

    code: object = None

    def now(self) -> None:
        if isinstance(self.code, int):
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(self.code)
