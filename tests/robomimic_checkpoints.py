"""A checkpoint of robomimic's own trainer, saved after a rollout in its own simulator."""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from collect import settings
from robomimic.config import config_factory
from robomimic.scripts.train import train

from gpc.demonstrations import Demonstrations, write_robomimic
from gpc.policies.from_robomimic import unet

LIFT = {
    "env_name": "Lift",
    "type": 1,
    "env_version": "1.5.1",
    "env_kwargs": {**settings(), "has_renderer": False, "use_camera_obs": False},
}
SMALL = {"down_dims": [16, 32], "diffusion_step_embed_dim": 16}
SHAPES = {"robot0_eef_pos": 3, "object": 10}


def write_demonstrations(path):
    """Two episodes of 20 steps; the last action dimension is constant."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, 7))
    actions[:, 6] = 0.25
    observations = {key: rng.normal(size=(40, size)) for key, size in SHAPES.items()}
    some = Demonstrations(observations, actions, np.array([20, 40]))
    write_robomimic(path, some, np.zeros(40), LIFT, [{}, {}])


def run_training(folder, normalization="min_max"):
    """Train one step, roll one short episode out, and return the checkpoint that robomimic saves then."""
    folder.mkdir(parents=True, exist_ok=True)
    write_demonstrations(folder / "lift.hdf5")
    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.experiment.name = "lift"
        config.experiment.validate = config.experiment.render_video = False
        config.experiment.logging.log_tb = config.experiment.logging.terminal_output_to_txt = False
        config.experiment.save.every_n_epochs = 1
        config.experiment.epoch_every_n_steps = 1
        config.experiment.rollout.rate = config.experiment.rollout.n = 1
        config.experiment.rollout.horizon = 2
        config.experiment.rollout.warmstart = 0
        config.train.data = [{"path": str(folder / "lift.hdf5"), "lang": None}]  # else it fetches a text encoder
        config.train.output_dir = str(folder / "runs")
        config.train.hdf5_normalize_obs = True
        config.train.action_config = {"actions": {"normalization": normalization}}
        config.train.cuda = False
        config.train.batch_size = 4
        config.train.num_epochs = 1
        config.observation.modalities.obs.low_dim = list(SHAPES)
        config.algo.ddpm.num_inference_timesteps = 2
        config.algo.unet.down_dims = SMALL["down_dims"]
        config.algo.unet.diffusion_step_embed_dim = SMALL["diffusion_step_embed_dim"]
    with contextlib.redirect_stdout(io.StringIO()), unet(**SMALL):
        train(config, torch.device("cpu"))
    return max(Path(folder / "runs").glob("*/*/models/*.pth"))
