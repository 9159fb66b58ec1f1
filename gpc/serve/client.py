"""The client of `gpc serve`: numpy, msgpack and websockets, without torch."""

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
TIMEOUT = 10.0  # seconds for a call
IN_DEPLOY = "in gpc deploy watchdog.max_age"


class Client:
    """A connection to a server of gpc or openpi, one call at a time.

    A call that does not end within `timeout` seconds raises RunError. Its connection is then closed, so that a late answer is
    never taken for that of the next call, which opens another connection.

    Attributes:
        kind: what errors call the server.
        seconds: the timeout if none is given.
        url: url of the server.
        timeout: seconds for each call.
        metadata: what the server sent when the client connected.
    """

    kind, seconds = "policy server", TIMEOUT

    def __init__(self, url: str, token: str | None = None, timeout: float | None = None) -> None:
        """Connect.

        Args:
            url: ws://host:port, or wss://, and ?timeout=60 for the seconds for each call; SSL_CERT_FILE names a certificate
                that no authority signed.
            token: token that this server requires; None: the password of its host in ~/.netrc, "": none.
            timeout: seconds for each call; None: those of the url, by default `seconds`.

        Raises:
            InputError: If the url is malformed or has another timeout, the token is wrong, or it would cross a network in
                clear text.
            RunError: If no server answers.
        """
        self._address = Address.parse(url)
        self._token = self._address.token(token)
        if timeout is not None and self._address.timeout is not None:
            raise InputError(
                f"{self.kind} {url}: its limit is timeout={timeout:g}, {IN_DEPLOY}; leave it out of the url"
            )
        self.url, self.timeout = self._address.url, timeout or self._address.timeout or self.seconds
        self._limit = (
            f"{self.url}?timeout={6 * self.seconds:g} waits longer"
            if timeout is None
            else f"its limit is timeout=, {IN_DEPLOY}"
        )
        self._lock = Lock()
        self._connection: ClientConnection | None = None
        self.metadata: dict[str, Any] = {}
        self._connect(time.monotonic() + self.timeout)

    def call(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and return the answer.

        Raises:
            RunError: If the server refuses the message, or does not answer in time.
        """
        frame = pack(message)
        with self._lock:
            end = time.monotonic() + self.timeout
            try:
                connection = self._connect(end)
                with suppress(OSError):  # it is closed: `send` has the reason
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _send_timeout(end))
                connection.send(frame)
                answer = connection.recv(_remaining(end))
            except TimeoutError:
                self._drop()
                raise self._late() from None
            except (OSError, WebSocketException) as error:
                self._drop()
                raise RunError(f"{self.kind} {self.url} is gone ({one_line(error)})") from None
            except BaseException:  # Ctrl-C during a call: its answer would be taken for the next one's
                self._drop()
                raise
        if isinstance(answer, str):
            raise RunError(f"{self.kind} {self.url}: {one_line(answer)}")
        return _map(answer, f"{self.kind} {self.url}")

    def read_array(
        self, reply: Mapping[str, Any], key: str, shape: tuple[int, ...]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return an array of finite numbers of a reply.

        Raises:
            RunError: If the reply has none of this shape.
        """
        return self._reading(lambda: read_array(reply, key, [shape]))

    def read_int(self, reply: Mapping[str, Any], key: str) -> int:
        """Return a whole number of a reply.

        Raises:
            RunError: If the reply has none.
        """
        return self._reading(lambda: read_int(reply, key))

    def _reading(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except InputError as error:
            raise RunError(f"{self.kind} {self.url} answered with something else: {one_line(error)}") from None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, end: float) -> ClientConnection:
        """Return the connection, opened by the time `end` if there is none.

        Raises:
            InputError: If the server refuses the connection.
            RunError: If no server answers, or it serves another policy than before.
        """
        if self._connection is not None:
            return self._connection
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
        try:
            # with a socket of ours the library follows no redirect to another host
            line = socket.create_connection((self._address.host, self._address.port), _remaining(end))
            self._connection = connect(
                self.url, sock=line, additional_headers=headers, compression=None, max_size=FRAME, proxy=None,
                open_timeout=_remaining(end), close_timeout=1, ping_interval=None,  # each call has its own limit
            ).__enter__()  # fmt: skip
            metadata = _map(self._connection.recv(_remaining(end)), f"{self.kind} {self.url}")
        except InvalidStatus as error:
            raise self._refusal(error) from None
        except TimeoutError:
            self._drop()
            raise self._late() from None
        except (OSError, EOFError, WebSocketException) as error:
            self._drop()
            raise RunError(f"{self.kind} {self.url} does not answer ({one_line(error)}); is it running?") from None
        except ValueError as error:  # how the library refuses a redirect
            if not isinstance(error.__context__, InvalidStatus):
                self._drop()
                raise
            raise self._refusal(error.__context__) from None
        except BaseException:  # malformed metadata: the next call opens another connection
            self._drop()
            raise
        previous, fingerprint = self.metadata.get("fingerprint"), metadata.get("fingerprint")
        if isinstance(previous, str) and not (isinstance(fingerprint, str) and fingerprint == previous):
            self._drop()
            name = one_line(metadata.get("policy"), 80)
            raise RunError(f"{self.kind} {self.url} serves another policy than before: {name}")
        self.metadata = metadata
        return self._connection

    def _late(self) -> RunError:
        return RunError(f"{self.kind} {self.url} gave no answer within {self.timeout:g} s; {self._limit}")

    def _refusal(self, error: InvalidStatus) -> InputError:
        """Return the error for an answer that opens no connection."""
        status, body = error.response.status_code, one_line((error.response.body or b"").decode(errors="replace"))
        if status == HTTPStatus.UNAUTHORIZED:
            sent = "refuses the token" if self._token else "requires a token"
            fix = f"give token=, or 'machine {self._address.host} login gpc password TOKEN' in ~/.netrc"
            fix = fix if self._address.private else PRIVACY
            return InputError(f"{self.kind} {self.url} {sent}; {fix}")
        if 300 <= status < 400:
            return InputError(
                f"{self.kind} {self.url} redirects, which is not followed; give the url that it serves on"
            )
        return InputError(f"{self.kind} {self.url} refuses the connection ({status}): {body}")

    def _drop(self) -> None:
        """Close the socket without a handshake, which a frozen server would not answer."""
        if self._connection is not None:
            self._connection.close_socket()
            self._connection = None


class RemotePolicy(Client):
    """A policy on a server of gpc or openpi, one call at a time.

    `infer(observation)["actions"]` is (steps, action), the first of them for now.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float | None = None) -> None:
        """Connect, see `Client`."""
        super().__init__(url, token, timeout)
        openpi = "seed" not in self.metadata
        self._seed = None if openpi else self._reading(lambda: read_int(self.metadata, "seed"))
        self._chunks = 0

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the server's answer to an observation.

        Args:
            observation: key -> array of the key's shape, or (n_obs_steps, *shape); "prompt" -> instruction in words.

        Raises:
            RunError: If the server refuses the observation, or does not answer in time.
        """
        noise = {} if self._seed is None else {SEED: self._seed, CHUNK: self._chunks}
        reply = self.call({**noise, **observation})
        self._chunks += 1
        return reply

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: count chunks from 0, with the noise of a seed."""
        self._seed, self._chunks = self._seed if seed is None else seed, 0


def _remaining(end: float) -> float:
    """Return the seconds until `end`, at least 0.001: 0 is no limit."""
    return max(0.001, end - time.monotonic())


def _send_timeout(end: float) -> bytes:
    """Return the socket option that limits a write: buffers of a frozen server fill."""
    seconds, rest = divmod(_remaining(end), 1)
    return struct.pack("ll", int(seconds), int(rest * 1e6))


def _map(answer: Any, server: str) -> dict[str, Any]:
    """Return the map in a frame of a server."""
    try:
        message = unpack(answer) if isinstance(answer, bytes) else None
    except InputError as error:
        raise RunError(f"{server}: {one_line(error)}") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise RunError(f"{server} answered with something else than a map")
    return message
