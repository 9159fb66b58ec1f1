"""A simulator process: `python -P -m gpc.rollout.worker FD` serves its lanes over an inherited socket.

The process is no fork and does not load the parent's `__main__` or torch. A crash, a hang or a leak of a simulator
therefore stays outside the engine. The process ends when the engine closes the socket or dies.
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

from gpc.errors import InputError, one_line, type_and_text
from gpc.policy.observation import conform
from gpc.rollout.env import Environment, LaneSpec, make_env
from gpc.types import Array, Frame


class LaneCommand(NamedTuple):
    """Begin the episode of `seed`, or execute actions (n_action_steps, action)."""

    lane: int
    seed: int | None
    actions: Array | None


class LaneResult(NamedTuple):
    """What a command led to.

    Attributes:
        lane: number of the lane.
        observation: key -> newest observations (n_obs_steps, *shape). Those older than the key's `history` are copies
            of the newest one. Empty after the end.
        rewards: a reward for each executed action.
        success: whether the task was solved in the meantime; None if the environment reports no success.
        done: whether the episode ended.
    """

    lane: int
    observation: Frame
    rewards: list[float]
    success: bool | None
    done: bool


class Failure(NamedTuple):
    """An exception of the simulator; `cause` is the last line of its traceback.

    Bad input (`InputError`) would fail again, so `again` is false.
    """

    cause: str
    again: bool


@dataclass
class Lane:
    """One environment and its last observations."""

    env: Environment
    spec: LaneSpec
    frames: deque[Frame]
    steps: int = 0

    @classmethod
    def of(cls, spec: LaneSpec) -> Lane:
        """Build a lane."""
        return cls(make_env(spec.env, spec.observation_keys), spec, deque(maxlen=spec.n_obs_steps))

    def execute(self, command: LaneCommand) -> LaneResult:
        """Execute one command."""
        if command.seed is not None:
            frame, _ = self.env.reset(seed=command.seed)
            self.frames.extend([self._conformed(frame)] * self.spec.n_obs_steps)
            self.steps = 0
            return LaneResult(command.lane, self._stacked(), [], None, False)
        assert command.actions is not None
        limit = self.spec.env.max_steps
        actions = command.actions if limit is None else command.actions[: limit - self.steps]
        cut = len(actions) < len(command.actions)  # the episode ends before the policy observes again
        wanted = [] if cut else [self._read_at(age) for age in range(self.spec.n_obs_steps)]
        executed = self.env.execute(actions, wanted)
        self.steps += len(executed.rewards)
        done = executed.terminated or executed.truncated or self.steps == limit
        self.frames.extend(map(self._conformed, executed.frames))
        observation = {} if done else self._stacked()
        return LaneResult(command.lane, observation, executed.rewards, executed.success, done)

    def _read_at(self, age: int) -> list[str]:
        """Return the keys that the policy reads of an observation of this age."""
        history = self.spec.history or {}
        keys = cast(spaces.Dict, self.env.observation_space)
        return [key for key in keys if age < history.get(key, self.spec.n_obs_steps)]

    def _conformed(self, frame: Frame) -> Frame:
        """Return a frame with the images that policies read as they read them."""
        images = {key: conform(key, frame[key], shape, True) for key, shape in self.spec.images.items() if key in frame}
        return {**frame, **images}

    def _stacked(self) -> Frame:
        newest = self.frames[-1]
        return {key: np.stack([frame.get(key, value) for frame in self.frames]) for key, value in newest.items()}


def serve(connection: Connection) -> None:
    """Build the lanes; answer lists of commands until the engine is gone."""
    try:
        sys.path[:] = connection.recv()  # before the spec, whose classes are imported from there
        spec, count = connection.recv()
        lanes = [Lane.of(spec) for _ in range(count)]
        connection.send([])
        while True:
            connection.send([lanes[command.lane].execute(command) for command in connection.recv()])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        again = not isinstance(error, InputError)
        connection.send(Failure(type_and_text(error) if again else one_line(error), again))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gpc.rollout import worker  # not `__main__`, so that pickled messages have one type

    worker.serve(Connection(int(sys.argv[1])))
