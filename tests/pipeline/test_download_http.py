import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_server import GIGABYTES, JPEG, BadServer

from dialog_gen.download import connections, http
from dialog_gen.download.connections import is_allowed, resolve
from dialog_gen.download.http import FetchPolicy, fetch_bytes, open_url, with_retries
from dialog_gen.download.outcomes import FetchError

POLICY = FetchPolicy(allow_loopback=True, max_bytes=1 << 20, timeout_s=5, deadline_s=10, retries=0)


@pytest.fixture(scope="module")
def server() -> Iterator[BadServer]:
    with BadServer() as server:
        yield server


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    pauses: list[float] = []
    here, sleep = threading.current_thread(), time.sleep

    def record(pause_s: float) -> None:
        # Threads that earlier tests left may sleep, too.
        if threading.current_thread() is here:
            pauses.append(pause_s)
        else:
            sleep(pause_s)

    monkeypatch.setattr(http.time, "sleep", record)
    return pauses


def outcome_of(call: Callable[[], object]) -> str:
    with pytest.raises(FetchError) as failure:
        call()
    return failure.value.outcome


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "169.253.1.1", "172.32.0.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public_addresses(address: str) -> None:
    assert is_allowed(address)


@pytest.mark.parametrize(
    "address",
    [
        # RFC 6890's table of special addresses, by its lines.
        *("0.0.0.0", "10.0.0.1", "100.64.0.1", "169.254.1.1", "172.16.0.1", "192.0.0.192", "192.0.2.1", "192.168.1.1"),
        *("198.18.0.1", "198.51.100.1", "203.0.113.1", "240.0.0.1", "255.255.255.255", "::", "100::1", "2001:db8::1"),
        *("2001::1", "fc00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "64:ff9b:1::1"),
        *("224.0.0.1", "239.255.255.250", "ff02::1"),  # multicast
        *("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"),  # metadata services
        # Private ones inside others: mapped, 6to4, NAT64, the old compatible form.
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:a00:1::", "64:ff9b::a9fe:a9fe", "::a00:1"),
    ],
)
def test_other_addresses(address: str) -> None:
    assert not is_allowed(address)
    assert not is_allowed(address, allow_loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"])
def test_loopback(address: str) -> None:
    assert not is_allowed(address)
    assert is_allowed(address, allow_loopback=True)


def resolving_to(*found: str) -> Callable[..., list[Any]]:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, 1, 6, "", (ip, port)) for ip in found]

    return getaddrinfo


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        (["8.8.8.8"], True),
        (["8.8.8.8", "2001:4860:4860::8888"], True),
        (["8.8.8.8", "10.0.0.1"], False),
        (["2001:4860:4860::8888", "8.8.8.8", "::ffff:127.0.0.1"], False),
    ],
)
def test_every_address_of_a_host_counts(found: list[str], allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.socket, "getaddrinfo", resolving_to(*found))
    if allowed:
        assert [e.address for e in resolve("example.test", 80, allow_loopback=False)] == [(ip, 80) for ip in found]
    else:
        assert outcome_of(lambda: resolve("example.test", 80, allow_loopback=False)) == "blocked_address"


