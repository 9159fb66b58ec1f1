from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from gpc.rollout.env import Environment
from gpc.testing import check_env
from gpc.types import Array, Frame


class Slider(Environment):
    """A point on a line, to be brought to the origin; it keeps the contract."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({"place": spaces.Box(-9, 9, (1,), np.float64)})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.place = np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-5, 5, 1)
        return self.observe(), {}

    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + action, -9, 9)
        done = bool(abs(self.place[0]) < 0.01)
        return float(-abs(self.place[0])), done, False, {"is_success": done}

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {"place": self.place.copy()}


class Unseeded(Slider):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Frame, dict[str, Any]]:
        return super().reset(seed=None)


class Fixed(Slider):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Frame, dict[str, Any]]:
        return super().reset(seed=0)


class SharedBuffer(Slider):
    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        kept = self.place
        outcome = super().advance(action)
        kept[:] = self.place
        self.place = kept
        return outcome

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {"place": self.place}


class Noisy(Slider):
    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {"place": self.place + 0.01 * self.np_random.normal(size=1)}


class MovedByLooking(Slider):
    looks = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Frame, dict[str, Any]]:
        self.looks = 0
        return super().reset(seed=seed)

    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        return super().advance(action * 0.9**self.looks)

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        self.looks += 1
        return super().observe(keys)


class StaleStep(Slider):
    def step(self, action: Array) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        frame = self.observe()
        return frame, *self.advance(action)


class FasterStep(Slider):
    def step(self, action: Array) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        return super().step(2 * action)


class SinglePrecision(Slider):
    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {"place": self.place.astype(np.float32)}


class ExtraKey(Slider):
    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {**super().observe(keys), "clock": np.zeros(1)}


class OutOfBounds(Slider):
    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {"place": self.place + 100}


class AllKeys(Slider):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({**self.observation_space, "goal": spaces.Box(-9, 9, (1,), np.float64)})

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        return {"place": self.place.copy(), "goal": np.zeros(1)}


class Voiceless(Slider):
    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        return *super().advance(action)[:3], {}


class NanReward(Slider):
    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        return float("nan"), *super().advance(action)[1:]


class FlatSpace(Slider):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-9, 9, (1,), np.float64)


def test_check_env_accepts_an_environment_that_keeps_the_contract() -> None:
    check_env(Slider())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unseeded, "the same seed and actions give another episode"),
        (Fixed, "ignores its seed"),
        (SharedBuffer, r"returns a buffer of its own: \['place'\] changed"),
        (Noisy, r"observe\(\) after reset\(\) differs"),
        (MovedByLooking, r"observe\(\) changes the world"),
        (StaleStep, r"step\(\) returns another observation than observe\(\)"),
        (FasterStep, r"step\(\) moves otherwise than advance\(\)"),
        (SinglePrecision, r'reset\(\)\["place"\] is .*float32.*float64'),
        (ExtraKey, r"returns the keys \['clock', 'place'\]"),
        (AllKeys, r"observe\(\['place'\]\) returns the keys \['goal', 'place'\]"),
        (OutOfBounds, "outside the bounds"),
        (Voiceless, 'info has no "is_success"'),
        (NanReward, "the reward is nan"),
        (FlatSpace, "observation_space must be a Dict"),
    ],
)
def test_check_env_names_what_is_broken(broken: type[Slider], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{broken.__name__}: .*{message}"):
        check_env(broken())
