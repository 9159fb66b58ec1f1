"""Small trainings of BESO in its own layout, with weights, data and noise from one formula: no random generator in between."""

import json

import torch
from omegaconf import OmegaConf

GPT = "beso.agents.diffusion_agents.k_diffusion"
COMMON = {
    "agents": {
        "_target_": "beso.agents.diffusion_agents.beso_agent.BesoAgent",
        "_recursive_": False,
        "model": {
            "_target_": f"{GPT}.score_wrappers.GCDenoiser",
            "_recursive_": False,
            "sigma_data": "${sigma_data}",
            "inner_model": {
                "_target_": f"{GPT}.score_gpts.DiffusionGPT",
                "state_dim": "${obs_dim}",
                "action_dim": "${action_dim}",
                "goal_conditioned": "${goal_conditioning}",
                "embed_dim": 24,
                "n_layers": 2,
                "n_heads": 3,
                "goal_seq_len": "${future_seq_length}",
                "obs_seq_len": "${window_size}",
                "sigma_vocab_size": 3,
                "time_embedding_fn": {
                    "_target_": f"{GPT}.utils.return_time_sigma_embedding_model",
                    "embedding_type": "Linear",
                    "time_embed_dim": 24,
                    "device": "cpu",
                },
                "embed_pdrob": 0,
                "attn_pdrop": 0.3,
                "resid_pdrop": 0,
                "goal_drop": "${cond_mask_prob}",
                "linear_output": True,
                "device": "cpu",
            },
        },
        "input_encoder": {
            "_target_": "beso.agents.input_encoders.obs_encoder.NoEncoder",
            "device": "cpu",
            "state_modality": "observation",
            "goal_modality": "goal_observation",
        },
        "pred_last_action_only": False,
        "window_size": "${window_size}",
        "sigma_data": "${sigma_data}",
        "sigma_min": 0.005,
        "sigma_max": 1,
    },
    "workspaces": {"dataset_fn": {"path": "${now:%Y-%m-%d}"}, "scale_data": "${scale_data}"},
    "sigma_data": 0.5,
    "goal_conditioning": True,
    "cond_mask_prob": 0.1,
    "scale_data": True,
}
CASES = {  # the kitchen's, block pushing's (goals of 10 numbers, actions between -1 and 1), and one without a goal
    "kitchen": {"obs_dim": 5, "action_dim": 2, "window_size": 4, "future_seq_length": 2, "scale_data": False},
    "push": {
        "obs_dim": 10,
        "action_dim": 2,
        "window_size": 3,
        "future_seq_length": 1,
        "workspaces": {"use_minmax_scaler": True},
        "agents": {"model": {"inner_model": {"linear_output": False}}},
    },
    "aimless": {
        "obs_dim": 5,
        "action_dim": 2,
        "window_size": 2,
        "future_seq_length": 2,
        "goal_conditioning": False,
        "cond_mask_prob": 0,
    },
}


SIGMAS = (0.9, 0.05)


def formula(shape, k, scale=0.25):
    """`scale * sin(i^2 + k)` over the flat index i, float32."""
    count = torch.Size(shape).numel()
    return (scale * torch.sin(torch.arange(count, dtype=torch.float64) ** 2 + k)).reshape(shape).float()


def config(case):
    return OmegaConf.merge(COMMON, CASES[case])


def weights(shapes):
    """What the parameters of these names and shapes are; a causal mask is what it is."""
    return {
        name: torch.ones(shape).tril() if name.endswith("mask") else formula(shape, k)
        for k, (name, shape) in enumerate(sorted(shapes.items()))
    }


def data(case):
    """The states (100, obs_dim) and actions (100, action_dim) that a scaler is computed from."""
    return formula((100, CASES[case]["obs_dim"]), 1, 3.0) + 2, formula((100, CASES[case]["action_dim"]), 2, 40.0) + 30


def inputs(case):
    """Raw states, goals and noise of two rows."""
    sizes = CASES[case]
    return (
        formula((2, sizes["window_size"], sizes["obs_dim"]), 3, 3.0) + 2,
        formula((2, sizes["future_seq_length"], sizes["obs_dim"]), 4, 3.0) + 2,
        formula((2, sizes["window_size"], sizes["action_dim"]), 5, 1.0),
    )


def save(folder, case, golden, changes=None):
    """A training's folder; `golden` has its parameters' shapes and its scaler, `changes` other settings by dotted key."""
    settings = config(case)
    for key, value in (changes or {}).items():
        OmegaConf.update(settings, key, value)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(settings, folder / ".hydra" / "config.yaml")
    torch.save(weights(golden["parameters"]), folder / "model_state_dict.pth")
    if settings.scale_data:
        (folder / "scaler.json").write_text(json.dumps(golden["scaler"]))
    return folder
