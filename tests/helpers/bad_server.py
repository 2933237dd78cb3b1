"""A web server on loopback that misbehaves on purpose, each path in its own way, and counts what it is asked for."""

import gzip
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

GIGABYTES = 2 << 30
DRIP_S = 0.1


def image_bytes(kind: str = "JPEG", size: tuple[int, int] = (64, 48), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, kind)
    return buffer.getvalue()


def png_of(width: int, height: int, data: bytes, color_type: int = 2) -> bytes:
    """A PNG with a good header whose compressed pixels are `data`."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


JPEG = image_bytes()
HTML = b"<!doctype html><title>Gone</title><p>This page has moved.</p>" * 20
PNG_BOMB = png_of(30_000, 30_000, zlib.compress(bytes(100_000)))
GZIP_BOMB = gzip.compress(bytes(100 << 20))


class BadServer(ThreadingHTTPServer):
    """Answers while it is entered. `hits` counts requests by path, `connections` whatever came in, `sent` bytes."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hits: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.connections = 0
        self.healed = False
        self.closing = threading.Event()

    def __enter__(self) -> "BadServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}{path}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what is tested


class _Handler(BaseHTTPRequestHandler):
    server: BadServer

    def do_GET(self) -> None:
        self.server.hits[self.path] += 1
        name = self.path.split("?")[0]
        if name.startswith("/image/"):
            self.answer(image_bytes(seed=int(name.removeprefix("/image/"))))
        else:
            _ANSWERS.get(name, _Handler.missing)(self)

    def log_message(self, *_: Any) -> None:
        pass

    def missing(self) -> None:
        self.answer(HTML, 404)

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def answer(self, body: bytes, status: int = 200, **headers: object) -> None:
        self.head(status, Content_Length=len(body), **headers)
        self.wfile.write(body)

    def stream(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self.wfile.write(piece)
            self.server.sent[self.path] += len(piece)
            if self.server.closing.is_set():
                return

    def drip(self, data: bytes) -> Iterator[bytes]:
        for byte in data:
            time.sleep(DRIP_S)
            yield bytes([byte])

    def times(self, failures: int, status: int, **headers: object) -> None:
        """Fails so often, then gives an image."""
        if self.server.hits[self.path] <= failures:
            self.answer(b"", status, **headers)
        else:
            self.answer(JPEG)


def _zeros(total: int) -> Iterator[bytes]:
    piece = bytes(1 << 16)
    return (piece for _ in range(total // len(piece)))


def _huge(handler: _Handler, **headers: object) -> None:
    handler.head(**headers)
    handler.stream(iter([JPEG]))
    handler.stream(_zeros(GIGABYTES))


def _redirect(location: str) -> Callable[[_Handler], None]:
    return lambda handler: handler.answer(b"", 302, Location=location)


def _raw(data: bytes) -> Callable[[_Handler], None]:
    return lambda handler: handler.stream(iter([data]))


def _dripping_head(handler: _Handler) -> None:
    handler.stream(handler.drip(b"HTTP/1.0 200 OK\r\nX-Slow: " + b"a" * 1000))


def _dripping_body(handler: _Handler) -> None:
    handler.head(Content_Length=len(JPEG))
    handler.stream(handler.drip(JPEG))


def _truncated(handler: _Handler) -> None:
    handler.head(Content_Length=len(JPEG))
    handler.stream(iter([JPEG[:-100]]))


def _truncated_chunks(handler: _Handler) -> None:
    handler.stream(iter([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + JPEG[:100]]))


def _until_healed(handler: _Handler) -> None:
    handler.answer(JPEG) if handler.server.healed else handler.missing()


_ANSWERS: dict[str, Callable[[_Handler], Any]] = {
    "/good": lambda h: h.answer(JPEG),
    "/large": lambda h: h.answer(image_bytes(size=(800, 600))),
    "/b%C3%A4ume": lambda h: h.answer(JPEG),
    "/as-text": lambda h: h.answer(JPEG, Content_Type="text/html"),
    "/no-length": lambda h: (h.head(), h.stream(iter([JPEG]))),
    "/moved": _redirect("/good?moved"),
    "/moved-raw": _redirect("/b\xc3\xa4ume?moved"),  # UTF-8, not quoted
    "/later": _until_healed,
    "/401": lambda h: h.answer(HTML, 401),
    "/403": lambda h: h.answer(HTML, 403),
    "/410": lambda h: h.answer(HTML, 410),
    "/429": lambda h: h.answer(HTML, 429, Retry_After=3600),
    "/429-once": lambda h: h.times(1, 429, Retry_After=1),
    "/500": lambda h: h.answer(HTML, 500),
    "/503-twice": lambda h: h.times(2, 503),
    "/999": lambda h: h.answer(HTML, 999),
    "/302": lambda h: h.answer(HTML, 302),
    "/silent": lambda h: h.server.closing.wait(60),
    "/drip-head": _dripping_head,
    "/drip-body": _dripping_body,
    "/hang-up": lambda h: None,
    "/garbage": _raw(b"\x00\x01\x02 no HTTP at all\r\n\r\n"),
    "/truncated": _truncated,
    "/truncated-chunks": _truncated_chunks,
    "/html": lambda h: h.answer(HTML, Content_Type="image/jpeg"),
    "/empty": lambda h: h.answer(b"", Content_Type="image/jpeg"),
    "/gzip-bomb": lambda h: h.answer(GZIP_BOMB, Content_Encoding="gzip", Content_Type="image/png"),
    "/png-bomb": lambda h: h.answer(PNG_BOMB, Content_Type="image/png"),
    "/png-alpha-bomb": lambda h: h.answer(png_of(6_000, 6_000, b"", color_type=6)),
    "/damaged": lambda h: h.answer(png_of(64, 64, b"no pixels")),
    "/huge": lambda h: _huge(h, Content_Length=GIGABYTES),
    "/huge-unannounced": _huge,
    "/noai": lambda h: h.answer(JPEG, X_Robots_Tag="noindex, noai"),
    "/noai-us": lambda h: h.answer(JPEG, X_Robots_Tag="dialog-gen: noai"),
    "/noai-others": lambda h: h.answer(JPEG, X_Robots_Tag="otherbot: noai"),
    "/loop": _redirect("/loop-2"),
    "/loop-2": _redirect("/loop"),
    "/to-file": _redirect("file:///etc/passwd"),
    "/to-data": _redirect("data:image/png;base64,AAAA"),
    "/to-private": _redirect("http://10.0.0.1/"),
    "/to-metadata": _redirect("http://169.254.169.254/latest/meta-data/"),
    "/to-user": _redirect("http://user:word@127.0.0.1/"),
}

OUTCOMES: dict[str, str] = {
    **dict.fromkeys(
        ("/good", "/large", "/bäume", "/b%C3%A4ume?q=ü x", "/as-text", "/no-length", "/moved", "/moved-raw"), "success"
    ),
    **dict.fromkeys(("/429-once", "/503-twice", "/noai-others"), "success"),
    **dict.fromkeys(("/later", "/404"), "http_404"),
    "/401": "http_4xx",
    "/403": "http_403",
    "/410": "http_410",
    "/429": "http_429",
    "/500": "http_5xx",
    **dict.fromkeys(("/999", "/302"), "http_other"),
    **dict.fromkeys(("/silent", "/drip-head", "/drip-body"), "timeout"),
    **dict.fromkeys(("/hang-up", "/garbage"), "connection"),
    **dict.fromkeys(("/truncated", "/truncated-chunks"), "truncated"),
    **dict.fromkeys(("/html", "/empty", "/gzip-bomb"), "not_an_image"),
    **dict.fromkeys(("/png-bomb", "/png-alpha-bomb"), "too_many_pixels"),
    "/damaged": "decode_error",
    **dict.fromkeys(("/huge", "/huge-unannounced"), "too_many_bytes"),
    **dict.fromkeys(("/noai", "/noai-us"), "opted_out"),
    "/loop": "redirect_loop",
    **dict.fromkeys(("/to-file", "/to-data"), "blocked_scheme"),
    **dict.fromkeys(("/to-private", "/to-metadata"), "blocked_address"),
    "/to-user": "bad_url",
}
"""Path -> how a request for it must end; what is asked for is more than what is answered."""
