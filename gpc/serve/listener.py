"""A websocket server: where it listens, which clients it accepts, and one task for each."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import signal
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from gpc.errors import InputError
from gpc.schema import check_fields
from gpc.serve.address import is_loopback
from gpc.serve.codec import FRAME


@dataclass(frozen=True)
class Access:
    """Where a server listens, and which clients it accepts.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0: any that is free.
        token: token that clients must send; None: none.
        certificate: PEM file of a TLS certificate.
        key: PEM file of its key, if the certificate's file does not hold it.
        insecure: whether other machines may connect without a token.
        max_clients: largest number of clients.
        timeout: seconds for a client to take an answer.

    Raises:
        InputError: If other machines reach the address and there is no token, or a value is out of bounds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    certificate: str | None = None
    key: str | None = None
    insecure: bool = False
    max_clients: int = 16
    timeout: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self, "")
        if not (self.local or self.token or self.insecure):
            raise InputError(
                f"host={self.host} lets other machines connect; set a token (GPC_TOKEN), or insecure=true if all are trusted"
            )
        if self.key and not self.certificate:
            raise InputError("key is set without a certificate; give both, or a certificate file that holds its key")
        if not 0 <= self.port < 2**16 or self.max_clients < 1 or self.timeout <= 0:
            numbers = f"port={self.port}, max_clients={self.max_clients}, timeout={self.timeout:g}"
            raise InputError(f"{numbers}: port is 0 to 65535, the others are positive")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the address."""
        return is_loopback(self.host)

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context of the certificate, None without one.

        Raises:
            InputError: If the files cannot be read.
        """
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"certificate={self.certificate}, key={self.key} cannot be read ({error})") from None
        return context

    def accepts(self, request: Request) -> bool:
        """Return whether a request has the token, in the same time for a wrong one."""
        if self.token is None:
            return True
        headers = request.headers.get_all("Authorization")
        return len(headers) == 1 and hmac.compare_digest(
            headers[0].encode(errors="surrogateescape"), f"Api-Key {self.token}".encode()
        )


class Listener(ABC):
    """Listens, and talks with each client in a task of its own.

    Args:
        access: where to listen, and which clients to accept.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self.connections: set[ServerConnection] = set()

    @property
    def alive(self) -> bool:
        """Whether the server can answer."""
        return True

    @abstractmethod
    async def exchange(self, connection: ServerConnection) -> None:
        """Talk with one client until it closes; cancelled if it is gone."""

    async def run_until_signal(self, ready: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM, in the main thread; see `run`."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await self.run(ready, stop)

    async def run(self, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until `stop` is set.

        Args:
            ready: is called with the address, once the server listens.
            stop: event that ends the server.

        Raises:
            InputError: If the server cannot listen there.
        """
        logging.getLogger("websockets.server").setLevel(
            logging.CRITICAL
        )  # do not log failed handshakes of unknown clients
        access, tls = self.access, self.access.tls()
        try:
            server = await serve(
                self._handle_client, access.host, access.port, ssl=tls, process_request=self._authorize,
                origins=[None], compression=None, max_size=FRAME, max_queue=1, close_timeout=2,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"host={access.host} port={access.port}: {error.strerror or error}") from None
        async with server:
            ready(_address(server, "wss" if tls else "ws"))
            await stop.wait()

    def _authorize(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a health check, or refuse a client; `origins` refuses browsers."""
        if request.path == "/healthz":
            if self.alive:
                return connection.respond(HTTPStatus.OK, "OK\n")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the thread that computes has died\n")
        if not self.access.accepts(request):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong token\n")
        if len(self.connections) >= self.access.max_clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"max_clients={self.access.max_clients} are connected\n"
            )
        return None

    async def _handle_client(self, connection: ServerConnection) -> None:
        """Serve one client until either side closes; then its pending work is cancelled."""
        self.connections.add(connection)
        exchange = asyncio.create_task(self._exchange_until_closed(connection))
        closed = asyncio.create_task(connection.wait_closed())
        try:
            await asyncio.wait({exchange, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            exchange.cancel()
            closed.cancel()
            self.connections.discard(connection)

    async def _exchange_until_closed(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self.exchange(connection)

    async def send(self, connection: ServerConnection, frame: bytes | str) -> None:
        """Send a frame, or drop a client that does not take it in time."""
        try:
            async with asyncio.timeout(self.access.timeout):
                await connection.send(frame)
        except TimeoutError:
            connection.transport.abort()


def _address(server: Server, scheme: str) -> str:
    host, port = next(iter(server.sockets)).getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
