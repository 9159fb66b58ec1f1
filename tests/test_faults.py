"""A wrong description of a network is found with demonstrations, and its cause is named."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_flow import FlowNetwork
from models import Gaussian

import gpc
from gpc.demonstrations import Demonstrations, read
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.score.denoiser import Clamp, NetworkDenoiser
from gpc.score.noise import Karras, LinearFlow, VariancePreserving
from gpc.testing import check_policy
from gpc.weights.faults import find_fault

HELD_OUT = Path(__file__).parent / "data/pusht-held-out.zarr.zip"
WEIGHTS = Path(__file__).parent / "data/foreign-flow.pt"


REVERSED = LinearFlow(reverse=True)


@dataclass(frozen=True)
class Foreign:
    """The foreign network (`foreign_flow`), with what a user may get wrong as fields."""

    network: torch.nn.Module
    actions: ActionSpec
    schedule: LinearFlow = REVERSED
    prediction: str = "reverse_velocity"
    clamped: bool = False
    observations = ObservationSpec({"state": (5,)}, 2)
    name: str = "foreign"
    fingerprint: str = "of the tests"

    @property
    def levels(self):
        return self.schedule.levels

    def condition(self, observation):
        network = NetworkDenoiser(
            lambda x, tau: self.network(x, tau, observation["state"]), self.schedule, self.prediction
        )
        return Clamp(network, 10.0) if self.clamped else network


class Squashed(torch.nn.Module):
    """A network with an activation that its training did not have."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *arguments):
        return self.network(*arguments).tanh()


class Swapped(torch.nn.Module):
    """A network whose dimensions are y, x."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, tau, state):
        return self.network(x.flip(-1), tau, state).flip(-1)


@pytest.fixture(scope="module")
def right():
    network = FlowNetwork().eval()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    scale, offset = tuple(network.std.tolist()), tuple(network.mean.tolist())
    return Foreign(network, ActionSpec(8, scale, offset, ("x", "y")))


@pytest.fixture(scope="module")
def demonstrations():
    return read(HELD_OUT, ["state", "keypoints", "agent_pos"])


def test_what_is_described_rightly_passes(right, demonstrations):
    check_policy(right, demonstrations=demonstrations)
    check_policy(gpc.load_policy("pusht-diffusion"), demonstrations=HELD_OUT)
    check_policy(gpc.compose([right, gpc.load_policy("pusht-flow")], [0.5, 0.5]), demonstrations=demonstrations)


def changed(**fields):
    return lambda right: replace(right, **fields)


def actions(**fields):
    return lambda right: replace(right, actions=replace(right.actions, **fields))


FAULTS = {
    "time": (changed(schedule=LinearFlow()), r"the error falls if the time is reversed, LinearFlow\(reverse=True\)$"),
    "sign": (changed(prediction="velocity"), "the error falls if the prediction is 'reverse_velocity'$"),
    "both, in a clamp": (
        changed(schedule=LinearFlow(), prediction="velocity", clamped=True),
        r"time is reversed, LinearFlow\(reverse=True\) and the prediction is 'reverse_velocity'$",
    ),
    "prediction": (changed(prediction="noise"), "the error falls if the prediction is 'reverse_velocity'$"),
    "activation": (
        lambda right: replace(right, network=Squashed(right.network)), r"removes (4|5|6)\d % of .* a last activation"
    ),
    "minimum and maximum": (
        actions(scale=(256.0, 256.0), offset=(256.0, 256.0)),
        r"falls if dimension x has scale [\d.]+ and offset \d+, not 256 and 256, dimension y has scale [\d.]+ and offset \d+,",
    ),
    "one scale": (actions(scale=(100.0, 200.0)), r"falls if dimension y has scale [\d.]+ and offset \d+, not 200 and 295$"),
    "a third": (actions(scale=(135.0, 94.0)), r"a linear correction .* dimension x has scale [\d.]+ and offset \d+, not 135"),
    "order": (
        lambda right: replace(right, network=Swapped(right.network)), "the error falls if the dimensions are in the order y, x$"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "line"), FAULTS.values(), ids=FAULTS)
def test_the_cause_of_a_fault_is_named(right, demonstrations, spoil, line):
    wrong = spoil(right)
    check_policy(wrong, trained=False)
    with pytest.raises(AssertionError, match=line) as caught:
        check_policy(wrong, demonstrations=demonstrations)
    text = str(caught.value)
    assert "\n" not in text
    assert "are denoised with an error of" in text or "a linear correction removes" in text


def test_the_scale_and_offset_that_are_named_are_those_of_the_training(right, demonstrations):
    fault = find_fault(actions(scale=(256.0, 256.0), offset=(256.0, 256.0))(right), demonstrations)
    words = fault.partition("falls if ")[2].replace(",", "").split()
    stated = [float(words[i + 1]) for i, word in enumerate(words) if word in ("scale", "offset")]
    assert np.allclose(stated[::2], right.network.std, rtol=0.05)
    assert np.allclose(stated[1::2], right.network.mean, atol=5)


@pytest.mark.parametrize(
    ("schedule", "prediction", "sigma_of"),
    [
        (VariancePreserving.squaredcos(100), "noise", lambda t: VariancePreserving.squaredcos(100).sigmas[t]),
        (VariancePreserving.squaredcos(100), "v", lambda t: VariancePreserving.squaredcos(100).sigmas[t]),
        (Karras(), "edm", lambda label: (4 * label).exp()),
    ],
)
def test_a_gaussian_that_is_known_exactly_passes_and_its_other_predictions_do_not(schedule, prediction, sigma_of):
    """An unconditional denoiser is as good as mean and variance, and no better."""
    known = Gaussian(0.3, 0.5).network(schedule, prediction, sigma_of)
    draws = np.random.default_rng(0).normal(0.3, 0.5, (400, 2))
    steps = Demonstrations({"state": np.zeros((400, 3), np.float32)}, draws, np.array([400]))
    spec = ActionSpec(8, (1.0, 1.0), (0.0, 0.0))
    reads = ObservationSpec({"state": (3,)}, 1)

    @dataclass(frozen=True)
    class Known:
        denoiser: NetworkDenoiser
        levels = schedule.levels
        actions = spec
        observations = reads
        name: str = "known"
        fingerprint: str = "none"

        def condition(self, observation):
            return self.denoiser

    assert find_fault(Known(known), steps) is None
    if prediction != "edm":
        fault = find_fault(Known(replace(known, prediction="sample")), steps)
        assert fault.endswith(f"the error falls if the prediction is {prediction!r}")
