"""Small environments for the engine's tests, importable by simulator processes."""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np

from gpc.rollout.env import Environment


class Walk(Environment):
    """A walker on a plane that shall reach the origin; the seed sets where it begins."""

    def __init__(self, observation_keys=("position",), max_steps=20, trouble="", marker="", seed_of_trouble=3):
        self.observation_space = gymnasium.spaces.Dict({"position": gymnasium.spaces.Box(-np.inf, np.inf, (2,))})
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.max_steps, self.trouble, self.marker, self.unlucky = max_steps, trouble, marker, seed_of_trouble
        if trouble == "constructor":
            raise RuntimeError("no display found")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.position, self.steps = seed, self.np_random.uniform(-3, 3, 2), 0
        return self.observe(), {"is_success": False}

    def observe(self, keys=None):
        return {"position": self.position.copy()}

    def advance(self, action):
        if self.trouble not in ("", "slow", "reward") and self.seed == self.unlucky and self.steps == 5:
            self._misbehave()
        self.position = self.position + np.clip(action, -1, 1)
        self.steps += 1
        distance = float(np.linalg.norm(self.position))
        if self.trouble == "slow":
            time.sleep(0.05)
            if self.marker:
                with open(self.marker, "a") as log:
                    log.write(".")
        success = distance < 0.3
        reward = np.nan if self.trouble == "reward" and self.seed == self.unlucky else 1 / (1 + distance)
        return reward, success, self.steps >= self.max_steps, {"is_success": success}

    def _misbehave(self):
        if self.trouble != "always":
            try:
                Path(self.marker).touch(exist_ok=False)  # one of several workers, whichever is first
            except FileExistsError:
                return
        if self.trouble == "die":
            os._exit(7)
        if self.trouble == "hang":
            time.sleep(60)
        raise RuntimeError("the physics exploded")


class Wide(Walk):
    """Sees and takes more numbers than a socket holds."""

    def __init__(self, observation_keys=("position",)):
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict({"position": gymnasium.spaces.Box(-np.inf, np.inf, (100_000,))})
        self.action_space = gymnasium.spaces.Box(-1, 1, (20_000,))

    def observe(self, keys=None):
        return {"position": np.zeros(100_000)}

    def advance(self, action):
        self.steps += 1
        return 0.0, False, self.steps >= self.max_steps, {"is_success": False}


FORMS = {
    "bytes": lambda image: image,
    "floats": lambda image: np.float32(image / 255),
    "floats, channels first": lambda image: (image / 255).transpose(2, 0, 1),
    "int64": lambda image: image.astype(np.int64),
    "0 to 255 in floats": lambda image: image.astype(np.float32),
}
"""What an environment makes of its image (height, width, 3) uint8."""


class Window(gymnasium.Env):
    """Shows another image at each step, in one of `FORMS`, and a gripper in bytes, under these names."""

    def __init__(self, form="bytes", image="front", state="gripper", text=""):
        self.form, self.names, self.text = form, (image, state), text
        example = FORMS[form](np.zeros((4, 6, 3), np.uint8))
        high = 255 if example.dtype.kind in "iu" else 1
        self.observation_space = gymnasium.spaces.Dict(
            {
                image: gymnasium.spaces.Box(0, high, example.shape, example.dtype.type),
                state: gymnasium.spaces.Box(0, 255, (2,), np.uint8),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(), {}

    def look(self):
        image, state = self.names
        picture = self.np_random.integers(0, 256, (4, 6, 3), np.uint8)
        return {image: FORMS[self.form](picture), state: np.array([3, 200], np.uint8)}

    def step(self, action):
        return self.look(), float(np.abs(action).sum()), False, False, {"is_success": False}
