"""This project's commands for shells: programs that let a fork do their work, so that a start takes a moment."""

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from tempfile import TemporaryDirectory
from threading import Thread

from helpers.forks import FORKS, run_command

_NAMES = ("dialog-gen", "dialog-train", "dialog-eval")
_PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    server.sendall(json.dumps([os.getpid(), os.getcwd(), dict(os.environ), words]).encode() + b"\\n")
    sys.exit(int(server.makefile().readline()))
"""


class _Handler(StreamRequestHandler):
    def handle(self) -> None:
        pid, folder, environment, words = json.loads(self.rfile.readline())
        # What the program was given for its output, whether a pipe or a file.
        files = [f"/proc/{pid}/fd/{number}" for number in (1, 2)]
        process = FORKS.Process(target=run_command, args=(environment, Path(folder), files, words))
        process.start()
        process.join()
        self.wfile.write(f"{process.exitcode}\n".encode())


@contextmanager
def forked_programs() -> Generator[str]:
    """Yields a folder for the front of PATH: `dialog-gen` and its like are in it. They read nothing from stdin."""
    # The path of a socket must be short.
    with TemporaryDirectory() as folder, ThreadingUnixStreamServer(f"{folder}/socket", _Handler) as server:
        for name in _NAMES:
            program = Path(folder, name)
            program.write_text(_PROGRAM.format(python=sys.executable, address=server.server_address))
            program.chmod(0o755)
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()
