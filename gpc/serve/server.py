"""`gpc serve`: a policy, or a composition, for every robot client that speaks openpi's protocol.

Sockets only: `Session` knows what messages mean, `Inference` computes. One event loop talks to all clients and computes
nothing, so that a slow client or a slow policy keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from gpc.errors import GpcError, InputError
from gpc.serve.address import is_loopback
from gpc.serve.batching import InferenceThread
from gpc.serve.codec import FRAME, pack, unpack
from gpc.serve.metadata import policy_metadata
from gpc.serve.session import Session

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Who may come in, and how: an address, what a client must show, and how many there may be.

    `timeout` is for a client to take an answer, in seconds. An address that other machines reach needs a token; `insecure`
    does without. Raises InputError where that is broken.
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
        if not (self.local or self.token or self.insecure):
            raise InputError(
                f"host={self.host} lets other machines in; set a token (GPC_TOKEN), or insecure=true where you trust them all"
            )
        if self.key and not self.certificate:
            raise InputError("key is set without a certificate; give both, or a certificate file that holds its key")
        if not 0 <= self.port < 2**16 or self.max_clients < 1 or self.timeout <= 0:
            numbers = f"port={self.port}, max_clients={self.max_clients}, timeout={self.timeout:g}"
            raise InputError(f"{numbers}: port is 0 to 65535, the others are positive")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    def tls(self) -> ssl.SSLContext | None:
        """The certificate, read; InputError where the files are none."""
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"certificate={self.certificate}, key={self.key} cannot be read ({error})") from None
        return context

    def accepts(self, request: Request) -> bool:
        """Whether a client shows the token; as long for a wrong one as for the right one."""
        if self.token is None:
            return True
        shown = request.headers.get_all("Authorization")
        return len(shown) == 1 and hmac.compare_digest(
            shown[0].encode(errors="surrogateescape"), f"Api-Key {self.token}".encode()
        )


class PolicyServer:
    """Sessions behind a door. `run` serves until it is told to stop."""

    def __init__(self, inference: InferenceThread, access: Access, facts: dict[str, Any], seed: int = 0) -> None:
        """`facts` are further metadata; the k-th client's noise has the seed `seed` + k."""
        self.inference, self.access, self.seed = inference, access, seed
        self.metadata = policy_metadata(inference.policy) | facts
        self.connections: set[ServerConnection] = set()
        self.served = 0

    async def run(self, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Listen, say where, and go on until `stop`. Raises InputError where nothing can listen there."""
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # a stranger's broken handshake is no news
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
        """Health for anybody; a place for who shows the token. No browser comes in: pages of others run in it."""
        if request.path == "/healthz":
            if self.inference.alive:
                return connection.respond(HTTPStatus.OK, "OK\n")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy's thread has died\n")
        if not self.access.accepts(request):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong token\n")
        if len(self.connections) >= self.access.max_clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"max_clients={self.access.max_clients} are here\n"
            )
        return None

    async def _handle_client(self, connection: ServerConnection) -> None:
        """Talk to one client until either side leaves; what it still waits for is then not computed."""
        self.connections.add(connection)
        session = Session(self.inference, self.seed + self.served)
        self.served += 1
        talk = asyncio.create_task(self._exchange(connection, session))
        gone = asyncio.create_task(connection.wait_closed())
        try:
            await asyncio.wait({talk, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            talk.cancel()
            gone.cancel()
            self.connections.discard(connection)

    async def _exchange(self, connection: ServerConnection, session: Session) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._send(connection, pack(self.metadata | {"seed": session.seed}))
            async for frame in connection:
                began = time.perf_counter()
                try:
                    await self._send(connection, await _reply(session, frame))
                except GpcError as error:
                    await self._send(connection, str(error))
                except ConnectionClosed:
                    raise
                except Exception:
                    LOG.exception("a client's message failed")
                    await self._send(connection, "internal error; the server's log says more")
                    await connection.close(CloseCode.INTERNAL_ERROR)
                session.total_ms = 1000 * (time.perf_counter() - began)

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        """Send, or hang up on a client that takes nothing."""
        try:
            async with asyncio.timeout(self.access.timeout):
                await connection.send(frame)
        except TimeoutError:
            connection.transport.abort()


async def _reply(session: Session, frame: bytes | str) -> bytes:
    if isinstance(frame, str):
        raise InputError("message is text; send a binary frame of msgpack")
    return pack(await session.answer(unpack(frame)))


def _address(server: Server, scheme: str) -> str:
    host, port = next(iter(server.sockets)).getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
