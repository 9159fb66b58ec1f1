"""A simulator process: `python -P -m gpc.rollout.worker FD` serves its lanes over the socket that it inherited.

A process of its own (not a fork, and without the parent's `__main__`): it never loads torch, and a crash, a hang or a leak
of a simulator stays outside the engine. It ends when the engine closes the socket or dies.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple, cast

import numpy as np
from gymnasium import spaces

from gpc.policy.env_spec import EnvSpec
from gpc.rollout.env import Environment, make_env
from gpc.types import Array, Frame


class Order(NamedTuple):
    """What a lane shall do: begin the episode of `seed`, or execute the actions (n_action_steps, action)."""

    lane: int
    seed: int | None
    actions: Array | None


class Report(NamedTuple):
    """What happened: the newest observations (n_obs_steps, *shape) by key, a reward per executed action, the end.

    What is older than the key's `history` is filled with the newest; after the end nobody looks.
    """

    lane: int
    observation: Frame
    rewards: list[float]
    success: bool
    done: bool


class Failure(NamedTuple):
    """The simulator raised; `cause` is the last line of its traceback."""

    cause: str


@dataclass
class Lane:
    """One environment and its last observations."""

    env: Environment
    spec: EnvSpec
    frames: deque[Frame]

    @classmethod
    def of(cls, spec: EnvSpec) -> Lane:
        """A fresh lane."""
        return cls(make_env(spec), spec, deque(maxlen=spec.n_obs_steps))

    def follow(self, order: Order) -> Report:
        """Carry out one order."""
        if order.seed is not None:
            frame, _ = self.env.reset(seed=order.seed)
            self.frames.extend([frame] * self.spec.n_obs_steps)
            return Report(order.lane, self._stacked(), [], False, False)
        assert order.actions is not None
        rewards, success, done = [], False, False
        for left, action in zip(range(len(order.actions))[::-1], order.actions, strict=True):
            reward, terminated, truncated, info = self.env.advance(action)
            rewards.append(float(reward))
            success, done = success or bool(info["is_success"]), terminated or truncated
            if done:
                return Report(order.lane, {}, rewards, success, done)
            if left < self.spec.n_obs_steps:
                self.frames.append(self.env.observe(self._read_at(left)))
        return Report(order.lane, self._stacked(), rewards, success, done)

    def _read_at(self, age: int) -> list[str]:
        """The keys that the policy reads of an observation which so many follow before it looks: pictures are dear."""
        history = self.spec.history or {}
        every = cast(spaces.Dict, self.env.observation_space)
        return [key for key in every if age < history.get(key, self.spec.n_obs_steps)]

    def _stacked(self) -> Frame:
        newest = self.frames[-1]
        return {key: np.stack([frame.get(key, value) for frame in self.frames]) for key, value in newest.items()}


def serve(connection: Connection) -> None:
    """Build the lanes, then answer each list of orders with the list of reports, until the engine goes away."""
    try:
        path, spec, count = connection.recv()
        sys.path[:] = path
        lanes = [Lane.of(spec) for _ in range(count)]
        connection.send([])
        while True:
            connection.send([lanes[order.lane].follow(order) for order in connection.recv()])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        connection.send(Failure(f"{type(error).__name__}: {' '.join(str(error).split())}"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gpc.rollout.worker import (
        serve as _serve,  # this module under its own name, so that pickled messages have one type
    )

    _serve(Connection(int(sys.argv[1])))
