"""What a URL asks for: host, port and path, in the form in which they are sent."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from dialog_gen.download.errors import FetchError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# What may stand in a path or query as it is; "%" because most lists hold URLs that are quoted already.
_URL_SAFE: Final = "!$%&'()*+,/:;=?@[]~"
_HOST: Final = re.compile(r"[\w.:-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, checked and encoded: non-ASCII hosts by IDNA, the rest in percent form."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Raises FetchError: `blocked_scheme`, or `bad_url` for what is no URL or holds a user name."""
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
