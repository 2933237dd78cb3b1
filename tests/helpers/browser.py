"""Chromium, driven over its DevTools protocol: what a reader of a page sees and does."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")

_START_S = 60
_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Escape": 27, "Enter": 13, "/": 191}


class Browser:
    """One page of a browser. `problems` are console errors, exceptions and violations of the page's policy."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._last = socket, 0
        self.requests: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Calls a method of the protocol and returns its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._last:
                assert "error" not in message, message["error"]
                return message["result"]
            self._hear(message.get("method", ""), message.get("params", {}))

    def _hear(self, method: str, params: Any) -> None:
        if method == "Network.requestWillBeSent":
            self.requests += [url for url in [params["request"]["url"]] if not url.startswith("data:")]
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" or method == "Log.entryAdded":
            self.problems.append(json.dumps(params))

    def open(self, page: Path, fragment: str = "", *, width: int = 1300, height: int = 900, dark: bool = False) -> None:
        """Loads a page in a window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.requests.clear()
        self.send("Page.navigate", url=f"{page.as_uri()}{fragment}")
        self.wait("location.protocol === 'file:' && document.readyState === 'complete'")

    def wait(self, condition: str) -> None:
        """Waits until a condition, in JavaScript, is true."""
        deadline = time.monotonic() + _START_S
        while self.value(condition) is not True:
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """The value of an expression in JavaScript, or of its promise. A page's policy does not hold for it."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What the first such element shows."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        """What all such elements show."""
        return self.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")

    def click(self, selector: str) -> None:
        """Clicks with the mouse into the middle of the first such element, once what came before is drawn."""
        # A link within the page scrolls a frame later, and would move the element away from the mouse.
        self.value("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(() => drawn(null))))")
        middle = (
            f"(() => {{ const it = document.querySelector({json.dumps(selector)}); "
            "it.scrollIntoView({ block: 'center', behavior: 'instant' }); const box = it.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        x, y = self.value(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=_KEYS.get(key, 0),
                **(text if kind == "keyDown" else {}),
            )

    def type(self, text: str) -> None:
        """Types a text where the focus is."""
        self.send("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Chooses an option of a list."""
        self.value(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)}); it.value = {json.dumps(value)}; "
            "it.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )

    def screenshot(self, out: Path, *, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile: Path) -> Generator[Browser]:
    """Starts a browser with a profile in this empty folder; skips the test where there is none."""
    client = pytest.importorskip("websockets.sync.client", reason="needs websockets, to talk to the browser")
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    log = (profile / "log").open("wb")
    process = subprocess.Popen([CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"], stderr=log, stdout=log)
    try:
        port = _port(profile / "DevToolsActivePort")
        with client.connect(f"ws://127.0.0.1:{port[0]}{port[1]}", max_size=None, open_timeout=_START_S) as control:
            control.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
            targets = json.loads(control.recv(timeout=_START_S))["result"]["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        address = f"ws://127.0.0.1:{port[0]}/devtools/page/{page}"
        with client.connect(address, max_size=None, open_timeout=_START_S) as socket:
            yield Browser(socket)
    finally:
        process.kill()
        process.wait()
        log.close()


def _port(file: Path) -> tuple[str, str]:
    """The port and path at which a browser listens, which it writes to a file once it does."""
    deadline = time.monotonic() + _START_S
    while True:
        lines = file.read_text().split("\n") if file.exists() else []
        if len(lines) > 1 and lines[1]:
            return lines[0], lines[1]
        assert time.monotonic() < deadline, "the browser does not start"
        time.sleep(0.05)
