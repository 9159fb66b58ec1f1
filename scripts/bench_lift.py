"""Lift in robomimic's own loop and in gpc: what `scripts/bench.py lift` measures."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.train_utils as train_utils
import torch
from against_robomimic import TRAINED_LEVELS, theirs
from robomimic.algo import algo_factory
from robomimic.config import config_factory
from train_robomimic import SIZE

import gpc
from gpc.policies.bundled import BUNDLED
from gpc.policies.checkpoint import read
from gpc.policies.from_robomimic import unet

SEED = 500_000
HORIZON = 100
CAMERA = "agentview_image"
SHAPES = {"robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,), CAMERA: (3, 84, 84)}


def lift_speed(say: Callable[[str], None], quick: bool) -> None:
    """Measure episodes per minute beside the plain loop, on numbers and pictures."""
    say(
        f"\nLift: robomimic's `rollout` in a plain loop, and `gpc.evaluate` of the same checkpoint, episodes of at most {HORIZON} "
        "steps. 100 steps of the sampler are DDPM on all trained levels, in both; 8 are gpc's default. Starting the simulators is "
        "included. Where wall time is less than network plus simulators' time / workers, the two ran at once.\n"
    )
    say(
        "| observations | way | episodes | steps/episode | episodes/minute | ratio | wall, s | network, s | simulators' CPU, s |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as scratch:
        numbers, camera = Path(scratch) / "numbers.pth", Path(scratch) / "camera.pth"
        shorten(BUNDLED / "lift-diffusion" / "lift-diffusion.pth", numbers)
        save_camera_policy(read(numbers)["env_metadata"], camera)
        compare(say, "numbers", numbers, *((1, 4) if quick else (12, 64)))
        compare(say, "one 84x84 camera", camera, *((1, 4) if quick else (6, 32)))


def compare(say: Callable[[str], None], name: str, checkpoint: Path, few: int, many: int) -> None:
    """Print the rows of one kind of observations: the plain loop, then gpc."""
    wall, episodes = theirs(checkpoint, range(SEED, SEED + few))
    slow, steps = 60 * few / wall, sum(e["Horizon"] for e in episodes) / few
    say(f"| {name} | robomimic's loop, 100 steps | {few} | {steps:.0f} | {slow:.1f} | 1 | {wall:.1f} | | |")
    policy = gpc.load_policy(f"robomimic:{checkpoint}")
    for title, workers, sampler in (
        ("100 steps", 1, TRAINED_LEVELS),
        ("100 steps", 2, TRAINED_LEVELS),
        ("8 steps", 2, gpc.Sampling()),
    ):
        engine = gpc.Engine(workers=workers)
        before, begin = simulators_cpu(), time.perf_counter()
        result = gpc.evaluate(policy, "policy", episodes=many, seed=SEED, sampler=sampler, engine=engine)
        wall, simulated = time.perf_counter() - begin, simulators_cpu() - before
        steps = sum(row.steps for row in result.rows) / many
        say(
            f"| {name} | gpc, {title}, workers: {workers} | {many} | {steps:.0f} | {60 * many / wall:.1f} "
            f"| {60 * many / wall / slow:.1f} | {wall:.1f} | {result.stats.actor_seconds:.1f} | {simulated:.1f} |"
        )


def simulators_cpu() -> float:
    """Return the CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shorten(checkpoint: Path, to: Path) -> None:
    """Write the same checkpoint with shorter episodes."""
    content = read(checkpoint)
    config = json.loads(content["config"])
    config["experiment"]["rollout"]["horizon"] = HORIZON
    torch.save(content | {"config": json.dumps(config)}, to)


def save_camera_policy(simulator: dict[str, Any], to: Path) -> None:
    """Write an image policy of robomimic (a ResNet-18) with random weights."""
    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.observation.modalities.obs.low_dim = [key for key in SHAPES if key != CAMERA]
        config.observation.modalities.obs.rgb = [CAMERA]
        config.observation.encoder.rgb.core_kwargs.backbone_kwargs.pretrained = False
        config.observation.encoder.rgb.obs_randomizer_class = "CropRandomizer"
        config.observation.encoder.rgb.obs_randomizer_kwargs = {"crop_height": 76, "crop_width": 76, "num_crops": 1}
        config.experiment.rollout.horizon = HORIZON
        config.algo.optim_params.policy.num_train_batches = config.algo.optim_params.policy.num_epochs = 1
        config.train.action_config = {"actions": {"normalization": None}}
    obs_utils.initialize_obs_utils_with_config(config)
    looks = {"camera_names": ["agentview"], "camera_heights": 84, "camera_widths": 84, "use_camera_obs": True}
    metadata = simulator | {"env_kwargs": simulator["env_kwargs"] | looks}
    with unet(**SIZE):
        model = algo_factory("diffusion_policy", config, SHAPES, 7, torch.device("cpu"))
    described = {"ac_dim": 7, "all_shapes": SHAPES, "all_obs_keys": list(SHAPES), "use_images": True}
    train_utils.save_model(model, config, metadata, described, str(to))
