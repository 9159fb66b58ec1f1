"""robomimic's diffusion policy, saved by robomimic itself with random weights: its own chunks and its own actions."""

import json

import numpy as np
import pytest
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.train_utils as train_utils
import torch
from robomimic.algo import algo_factory
from robomimic.config import config_factory
from robomimic.utils.dataset import action_stats_to_normalization_stats
from robomimic_checkpoints import run_training
from scipy.spatial.transform import Rotation
from test_from_lerobot import draw, sample

import gpc
from gpc.envs.from_robosuite import axis_angle_actions
from gpc.errors import InputError
from gpc.policies.from_robomimic import unet
from gpc.policy.env_spec import EnvSpec
from gpc.testing.policy import check_policy

LOW, IMAGE = {"robot0_eef_pos": (3,), "object": (10,)}, {"agentview_image": (3, 84, 84)}
CONTROLLER = {"controller_configs": {"body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta"}}}}
KWARGS = {"env_name": "Lift", "has_renderer": False, **CONTROLLER}  # robomimic repeats the name after its rollouts
ENV = {"env_name": "Lift", "type": 1, "env_kwargs": KWARGS, "env_version": "1.5.1"}


TURNED = {"action_dict/abs_pos": (3,), "action_dict/abs_rot_6d": (6,), "action_dict/gripper": (1,)}
SMALL = {"down_dims": [16, 32], "diffusion_step_embed_dim": 16}


def statistics(shapes, seed):
    rng = np.random.default_rng(seed)
    return {
        key: {"scale": rng.uniform(1, 2, (1, *shape)), "offset": rng.normal(size=(1, *shape))}
        for key, shape in shapes.items()
    }


def save(path, *, image=False, turned=False, solver="ddpm", metadata=ENV):
    torch.manual_seed(0)
    config = config_factory("diffusion_policy")
    parts = TURNED if turned else {"actions": (7,)}
    dim = sum(size for (size,) in parts.values())
    shapes = LOW | (IMAGE if image else {})
    with config.unlocked():
        config.observation.modalities.obs.low_dim = list(LOW)
        config.observation.modalities.obs.rgb = list(IMAGE) if image else []
        config.observation.encoder.rgb.core_kwargs.backbone_kwargs.pretrained = False
        config.observation.encoder.rgb.obs_randomizer_class = "CropRandomizer"
        config.observation.encoder.rgb.obs_randomizer_kwargs = {"crop_height": 76, "crop_width": 76, "num_crops": 1}
        config.train.hdf5_normalize_obs = not image
        config.train.action_keys = list(parts)
        formats = {key: {"format": "rot_6d"} if key.endswith("rot_6d") else {} for key in parts}
        config.train.action_config = {key: {"normalization": "min_max"} | formats[key] for key in parts}
        config.algo.optim_params.policy.num_train_batches = config.algo.optim_params.policy.num_epochs = 1
        config.algo.ddpm.enabled, config.algo.ddim.enabled = solver == "ddpm", solver == "ddim"
        config.algo.ddpm.num_inference_timesteps = 10
        config.algo.ddim.clip_sample = False
        config.algo.ddim.num_inference_timesteps = 100
    obs_utils.initialize_obs_utils_with_config(config)
    with unet(**SMALL):
        model = algo_factory("diffusion_policy", config, shapes, dim, torch.device("cpu"))
    for average in model.ema_nets.parameters():  # so that EMA weights are told from the trained ones
        average.data += 0.01
    train_utils.save_model(
        model,
        config,
        metadata,
        {"ac_dim": dim, "all_shapes": shapes, "all_obs_keys": list(shapes), "use_images": image},
        str(path),
        obs_normalization_stats=None if image else statistics(LOW, 1),
        action_normalization_stats=statistics(parts, 2),
    )
    return path


