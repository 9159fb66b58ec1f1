"""BESO's trainings: its own denoised actions and chunks (tests/data/beso.json), and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from beso_checkpoints import CASES, SIGMAS, inputs, save
from test_checkpoint import TOUCH, Call

import gpc
from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.inference.chunk import sample_chunk
from gpc.inference.settings import Sampling
from gpc.score.denoiser import Clamp
from gpc.score.keyed_noise import keyed_noise
from gpc.score.samplers import dpmpp_2m, euler, heun, last
from gpc.testing.policy import check_policy

GOLDEN = json.loads((Path(__file__).parent / "data" / "beso.json").read_text())
INNER = "agents.model.inner_model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("beso")
    return {case: save(root / case, case, GOLDEN[case]) for case in CASES}


def observe(case, policy):
    """The states, and the goal beside the newest of them; older goals are never read."""
    states, goals, _ = inputs(case)
    history = torch.full((2, states.shape[1] - 1, *goals.shape[1:]), torch.nan)
    return {
        key: {"state": states, "goal": torch.cat([history, goals[:, None]], 1)}[key]
        for key in policy.observations.shapes
    }


def far(found, wanted):
    return float((found - torch.tensor(wanted, dtype=torch.float64)).abs().max())


def sampled(policy, case, solver, golden, bound=None):
    """The normalised chunk over BESO's own grid from its own noise."""
    sigmas = torch.tensor(golden["sigmas"], dtype=torch.float64)
    denoiser = policy.condition(observe(case, policy))
    denoiser = denoiser if bound is None else Clamp(denoiser, bound)
    return last(solver(denoiser, sigmas[0] * inputs(case)[2].double(), sigmas))


@pytest.mark.parametrize("case", CASES)
def test_denoised_is_the_one_of_besos_score_model(case, folders):
    policy = gpc.load_policy(f"beso:{folders[case]}")
    denoiser, noise = policy.condition(observe(case, policy)), inputs(case)[2].double()
    for sigma, wanted in zip(SIGMAS, GOLDEN[case]["denoised"], strict=True):
        assert far(denoiser(sigma * noise, torch.tensor(sigma, dtype=torch.float64)), wanted) < 1e-6


@pytest.mark.parametrize("case", ["kitchen", "push"])
def test_without_the_goal_denoised_is_the_one_that_beso_guides_with(case, folders):
    policy = gpc.load_policy(f"beso_unconditional:{folders[case]}")
    denoiser, noise = policy.condition(observe(case, policy)), inputs(case)[2].double()
    for i, (sigma, wanted) in enumerate(zip(SIGMAS, GOLDEN[case]["denoised without goal"], strict=True)):
        found = denoiser(sigma * noise, torch.tensor(sigma, dtype=torch.float64))
        assert far(found, wanted) < 1e-6
        assert far(found, GOLDEN[case]["denoised"][i]) > 1e-4


