"""Data and networks of the policies that scripts/train.py trains; pusht-*, lift-flow and can-flow are bundled.

robomimic trains a further policy of Lift, Can and Square, `<task>-diffusion`: scripts/train_robomimic.py.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from collect import TASKS, held_out
from torch import Tensor

from gpc.demonstrations import Demonstrations, read
from gpc.envs.pusht import keypoints
from gpc.errors import InputError
from gpc.inference.device import find

HELD_OUT = [5, 17, 29, 41, 53, 66, 78, 90, 102, 114, 127, 139, 151, 163, 175, 188]  # PushT's; never trained on


def device(name: str) -> torch.device:
    """Return the device of `--device`: auto, cpu, cuda, cuda:1, ..."""
    try:
        return find(name)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class Task:
    """A data set: its environment, its description, its reader, and its held-out episodes."""

    env: str
    data: str
    load: Callable[[Path, Sequence[str]], Demonstrations]
    held_out: Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Recipe:
    """A policy to be trained: its card without results.

    Numbers whose offset is None are scaled to [-1, 1] of the data.
    """

    task: Task
    summary: str
    actions: Mapping[str, Any]
    model: Mapping[str, Any]

    def card(self, name: str, observations: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the card, scaled to the observations that are trained on."""
        inputs = {
            key: spec | _range(observations[key]) if spec.get("offset", 0) is None else spec
            for key, spec in self.model["inputs"].items()
        }
        return {
            "name": name,
            "summary": self.summary,
            "env": self.task.env,
            "actions": dict(self.actions),
            "model": {**self.model, "inputs": inputs},
            "inference": {"sampler": {"method": "dpmpp_2m", "steps": 8}, "n_action_steps": 8},
        }


def _range(values: Tensor) -> dict[str, list[float]]:
    flat = values.flatten(0, -2)
    low, high = flat.amin(0), flat.amax(0)
    scale = ((high - low) / 2).clamp(min=1e-2)  # what hardly moves is not blown up
    return {"offset": ((high + low) / 2).tolist(), "scale": scale.tolist()}


def load_pusht(folder: Path, keys: Sequence[str]) -> Demonstrations:
    """Read the human demonstrations, and pixels from a second file.

    The files are `pusht_v7_206ep_lowdim.npz` and `pusht_cchi_v7_replay.zarr.zip`.
    """
    data = np.load(folder / "pusht_v7_206ep_lowdim.npz")
    state = data["state"].astype(np.float64)
    arrays = {"state": state, "agent_pos": state[:, :2], "keypoints": keypoints(state[:, 2:])}
    observations = {key: arrays[key] for key in keys if key in arrays}
    if "pixels" in keys:
        images = read(folder / "pusht_cchi_v7_replay.zarr.zip", ["img"]).observations["img"]
        observations["pixels"] = images.astype(np.uint8)
    return Demonstrations(observations, data["action"], data["episode_ends"])


def load_collected(task: str, folder: Path, keys: Sequence[str]) -> Demonstrations:
    """Read the demonstrations of scripts/collect.py for a task."""
    return read(folder / f"{task}.hdf5", keys)


PUSHT = Task(
    "pusht",
    "PushT, 206 human demonstrations (Chi et al. 2023, pusht_cchi_v7_replay, MIT)",
    load_pusht,
    lambda _: HELD_OUT,
)
ROBOSUITE = {
    task: Task(
        task,
        f"robosuite {name}: the scripted, multi-modal expert of gpc.envs.experts, by scripts/collect.py",
        partial(load_collected, task),
        held_out,
    )
    for task, name in TASKS.items()
}

DDPM, FLOW = {"type": "squaredcos", "steps": 100}, {"type": "flow"}
UNET = {"type": "unet", "widths": [88, 176], "label_scale": 1.0}
TRANSFORMER = {"type": "transformer", "width": 160, "depth": 4, "heads": 5}

