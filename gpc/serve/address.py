"""The address of a policy server, and the token that belongs to its host."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from gpc.errors import InputError, one_line

PORTS = {"ws": 80, "wss": 443}
PRIVACY = (
    "a token is sent over wss:// or to this machine only; serve with certificate=FILE, or come through a tunnel (ssh -L) to "
    "ws://127.0.0.1"
)


@dataclass(frozen=True)
class Address:
    """Where a policy server listens; `secure` with TLS, which proves the host and hides what is sent."""

    url: str
    host: str
    port: int
    secure: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """Return the address that a url names; raises InputError if it is no url of a policy server."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InputError(f"policy server {url!r}: {one_line(error)}; write ws://host:port") from None
        if "@" in parts.netloc:  # the url is recorded and printed
            raise InputError("the url of a policy server holds no name or password; give token=, or a line of ~/.netrc")
        if parts.scheme not in PORTS or not host:
            raise InputError(f"policy server {url!r}: write ws://host:port, or wss:// if it has a certificate")
        return cls(url, host, port or PORTS[parts.scheme], parts.scheme == "wss")

    @property
    def names(self) -> tuple[str, str]:
        """The names under which ~/.netrc may hold the token: of this port alone, and of the host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}", self.host

    @property
    def private(self) -> bool:
        """Whether only the host can read what is sent."""
        return self.secure or is_loopback(self.host)

    def token(self, own: str | None = None) -> str | None:
        """Return the token to send: `own`, given together with the url, else the host's in ~/.netrc; None if neither has one.

        In clear text any machine of a network can claim to be the host, so a line of ~/.netrc, which may be of another service
        of the host, is then not used.

        Raises:
            InputError: ~/.netrc is malformed, or `own` would cross a network in clear text.
        """
        if own is None:
            return (_stored(self.names) or None) if self.private else None
        if own and not self.private:
            raise InputError(f"policy server {self.url}: {PRIVACY}")
        return own or None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stored(names: tuple[str, ...]) -> str | None:
    """The password of the first of these names in the file NETRC, by default ~/.netrc; its `default` is of no host."""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except OSError:
        return None
    except (netrc.NetrcParseError, UnicodeDecodeError) as error:
        raise InputError(
            f"~/.netrc (or $NETRC) cannot be read: {one_line(error)}; correct it, or give token="
        ) from None
    return next((known[name][2] for name in names if name in known and name != "default"), None)