@pytest.mark.parametrize(("name", "solver"), [("ddim", euler), ("dpmpp_2m", dpmpp_2m), ("heun", heun)])
@pytest.mark.parametrize("case", CASES)
def test_the_chunk_is_the_one_of_besos_samplers(case, name, solver, folders):
    policy = gpc.load_policy(f"beso:{folders[case]}")
    assert far(sampled(policy, case, solver, GOLDEN[case][name]), GOLDEN[case][name]["sampled"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_actions_are_besos_in_its_own_units(case, folders):
    """Block pushing's are clipped to 1.1 times the range of the data."""
    policy, golden = gpc.load_policy(f"beso:{folders[case]}"), GOLDEN[case]["ddim"]
    found = policy.actions.decode(sampled(policy, case, euler, golden, policy.actions.bound))
    assert far(found, golden["actions"]) < 1e-5 * max(policy.actions.scale)
    clipped = far(policy.actions.decode(torch.tensor(golden["sampled"])), golden["actions"])
    assert (clipped > 1e-3) == (case == "push")


@pytest.mark.parametrize("case", ["kitchen", "push"])
def test_guidance_with_both_halves_is_besos_classifier_free_guidance(case, folders):
    """Its `cond_lambda` of 2 is `uncond + 2 (cond - uncond)`: weights 2 and -1."""
    members = [gpc.load_policy(f"{loader}:{folders[case]}") for loader in ("beso", "beso_unconditional")]
    golden = GOLDEN[case]["ddim, cond_lambda=2"]
    assert far(sampled(gpc.compose(members, gpc.Guidance([2.0, -1.0])), case, euler, golden), golden["sampled"]) < 1e-5
    assert far(sampled(members[0], case, euler, golden), golden["sampled"]) > 1e-4


@pytest.mark.parametrize(
    ("source", "shapes", "window", "bound"),
    [
        ("beso:kitchen", {"state": (5,), "goal": (2, 5)}, 4, None),
        ("beso_unconditional:kitchen", {"state": (5,)}, 4, None),
        ("beso:push", {"state": (10,), "goal": (1, 10)}, 3, 1.1),
        ("beso:aimless", {"state": (5,)}, 2, None),
    ],
)
def test_a_window_of_states_has_an_action_each_and_the_last_is_now(source, shapes, window, bound, folders):
    loader, _, case = source.partition(":")
    policy = gpc.load_policy(f"{loader}:{folders[case]}")
    assert (dict(policy.observations.shapes), policy.observations.n_obs_steps) == (shapes, window)
    assert (policy.actions.horizon, policy.actions.start, policy.actions.bound) == (window, 1 - window, bound)
    assert (policy.levels.sigma_min, policy.levels.sigma_max, policy.levels.trained) == (0.005, 1.0, None)
    assert policy.name == case + ("-unconditional" if loader != "beso" else "")
    check_policy(policy, trained=False)


def test_weights_scaler_and_half_have_their_own_fingerprint(folders, tmp_path):
    scaler = {"state": GOLDEN["push"]["scaler"]["state"], "action": {"min": [0.0, 0.0], "max": [1.0, 1.0]}}
    other = save(tmp_path / "push", "push", GOLDEN["push"] | {"scaler": scaler})
    sources = [f"beso:{folders['push']}", f"beso_unconditional:{folders['push']}", f"beso:{other}"]
    assert len({gpc.load_policy(source).fingerprint for source in sources}) == 3


def test_two_networks_without_a_goal_are_evaluated_as_guidance_on_pusht(tmp_path):
    """One action executed at a time, the newest of a chunk from the last 2 and 4 states."""
    scaler = {"state": {"mean": [256.0] * 5, "std": [128.0] * 5}, "action": {"mean": [256.0] * 2, "std": [128.0] * 2}}
    for case in ("aimless", "kitchen"):
        save(tmp_path / case, case, GOLDEN[case] | {"scaler": scaler}, {"scale_data": True})
    sources = [f"beso:{tmp_path}/aimless", f"beso_unconditional:{tmp_path}/kitchen"]
    short = ["env.max_steps=6", "episodes=1", "video=0", "sampler.steps=3", "engine.workers=1"]
    told = [f"policies=[{','.join(sources)}]", "composer=guidance", "weights=[1.5,-0.5]", f"run_dir={tmp_path / 'run'}"]
    assert main(["evaluate", *short, *told]) == 0
    episode = {
        key: array[0] for key, array in zarr.open_group(tmp_path / "run" / "trajectories.zarr", mode="r").arrays()
    }
    policy = gpc.compose([gpc.load_policy(source) for source in sources], gpc.Guidance([1.5, -0.5]))
    for step in (0, 5):
        states = torch.tensor(episode["state"][[max(k, 0) for k in range(step - 3, step + 1)]])
        noise = keyed_noise(np.array([200_000]), np.array([step]), 1, policy.actions.shape)
        x = sample_chunk(policy, {"state": states[None].float()}, noise, Sampling(steps=3))
        assert far(policy.actions.decode(x)[0, -1], episode["action"][step].tolist()) < 1e-3  # of 512


def settings(**changes):
    return lambda folder: None, {key.replace("__", "."): value for key, value in changes.items()}


def file(name, text):
    return lambda folder: (folder / name).write_text(text), {}


def gone(*names):
    return lambda folder: [(folder / name).unlink() for name in names], {}


def spoil_scaler(part, **changes):
    scaler = GOLDEN["push"]["scaler"]
    return file("scaler.json", json.dumps(scaler | {part: scaler[part] | changes}))


def payload(folder):
    torch.save({"x": Call(os.system, TOUCH)}, folder / "model_state_dict.pth")


BREAKAGES = {
    "no settings": (gone(".hydra/config.yaml"), "takes the folder of a training, with .hydra/config.yaml in it"),
    "settings that are no YAML": (file(".hydra/config.yaml", "a: [1"), "config.yaml cannot be read: .*while parsing"),
    "settings that are a list": (file(".hydra/config.yaml", "[1]"), "has no 'agents._target_'"),
    "another agent": (settings(agents___target_="x.GMM"), "has agents._target_=x.GMM; gpc reads beso.agents"),
    "a network for images": (
        settings(agents__model__inner_model={"_target_": "x.VisionDiffusionGPT"}),
        r"has agents.model.inner_model._target_=x.VisionDiffusionGPT; gpc reads .*DiffusionGPT",
    ),
    "another encoder": (settings(agents__input_encoder___target_="x.CNN"), "has agents.input_encoder._target_=x.CNN"),
    "only the last action noised": (settings(agents__pred_last_action_only=True), "pred_last_action_only=True; gpc"),
    "a setting that is code": (settings(obs_dim="${eval:5}"), "which is code; gpc runs none of it"),
    "a shorter window": (settings(agents__window_size=2), "agents.window_size other than"),
    "no states": (settings(obs_dim=0), "state_dim=0; it must be a number above 0"),
    "a level that is none": (settings(agents__sigma_min="low"), "sigma_min='low'; it must be a number above 0"),
    "levels upside down": (settings(agents__sigma_min=2.0), "sigma_min < sigma_max, not 2.0, 1.0"),
    "heads that do not fit": (settings(agents__model__inner_model__n_heads=5), "which 5 heads do not divide"),
    "neither scaler nor weights": (
        gone("scaler.json", "model_state_dict.pth"),
        r'scaler.json is missing; .* \{"state": \{"mean": "10 numbers", .*"action": \{"min": "2 numbers", "max"',
    ),
    "a scaler of another kind": (spoil_scaler("action", min=[0.0] * 3), "action.min is not 2 numbers"),
    "a scaler with a hole": (spoil_scaler("state", std=[float("nan")] * 10), "scaler.json is not of the form"),
    "half a scaler": (file("scaler.json", '{"state": {}}'), r"scaler.json is not of the form .*: state.mean"),
    "a scaler that is a list": (file("scaler.json", "[]"), "scaler.json is not of the form"),
    "a damaged scaler": (file("scaler.json", "{"), "scaler.json is not of the form"),
    "an action whose range is turned": (
        spoil_scaler("action", min=[0.0, 1.0], max=[1.0, 0.5]),
        "every scale positive or, of a constant, 0",
    ),
    "no weights": (gone("model_state_dict.pth"), "no file"),
    "damaged weights": (file("model_state_dict.pth", "x"), "model_state_dict.pth is not loaded"),
    "a payload": ((payload, {}), "needs posix.system"),
    "another network": (
        settings(agents__model__inner_model__n_layers=3),
        r"do not fit: 16 missing \(blocks\.2\.ln1\.weight, ",
    ),
    "another head": (
        settings(agents__model__inner_model__linear_output=True),
        r"2 missing .*, 4 unexpected \(action_pred",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_what_does_not_fit_or_is_hostile_is_refused_in_one_line(spoil, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    act, changes = spoil
    folder = save(tmp_path / "push", "push", GOLDEN["push"], changes)
    act(folder)
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"beso:{folder}")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["push"]


@pytest.mark.parametrize(("case", "key"), [("push", "cond_mask_prob"), ("kitchen", "goal_conditioning")])
def test_a_network_that_never_went_without_its_goal_has_no_other_half(case, key, tmp_path):
    folder = save(tmp_path / case, case, GOLDEN[case], {key: 0})
    with pytest.raises(InputError, match="it was never trained without its goal; take beso:DIR"):
        gpc.load_policy(f"beso_unconditional:{folder}")
