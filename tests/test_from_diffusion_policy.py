"""Checkpoints in the layout of Diffusion Policy and DP3, written with dill: the repositories' own chunks, and refusals."""

import copy
import functools
import inspect
import os

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusion_policy_checkpoints import DDPM, POLICIES, TRAINED, noise, observe, payload, recorded, save, weights
from omegaconf import OmegaConf
from test_checkpoint import TOUCH, Call
from test_from_lerobot import sample

import gpc
from gpc.errors import InputError
from gpc.policies.schedulers import ONLY, READ, SAMPLING, WITHOUT_EFFECT
from gpc.score.denoiser import Clamp
from gpc.testing.policy import check_policy


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The policy of a case, from a file that is written once."""
    folder = tmp_path_factory.mktemp("diffusion-policy")
    return functools.cache(lambda case: gpc.load_policy(f"diffusion_policy:{save(payload(case), folder / case)}"))


@pytest.mark.parametrize("case", POLICIES)
def test_the_chunk_is_that_of_the_repositorys_own_predict_action(load, case):
    policy = load(case)
    stochastic = POLICIES[case]["noise_scheduler"] is DDPM
    ours = policy.actions.decode(sample(policy, observe(case), noise(), 5, stochastic))
    assert float((ours - recorded()[case]["chunk"]).abs().max()) < 1e-5


@pytest.mark.parametrize("path", sorted(TRAINED.rglob("*.ckpt")), ids=lambda path: path.relative_to(TRAINED).as_posix())
def test_a_file_of_the_trainer_gives_the_chunk_of_the_trainers_own_policy(path):
    """On the 100 steps of its inference, in pixels; the averaged weights if there are any."""
    with np.load(TRAINED / "chunks.npz") as stored:
        seen = {"obs": torch.from_numpy(stored["obs"])}
        chunk = torch.from_numpy(stored["/".join(path.parts[-3:])])
    policy = gpc.load_policy(f"diffusion_policy:{path}")
    assert float((policy.actions.decode(sample(policy, seen, noise(100, 16), 1, True)) - chunk).abs().max()) < 5e-3


@pytest.mark.parametrize("case", POLICIES)
def test_the_adapter_keeps_the_contract(load, case):
    check_policy(load(case), trained=False)


@pytest.mark.parametrize("case", POLICIES)
def test_the_averaged_weights_come_back_bit_for_bit(load, case):
    policy, stored = load(case), weights(case)
    for prefix, part in (("obs_encoder.", policy.encoder), ("model.", policy.network)):
        found = part.state_dict()
        own = [key for key in stored if key.startswith(prefix) and not key.endswith("_dummy_variable")]
        assert sorted(found) == sorted(key.removeprefix(prefix) for key in own)
        assert all(torch.equal(found[key.removeprefix(prefix)], stored[key]) for key in own)


def test_every_observation_matters(load):
    """Of the parity test's inputs none is lost, whatever its place."""
    for case in POLICIES:
        seen, policy = observe(case), load(case)
        whole = policy.condition(seen)(noise()[0].double(), torch.tensor(1.0, dtype=torch.float64))
        for key, value in seen.items():
            changed = seen | {key: value.roll(1, 0)}
            assert not torch.allclose(policy.condition(changed)(noise()[0].double(), torch.tensor(1.0)), whole), (
                case,
                key,
            )


@pytest.mark.parametrize("case", ["unet, camera", "transformer, camera", "dp3"])
def test_an_observation_is_encoded_once_for_a_chunk(load, case):
    policy, calls = load(case), []
    hook = policy.encoder.register_forward_hook(lambda *_: calls.append(1))
    sample(policy, observe(case), noise(), 5, False)
    hook.remove()
    assert len(calls) == 1


def test_what_the_policy_says_of_itself(load):
    policy, stored = load("unet"), weights("unet")
    scale, offset = (stored[f"normalizer.params_dict.action.{part}"] for part in ("scale", "offset"))
    torch.testing.assert_close(policy.actions.encode(torch.ones(2)), scale + offset)
    spec = policy.actions
    assert (spec.horizon, spec.dim, spec.start, spec.bound, spec.relative) == (8, 2, -1, 1.0, False)
    assert load("dp3").actions.bound is None
    shapes = {case: dict(load(case).observations.shapes) for case in ("unet", "unet, camera", "dp3")}
    assert shapes["unet"] == {"obs": (5,)}
    assert shapes["unet, camera"] == {"pose": (3,), "image": (41, 53, 3), "agent_pos": (2,)}
    assert shapes["dp3"] == {"point_cloud": (20, 6), "agent_pos": (4,)}


