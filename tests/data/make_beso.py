"""Writes `beso.json`: BESO's own values for the trainings of `tests/beso_checkpoints.py`.

Run with BESO's repository (github.com/intuitive-robots/beso, here at commit ef68824) and `tests` on the path:

    PYTHONPATH=BESO:tests python tests/data/make_beso.py

Its agent, score model, scalers and samplers are used as they are. Of torchsde and torchdiffeq it imports names that are not
used here: modules with nothing else will do.
"""

import json
from pathlib import Path

import torch
from beso.agents.diffusion_agents.k_diffusion.classifier_free_sampler import ClassifierFreeSampleModel
from beso.agents.diffusion_agents.k_diffusion.gc_sampling import get_sigmas_exponential, get_sigmas_karras
from beso.networks.scaler.scaler_class import MinMaxScaler, Scaler
from beso_checkpoints import CASES, SIGMAS, config, data, inputs, weights
from hydra.utils import instantiate
from omegaconf import OmegaConf

TRAINING = {  # what an agent asks for and does not need to act
    "optimization": {"_target_": "torch.optim.Adam", "lr": 1e-4},
    "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 100},
    **dict.fromkeys(("max_train_steps", "max_epochs", "eval_every_n_steps", "update_ema_every_n_steps"), 1),
    **dict.fromkeys(("obs_modalities", "goal_modalities", "target_modality", "train_method", "sampler_type"), ""),
    **dict.fromkeys(("sigma_sample_density_mean", "sigma_sample_density_std", "decay", "rho"), 0.9),
    "sigma_sample_density_type": "loglogistic",
    "num_sampling_steps": 4,
    "use_ema": True,
    "device": "cpu",
    "goal_conditioned": "${goal_conditioning}",
    "goal_window_size": "${future_seq_length}",
}


def golden(case):
    settings = OmegaConf.merge(config(case), {"agents": TRAINING})
    agent = instantiate(settings.agents)
    shapes = {name: list(value.shape) for name, value in agent.model.state_dict().items()}
    agent.model.load_state_dict(weights(shapes))
    ends = "use_minmax_scaler" in settings.workspaces
    scaler = (MinMaxScaler if ends else Scaler)(*data(case), settings.scale_data, "cpu")
    agent.get_scaler(scaler)
    agent.model.eval()
    states, goals, noise = inputs(case)
    agent.target_modality = "action"
    states, _, goals = agent.process_batch({"observation": states, "goal_observation": goals, "action": noise})

    def denoised(**extra):
        with torch.no_grad():
            return [agent.model(states, s * noise, goals, torch.full((2,), s), **extra).tolist() for s in SIGMAS]

    def chunk(sampler, sigmas):
        x = agent.sample_loop(sigmas, sigmas[0] * noise, states, goals, sampler)
        actions = scaler.inverse_scale_output(scaler.clip_action(x))
        return {"sigmas": sigmas.tolist(), "sampled": x.tolist(), "actions": actions.tolist()}

    exponential = get_sigmas_exponential(4, agent.sigma_min, agent.sigma_max)
    karras = get_sigmas_karras(4, agent.sigma_min, agent.sigma_max, 5.0)
    found = {
        "parameters": shapes,
        "scaler": {
            "state": {"mean": scaler.x_mean.tolist(), "std": scaler.x_std.tolist()},
            "action": {"min": scaler.y_min.tolist(), "max": scaler.y_max.tolist()}
            if ends
            else {"mean": scaler.y_mean.tolist(), "std": scaler.y_std.tolist()},
        },
        "denoised": denoised(),
        "denoised without goal": denoised(uncond=True),
        "ddim": chunk("ddim", exponential),
        "dpmpp_2m": chunk("dpmpp_2m", karras),
        "heun": chunk("heun", karras),
    }
    agent.model = ClassifierFreeSampleModel(agent.model, cond_lambda=2)
    return found | {"ddim, cond_lambda=2": chunk("ddim", exponential)}


content = {"about": f"Made by {Path(__file__).name}, which says how.", **{case: golden(case) for case in CASES}}
Path(__file__).with_name("beso.json").write_text(json.dumps(content) + "\n")
