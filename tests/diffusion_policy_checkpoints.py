"""Checkpoints in the layout of Diffusion Policy and DP3, with weights, observations and noise by formula.

`data/diffusion-policy.npz` holds what those repositories themselves say of each case: the names and shapes of the policy's state,
in its order; the buffers that no formula gives (masks, keypoint grids); and the chunk that the policy's own `predict_action`
returned as "action_pred", its weights, observations and draws being those below. (Diffusion Policy
at commit 5ba07ac with robomimic 0.2.0, 3D-Diffusion-Policy at 47385d9; policies, normalisers and samplers used as they are.)
"""

import functools
import math
from pathlib import Path

import dill
import numpy as np
import torch
from omegaconf import OmegaConf

GOLDEN = Path(__file__).parent / "data" / "diffusion-policy.npz"
TRAINED = Path(__file__).parent / "data" / "diffusion-policy-trainer"  # files of the trainer itself
BATCH, STEPS = 2, 10
DDPM = {
    "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "num_train_timesteps": 50,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
}
DDIM = {
    "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
    "num_train_timesteps": 50,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "sample",
}
COMMON = {"horizon": "${horizon}", "n_obs_steps": "${n_obs_steps}", "num_inference_steps": STEPS}
LATE = {"n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}"}
UNET = {"diffusion_step_embed_dim": 16, "down_dims": [16, 32], "kernel_size": 5, "n_groups": 8}
FILM = UNET | {"cond_predict_scale": True}
DECODER = {"n_layer": 2, "n_head": 2, "n_emb": 16, "p_drop_emb": 0.0, "p_drop_attn": 0.3, "time_as_cond": True}
POLICY, MODEL = "diffusion_policy.policy.", "diffusion_policy.model.diffusion."
LOWDIM = {"obs_dim": "${obs_dim}", "action_dim": "${action_dim}", "pred_action_steps_only": False}


def transformer(scheduler, **options):
    model = {"_target_": f"{MODEL}transformer_for_diffusion.TransformerForDiffusion", "obs_as_cond": "${obs_as_cond}"}
    model |= {"input_dim": "${action_dim}", "output_dim": "${policy.model.input_dim}", "cond_dim": "${obs_dim}"}
    model |= {"horizon": "${horizon}", "n_obs_steps": "${n_obs_steps}"}
    return LOWDIM | {
        "_target_": f"{POLICY}diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
        "model": model | DECODER | options,
        "noise_scheduler": scheduler,
        "n_action_steps": "${n_action_steps}",
        "obs_as_cond": "${obs_as_cond}",
    }


def cloud(name, scheduler, norm="layernorm", **options):
    encoder = {"in_channels": 3, "out_channels": "${policy.encoder_output_dim}", "normal_channel": False}
    encoder |= {"use_layernorm": norm == "layernorm", "final_norm": norm}
    conditions = {f"use_{part}_condition": True for part in ("down", "mid", "up")}
    return {
        "_target_": f"diffusion_policy_3d.policy.{name}",
        "shape_meta": "${shape_meta}",
        "noise_scheduler": scheduler,
        "n_action_steps": "${n_action_steps}",
        "obs_as_global_cond": True,
        "condition_type": "film",
        "use_point_crop": True,
        "crop_shape": [80, 80],
        "encoder_output_dim": 16,
        "pointnet_type": "pointnet",
        "pointcloud_encoder_cfg": encoder,
        "use_pc_color": False,
    } | (UNET | conditions | options)


IMAGES = {
    "obs": {
        "pose": {"shape": [3], "type": "low_dim"},
        "image": {"shape": [3, 41, 53], "type": "rgb"},
        "agent_pos": {"shape": [2]},
    },
    "action": {"shape": [2]},
}
CLOUDS = {
    "obs": {
        "point_cloud": {"shape": [20, 3], "type": "point_cloud"},
        "agent_pos": {"shape": [4], "type": "low_dim"},
    },
    "action": {"shape": [2]},
}
POLICIES = {
    "unet": LOWDIM
    | LATE
    | {
        "_target_": f"{POLICY}diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
        "model": {
            "_target_": f"{MODEL}conditional_unet1d.ConditionalUnet1D",
            "input_dim": "${eval: ${action_dim} if ${obs_as_local_cond} or ${obs_as_global_cond} else 0}",
            "global_cond_dim": "${eval: ${obs_dim}*${n_obs_steps} if ${obs_as_global_cond} else None}",
        }
        | FILM,
        "noise_scheduler": DDPM,
        "obs_as_global_cond": "${obs_as_global_cond}",
        "oa_step_convention": True,
    },
    "causal transformer": transformer(DDPM, causal_attn=True, n_cond_layers=0),
    "open transformer": transformer(DDIM, causal_attn=False, n_cond_layers=2),
    "unet, camera": LATE
    | FILM
    | {
        "_target_": f"{POLICY}diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        "shape_meta": "${shape_meta}",
        "noise_scheduler": DDPM,
        "obs_as_global_cond": "${obs_as_global_cond}",
        "crop_shape": [36, 42],
        "obs_encoder_group_norm": True,
        "eval_fixed_crop": True,
    },
    "transformer, camera": LATE
    | DECODER
    | {
        "_target_": f"{POLICY}diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
        "shape_meta": "${shape_meta}",
        "noise_scheduler": DDIM,
        "crop_shape": None,
        "obs_encoder_group_norm": False,
        "n_cond_layers": 0,
        "causal_attn": True,
        "obs_as_cond": "${obs_as_cond}",
    },
    "dp3": cloud("dp3.DP3", DDIM),
    "dp3, colours": cloud("dp3.DP3", DDPM, norm="none", use_pc_color=True),
    "simple dp3": cloud("simple_dp3.SimpleDP3", DDIM),
}


