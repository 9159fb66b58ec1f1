"""An action dimension that is constant in the data: legal everywhere, and its action is the constant."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from beso_checkpoints import save as save_beso
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline, UnnormalizerProcessorStep
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot_checkpoints import save as save_lerobot
from lerobot_checkpoints import statistics
from models import FixedPolicy, Gaussian, state
from test_from_beso import GOLDEN

import gpc
from gpc.bridge.safety import _range
from gpc.composition.composed import compose
from gpc.demonstrations import Demonstrations
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.policies.from_lerobot.processors import affine
from gpc.policy.adapt import to_absolute
from gpc.policy.spec import ActionSpec
from gpc.score.keyed_noise import NoiseKeys
from gpc.score.noise import NoiseLevels
from gpc.serve.metadata import check_metadata, policy_metadata
from gpc.weights.denoising_error import measure
from gpc.weights.faults import find_fault

DATA = np.random.default_rng(0).normal([0, 500, 3, 7, 0], [1, 0.01, 1, 1, 1], (200, 5)).astype(np.float32)
DATA[:, 2], DATA[:, 4] = 0.1, 0.0  # constants
MODES = {"MEAN_STD": 0.0, "MIN_MAX": -1.0, "QUANTILES": -1.0, "QUANTILE10": -1.0}  # x of a constant in LeRobot


def of_data(data):
    whole = np.asarray(data, np.float64)
    quantiles = {f"q{q:02}": np.quantile(whole, q / 100, axis=0) for q in (1, 10, 90, 99)}
    return {"min": whole.min(0), "max": whole.max(0), "mean": whole.mean(0), "std": whole.std(0), **quantiles}


@pytest.mark.parametrize("mode", MODES)
def test_lerobots_unnormaliser_and_normaliser_are_met(tmp_path, mode):
    """In float64: the second dimension lies far from 0 and hardly moves."""
    arguments = {
        "features": {"action": PolicyFeature(FeatureType.ACTION, (5,))},
        "norm_map": {FeatureType.ACTION: NormalizationMode[mode]},
        "stats": {"action": of_data(DATA)},
    }
    ends = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    post = PolicyProcessorPipeline([UnnormalizerProcessorStep(**arguments)], **ends)
    scale, offset = affine(tmp_path, post, 5)
    spec = ActionSpec(16, scale, offset)
    assert [constant is not None for constant in spec.constants] == [False, False, True, False, True]
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(spec.decode(x), post(x.clone()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(spec.decode(x)[:, [2, 4]], torch.tensor([[0.1, 0.0]] * 7).double(), rtol=0, atol=2e-8)
    pre = PolicyProcessorPipeline([NormalizerProcessorStep(**arguments)], **ends)
    actions = torch.from_numpy(DATA).double()
    encoded, wanted = spec.encode(actions), pre(actions.clone())
    assert set(encoded[:, [2, 4]].flatten().tolist()) == {MODES[mode]}
    torch.testing.assert_close(encoded[:, [0, 1, 3]], wanted[:, [0, 1, 3]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoded[:, 4], wanted[:, 4])
    far = actions + 100  # other demonstrations have other constants: nothing leaves the range
    assert torch.equal(spec.encode(far)[:, [2, 4]], encoded[:, [2, 4]])


def constant(name):
    """Statistics of LeRobot's test data with the second action at 37.5."""
    stats = statistics(("observation.state", "observation.environment_state"))
    action = stats["action"]
    for key in action:
        action[key] = torch.tensor([float(action[key][0]), 0.0 if key == "std" else 37.5])
    return stats


