"""Environments for engines in other processes: each client has a simulator process of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import cloudpickle
from websockets.asyncio.server import ServerConnection

from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.gl import visible_to
from gpc.rollout.process import environment, python, search_path
from gpc.serve.codec import PROTOCOL, pack
from gpc.serve.env_messages import MAKE
from gpc.serve.env_session import FRAME_ANSWER
from gpc.serve.listener import Access, Listener

LENGTH = struct.Struct("!i")  # before each message, as multiprocessing.connection has it


class EnvProcess:
    """A simulator process, and the socket to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def started(cls, spec: EnvSpec, number: int) -> AsyncIterator[EnvProcess]:
        """Start a process, which ends with the block."""
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            *python("-m", "gpc.serve.env_session", str(theirs.fileno())),
            env=environment() | visible_to(number),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            for content in (search_path(), spec):
                cls._write(writer, cloudpickle.dumps(content))
            yield cls(reader, writer)
        finally:
            writer.close()
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def ask(self, frame: bytes) -> bytes | str:
        """Return the answer to a frame: a frame, or the text of an error.

        Raises:
            EOFError, OSError: If the process died.
        """
        self._write(self._writer, frame)
        await self._writer.drain()
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        answer = await self._reader.readexactly(length)
        return answer[1:] if answer[:1] == FRAME_ANSWER else answer[1:].decode(errors="replace")

    @staticmethod
    def _write(writer: asyncio.StreamWriter, content: bytes) -> None:
        writer.write(LENGTH.pack(len(content)) + content)


class EnvServer(Listener):
    """Serves environments of one kind.

    Args:
        spec: the environment; clients choose which observations it makes, and the length of its episodes.
        access: where to listen, and which clients to accept.
    """

    def __init__(self, spec: EnvSpec, access: Access) -> None:
        super().__init__(access)
        self.spec, self.processes = spec, 0

    async def check(self) -> None:
        """Build the environment once.

        Raises:
            InputError: If that fails.
        """
        async with EnvProcess.started(self.spec, 0) as process:
            try:
                answer = await process.ask(pack({MAKE: None}))
            except (EOFError, OSError):
                answer = f"env={self.spec.name}: its process died while it was built"
        if isinstance(answer, str):
            raise InputError(answer)

    async def exchange(self, connection: ServerConnection) -> None:
        """Hand each message to a process, and its answer back."""
        number, self.processes = self.processes, self.processes + 1
        greeting = {"server": f"gpc {version('gpc')}", "protocol": PROTOCOL, "environment": self.spec.name}
        async with EnvProcess.started(self.spec, number) as process:
            await self.send(connection, pack(greeting))
            async for frame in connection:
                if isinstance(frame, str):
                    await self.send(connection, "message is text; send a binary frame of msgpack")
                    continue
                try:
                    answer = await process.ask(frame)
                except (EOFError, OSError):
                    await self.send(connection, "the simulator process died")
                    return
                await self.send(connection, answer)


def serve_env(spec: EnvSpec, access: Access | None = None, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve environments until the process is interrupted or terminated.

    The signals are SIGINT and SIGTERM. Must be called in the main thread.

    Args:
        spec: the environment.
        access: where to listen, and which clients to accept; by default this machine alone, on port 8000.
        ready: is called with the address, once the server listens.

    Raises:
        InputError: If the environment cannot be built, or the server cannot listen there.
    """

    async def run() -> None:
        server = EnvServer(spec, access or Access())
        await server.check()
        await server.run_until_signal(ready)

    asyncio.run(run())
