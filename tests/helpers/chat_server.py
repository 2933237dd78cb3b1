"""A server with OpenAI's chat API on loopback that answers at once, or passes requests on; it fails as it is told."""

import base64
import hashlib
import http.client
import json
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from helpers.engine import Asked, answer_to

Body = dict[str, Any]
DRIP_S = 0.02


@dataclass(frozen=True)
class Failure:
    """In place of an answer: a status with headers and a body, or something worse."""

    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": {"message": "as told", "type": "told"}}'
    how: str = "status"
    """status, reset (no answer), truncated (half an answer), drip (an answer byte by byte), garbage (no HTTP)"""


Plan = Callable[[int, Body], Failure | None]
"""The number of a chat request, from 1, and its body -> how it fails; None: it is answered."""


class ChatServer(ThreadingHTTPServer):
    """Answers while it is entered; `port` fixes the port, so that it can come back."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(
        self,
        plan: Plan = lambda number, body: None,
        *,
        model: str = "talker",
        key: str | None = None,
        upstream: str | None = None,
        usage: bool = True,
        sees_images: bool = True,
        new_name: bool = False,
        lists_models: bool = True,
        delay_s: float = 0.0,
        say: Callable[[Body], str | None] = lambda body: None,
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.plan, self.model, self.key, self.usage, self.upstream = plan, model, key, usage, upstream
        self.sees_images, self.new_name, self.lists_models = sees_images, new_name, lists_models
        self.delay_s, self.say = delay_s, say
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths = Counter[str]()
        self.times: list[float] = []
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.open = set[Any]()

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As if the process was killed: connections break."""
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            reset(connection)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def asked(self) -> list[Body]:
        """The requests that are not the first contact's."""
        return [body for body in self.bodies if not is_contact(body)]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def reset(connection: Any) -> None:
    import socket

    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    except OSError:
        pass


def is_contact(body: Body) -> bool:
    return "What colour is the image?" in json.dumps(body["messages"][0])


def image_of(body: Body) -> bytes | None:
    """The image in a request as the server gets it."""
    contents = [message["content"] for message in body["messages"]]
    for part in (part for parts in contents if not isinstance(parts, str) for part in parts):
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            assert head in ("data:image/png;base64", "data:image/jpeg;base64")
            return base64.b64decode(data, validate=True)
    return None


def texts_of(body: Body) -> list[str]:
    return [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in body["messages"]]


def answer_for(body: Body) -> str:
    """The scripted engine's words for a request."""
    prompt = "\n".join(texts_of(body))
    return answer_to(Asked(prompt, hashlib.sha256(image_of(body) or b"").hexdigest(), body.get("seed", 0)))


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.paths[self.path] += 1
        if self.refused_key():
            return
        if server.upstream is not None:
            self.reply(*self.passed_on("GET", b""))
        elif self.path == "/v1/models" and server.lists_models:
            self.reply(200, {"object": "list", "data": [{"id": server.model, "object": "model"}]})
        else:
            self.reply(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        server = self.server
        content = self.rfile.read(int(self.headers["Content-Length"]))
        server.paths[self.path] += 1
        if self.refused_key():
            return
        body = json.loads(content)
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            number = len(server.asked)
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        try:
            failure = None if is_contact(body) else server.plan(number, body)
            self.respond(body, content, failure)
        finally:
            with server.lock:
                server.now -= 1

    def respond(self, body: Body, content: bytes, failure: Failure | None) -> None:
        server = self.server
        if failure is not None and failure.how == "reset":
            self.close_connection = True
            reset(self.connection)
            return
        if failure is not None and failure.how == "garbage":
            self.close_connection = True
            self.wfile.write(b"\x00\x01 no HTTP at all\r\n\r\n")
            return
        if failure is not None and failure.how == "status":
            self.reply(failure.status, failure.body, dict(failure.headers))
            return
        if server.upstream is not None:
            status, answer = self.passed_on("POST", content)
        else:
            time.sleep(server.delay_s)
            status, answer = self.completion(body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if failure is None:
            self.reply(status, data)
            return
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if failure.how == "truncated":
            self.wfile.write(data[: len(data) // 2])
            return
        for byte in data:
            time.sleep(DRIP_S)
            self.wfile.write(bytes([byte]))

    def completion(self, body: Body) -> tuple[int, Body]:
        server = self.server
        if body["model"] != server.model:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        if server.new_name and "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": message, "param": "max_tokens"}}
        text = server.say(body) or answer_for(body)
        seen = 100 if image_of(body) and server.sees_images else 0
        prompt = seen + sum(len(text.split()) for text in texts_of(body))
        answer: Body = {
            "id": "x",
            "object": "chat.completion",
            "model": server.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        }
        if body.get("logprobs"):
            content = [{"token": f" {word}", "logprob": -0.5, "bytes": None} for word in text.split()]
            answer["choices"][0]["logprobs"] = {"content": content}
        if server.usage:
            answer["usage"] = {"prompt_tokens": prompt, "completion_tokens": len(text.split()), "total_tokens": 0}
        return 200, answer

    def passed_on(self, method: str, content: bytes) -> tuple[int, bytes]:
        parts = urlsplit(self.server.upstream or "")
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
        connection.request(method, self.path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def refused_key(self) -> bool:
        if self.server.key is None or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return False
        given = self.headers.get("Authorization")
        self.reply(401, {"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}})
        return True

    def reply(self, status: int, answer: Body | bytes, headers: Mapping[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
