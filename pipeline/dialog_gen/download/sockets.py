"""Connections to addresses that were checked, with a deadline for everything that is waited for on them."""

import socket
import ssl
import time
from functools import cache
from typing import Any

from dialog_gen.download.addresses import resolve
from dialog_gen.download.errors import FetchError, classed
from dialog_gen.download.target import Target


class TimedSocket(socket.socket):
    """A socket whose waits end with the request's deadline, however slowly an answer drips in."""

    timeout_s: float = 0
    deadline: float | None = None

    def limit(self, timeout_s: float, deadline: float | None) -> None:
        """Sets the longest wait, and the time (of `time.monotonic`) by which all must be over."""
        self.timeout_s = timeout_s
        self.deadline = deadline
        self._arm()

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As of any socket."""
        self._arm()
        return super().recv_into(buffer, nbytes or 0, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As of any socket."""
        self._arm()
        super().sendall(data, flags)

    def _arm(self) -> None:
        left_s = self.timeout_s
        if self.deadline is not None:
            left_s = min(left_s, self.deadline - time.monotonic())
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        # A system call, which is saved as long as the deadline is far.
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
    """A connection to the first address of a host that answers, encrypted for https; see `TimedSocket.limit`.

    Raises FetchError: `blocked_address`, `dns`, `bad_url`, `connection`, `timeout` or `tls`.
    """
    endpoints = resolve(target.host, target.port, allow_loopback=allow_loopback)
    with classed():
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