STATE = {"state": {"shape": [5], "offset": 256.0, "scale": 256.0, "angles": [4]}}
POSITION = {"agent_pos": {"shape": [2], "offset": 256.0, "scale": 256.0}}
KEYPOINTS = {"keypoints": {"shape": [16], "offset": 256.0, "scale": 256.0}, **POSITION}
PIXELS = {"pixels": {"shape": [96, 96, 3], "image": True}, **POSITION}


def _pusht(
    summary: str, inputs: dict, network: dict, schedule: dict, prediction: str, scale: float = 256.0, bound: float = 1.0
) -> Recipe:
    actions = {
        "horizon": 16,
        "names": ["x", "y"],
        "scale": [scale] * 2,
        "offset": [256.0] * 2,
        "start": -1,
        "bound": bound,
    }
    model = {"inputs": inputs, "n_obs_steps": 2, "network": network, "schedule": schedule, "prediction": prediction}
    return Recipe(PUSHT, summary, actions, model)


# One space of actions for every policy of a task: OSC_POSE, moves in [-1, 1], then the gripper.
MOVES = {"horizon": 16, "scale": [1.0] * 7, "offset": [0.0] * 7, "bound": 1.0, "relative": True}
ROBOT = {key: {"shape": [n], "offset": None} for key, n in
         {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}.items()}  # fmt: skip
CAMERA = {"agentview_image": {"shape": [84, 84, 3], "image": True}}
POINTS = {"agentview_points": {"shape": [512, 3], "points": True, "offset": [0.0, 0.0, 1.0], "scale": [0.5, 0.5, 0.5]}}
OBJECT = {"lift": 10, "can": 14, "square": 14}


def _robosuite(
    task: str, summary: str, inputs: dict, network: dict, schedule: dict, prediction: str, n_obs_steps: int = 2
) -> Recipe:
    """Return a recipe; policies with a camera observe one time step.

    A picture costs as much as eight steps of the simulator.
    """
    model = {
        "inputs": inputs,
        "n_obs_steps": n_obs_steps,
        "network": network,
        "schedule": schedule,
        "prediction": prediction,
    }
    return Recipe(ROBOSUITE[task], summary, MOVES | {"start": 1 - n_obs_steps}, model)


def _of_task(task: str) -> dict[str, Recipe]:
    low = {"object": {"shape": [OBJECT[task]], "offset": None}, **ROBOT}
    karras = {"type": "karras", "sigma_data": 0.5, "sigma_min": 0.0025}
    return {
        f"{task}-flow": _robosuite(
            task, "rectified-flow velocity, transformer, state", low, TRANSFORMER | {"label_scale": 100.0}, FLOW, "velocity"
        ),
        f"{task}-beso": _robosuite(
            task, "BESO-style: Karras-preconditioned score transformer, state",
            low, TRANSFORMER | {"label_scale": 25.0}, karras, "edm",
        ),
        f"{task}-image": _robosuite(
            task, "DDPM noise prediction, 1D U-Net, one 84x84 RGB camera", CAMERA | ROBOT, UNET, DDPM, "noise", 1
        ),
        f"{task}-points": _robosuite(
            task, "DP3-style: DDPM, clean action, 1D U-Net, point cloud", POINTS | ROBOT, UNET, DDPM, "sample", 1
        ),
    }  # fmt: skip


RECIPES = {
    "pusht-diffusion": _pusht("DDPM noise prediction, 1D U-Net, state", STATE, UNET, DDPM, "noise"),
    "pusht-flow": _pusht(
        "rectified-flow velocity, transformer, keypoints", KEYPOINTS, TRANSFORMER | {"label_scale": 100.0}, FLOW, "velocity"
    ),
    "pusht-beso": _pusht(
        "BESO-style: Karras-preconditioned score transformer, state",
        STATE, TRANSFORMER | {"label_scale": 25.0}, {"type": "karras", "sigma_data": 1.0, "sigma_min": 0.005}, "edm", 100.0, 2.56,
    ),
    "pusht-image": _pusht("DDPM noise prediction, 1D U-Net, 96x96 RGB", PIXELS, UNET, DDPM, "noise"),
    **_of_task("lift"), **_of_task("can"), **_of_task("square"),
}  # fmt: skip