def test_a_lerobot_checkpoint_with_a_constant_loads_and_acts(tmp_path):
    folder, *_ = save_lerobot(tmp_path / "x", stats=constant("action"))
    policy = gpc.load_policy(f"lerobot:{folder}")
    assert policy.actions.constants == (None, -1.0)
    assert torch.allclose(policy.actions.decode(torch.randn(9, 2))[:, 1], torch.tensor(37.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ends", [False, True])
def test_a_constant_of_beso_is_its_mean(tmp_path, ends):
    action = {"min": [0.25, 0.0], "max": [0.25, 1.0]} if ends else {"mean": [0.25, 0.0], "std": [0.0, 1.0]}
    golden = GOLDEN["push"] | {"scaler": {"state": GOLDEN["push"]["scaler"]["state"], "action": action}}
    folder = save_beso(tmp_path / "push", "push", golden, {"workspaces.use_minmax_scaler": ends})
    spec = gpc.load_policy(f"beso:{folder}").actions
    assert spec.constants == (0.0, None)
    assert (spec.scale[0], spec.offset[0]) == (0.0, 0.25)


def test_a_small_scale_far_from_0_is_a_constant_too():
    """Statistics of a constant are off by rounding: no action of float32 differs there."""
    assert ActionSpec(2, (5e-6, 5e-5), (100.0, 100.0)).constants == (-1.0, None)


def test_a_server_may_serve_a_constant():
    policy = FixedPolicy(Gaussian(), actions=ActionSpec(16, (2.0, 0.0), (1.0, 0.25)))
    facts = json.loads(json.dumps(policy_metadata(policy)))
    assert check_metadata(facts, "ws://x").actions == policy.actions


def test_the_range_of_a_constant_lets_it_pass():
    low, high = _range(ActionSpec(16, (2.0, 0.0), (1.0, 0.1), bound=1.0), "policy")
    assert (low[0], high[0]) == (-1.0, 3.0)
    assert low[1] < float(np.float32(0.1)) < high[1]
    assert high[1] - low[1] < 1e-7


def test_constant_moves_become_no_targets():
    policy = FixedPolicy(Gaussian(), actions=ActionSpec(16, (2.0, 0.0), (1.0, 0.25), relative=True))
    with pytest.raises(InputError, match="origin: fixed has constant moves in some dimensions"):
        to_absolute(policy, "state")


@dataclass(frozen=True)
class Constant:
    """Data that is N(0.3, 0.5^2) in the first dimension, and constant in the second; keeps its inputs."""

    x: float
    seen: list

    def __call__(self, x, sigma):
        self.seen.append((x, sigma))
        out = Gaussian()(x, sigma)
        out[..., 1] = self.x
        return out


LEVELS = NoiseLevels(0.01, 50.0)
FREE = FixedPolicy(Gaussian(), ActionSpec(16, (4.0, 2.0), (0.0, 1.0)), LEVELS, name="free")
NORMALISERS = {"by range": (5e-9, 0.25 + 5e-9, -1.0), "by std": (0.0, 0.25, 0.0), "by range, far": (5e-9, 40.25, -1.0)}


def held(scale, offset, x, name="held"):
    return FixedPolicy(Constant(x, []), ActionSpec(16, (4.0, scale), (0.0, offset)), LEVELS, name=name)


@pytest.mark.parametrize(("scale", "offset", "x"), NORMALISERS.values(), ids=NORMALISERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_constant_composes_with_a_policy_that_moves(scale, offset, x, first):
    """The mixture is that of the two denoised actions, and the network sees its constant under its own noise."""
    policy = held(scale, offset, x)
    composed = compose([policy, FREE] if first else [FREE, policy])
    assert composed.actions.scale == (4.0, 2.0)
    sigma, noisy = torch.tensor(0.5, dtype=torch.float64), torch.randn(64, 16, 2, dtype=torch.float64)
    keys = NoiseKeys.of(np.arange(64), np.zeros(64, int))
    out = composed.condition(state(64)).with_noise_keys(keys)(noisy, sigma)
    free = Gaussian()(noisy, sigma)
    torch.testing.assert_close(out[..., 0], free[..., 0])
    torch.testing.assert_close(out[..., 1], (free[..., 1] + (offset - 1) / 2) / 2, rtol=0, atol=1e-7)
    ((seen, level),) = policy.denoiser.seen
    assert torch.equal(seen[..., 0], noisy[..., 0])
    assert float(level) == 0.5
    noise = (seen[..., 1] - x) / 0.5
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), noisy[..., 1].flatten()]))[0, 1])) < 0.1
    assert any("held is constant in action[1]" in warning for warning in (m.warning for m in composed.members))