def test_a_name_is_resolved_once(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second answer of a rebinding name server is never asked for."""
    answers = [resolving_to("127.0.0.1"), resolving_to("10.0.0.1")]
    monkeypatch.setattr(connections.socket, "getaddrinfo", lambda *a, **k: answers.pop(0)(*a, **k))
    assert fetch_bytes(f"http://rebinding.test:{server.server_port}/good", POLICY) == JPEG
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("code", "tries"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)], ids=["no such name", "no answer"]
)
def test_names_without_an_address(code: int, tries: int, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(code, "no address")

    monkeypatch.setattr(connections.socket, "getaddrinfo", fail)
    assert outcome_of(lambda: fetch_bytes("http://example.test/", replace(POLICY, retries=2))) == "dns"
    assert len(slept) == tries - 1


def test_what_is_sent() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        thread = threading.Thread(target=answer)
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with open_url(f"http://{host}/ä b?q=ü#part", POLICY, {"Range": "bytes=5-"}) as got:
            assert (got.status, got.length, got.read(1), got.read(), got.read(9)) == (200, 2, b"o", b"k", b"")
        thread.join()
    line, *headers = seen[0].decode("ascii").split("\r\n")
    assert line == "GET /%C3%A4%20b?q=%C3%BC HTTP/1.1"
    assert {f"Host: {host}", "Accept-Encoding: identity", "Connection: close", "Range: bytes=5-"} <= set(headers)


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/404", "http_404"),
        ("/hang-up", "connection"),
        ("/garbage", "connection"),
        ("/truncated", "truncated"),
        ("/truncated-chunks", "truncated"),
        ("/huge", "too_many_bytes"),
        ("/huge-unannounced", "too_many_bytes"),
        ("/loop", "redirect_loop"),
        ("/to-file", "blocked_scheme"),
        ("/to-metadata", "blocked_address"),
        ("/to-user", "bad_url"),
    ],
)
def test_failures(server: BadServer, path: str, outcome: str) -> None:
    assert outcome_of(lambda: fetch_bytes(server.url(path), POLICY)) == outcome
    assert server.sent[path] < GIGABYTES / 20


@pytest.mark.parametrize("path", ["/silent", "/drip-head", "/drip-body"])
@pytest.mark.parametrize("limits", [{"timeout_s": 0.05}, {"deadline_s": 0.5}], ids=str)
def test_slow_answers(server: BadServer, path: str, limits: dict[str, float]) -> None:
    began = time.monotonic()
    assert outcome_of(lambda: fetch_bytes(server.url(path), replace(POLICY, **limits))) == "timeout"
    # The answers take a minute and more.
    assert time.monotonic() - began < 40


def test_too_many_redirects(server: BadServer) -> None:
    assert fetch_bytes(server.url("/moved"), replace(POLICY, max_redirects=1)) == JPEG
    assert outcome_of(lambda: fetch_bytes(server.url("/moved"), replace(POLICY, max_redirects=0))) == "redirect_loop"


def test_compressed_bodies_stay_compressed(server: BadServer) -> None:
    assert fetch_bytes(server.url("/gzip-bomb"), POLICY)[:2] == b"\x1f\x8b"


def test_pauses_grow_and_vary(slept: list[float]) -> None:
    policy = replace(POLICY, retries=4, backoff_s=1, max_backoff_s=4)

    def fail() -> None:
        raise FetchError("timeout", "")

    assert outcome_of(lambda: with_retries(policy, fail)) == "timeout"
    assert len(slept) == 4
    assert all(full / 2 <= pause <= full for pause, full in zip(slept, (1, 2, 4, 4), strict=True))
    assert len({pause / full for pause, full in zip(slept, (1, 2, 4, 4), strict=True)}) == 4


@pytest.mark.parametrize(
    ("outcome", "tries"),
    [("http_5xx", 3), ("connection", 3), ("truncated", 3), ("http_404", 1), ("tls", 1), ("blocked_address", 1)],
)
def test_what_is_tried_again(outcome: Any, tries: int, slept: list[float]) -> None:
    def fail() -> None:
        raise FetchError(outcome, "")

    assert outcome_of(lambda: with_retries(replace(POLICY, retries=2), fail)) == outcome
    assert len(slept) == tries - 1


@pytest.mark.parametrize(
    ("retry_after", "pauses"),
    [
        ("7", [7]),
        ("31", []),  # longer than max_backoff_s: not asked again
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True), [20]),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), [1]),
        ("soon", [1]),
        ("-5", [1]),
    ],
    ids=["seconds", "too long", "date", "past", "nonsense", "negative"],
)
def test_retry_after(
    retry_after: Any, pauses: list[float], slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = retry_after() if callable(retry_after) else retry_after

    def fail() -> None:
        raise FetchError("http_429", "", retry_after_s=http._seconds(value))

    assert outcome_of(lambda: with_retries(replace(POLICY, retries=1, max_backoff_s=30), fail)) == "http_429"
    assert slept == [pytest.approx(pause, rel=0.5 if pause == 1 else 0.1) for pause in pauses]


@pytest.mark.parametrize(
    ("url", "outcome"),
    [
        *(
            (url, "blocked_scheme")
            for url in ("file:///etc/passwd", "ftp://a.test/", "data:,x", "javascript:x", "C:\\x")
        ),
        *((url, "bad_url") for url in ("", " ", "a.jpg", "//a.test/x", "http://", "http:///x", "http://[::1/")),
        *((url, "bad_url") for url in ("http://a.test:99999/", "http://a.test:x/", "http://user@a.test/")),
        *(
            (url, "bad_url")
            for url in ("http://a b.test/", "http://a\x00.test/", "http://a%41.test/", "http://a..test/")
        ),
        *((url, "bad_url") for url in (f"http://{'a' * 64}.test/", "http://\udcff.test/", "http://a.test/\udcff")),
    ],
)
def test_what_is_no_url(url: str, outcome: str) -> None:
    assert outcome_of(lambda: fetch_bytes(url, POLICY)) == outcome


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command, *names, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BadServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        good = f"https://localhost:{server.server_port}/good"
        assert outcome_of(lambda: fetch_bytes(good, POLICY)) == "tls"
        trusting = connections._tls_context.__wrapped__()
        trusting.load_verify_locations(certificate)
        monkeypatch.setattr(connections, "_tls_context", lambda: trusting)
        assert fetch_bytes(good, POLICY) == JPEG
        # The certificate is not that of the address.
        assert outcome_of(lambda: fetch_bytes(server.url("/good", "https"), POLICY)) == "tls"
        slow = good.replace("good", "drip-body")
        assert outcome_of(lambda: fetch_bytes(slow, replace(POLICY, deadline_s=0.5))) == "timeout"
