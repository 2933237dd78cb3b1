"""A server of files on loopback that knows byte ranges, and can be told to misbehave."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """Serves `files`, path without the first slash -> content, and notes what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    cut_after: list[int] = field(default_factory=list[int])
    """The next answers break off after so many bytes of the body, one each."""
    statuses: list[int] = field(default_factory=list[int])
    """The next answers are these errors, one each; 200 is none."""
    hold_after: int | None = None
    """After so many bytes of a body nothing more comes before `released` is set."""
    released: threading.Event = field(default_factory=threading.Event)
    knows_ranges: bool = True
    shifts_ranges: bool = False
    """Sends another range than is asked for, as it says itself."""
    validator: str | None = "ETag"
    """The header that names the content: ETag, weak, Last-Modified or none."""
    requests: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    """Path and asked range."""
    sent: int = 0
    """Bytes of bodies."""
    url: str = ""

    @contextmanager
    def serving(self) -> Iterator["FileServer"]:
        """Listens while it is entered."""
        handler = type("Handler", (_Handler,), {"world": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_port}"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def validator_of(self, content: bytes) -> dict[str, str]:
        digest = hashlib.sha256(content).hexdigest()[:16]
        return {
            "ETag": {"ETag": f'"{digest}"'},
            "weak": {"ETag": f'W/"{digest}"'},
            "Last-Modified": {"Last-Modified": f"Mon, 01 Jan 2024 00:00:{int(digest, 16) % 60:02d} GMT"},
        }.get(self.validator or "", {})


class _Handler(BaseHTTPRequestHandler):
    world: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.world.requests.append((self.path, asked))
        status = self.world.statuses.pop(0) if self.world.statuses else 200
        if status != 200:
            self.send_error(status)
            return
        content = self.world.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        names = self.world.validator_of(content)
        start = 0
        if asked and self.world.knows_ranges and self.headers.get("If-Range") in names.values():
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        if start and self.world.shifts_ranges:
            start -= 1
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in names.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.world.cut_after:
            body = body[: self.world.cut_after.pop(0)]
        if self.world.hold_after is not None:
            self.wfile.write(body[: self.world.hold_after])
            self.world.released.wait(60)
            return
        self.wfile.write(body)
        self.world.sent += len(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as the base class names it)
        pass