def test_alone_a_constant_is_the_policy_itself():
    policy = held(5e-9, 0.25, -1.0)
    alone = compose([FREE, policy]).with_weights(torch.tensor([0.0, 1.0]))
    assert alone.actions.scale == policy.actions.scale
    noisy, sigma = torch.randn(2, 16, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(alone.condition(state(2))(noisy, sigma), policy.denoiser(noisy, sigma))


def test_two_policies_with_one_constant_see_their_own_inputs():
    composed = compose([held(5e-9, 0.25, -1.0), held(5e-9, 0.25, -1.0, "other")])
    noisy, sigma = torch.randn(2, 16, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    out = composed.condition(state(2))(noisy, sigma)
    assert all(torch.equal(policy.denoiser.seen[0][0], noisy) for policy in composed.policies)
    assert float((composed.actions.decode(out)[..., 1] - 0.25).abs().max()) < 1e-7


def test_two_normalisers_of_one_constant_agree():
    composed = compose([held(5e-9, 0.25 + 5e-9, -1.0), held(0.0, 0.25, 0.0, "other")])
    out = composed.condition(state())(torch.randn(1, 16, 2).double(), torch.tensor(0.5).double())
    assert float((composed.actions.decode(out)[..., 1] - 0.25).abs().max()) < 1e-7


def test_two_constants_are_mixed_by_weight():
    composed = compose([held(5e-9, 0.25, -1.0), held(0.0, 0.75, 0.0, "other")], [0.3, 0.7])
    out = composed.condition(state())(torch.randn(1, 16, 2).double(), torch.tensor(0.5).double())
    assert float((composed.actions.decode(out)[..., 1] - 0.6).abs().max()) < 1e-6


def test_a_chunk_with_a_constant_is_sampled_to_it():
    """At the end of an ODE the policy that moves follows the constant."""
    policy = compose([FREE, held(0.0, 2.0, 0.0)])
    steps = Sampling(steps=100)
    x = steps.sample(policy.condition(state(4)), policy.levels, torch.randn(1, 4, 16, 2).double())
    ends = policy.actions.decode(x)
    assert float((ends[..., 1] - 2.0).abs().mean()) < 0.1
    assert float(ends[..., 0].std()) > 1.0


def test_denoising_errors_are_measured_on_constants():
    actions = np.random.default_rng(1).normal(size=(40, 2))
    actions[:, 1] = 0.25
    some = Demonstrations({"state": np.zeros((40, 3), np.float32)}, actions, np.array([40]))
    both = compose([held(5e-9, 0.25 + 5e-9, -1.0), FREE])
    squares = measure(both, Sampling(steps=5), some).squares  # (levels, policies)
    assert (squares[:, 0] < squares[:, 1]).all()


def test_a_network_that_is_a_little_off_its_constant_has_no_fault():
    """It is off by half a unit where there is noise; the action is the constant all the same."""

    def close(x, sigma):
        out = Gaussian()(x, sigma)
        out[..., 1] = 0.5 * sigma / (1 + sigma)
        return out

    actions = np.random.default_rng(1).normal(0.3, 0.5, size=(600, 2)) * 4
    some = Demonstrations({"state": np.zeros((600, 3), np.float32)}, actions, np.array([600]))
    assert find_fault(FixedPolicy(close, ActionSpec(16, (4.0, 0.0), (0.0, 0.25)), LEVELS), some) is None