def config(case):
    """The training's configuration, as the repositories write it: references and their `eval` left as they are."""
    return OmegaConf.create(
        {
            "horizon": 8,
            "n_obs_steps": 2,
            "n_action_steps": 4,
            "n_latency_steps": 0,
            "obs_dim": "${task.obs_dim}",
            "action_dim": 2,
            "obs_as_local_cond": False,
            "obs_as_global_cond": True,
            "obs_as_cond": True,
            "shape_meta": "${task.shape_meta}",
            "task": {"obs_dim": 5, "abs_action": True, "shape_meta": CLOUDS if "dp3" in case else IMAGES},
            "policy": COMMON | POLICIES[case],
        }
    )


def spread(shape, key):
    """Numbers in [-1, 1) without a pattern, the same everywhere: the fraction of 43758.5453 sin(12.9898 i + key)."""
    whole = 43758.5453 * np.sin(12.9898 * np.arange(math.prod(shape), dtype=np.float64) + key)
    return torch.from_numpy(2 * (whole - np.floor(whole)) - 1).reshape(shape)


def fill(name, shape, key):
    """A weight by formula: of the size that keeps activations in bounds; scales and variances around one."""
    value = spread(shape, key)
    if len(shape) > 1:
        value = value * math.sqrt(3 / math.prod(shape[1:]))
    elif name.endswith(("scale", "running_var")) or (name.endswith("weight") and len(shape) == 1):
        value = 1 + value / 2
    else:
        value = value / 5
    return value.float()


def weights(case):
    """The state of the policy, filled: names, shapes, order and aliases as the repository has them."""
    golden = recorded()
    state = {}
    for i, (name, shape, source) in enumerate(golden[case]["names"]):
        kept = golden[case]["kept"].get(name)
        state[name] = state[source] if source else fill(name, shape, i) if kept is None else kept
    return state


@functools.cache
def recorded():
    """Case -> names (name, shape, the earlier name whose tensor it is), kept buffers, and the repository's own chunk."""
    found = {case: {"names": [], "kept": {}} for case in POLICIES}
    with np.load(GOLDEN) as golden:
        for key in golden.files:
            case, part, *name = key.split("/")
            if part == "names":
                rows = (row.split(" ") for row in golden[key].tolist())
                found[case]["names"] = [(n, tuple(map(int, s.split("x"))) if s else (), a) for n, s, a in rows]
            elif part == "kept":
                found[case]["kept"][name[0]] = torch.from_numpy(golden[key])
            else:
                found[case]["chunk"] = torch.from_numpy(golden[key])
    return found


def observe(case):
    """A batch of raw observations, as gpc's environments give them."""
    shapes = {"pose": (3,), "image": (41, 53, 3), "agent_pos": (2,)} if "camera" in case else {"obs": (5,)}
    if "dp3" in case:
        shapes = {"point_cloud": (20, 6), "agent_pos": (4,)}
    found = {key: spread((BATCH, 2, *shape), i) for i, (key, shape) in enumerate(shapes.items())}
    return {k: (128 * (v + 1)).to(torch.uint8) if k == "image" else v.float() for k, v in found.items()}


def noise(steps=STEPS, horizon=8):
    """The start, and what each step adds: (1 + steps, batch, horizon, action), of unit variance."""
    return (math.sqrt(3) * spread((1 + steps, BATCH, horizon, 2), 0.5)).float()


def payload(case):
    """What the repositories' workspace saves."""
    averaged = weights(case)
    raw = {key: value + 1 for key, value in averaged.items()} if "camera" not in case else {}
    return {
        "cfg": config(case),
        "state_dicts": {"model": raw, "ema_model": averaged, "optimizer": {"state": {}}},
        "pickles": {"global_step": dill.dumps(100), "epoch": dill.dumps(3)},
    }


def save(content, path):
    torch.save(content, path, pickle_module=dill)
    return path