def configured(*changes):
    def do(content):
        cfg = copy.deepcopy(content["cfg"])
        for key, value in changes:
            OmegaConf.update(cfg, key, value, force_add=True)
        return content | {"cfg": cfg}

    return do


@pytest.mark.parametrize(
    ("key", "value", "relative"),
    [("task.abs_action", False, True), ("task.abs_action", None, None), ("task.dataset.delta_action", True, True)],
)
def test_moves_and_targets_are_told_apart(tmp_path, capsys, key, value, relative):
    content = configured(("task.abs_action", None), (key, value))(payload("unet"))
    assert gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}").actions.relative is relative
    assert capsys.readouterr().err == ""


def test_a_chunk_may_begin_one_step_earlier(tmp_path):
    content = configured(("policy.oa_step_convention", False))(payload("unet"))
    assert gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}").actions.start == -2


def scheduled(**changes):
    return configured(*((f"policy.noise_scheduler.{key}", value) for key, value in changes.items()))


ASKED = {
    "trained_betas": [0.01 + 0.001 * i for i in range(50)],
    "beta_schedule": "sigmoid",
    "clip_sample_range": 2.5,
    "prediction_type": "sample",
}


def test_scheduler_settings_are_those_of_diffusers(tmp_path):
    """Levels, and one denoised action, for each setting that gpc reads."""
    for key, value in ASKED.items():
        content = scheduled(**{key: value})(payload("unet"))
        policy = gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")
        theirs = DDPMScheduler(**{k: v for k, v in (DDPM | {key: value}).items() if k != "_target_"})
        sigmas = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
        torch.testing.assert_close(torch.tensor(policy.levels.trained), sigmas, rtol=1e-4, atol=1e-6)
        seen, x = observe("unet"), noise()[0]
        step = 20
        condition = policy.encoder({"obs": policy._normalise("obs", seen["obs"])}).flatten(1)
        with torch.inference_mode():
            out = policy.network(x, torch.full((len(x),), step), condition)
        wanted = theirs.step(out, step, x).pred_original_sample
        denoiser = policy.condition(seen)
        sigma = torch.tensor(policy.levels.trained[step], dtype=torch.float64)
        found = Clamp(denoiser, policy.actions.bound)(x.double() * (1 + sigma**2).sqrt(), sigma)
        torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=1e-4)


SILENT = {
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "variance_type": "fixed_large",
    "dynamic_thresholding_ratio": 0.5,
    "sample_max_value": 3.0,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def test_settings_without_effect_on_the_denoiser_are_taken(tmp_path, load):
    content = scheduled(**SILENT)(payload("unet"))
    policy = gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")
    assert (policy.actions, policy.levels) == (load("unet").actions, load("unet").levels)


def test_every_setting_of_both_schedulers_is_known():
    for kind in (DDPMScheduler, DDIMScheduler):
        known = {*READ, *ONLY, *SAMPLING, *WITHOUT_EFFECT}
        assert set(inspect.signature(kind).parameters) <= known


@pytest.mark.parametrize(
    ("key", "value"),
    [("thresholding", True), ("rescale_betas_zero_snr", True), ("variance_type", "learned_range")],
)
def test_a_setting_that_changes_the_denoiser_is_refused_by_name(tmp_path, key, value):
    content = scheduled(**{key: value})(payload("unet"))
    with pytest.raises(InputError, match=f"policy.noise_scheduler has {key}={value}, which changes the denoiser"):
        gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predict_epsilon": True}, "has the setting predict_epsilon, which gpc does not know"),
        ({"_target_": "diffusers.EulerDiscreteScheduler"}, "is a diffusers.EulerDiscreteScheduler; gpc reads DDPM"),
        ({"trained_betas": [0.1] * 49}, "num_train_timesteps=50 and 49 trained_betas"),
        ({"clip_sample_range": "wide"}, "does not fit diffusers"),
        ({"prediction_type": ["epsilon"]}, "gpc reads epsilon, sample"),
        ({"trained_betas": "x"}, "does not fit diffusers"),
    ],
)
def test_a_scheduler_that_gpc_does_not_have_is_refused_by_name(tmp_path, changes, message):
    content = scheduled(**changes)(payload("unet"))
    with pytest.raises(InputError, match=message):
        gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")


