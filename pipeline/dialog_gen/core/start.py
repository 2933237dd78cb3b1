"""How the command lines start."""

import importlib
import sys

_INTERRUPTED = 130


def start(module: str) -> None:
    """Imports a command line, which takes seconds, and runs its `main`. Ctrl-C during the import is one line, too."""
    try:
        main = importlib.import_module(module).main
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was begun\n")
        sys.exit(_INTERRUPTED)
    main()
