"""The environment of one client: `python -P -m gpc.serve.env_session FD` answers its messages over an inherited socket.

The process is the server's child. The server hands messages on without reading them; they are not trusted, and are checked
here. Only the first two things that arrive, the search path and the environment, are the server's own.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np

from gpc.errors import GpcError, InputError, one_line, type_and_text
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.env import Environment, make_env
from gpc.serve.codec import RESET, pack, read_int, unpack
from gpc.serve.env_messages import (
    EXECUTE,
    FRAMES,
    MAKE,
    NAMES,
    OBSERVE,
    RENDER,
    SUCCESS,
    WANTED,
    described,
    sent,
)
from gpc.types import Array

FRAME_ANSWER, TEXT_ANSWER = b"\0", b"\1"
"""First byte of an answer: what follows is a frame, or the text of an error."""


class EnvSession:
    """Answers the messages of one client."""

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        self._env: Environment | None = None

    def answer(self, message: Any) -> dict[str, Any]:
        """Return the answer to one message.

        Raises:
            InputError: If it is none of `gpc.serve.env_messages`.
            RunError: If the simulator cannot execute it.
        """
        if not isinstance(message, dict):
            raise InputError(f"message is a {type(message).__name__}, no map")
        if MAKE in message:
            return self._make(message)
        if self._env is None:
            raise InputError(f"the first message is {MAKE!r}")
        if RESET in message:
            frame, info = self._env.reset(seed=read_int(message, RESET))
            return {FRAMES: [frame], SUCCESS: info.get("is_success")}
        if EXECUTE in message:
            return self._execute(self._env, message)
        if OBSERVE in message:
            return {FRAMES: [self._env.observe(self._keys(message[OBSERVE]))]}
        if RENDER in message:
            return {RENDER: np.asarray(self._env.render())}
        raise InputError(f"message has none of {', '.join((MAKE, RESET, EXECUTE, OBSERVE, RENDER))}")

    def _make(self, message: Mapping[Any, Any]) -> dict[str, Any]:
        """Build the environment with the observations that the client's policies read."""
        keys, steps = message[MAKE], message.get("max_steps")
        wanted = None if keys is None else tuple(_names(keys))
        spec = self._spec if steps is None else replace(self._spec, max_steps=steps)
        if self._env is not None:
            self._env.close()
        self._env = make_env(spec, wanted)
        return described(self._env)

    def _execute(self, env: Environment, message: Mapping[Any, Any]) -> dict[str, Any]:
        actions: Any = message[EXECUTE]
        shape = cast(tuple[int], env.action_space.shape)
        right = isinstance(actions, np.ndarray) and actions.dtype.kind == "f" and actions.shape[1:] == shape
        if not right or not len(actions) or not np.isfinite(actions).all():
            raise InputError(
                f"{EXECUTE!r} is no array (steps, {shape[0]}) of finite numbers: look at the policy's output"
            )
        wanted: Any = message.get(WANTED)
        if not isinstance(wanted, list):
            raise InputError(f"{WANTED!r} is no list of lists of keys")
        return sent(env.execute(cast(Array, actions), [self._keys(keys) for keys in wanted]))

    def _keys(self, keys: Any) -> list[str]:
        """Return keys of observations, checked."""
        assert self._env is not None
        known: Any = self._env.observation_space
        unknown = [key for key in _names(keys) if key not in known.spaces]
        if unknown:
            raise InputError(f"observations {unknown}: choose from {', '.join(known.spaces)}")
        return list(keys)


def _names(keys: Any) -> list[str]:
    if not isinstance(keys, list) or len(keys) > NAMES or not all(isinstance(key, str) for key in keys):
        raise InputError(f"keys are no list of at most {NAMES} names")
    return keys


def serve(connection: Connection) -> None:
    """Answer messages until the server closes the socket."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        sys.path[:] = connection.recv()  # before the environment, whose class is imported from there
        session = EnvSession(connection.recv())
        while True:
            connection.send_bytes(_reply(session, connection.recv_bytes()))


def _reply(session: EnvSession, frame: bytes) -> bytes:
    try:
        return FRAME_ANSWER + pack(session.answer(unpack(frame)))
    except GpcError as error:
        return TEXT_ANSWER + one_line(error).encode(errors="replace")
    except Exception as error:  # of the simulator; the client ends the episode
        return TEXT_ANSWER + type_and_text(error).encode(errors="replace")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    serve(Connection(int(sys.argv[1])))