def test_a_constant_has_the_repositorys_scale_of_1_and_acts_as_its_unnormaliser(tmp_path):
    """That is (x - offset) / scale."""
    content = payload("unet")
    names = [f"normalizer.params_dict.action.{part}" for part in ("scale", "offset")]
    scale, offset = torch.tensor([0.004, 1.0]), torch.tensor([-1.0, -37.5])
    content["state_dicts"]["ema_model"] |= dict(zip(names, (scale, offset), strict=True))
    spec = gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}").actions
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(spec.decode(x), (x - offset.double()) / scale.double(), rtol=1e-14, atol=0)
    assert spec.decode(torch.zeros(2))[1] == 37.5
    assert spec.constants == (None, None)


def test_settings_that_are_none_are_refused(tmp_path):
    content = configured(("policy.noise_scheduler", "DDPM"))(payload("unet"))
    with pytest.raises(InputError, match=r"policy\.noise_scheduler is DDPM, no settings of a scheduler"):
        gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")


def test_a_file_without_the_average_of_its_training_is_loaded_with_a_notice(tmp_path, capsys):
    content = configured(("training.use_ema", True))(payload("unet"))
    gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")
    assert "averaged" not in capsys.readouterr().err
    content["state_dicts"] = {"model": content["state_dicts"]["ema_model"]}
    gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")
    assert "has no averaged (EMA) weights" in capsys.readouterr().err


def state(change):
    return lambda p: p | {"state_dicts": {"ema_model": change(p["state_dicts"]["ema_model"])}}


def without(part):
    return state(lambda tensors: {key: value for key, value in tensors.items() if part not in key})


def refer_to_itself(content):
    cfg = copy.deepcopy(content["cfg"])
    cfg._content["policy"] = cfg
    return content | {"cfg": cfg}


IMAGE = "normalizer.params_dict.image.{}"


def plain(section, settings):
    """Return a change of a file that replaces settings, in plain containers."""

    def change(content):
        config = OmegaConf.to_container(content["cfg"], resolve=False)
        return content | {"cfg": config | {section: config[section] | settings}}

    return change


