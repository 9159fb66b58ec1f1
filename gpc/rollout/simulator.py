"""The engine's end of a simulator process."""

from __future__ import annotations

import socket
import subprocess
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import cast

import cloudpickle

from gpc.errors import InputError, RunError
from gpc.rollout.env import LaneSpec
from gpc.rollout.episode import Running
from gpc.rollout.gl import visible_to
from gpc.rollout.process import environment, python, search_path
from gpc.rollout.worker import Failure, LaneResult

HALVES = 2
UNREAD = 2**15  # bytes of a message that the socket holds in any case, with a few more, while the process is at work


class Simulator:
    """A simulator process, and the episodes in its lanes."""

    def __init__(self, spec: LaneSpec, lanes: int, timeout: float, number: int) -> None:
        ours, theirs = socket.socketpair()
        command = python("-m", "gpc.rollout.worker", str(theirs.fileno()))
        self.process = subprocess.Popen(
            command,
            env=environment() | visible_to(number),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.episodes: list[Running | None] = [None] * lanes
        self.timeout, self.started, self.number = timeout, False, number
        self.due = 0  # answers
        self.seconds_left = timeout  # until the next one is late
        self.unsent: deque[bytes] = deque()
        self._write(cloudpickle.dumps(search_path()))
        self.send((spec, lanes))

    def half_of(self, lane: int) -> int:
        """Return the half of a lane; a worker of several has lanes in both."""
        return (lane + self.number) % HALVES

    def send(self, message: object) -> None:
        """Send a message, which has an answer.

        A long one waits for the answers that are due: the process may be writing one, and reads nothing meanwhile.
        """
        data = cloudpickle.dumps(message)  # unlike pickle, also what a script or notebook defines
        if not self.due:
            self.seconds_left = self.timeout
        if self.due and (self.unsent or len(data) > UNREAD):
            self.unsent.append(data)
        else:
            self._write(data)
        self.due += 1

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # the next read raises if the process died
            self.connection.send_bytes(data)

    def receive(self) -> list[LaneResult]:
        """Return the results of the commands of one message.

        Raises:
            RunError: If the process raised, died, or is late.
            InputError: If it raised that, so that another process would raise it, too.
        """
        if not self.connection.poll(0):
            raise RunError(f"the simulator did not answer within {self.timeout:g} s")
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            raise RunError(f"the simulator process died (exit code {code})") from None
        if isinstance(answer, Failure):
            raise RunError(answer.cause) if answer.again else InputError(answer.cause)
        self.started, self.seconds_left = True, self.timeout
        self.due -= 1
        if self.unsent and self.due == len(self.unsent):  # the process reads now
            self._write(self.unsent.popleft())
        return cast(list[LaneResult], answer)

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