def test_an_observation_is_encoded_once_for_a_chunk(tmp_path):
    policy = gpc.load_policy(f"robomimic:{save(tmp_path / 'tiny.pth')}")
    seen = []
    policy.nets["obs_encoder"].register_forward_hook(lambda *_: seen.append(1))
    denoiser = policy.condition({k: torch.zeros(3, 2, *shape) for k, shape in policy.observations.shapes.items()})
    for sigma in policy.levels.trained[::20]:
        denoiser(torch.zeros(3, 16, 7, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    assert len(seen) == 1


def test_no_network_is_downloaded_whatever_the_configuration_says(tmp_path, monkeypatch):
    def fetched(*_, **__):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetched)
    content = torch.load(save(tmp_path / "tiny.pth", image=True), weights_only=True)
    spoiled = configured(
        lambda c: c["observation"]["encoder"]["rgb"]["core_kwargs"]["backbone_kwargs"].update(pretrained=1)
    )
    torch.save(spoiled(content), tmp_path / "x.pth")
    gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")


def observe(seed, image):
    rng = np.random.default_rng(seed)
    frame = {key: rng.normal(size=shape).astype(np.float32) for key, shape in LOW.items()}
    return frame | ({"agentview_image": rng.integers(0, 256, (84, 84, 3), np.uint8)} if image else {})


@pytest.mark.parametrize(
    ("image", "turned"), [(False, False), (True, False), (False, True)], ids=["state", "camera", "6D rotations"]
)
def test_30_steps_from_raw_observations_to_actions_are_those_of_rollout_policy(tmp_path, monkeypatch, image, turned):
    path = save(tmp_path / "tiny.pth", image=image, turned=turned)
    with unet(**SMALL):
        theirs, _ = file_utils.policy_from_checkpoint(device=torch.device("cpu"), ckpt_path=str(path))
    theirs.policy.ema_nets.eval()  # robomimic leaves the average in training mode, where crops are random
    policy = gpc.load_policy(f"robomimic:{path}")
    frames = [observe(seed, image) for seed in range(30)]
    frames.insert(0, frames[0])
    noise = torch.randn(4, 11, 1, 16, policy.actions.dim, generator=torch.Generator().manual_seed(1))
    starts = iter(noise[:, 0])
    monkeypatch.setattr("robomimic.algo.diffusion_policy.torch.randn", lambda *_, **__: next(starts))
    draw(monkeypatch, noise[:, 1:-1].flatten(0, 1))
    theirs.start_episode()
    stacks = [{k: np.stack([a[k], b[k]]) for k in a} for a, b in zip(frames, frames[1:], strict=False)]
    wanted = np.stack([theirs(stack) for stack in stacks])
    monkeypatch.undo()
    ours = []
    for chunk, first in enumerate(range(0, 30, 8)):
        seen = {key: torch.from_numpy(value)[None] for key, value in stacks[first].items()}
        ours += list(policy.actions.decode(sample(policy, seen, noise[chunk], 10, True))[0, 1:9])
    done = torch.stack(ours[:30]).numpy()
    if turned:  # robomimic turns them after sampling, here the simulator does
        assert (policy.actions.dim, policy.actions.relative, policy.simulator.options["absolute"]) == (10, False, True)
        done = axis_angle_actions(done)
        for actions in (done, wanted):  # a turn by more than pi is the other way round
            actions[:, 3:6] = Rotation.from_rotvec(actions[:, 3:6]).as_rotvec()
    assert np.abs(done - wanted).max() < 1e-5


@pytest.fixture(scope="module")
def rolled_out(tmp_path_factory):
    """A checkpoint of robomimic's trainer, after a rollout in its simulator."""
    return run_training(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older format"])
def test_what_the_trainer_saves_after_a_rollout_acts_as_robomimics_own(rolled_out, tmp_path, monkeypatch, new):
    """It holds the numbers of numpy that the rollout returned."""
    content = torch.load(rolled_out, weights_only=False)
    assert type(content["variable_state"]["best_return"]["lift"]) is np.float64
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    policy = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    with unet(**SMALL):
        theirs, _ = file_utils.policy_from_checkpoint(device=torch.device("cpu"), ckpt_path=str(rolled_out))
    stack = {key: np.stack([value, value]) for key, value in observe(0, False).items()}
    noise = torch.randn(3, 1, 16, 7, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("robomimic.algo.diffusion_policy.torch.randn", lambda *_, **__: noise[0])
    draw(monkeypatch, noise[1:])
    theirs.start_episode()
    wanted = np.stack([theirs(dict(stack)) for _ in range(8)])
    monkeypatch.undo()
    seen = {key: torch.from_numpy(value)[None] for key, value in stack.items()}
    done = policy.actions.decode(sample(policy, seen, noise, 50, True))[0, 1:9].numpy()
    assert np.abs(done - wanted).max() < 1e-5


def test_the_chunk_is_that_of_ddim(tmp_path, monkeypatch):
    """Without `clip_sample`: DDIM's clipping is not that of a clipped model (docs/design.md, section 1)."""
    path = save(tmp_path / "tiny.pth", solver="ddim")
    with unet(**SMALL):
        theirs, _ = file_utils.policy_from_checkpoint(device=torch.device("cpu"), ckpt_path=str(path))
    policy = gpc.load_policy(f"robomimic:{path}")
    stack = {k: np.stack([v, v]) for k, v in observe(0, False).items()}
    noise = torch.randn(1, 1, 16, 7, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("robomimic.algo.diffusion_policy.torch.randn", lambda *_, **__: noise[0])
    theirs.start_episode()
    wanted = theirs.policy._get_action_trajectory(theirs._prepare_observation(stack))
    monkeypatch.undo()
    seen = {key: torch.from_numpy(value)[None] for key, value in stack.items()}
    ours = sample(policy, seen, noise, 1, False)[:, 1:9]
    assert float((ours - wanted).abs().max()) < 1e-5 * max(1, float(wanted.abs().max()))


def test_the_adapter_keeps_the_contract_and_hands_the_simulator_on(tmp_path):
    policy = gpc.load_policy(f"robomimic:{save(tmp_path / 'tiny.pth', image=True)}")
    check_policy(policy, trained=False)
    controllers = {"controller_configs": ENV["env_kwargs"]["controller_configs"]}
    options = {"task": "Lift", "absolute": False, "settings": controllers, "image_size": (84, 84)}
    assert policy.simulator == EnvSpec("robosuite", max_steps=400, options=options)
    assert policy.observations.shapes["agentview_image"] == (84, 84, 3)
    assert (policy.name, policy.actions.dim, policy.actions.start, policy.actions.bound) == ("tiny", 7, -1, 1.0)


@pytest.mark.parametrize(
    ("installed", "said"), [("1.4.0", "trained on robosuite 1.5.1, installed is 1.4.0"), ("1.5.1", "")]
)
def test_another_robosuite_than_the_checkpoints_is_said(tmp_path, monkeypatch, capsys, installed, said):
    monkeypatch.setattr("gpc.policies.from_robomimic.version", lambda package: installed)
    gpc.load_policy(f"robomimic:{save(tmp_path / 'tiny.pth')}")
    assert (said in capsys.readouterr().err) if said else (capsys.readouterr().err == "")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return torch.load(save(tmp_path_factory.mktemp("robomimic") / "tiny.pth"), weights_only=True)


def trained(content):
    """The content without its average, as an interrupted export leaves it."""
    return content | {"model": {key: value for key, value in content["model"].items() if key != "ema"}}


@pytest.mark.parametrize("spoil", [trained, lambda c: c | {"model": c["model"] | {"ema": None}}], ids=["none", "null"])
def test_without_an_average_the_trained_weights_are_taken_and_no_random_ones(content, tmp_path, capsys, spoil):
    torch.save(spoil(content), tmp_path / "x.pth")
    policy = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    assert "has no averaged (EMA) weights" in capsys.readouterr().err
    assert_weights(policy, content["model"]["nets"])


def assert_weights(policy, wanted):
    found = {f"policy.{key}": value for key, value in policy.nets.state_dict().items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_the_average_is_what_acts_unless_the_configuration_has_none(content, tmp_path, capsys):
    torch.save(content, tmp_path / "x.pth")
    assert_weights(gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}"), content["model"]["ema"])
    torch.save(configured(lambda c: c["algo"]["ema"].update(enabled=False))(content), tmp_path / "x.pth")
    assert_weights(gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}"), content["model"]["nets"])
    assert "averaged" not in capsys.readouterr().err


def lost(content):
    """The content with an average that lacks one weight."""
    average = dict(content["model"]["ema"])
    del average["policy.noise_pred_net.final_conv.1.bias"]
    return content | {"model": content["model"] | {"ema": average}}


def test_the_metadata_of_several_data_sets_are_a_list(content, tmp_path, capsys):
    """robomimic's trainer saves it so; its networks are those of the first."""
    one = content["env_metadata"]
    listed = content | {"shape_metadata": [content["shape_metadata"]] * 2, "env_metadata": [one, dict(one)]}
    torch.save(content, tmp_path / "x.pth")
    wanted = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    torch.save(listed, tmp_path / "x.pth")
    policy = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    assert (policy.simulator, policy.actions) == (wanted.simulator, wanted.actions)
    assert policy.observations == wanted.observations
    torch.save(listed | {"env_metadata": [one, one | {"env_name": "Can"}]}, tmp_path / "x.pth")
    capsys.readouterr()
    assert gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}").simulator is None
    assert "trained in 2 environments (Can, Lift); choose one with env=" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["mean and std", "rows", "arrays"])
def test_statistics_of_every_form_normalise_alike(content, tmp_path, form):
    def changed(statistics):
        forms = {
            "mean and std": lambda v: {"mean": v["offset"], "std": v["scale"]},
            "rows": lambda v: {name: value[0] for name, value in v.items()},
            "arrays": lambda v: {name: np.array(value) for name, value in v.items()},
        }
        return {key: forms[form](value) for key, value in statistics.items()}

    keys = ("obs_normalization_stats", "action_normalization_stats")
    torch.save(content, tmp_path / "x.pth")
    wanted = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    torch.save(content | {key: changed(content[key]) for key in keys}, tmp_path / "x.pth")
    policy = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    assert policy.actions == wanted.actions
    assert policy.normalisers.keys() == wanted.normalisers.keys() == LOW.keys()
    pairs = ((policy.normalisers[key], wanted.normalisers[key]) for key in LOW)
    assert all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def test_actions_normalised_by_mean_and_std_are_robomimics(content, tmp_path):
    """A dimension that is constant in the data has scale 1 there, and its offset is the constant."""
    data = np.random.default_rng(0).normal(size=(50, 7))
    data[:, 3] = 0.1
    sums = {"mean": data.mean(0)[None], "sqdiff": ((data - data.mean(0)) ** 2).sum(0)[None], "n": 50}
    sums |= {"min": data.min(0)[None], "max": data.max(0)[None]}
    for kind in ("gaussian", "min_max"):
        statistics = action_stats_to_normalization_stats({"actions": sums}, {"actions": {"normalization": kind}})
        listed = {key: {name: v.tolist() for name, v in part.items()} for key, part in statistics.items()}
        torch.save(content | {"action_normalization_stats": listed}, tmp_path / "x.pth")
        spec = gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}").actions
        x = torch.randn(5, 7, dtype=torch.float64)
        wanted = obs_utils.unnormalize_dict({"actions": x.numpy().copy()}, statistics)["actions"]
        np.testing.assert_allclose(spec.decode(x).numpy(), wanted, rtol=1e-12)
        assert (spec.scale[3], float(spec.encode(torch.tensor(data[0]))[3])) == (1.0, pytest.approx(0, abs=1e-6))


def without(key):
    return lambda content: {k: v for k, v in content.items() if k != key}


def configured(change):
    def do(content):
        config = json.loads(content["config"])
        change(config)
        return content | {"config": json.dumps(config)}

    return do


def rot_6d(config):
    config["train"]["action_config"]["actions"]["format"] = "rot_6d"


def evil_backbone(config):
    config["observation"]["encoder"]["rgb"]["core_kwargs"]["backbone_class"] = "__import__('os').system('touch pwned')"


BREAKAGES = {
    "no model": (without("model"), "is no robomimic checkpoint: it has no 'model'"),
    "another algorithm": (lambda c: c | {"algo_name": "bc"}, "trained with 'bc', which has no score"),
    "an algorithm that is a tensor": (lambda c: c | {"algo_name": torch.zeros(2)}, "which has no score"),
    "configuration that is no JSON": (lambda c: c | {"config": "{"}, "is not valid JSON"),
    "rotations converted after sampling": (configured(rot_6d), "predicted as rot_6d"),
    "a network that is Python": (configured(evil_backbone), "is not a network of robomimic"),
    "configuration of nothing": (lambda c: c | {"config": "{}"}, "does not fit .*KeyError"),
    "configuration that is a list": (lambda c: c | {"config": "[]"}, "does not fit .*AttributeError"),
    "no simulator": (lambda c: c | {"env_metadata": None}, "does not fit .*AttributeError"),
    "no shapes": (lambda c: c | {"shape_metadata": None}, "does not fit .*TypeError"),
    "a missing statistic": (
        lambda c: c | {"action_normalization_stats": {"other": 1}},
        "no normalisation statistic of 'actions'",
    ),
    "an average that lacks a weight": (lost, "1 missing .*final_conv.1.bias|Missing key.*final_conv.1.bias"),
    "a schedule of its own": (
        configured(lambda c: c["algo"]["ddpm"].update(prediction_type="sample")),
        "robomimic trains 'epsilon' only",
    ),
    "a schedule that is none": (
        configured(lambda c: c["algo"]["ddpm"].update(beta_schedule="wild")),
        "algo.ddpm does not fit diffusers: wild",
    ),
    "statistics of fewer dimensions": (
        lambda c: c | {"action_normalization_stats": {"actions": {"scale": [[1.0]], "offset": [[0.0]]}}},
        "action statistics of 1 dimensions, its network acts in 7",
    ),
    "statistics of another kind": (
        lambda c: c | {"action_normalization_stats": {"actions": {"min": [[1.0]], "max": [[0.0]]}}},
        "the statistics of 'actions' are min, max, no scale and offset",
    ),
    "actions without an end": (
        lambda c: c | {"shape_metadata": c["shape_metadata"] | {"ac_dim": 10**12}},
        "its actions have 1000000000000 dimensions",
    ),
    "another network": (
        lambda c: c | {"shape_metadata": c["shape_metadata"] | {"ac_dim": 3}, "action_normalization_stats": None},
        r"its weights do not fit: 4 of another shape \(\S+\.block\.0\.weight: \(16, 7, 5\) instead of \(16, 3, 5\), ",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_what_does_not_fit_is_refused_in_one_line(content, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    torch.save(spoil(content), tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"robomimic:{tmp_path / 'x.pth'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_a_bundled_folder_may_hold_a_robomimic_checkpoint(tmp_path):
    path = save(tmp_path / "tiny.pth")
    (tmp_path / "card.json").write_text(json.dumps({"name": "tiny", "checkpoint": "robomimic:tiny.pth"}))
    assert gpc.load_policy(f"bundled:{tmp_path}").fingerprint == gpc.load_policy(f"robomimic:{path}").fingerprint
    (tmp_path / "card.json").write_text(json.dumps({"name": "tiny", "checkpoint": "robomimic:../tiny.pth"}))
    with pytest.raises(InputError, match="not in its folder"):
        gpc.load_policy(f"bundled:{tmp_path}")


@pytest.mark.parametrize(
    ("controller", "relative"),
    [
        ({"control_delta": True}, True),
        ({"body_parts": {"right": {"input_type": "absolute"}}}, False),
        ({"type": "OSC_POSE"}, None),
    ],
    ids=["1.4 delta", "1.5 absolute", "not declared"],
)
def test_what_the_actions_are_comes_from_the_controller(content, tmp_path, capsys, controller, relative):
    metadata = content["env_metadata"] | {"env_kwargs": {"controller_configs": controller}}
    torch.save(content | {"env_metadata": metadata}, tmp_path / "tiny.pth")
    assert gpc.load_policy(f"robomimic:{tmp_path / 'tiny.pth'}").actions.relative is relative
    assert capsys.readouterr().err == ""
