"""Which addresses a download may connect to: those of the public internet.

A list of URLs is written by strangers. One that names this machine, its network or a cloud's metadata service would
turn the downloader into their hand inside (server-side request forgery), so a name is resolved once, all its addresses
are checked, and the connection goes to the checked address itself: a name that resolves to another address a moment
later (DNS rebinding) gains nothing.
"""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple

from dialog_gen.download.errors import FetchError

# Addresses with an IPv4 address inside, which a gateway (RFC 6052, RFC 3056) or the kernel itself sends on to it.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# Special, but global to some versions of the ipaddress module or by its number alone: protocol assignments (a cloud's
# metadata service among them), and the address at which Azure's machines reach their host.
_SPECIAL: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))
# The only part of IPv6 that is given out for global unicast.
_UNICAST: Final = IPv6Network("2000::/3")


class Endpoint(NamedTuple):
    """An address to connect to, as the socket module wants it."""

    family: int
    address: tuple[Any, ...]


def resolve(host: str, port: int, *, allow_loopback: bool) -> list[Endpoint]:
    """The addresses of a host, all of them checked.

    Raises FetchError: `blocked_address` if any of them is not public (or loopback, where that is allowed), `dns` if
    there is none, `bad_url` if it cannot be a host's name.
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
    """Whether a numeric address belongs to the public internet, or is loopback and that is allowed."""
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
