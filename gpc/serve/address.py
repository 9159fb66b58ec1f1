"""The address of a server, and the token that belongs to its host."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from urllib.parse import parse_qsl, urlsplit

from gpc.errors import InputError, one_line, suggest

PORTS = {"ws": 80, "wss": 443}
LONGEST = 86_400.0  # seconds for a call
PRIVACY = (
    "a token is sent over wss:// or to this machine only; serve with certificate=FILE, or come through a tunnel (ssh -L) to "
    "ws://127.0.0.1"
)


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        url: the url, without parameters.
        host: name or address of the host.
        port: the port.
        secure: whether TLS proves the host and hides what is sent.
        timeout: seconds for each call, as in ws://host:port?timeout=60; None if the url has none.
    """

    url: str
    host: str
    port: int
    secure: bool
    timeout: float | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return the address that a url names.

        Raises:
            InputError: If it is no url of a server.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InputError(f"server {url!r}: {one_line(error)}; write ws://host:port") from None
        if "@" in parts.netloc:  # the url is recorded and printed
            raise InputError("the url of a server holds no name or password; give token=, or a line of ~/.netrc")
        if parts.scheme not in PORTS or not host:
            raise InputError(f"server {url!r}: write ws://host:port, or wss:// if it has a certificate")
        timeout = _timeout(url, parts.query)
        return cls(parts._replace(query="").geturl(), host, port or PORTS[parts.scheme], parts.scheme == "wss", timeout)

    @property
    def names(self) -> tuple[str, str]:
        """Names that may hold the token in ~/.netrc: of this port alone, and of the host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}", self.host

    @property
    def private(self) -> bool:
        """Whether only the host can read what is sent."""
        return self.secure or is_loopback(self.host)

    def token(self, explicit: str | None = None) -> str | None:
        """Return the token to send, None if there is none.

        In clear text any machine of a network can claim to be the host, so a line of ~/.netrc, which may be of another service
        of the host, is then not used.

        Args:
            explicit: token that belongs to the url, "" for none; None: the token of the host in ~/.netrc.

        Raises:
            InputError: If ~/.netrc is malformed, or the explicit token would cross a network in clear text.
        """
        if explicit is None:
            return (_stored(self.names) or None) if self.private else None
        if explicit and not self.private:
            raise InputError(f"server {self.url}: {PRIVACY}")
        return explicit or None


def _timeout(url: str, query: str) -> float | None:
    """Return the one parameter that a url may have.

    Raises:
        InputError: If there is another one, or the value is no number above 0.
    """
    seconds = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "timeout":
            raise InputError(f"server {url!r} has no parameter {key!r}{suggest(key, ['timeout'])}")
        try:
            seconds = float(value)
        except ValueError:
            seconds = inf
        if not 0 < seconds < LONGEST:
            raise InputError(f"server {url!r}: timeout={value}: give seconds above 0, below {LONGEST:g}")
    return seconds


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stored(names: tuple[str, ...]) -> str | None:
    """Return the password of the first of these names in $NETRC or ~/.netrc.

    A `default` line belongs to no host and is ignored.
    """
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except OSError:
        return None
    except (netrc.NetrcParseError, UnicodeDecodeError) as error:
        raise InputError(
            f"~/.netrc (or $NETRC) cannot be read: {one_line(error)}; correct it, or give token="
        ) from None
    return next((hosts[name][2] for name in names if name in hosts and name != "default"), None)
