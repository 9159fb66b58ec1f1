"""A policy, or a composition, for robot clients of openpi's protocol.

This module holds the sockets: `Session` answers messages, `InferenceThread` computes. One event loop serves all clients and
computes nothing, so that no client waits for another slow client or for the policy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from gpc.errors import GpcError, InputError
from gpc.inference.device import DeviceLike, as_device
from gpc.inference.native import Native, resolved
from gpc.inference.settings import Sampling
from gpc.inference.threads import torch_threads
from gpc.policy.spec import Policy
from gpc.serve.batching import InferenceThread
from gpc.serve.codec import pack, unpack
from gpc.serve.listener import Access, Listener
from gpc.serve.metadata import policy_metadata
from gpc.serve.session import Session

LOG = logging.getLogger(__name__)


class PolicyServer(Listener):
    """Serves a policy to clients, each of which has a session."""

    def __init__(
        self, inference: InferenceThread, access: Access, metadata: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        """Prepare the server; `run` listens.

        Args:
            inference: thread that computes.
            access: where to listen, and which clients to accept.
            metadata: further metadata for clients.
            seed: the noise of the k-th client has the seed `seed` + k.
        """
        super().__init__(access)
        self.inference, self.seed = inference, seed
        self.metadata = policy_metadata(inference.policy) | dict(metadata or {})
        self.sessions = 0

    @property
    def alive(self) -> bool:
        """Whether the thread that computes still runs."""
        return self.inference.alive

    async def exchange(self, connection: ServerConnection) -> None:
        """Send the metadata, then answer each message."""
        session = Session(self.inference, self.seed + self.sessions)
        self.sessions += 1
        await self.send(connection, pack(self.metadata | {"seed": session.seed}))
        async for frame in connection:
            start = time.perf_counter()
            try:
                await self.send(connection, await _reply(session, frame))
            except GpcError as error:
                await self.send(connection, str(error))
            except ConnectionClosed:
                raise
            except Exception:
                LOG.exception("a client's message failed")
                await self.send(connection, "internal error; see the server's log")
                await connection.close(CloseCode.INTERNAL_ERROR)
            session.total_ms = 1000 * (time.perf_counter() - start)


def serve_policy(
    policy: Policy,
    sampling: Sampling | Native,
    access: Access | None = None,
    *,
    seed: int = 0,
    max_batch: int = 256,
    reproducible: bool = False,
    device: DeviceLike = "auto",
    metadata: Mapping[str, Any] | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a policy until the process is interrupted or terminated.

    The signals are SIGINT and SIGTERM. Must be called in the main thread. torch's number of threads is changed while it serves.

    Args:
        policy: the policy, or a composition.
        sampling: settings of the sampler; "native" for those of the policies' checkpoints.
        access: where to listen, and which clients to accept; by default this machine alone, on port 8000.
        seed: the noise of the k-th client has the seed `seed` + k.
        max_batch: largest number of chunks in a batch.
        reproducible: whether chunks are bitwise those of `gpc evaluate`, at 2 to 4 times the cost for one client.
        device: where the networks compute (docs/gpu.md).
        metadata: further metadata for clients.
        ready: is called with the address, once the server listens.

    Raises:
        InputError: If the policy and the sampler do not fit, the device is not here, or the server cannot listen there.
    """
    where = as_device(device)
    with torch_threads(1):  # the thread that samples chunks takes more
        inference = InferenceThread(policy, resolved(sampling, [policy]), max_batch, reproducible, where)
        try:
            server = PolicyServer(inference, access or Access(), metadata, seed)
            asyncio.run(server.run_until_signal(ready))
        finally:
            inference.close()


async def _reply(session: Session, frame: bytes | str) -> bytes:
    if isinstance(frame, str):
        raise InputError("message is text; send a binary frame of msgpack")
    return pack(await session.answer(unpack(frame)))