REFUSED = {
    "another policy": ("unet", configured(("policy._target_", "x.HybridImage")), "is a x.HybridImage; gpc reads Diff"),
    "an image policy": (
        "unet",
        configured(("policy._target_", "diffusion_policy.policy.diffusion_unet_image_policy.DiffusionUnetImagePolicy")),
        "DiffusionUnetImagePolicy; gpc reads DiffusionUnetLowdimPolicy, .*HybridImagePolicy.*, DP3, SimpleDP3",
    ),
    "conditioned otherwise": ("unet", configured(("obs_as_global_cond", False)), "has policy.obs_as_global_cond=False"),
    "inpainted": ("causal transformer", configured(("obs_as_cond", False)), "has policy.obs_as_cond=False"),
    "an encoder only": (
        "causal transformer",
        configured(("policy.model.time_as_cond", False)),
        "has policy.model.time_as_cond=False; gpc reads this policy with True only",
    ),
    "a chunk of executed steps": (
        "causal transformer",
        configured(("policy.pred_action_steps_only", True)),
        "has policy.pred_action_steps_only=True",
    ),
    "cross attention": (
        "dp3",
        configured(("policy.condition_type", "cross_attention_film")),
        "has policy.condition_type=cross_attention_film; gpc reads this policy with film only",
    ),
    "no projection": (
        "dp3",
        configured(("policy.pointcloud_encoder_cfg.use_projection", False)),
        "pointcloud_encoder_cfg.use_projection=False",
    ),
    "an imagined robot": (
        "dp3",
        configured(("task.shape_meta.obs.imagin_robot", {"shape": [96, 7]})),
        "points of an imagined robot",
    ),
    "points without colours": (
        "dp3, colours",
        state(lambda s: s | {f"normalizer.params_dict.point_cloud.{p}": torch.ones(3) for p in ("scale", "offset")}),
        "its points have 3 numbers, the network reads 6",
    ),
    "two hands": ("dp3", configured(("task.shape_meta.action.shape", [2, 7])), r"actions have shape \(2, 7\)"),
    "an unknown observation": (
        "dp3",
        configured(("task.shape_meta.obs.agent_pos.type", "scan")),
        r"observation 'agent_pos' is a scan of shape \(4,\)",
    ),
    "another prediction": (
        "unet",
        configured(("policy.noise_scheduler.prediction_type", "v_prediction")),
        "policy.noise_scheduler has prediction_type='v_prediction'; gpc reads epsilon, sample",
    ),
    "another schedule": (
        "unet",
        configured(("policy.noise_scheduler.beta_schedule", "wild")),
        "policy.noise_scheduler does not fit diffusers: wild is not implemented",
    ),
    "a setting that is code": (
        "unet",
        configured(("policy.horizon", "${eval:'8+8'}")),
        "its configuration has .*8.8.* which is code",
    ),
    "a setting of the environment": ("unet", configured(("policy.horizon", "${oc.env:HOME}")), "which is code"),
    "a reference to nothing": ("unet", configured(("policy.horizon", "${horizn}")), "has no 'policy.horizon'"),
    "a reference to itself": (
        "unet",
        configured(("horizon", "${horizon}")),
        "'horizon' in its configuration refers to",
    ),
    "a configuration in itself": ("unet", refer_to_itself, "has no 'policy._target_'"),
    "no horizon": ("unet", configured(("policy.horizon", None)), "has no 'policy.horizon'"),
    "a horizon in words": ("unet", configured(("policy.horizon", "long")), "do not fit the network it describes: Type"),
    "no weights": ("unet", lambda p: p | {"state_dicts": {}}, "holds no weights"),
    "weights that are none": ("unet", lambda p: p | {"state_dicts": [1]}, "holds no weights"),
    "no configuration": ("unet", lambda p: {"state_dicts": {}}, "it has no 'cfg'"),
    "a configuration that is none": ("unet", lambda p: p | {"cfg": 3}, "has no 'policy._target_'"),
    "no normaliser": ("unet", without("params_dict.action"), "has no normaliser of 'action'"),
    "no normaliser of a camera": ("unet, camera", without("params_dict.image.offset"), "has no normaliser of 'image'"),
    "a camera normalised by its columns": (
        "unet, camera",
        state(lambda s: s | {IMAGE.format(p): torch.ones(3) for p in ("scale", "offset")}),
        "the normaliser of 'image' has 3 numbers for 1 dimensions",
    ),
    "a normaliser of another robot": (
        "unet",
        configured(("action_dim", 7)),
        "the normaliser of 'action' has 2 numbers for 7 dimensions",
    ),
    "another network": (
        "unet",
        configured(("policy.model.down_dims", [16, 64])),
        r"weights do not fit: 44 of another shape \(\S+\.block\.0\.weight: \(32, 32, 5\) instead of \(64, 64, 5\), ",
    ),
    "a network beyond memory": (
        "unet",
        configured(("policy.model.down_dims", [16, 2**24])),
        "describes a network of .* bytes, the file of its weights has",
    ),
    "a network of less": ("unet", without("final_conv"), r"weights do not fit: 6 missing \(model\.final_conv\."),
    "a mask that is missing": ("causal transformer", without("memory_mask"), r"1 missing \(model\.memory_mask\)"),
    "a payload": ("unet", lambda p: p | {"pickles": Call(os.system, TOUCH)}, "needs posix.system"),
    "a payload in the configuration": (
        "unet",
        lambda p: p | {"cfg": {"policy": Call(eval, f"__import__('os').system('{TOUCH}')")}},
        "needs eval",
    ),
    "a lambda": ("unet", lambda p: p | {"f": lambda: os.system(TOUCH)}, "needs dill._dill._create_"),
    "a setting that is a tensor": (
        "unet",
        plain("policy", {"_target_": torch.zeros(2)}),
        "Tensor, which is no setting",
    ),
    "a setting that is an array": (
        "unet",
        plain("policy", {"obs_as_global_cond": np.zeros(2)}),
        "Array, which is no setting",
    ),
    "weights that are one tensor": (
        "unet",
        lambda p: p | {"state_dicts": {"ema_model": torch.zeros(2)}},
        "do not fit the network",
    ),
}


@pytest.mark.parametrize(("case", "spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_or_is_hostile_is_refused_in_one_line(tmp_path, monkeypatch, case, spoil, message):
    monkeypatch.chdir(tmp_path)
    path = save(spoil(payload(case)), tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"diffusion_policy:{path}")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_no_resolver_of_this_process_runs(tmp_path, monkeypatch):
    """The repositories' own scripts register Python's eval; a program that did so would run what a file says."""
    monkeypatch.chdir(tmp_path)
    OmegaConf.register_new_resolver("eval", eval)
    try:
        content = configured(("policy.horizon", f'${{eval:\'__import__("os").system("{TOUCH}")\'}}'))(payload("unet"))
        with pytest.raises(InputError, match="which is code"):
            gpc.load_policy(f"diffusion_policy:{save(content, tmp_path / 'x.ckpt')}")
        assert os.listdir(tmp_path) == ["x.ckpt"]
        assert OmegaConf.select(content["cfg"], "policy.horizon") == 0
        assert sorted(os.listdir(tmp_path)) == ["pwned", "x.ckpt"]  # OmegaConf itself would
    finally:
        OmegaConf.clear_resolver("eval")
