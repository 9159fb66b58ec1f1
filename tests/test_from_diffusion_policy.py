"""Checkpoints in the layout of Diffusion Policy, written with dill, read without running any of it."""

import copy
import os

import dill
import pytest
import robomimic.models.diffusion_policy_nets as networks
import torch
from diffusers import DDPMScheduler
from omegaconf import OmegaConf
from test_checkpoint import TOUCH, Call
from test_from_lerobot import draw, sample

import gpc
from gpc.errors import InputError
from gpc.policies.from_diffusion_policy import KIND
from gpc.testing import check_policy

CONFIG = {
    "_target_": "diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace.TrainDiffusionUnetLowdimWorkspace",
    "horizon": 16,
    "n_obs_steps": 2,
    "obs_as_global_cond": True,
    "task": {"obs_dim": 5},
    "policy": {
        "_target_": KIND,
        "model": {
            "input_dim": "${eval: ${task.action_dim}}",
            "global_cond_dim": "${eval: ${task.obs_dim}*${n_obs_steps}}",
            "diffusion_step_embed_dim": 16,
            "down_dims": [16, 32],
            "kernel_size": 5,
            "n_groups": 8,
            "cond_predict_scale": True,
        },
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
            "num_train_timesteps": 100,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": True,
            "prediction_type": "epsilon",
        },
        "horizon": "${horizon}",
        "n_obs_steps": "${n_obs_steps}",
        "n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}",
        "obs_as_global_cond": "${obs_as_global_cond}",
        "pred_action_steps_only": False,
        "oa_step_convention": True,
    },
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return networks.ConditionalUnet1D(2, 10, diffusion_step_embed_dim=16, down_dims=[16, 32]).eval()


@pytest.fixture(scope="module")
def payload(network):
    weights = {f"model.{key}": value for key, value in network.state_dict().items()}
    for key, size in (("obs", 5), ("action", 2)):
        for part, value in (("scale", 1 / 200), ("offset", -1.0), ("input_stats.min", 0.0)):
            weights[f"normalizer.params_dict.{key}.{part}"] = torch.full((size,), value)
    weights["mask_generator._dummy_variable"] = torch.zeros(0)
    raw = {key: value + 1 for key, value in weights.items()}
    return {
        "cfg": OmegaConf.create(CONFIG),
        "state_dicts": {"model": raw, "ema_model": weights, "optimizer": {"state": {}}},
        "pickles": {"global_step": dill.dumps(100), "epoch": dill.dumps(3)},
    }


def save(payload, path):
    torch.save(payload, path, pickle_module=dill)
    return path


@pytest.fixture(scope="module")
def checkpoint(payload, tmp_path_factory):
    return save(payload, tmp_path_factory.mktemp("diffusion-policy") / "epoch=0100-test_mean_score=0.9.ckpt")


def test_the_averaged_weights_and_normalisers_come_back_bit_for_bit(checkpoint, network):
    policy = gpc.load_policy(f"diffusion_policy:{checkpoint}")
    found = policy.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    assert policy.actions.scale == pytest.approx((200, 200))
    assert policy.actions.offset == pytest.approx((200, 200))
    assert (policy.actions.start, policy.actions.horizon, policy.actions.bound) == (-1, 16, 1.0)
    assert (dict(policy.observations.shapes), policy.observations.n_obs_steps) == ({"obs": (5,)}, 2)
    check_policy(policy, trained=False)


def test_the_chunk_is_that_of_its_own_scheduler(checkpoint, network, monkeypatch):
    policy = gpc.load_policy(f"diffusion_policy:{checkpoint}")
    observation = {"obs": 400 * torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))}
    noise = torch.randn(101, 3, 16, 2, generator=torch.Generator().manual_seed(1))
    draw(monkeypatch, noise[1:])
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(100)
    x = noise[0]
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = network(x, t, global_cond=(observation["obs"] / 200 - 1).flatten(1))
        x = scheduler.step(out, t, x).prev_sample
    assert float((sample(policy, observation, noise, 1, True) - x).abs().max()) < 1e-5


def configured(key, value):
    def do(payload):
        config = copy.deepcopy(payload["cfg"])
        OmegaConf.update(config, key, value)
        return payload | {"cfg": config}

    return do


def weights(change):
    return lambda p: p | {"state_dicts": {"ema_model": change(p["state_dicts"]["ema_model"])}}


def without(part):
    return lambda state: {key: value for key, value in state.items() if part not in key}


BREAKAGES = {
    "another policy": (configured("policy._target_", "x.HybridImage"), "is a x.HybridImage; gpc reads"),
    "conditioned otherwise": (configured("obs_as_global_cond", False), "has policy.obs_as_global_cond=False"),
    "another prediction": (configured("policy.noise_scheduler.prediction_type", "v"), "has prediction_type='v'"),
    "a setting that is code": (
        configured("policy.horizon", "${eval:'8+8'}"),
        "cfg.horizon cannot be read: Unsupported",
    ),
    "no horizon": (configured("policy.horizon", None), "has no 'horizon'"),
    "no weights": (lambda p: p | {"state_dicts": {}}, "holds no weights"),
    "no configuration": (lambda p: {"state_dicts": {}}, "it has no 'cfg'"),
    "a configuration that is none": (lambda p: p | {"cfg": 3}, "its cfg is no OmegaConf configuration"),
    "no normaliser": (weights(without("params_dict.action")), "has no normaliser of 'action'"),
    "another network": (configured("policy.model.down_dims", [16, 64]), "do not fit the network it describes"),
    "a network of less": (weights(without("final_conv")), "do not fit the network it describes"),
    "a payload": (lambda p: p | {"pickles": Call(os.system, TOUCH)}, "asks for posix.system"),
    "a payload in the configuration": (
        lambda p: p | {"cfg": {"policy": Call(eval, f"__import__('os').system('{TOUCH}')")}},
        "asks for eval",
    ),
    "a lambda": (lambda p: p | {"f": lambda: os.system(TOUCH)}, "asks for dill._dill._create_"),
}


@pytest.mark.parametrize(("spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_what_does_not_fit_or_is_hostile_is_refused_in_one_line(payload, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    path = save(spoil(payload), tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"diffusion_policy:{path}")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x.ckpt"]
