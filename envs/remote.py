"""A simulator in another process, with other packages or on another machine: what `gpc serve-env` serves there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces

from gpc.errors import InputError, RunError, one_line
from gpc.rollout.env import Environment, Executed
from gpc.schema import convert
from gpc.serve.client import Client
from gpc.serve.codec import PROTOCOL, RESET
from gpc.serve.env_messages import (
    EXECUTE,
    MAKE,
    OBSERVE,
    RENDER,
    SUCCESS,
    WANTED,
    ServedEnv,
    read_executed,
    read_frames,
    read_truth,
)
from gpc.types import Array, Frame

T = TypeVar("T")


class EnvClient(Client):
    """A connection to `gpc serve-env`."""

    kind, seconds = "environment server", 120.0  # a simulator is built in the first call


class Remote(Environment):
    """An environment behind a socket.

    Observations, rewards and ends are those of the simulator there, bit for bit. A chunk of actions is one message. If the
    connection or the simulator is lost, the next call raises; the engine then begins the episode again on another
    connection.

    Args:
        address: ws://HOST:PORT, with ?timeout=300 for the seconds of each call (120); its token is in ~/.netrc.
        observation_keys: observations to compute; None for all.
        max_steps: steps after which an episode is truncated; None: as it is served.

    Raises:
        InputError: If the address is malformed, or no environment is served there.
        RunError: If no server answers, or it refuses a key.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's declaration)

    def __init__(
        self, address: str, observation_keys: Sequence[str] | None = None, max_steps: int | None = None
    ) -> None:
        self.render_mode = "rgb_array"
        self._server = EnvClient(address)
        if self._server.metadata.get("protocol") != PROTOCOL or "environment" not in self._server.metadata:
            self._server.close()
            raise InputError(f"{address} serves no environment; start it with: gpc serve-env env=NAME port=PORT")
        keys = None if observation_keys is None else list(observation_keys)
        try:
            reply = self._server.call({MAKE: keys, "max_steps": max_steps})
            served = convert(ServedEnv, reply, f"environment server {address}")
        except BaseException:
            self._server.close()
            raise
        self._observations, self.max_steps = served.observations, served.max_steps
        space: Any = spaces.Dict({key: values.space for key, values in served.observations.items()})
        self.observation_space = space
        self.action_space = served.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start the episode of `seed`."""
        super().reset(seed=seed)
        if options:
            raise InputError("a remote environment takes no options of reset")
        reply = self._server.call({RESET: int(self.np_random.integers(2**31)) if seed is None else seed})
        keys = list(self._observations)
        (frame,) = self._read(lambda: read_frames(reply, [keys], self._observations))
        return frame, {"is_success": self._read(lambda: read_truth(reply, SUCCESS))}

    def execute(self, actions: Array, wanted: Sequence[Collection[str]] = ()) -> Executed:
        """Execute actions (steps, action_dim) in one message."""
        actions, keys = np.asarray(actions), [list(each) for each in wanted]
        reply = self._server.call({EXECUTE: actions, WANTED: keys})
        return self._read(lambda: read_executed(reply, len(actions), keys, self._observations))

    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        """Execute one action."""
        executed = self.execute(np.asarray(action)[None])
        return executed.rewards[0], executed.terminated, executed.truncated, {"is_success": executed.success}

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Return these observations, by default all."""
        names = list(self._observations if keys is None else keys)
        reply = self._server.call({OBSERVE: names})
        (frame,) = self._read(lambda: read_frames(reply, [names], self._observations))
        return frame

    def render(self) -> Array:
        """Return a picture, (height, width, 3) uint8."""
        picture = self._server.call({RENDER: True}).get(RENDER)
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise RunError(f"environment server {self._server.url} answered with something else than a picture")
        return picture.copy()

    def close(self) -> None:
        """End the connection, and with it the simulator."""
        self._server.close()

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except InputError as error:
            raise RunError(
                f"environment server {self._server.url} answered with something else: {one_line(error)}"
            ) from None
