"""From a URL to a connection: parses the URL, checks the addresses of its host, and opens a socket with a deadline.

A download may connect to addresses of the public internet only. Lists of URLs are written by strangers. A URL that
names this machine, its network or a cloud's metadata service would let them reach internal systems through the
downloader (server-side request forgery). So a host name is resolved once, all its addresses are checked, and the
connection uses a checked address. A name that resolves to another address a moment later (DNS rebinding) has no effect.
"""

import re
import socket
import ssl
import time
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from dialog_gen.download.outcomes import FetchError, fetch_errors

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Characters that are not quoted in a path or query. "%" is one, because most lists have URLs that are quoted already.
_URL_SAFE: Final = "!$%&'()*+,/:;=?@[]~"
_HOST: Final = re.compile(r"[\w.:-]+", re.ASCII)
# IPv6 addresses that embed an IPv4 address; a gateway (RFC 6052) forwards to it.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# Special addresses that `is_global` accepts, at least in some versions of Python: IETF protocol assignments (which
# include a cloud's metadata service), and the address of the host of Azure's virtual machines.
_SPECIAL: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))
# The only IPv6 addresses that are allocated for global unicast.
_UNICAST: Final = IPv6Network("2000::/3")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, checked and encoded: non-ASCII hosts by IDNA, the rest in percent form."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """The target of a URL.

        Raises FetchError: `blocked_scheme`, or `bad_url` for text that is not a URL or contains a user name.
        """
        try:
            parts = urlsplit(url.strip())
            if parts.scheme and parts.scheme not in _DEFAULT_PORTS:
                raise FetchError("blocked_scheme", f"{parts.scheme}:, not http or https")
            host = parts.hostname or ""
            if not host.isascii():
                host = host.encode("idna").decode()
            if not parts.scheme or not _HOST.fullmatch(host) or parts.username is not None:
                raise ValueError
            query = f"?{quote(parts.query, safe=_URL_SAFE)}" if parts.query else ""
            path = quote(parts.path, safe=_URL_SAFE) or "/"
            return cls(parts.scheme, host, parts.port or _DEFAULT_PORTS[parts.scheme], path + query)
        except ValueError:
            raise FetchError("bad_url", f"{url[:200]!r}") from None

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class Endpoint(NamedTuple):
    """An address to connect to, in the form of the socket module."""

    family: int
    address: tuple[Any, ...]


def resolve(host: str, port: int, *, allow_loopback: bool) -> list[Endpoint]:
    """Resolves a host and checks all its addresses.

    Raises FetchError: `blocked_address` if any address is not public (or loopback, if that is allowed), `dns` if there
    is no address, `bad_url` if `host` cannot be a host name.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise FetchError("dns", f"{host}: {error.strerror}", transient=error.errno == socket.EAI_AGAIN) from None
    except UnicodeError:
        raise FetchError("bad_url", f"{host!r} cannot be a host name") from None
    for *_, address in found:
        if not is_allowed(str(address[0]), allow_loopback=allow_loopback):
            raise FetchError("blocked_address", f"{host} is {address[0]}")
    return [Endpoint(family, address) for family, _, _, _, address in found]


def is_allowed(address: str, *, allow_loopback: bool = False) -> bool:
    """Whether a numeric address is public, or is a loopback address while `allow_loopback` is set."""
    ip = _unwrapped(ip_address(address))
    if ip.is_loopback:
        return allow_loopback
    if isinstance(ip, IPv6Address):
        return ip.is_global and ip in _UNICAST
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in _SPECIAL))


def _unwrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


class TimedSocket(socket.socket):
    """A socket whose calls end at the request's deadline, however slowly an answer arrives."""

    timeout_s: float = 0
    deadline: float | None = None

    def limit(self, timeout_s: float, deadline: float | None) -> None:
        """Sets the longest single wait in seconds, and the time (of `time.monotonic`) at which all waiting ends."""
        self.timeout_s = timeout_s
        self.deadline = deadline
        self._set_timeout()

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Like `socket.recv_into`. Raises TimeoutError after the limit."""
        self._set_timeout()
        return super().recv_into(buffer, nbytes or 0, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Like `socket.sendall`. Raises TimeoutError after the limit."""
        self._set_timeout()
        super().sendall(data, flags)

    def _set_timeout(self) -> None:
        left_s = self.timeout_s
        if self.deadline is not None:
            left_s = min(left_s, self.deadline - time.monotonic())
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        # `settimeout` is a system call, which is avoided while the deadline is far away.
        if left_s != self.gettimeout():
            self.settimeout(left_s)


class _TLSSocket(TimedSocket, ssl.SSLSocket):
    pass


@cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.sslsocket_class = _TLSSocket
    return context


def connect(target: Target, *, allow_loopback: bool, timeout_s: float, deadline: float | None) -> TimedSocket:
    """Connects to the first address of a host that answers; the connection is encrypted for https.

    `timeout_s` is the longest single wait in seconds, `deadline` the time (of `time.monotonic`) when all waiting ends.

    Raises FetchError: `blocked_address`, `dns`, `bad_url`, `connection`, `timeout` or `tls`.
    """
    endpoints = resolve(target.host, target.port, allow_loopback=allow_loopback)
    with fetch_errors():
        for number, endpoint in enumerate(endpoints, 1):
            sock = TimedSocket(endpoint.family, socket.SOCK_STREAM)
            try:
                sock.limit(timeout_s, deadline)
                sock.connect(endpoint.address)
                return _encrypted(sock, target.host) if target.scheme == "https" else sock
            except BaseException as error:
                sock.close()
                if number == len(endpoints) or not isinstance(error, OSError):
                    raise
    raise FetchError("dns", f"{target.host} has no address")


def _encrypted(sock: TimedSocket, host: str) -> TimedSocket:
    wrapped = _tls_context().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    assert isinstance(wrapped, _TLSSocket)  # noqa: S101
    try:
        wrapped.limit(sock.timeout_s, sock.deadline)
        wrapped.do_handshake()
    except BaseException:
        wrapped.close()
        raise
    return wrapped
