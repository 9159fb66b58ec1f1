"""The robot's side of `gpc serve`: numpy, msgpack and websockets, without torch."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from gpc.errors import InputError, RunError, one_line
from gpc.serve.address import PRIVACY, Address
from gpc.serve.codec import CHUNK, FRAME, SEED, pack, read_array, read_int, unpack

T = TypeVar("T")


class RemotePolicy:
    """A policy on a server, one call at a time: `infer(observation)["actions"]` (steps, action), the first of them for now.

    Every call ends within `timeout` seconds, or raises RunError that names the server. The connection is then given up, so
    that a late answer is never taken for the next one's; the next call opens another. A server of openpi works, too.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 10.0) -> None:
        """Connect.

        Args:
            url: ws://host:port, or wss://; SSL_CERT_FILE names a certificate that no authority signed.
            token: what this server requires; None: the password of its host in ~/.netrc, "": none.
            timeout: seconds for each call.

        Raises:
            InputError: the url is none, the token is wrong, or it would cross a network in clear text.
            RunError: no server answers.
        """
        self._address = Address.of(url)
        self._token = self._address.token(token)
        self.url, self.timeout = url, timeout
        self._lock = Lock()
        self._connection: ClientConnection | None = None
        self.metadata: dict[str, Any] = {}
        self._connected(time.monotonic() + timeout)
        openpi = "seed" not in self.metadata
        self._seed = None if openpi else self._reading(lambda: read_int(self.metadata, "seed"))
        self._chunks = 0

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to an observation: key -> array of the key's shape, or (n_obs_steps, *shape); `prompt` in words."""
        noise = {} if self._seed is None else {SEED: self._seed, CHUNK: self._chunks}
        reply = self.call({**noise, **observation})
        self._chunks += 1
        return reply

    def reset(self, seed: int | None = None) -> None:
        """An episode begins: its chunks are counted from 0, their noise is that of `seed` (by default the server's)."""
        self._seed, self._chunks = self._seed if seed is None else seed, 0

    def call(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message and its answer; RunError with the server's words where it refuses."""
        frame = pack(message)
        with self._lock:
            end = time.monotonic() + self.timeout
            try:
                connection = self._connected(end)
                with suppress(OSError):  # it is closed: `send` has the reason
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _limit(end))
                connection.send(frame)
                answer = connection.recv(_left(end))
            except TimeoutError:
                self._give_up()
                raise RunError(f"policy server {self.url} gave no answer within {self.timeout:g} s") from None
            except (OSError, WebSocketException) as error:
                self._give_up()
                raise RunError(f"policy server {self.url} is gone ({one_line(error)})") from None
            except BaseException:  # Ctrl-C amid a call: the answer will come when nobody wants it
                self._give_up()
                raise
        if isinstance(answer, str):
            raise RunError(f"policy server {self.url}: {one_line(answer)}")
        return _map(answer, self.url)

    def read_array(
        self, reply: Mapping[str, Any], key: str, shape: tuple[int, ...]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Read an array of finite numbers from a reply; RunError, naming the server, if it has none of this shape."""
        return self._reading(lambda: read_array(reply, key, [shape]))

    def read_int(self, reply: Mapping[str, Any], key: str) -> int:
        """Read a whole number from a reply; RunError, naming the server, if it has none."""
        return self._reading(lambda: read_int(reply, key))

    def _reading(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except InputError as error:
            raise RunError(f"policy server {self.url} answered with something else: {one_line(error)}") from None

    def close(self) -> None:
        """Say goodbye."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self, end: float) -> ClientConnection:
        """The connection, opened anew by the time `end` if there is none; a server that serves another policy by now is refused."""
        if self._connection is not None:
            return self._connection
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
        try:
            # with a socket of ours the library follows no redirect to another host
            line = socket.create_connection((self._address.host, self._address.port), _left(end))
            self._connection = connect(
                self.url, sock=line, additional_headers=headers, compression=None, max_size=FRAME, proxy=None,
                open_timeout=_left(end), close_timeout=1,
            ).__enter__()  # fmt: skip
            metadata = _map(self._connection.recv(_left(end)), self.url)
        except InvalidStatus as error:
            raise self._refusal(error) from None
        except (OSError, EOFError, WebSocketException) as error:
            self._give_up()
            raise RunError(f"policy server {self.url} does not answer ({one_line(error)}); is it running?") from None
        except ValueError as error:  # how the library refuses a redirect
            if not isinstance(error.__context__, InvalidStatus):
                self._give_up()
                raise
            raise self._refusal(error.__context__) from None
        except BaseException:  # a metadata frame that is none: the next call begins anew
            self._give_up()
            raise
        before, now = (found.get("fingerprint") for found in (self.metadata, metadata))
        if isinstance(before, str) and not (isinstance(now, str) and now == before):
            self._give_up()
            name = one_line(metadata.get("policy"), 80)
            raise RunError(f"policy server {self.url} serves another policy than before: {name}")
        self.metadata = metadata
        return self._connection

    def _refusal(self, error: InvalidStatus) -> InputError:
        """Return the error for an answer that opens no connection."""
        status, body = error.response.status_code, one_line((error.response.body or b"").decode(errors="replace"))
        if status == HTTPStatus.UNAUTHORIZED:
            sent = "refuses the token" if self._token else "requires a token"
            fix = f"give token=, or 'machine {self._address.host} login gpc password TOKEN' in ~/.netrc"
            fix = fix if self._address.private else PRIVACY
            return InputError(f"policy server {self.url} {sent}; {fix}")
        if 300 <= status < 400:
            return InputError(
                f"policy server {self.url} redirects, which is not followed; give the url that it serves on"
            )
        return InputError(f"policy server {self.url} refuses the connection ({status}): {body}")

    def _give_up(self) -> None:
        """Drop the connection without a word: who gave no answer says no goodbye."""
        if self._connection is not None:
            self._connection.close_socket()
            self._connection = None


def _left(end: float) -> float:
    """Return the seconds until `end`, at least 0.001: 0 is no limit."""
    return max(0.001, end - time.monotonic())


def _limit(end: float) -> bytes:
    """Return the limit of a socket for writing, too: a frozen server's buffers fill up."""
    seconds, rest = divmod(_left(end), 1)
    return struct.pack("ll", int(seconds), int(rest * 1e6))


def _map(answer: Any, url: str) -> dict[str, Any]:
    try:
        message = unpack(answer) if isinstance(answer, bytes) else None
    except InputError as error:
        raise RunError(f"policy server {url}: {one_line(error)}") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise RunError(f"policy server {url} answered with something else than a map")
    return message
