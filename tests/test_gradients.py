"""A network whose weights require gradients, as training leaves it: no place of gpc that calls a policy needs more of it."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from models import ACTIONS, STATE, WIDE
from torch import nn

import gpc
from gpc.demonstrations import Demonstrations
from gpc.inference.chunk import sample_actions
from gpc.serve.batching import InferenceThread
from gpc.testing import check_policy
from gpc.weights.denoising_error import measure

ROWS = 16  # as many as make a composition start a thread for each member
SAMPLING = gpc.Sampling(steps=3)


@dataclass(frozen=True)
class Trained:
    """A denoiser of the user's own, without `NetworkDenoiser`; encoder and head require gradients or not."""

    gradients: bool = True
    name: str = "trained"
    fingerprint: str = "none"
    actions = ACTIONS
    observations = STATE
    levels = WIDE
    layers: nn.ModuleList = field(default_factory=lambda: nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2)]))

    def __post_init__(self):
        with torch.no_grad():
            for number, parameter in enumerate(self.layers.parameters()):
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).reshape(parameter.shape) + 0.01 * number)
        self.layers.requires_grad_(self.gradients)

    def condition(self, observation):
        encoded = self.layers[0](observation["state"].mean(1))[:, None]
        return lambda x, sigma: self.layers[1](encoded + x.float() / (1 + sigma.reshape(-1, 1, 1)).float()).to(x)


def observed(rows=ROWS):
    return {"state": np.linspace(-1, 1, rows * 2 * 3, dtype=np.float32).reshape(rows, 2, 3)}


def sampled(policy, rows=ROWS):
    return sample_actions(policy, SAMPLING, observed(rows), np.arange(rows), np.zeros(rows, int))


MADE = {
    "one policy": lambda policy: policy,
    "a composition": lambda policy: gpc.compose([policy, policy], [0.5, 0.5]),
    "one under a cost": lambda policy: gpc.steer(policy, "smoothness", 0.5),
    "a composition of one under a cost": lambda policy: gpc.compose(
        [policy, gpc.steer(policy, "smoothness")], [0.5, 0.5]
    ),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_chunks_are_those_of_a_frozen_network(make):
    assert torch.is_grad_enabled()
    chunks = sampled(make(Trained()))
    assert np.array_equal(chunks, sampled(make(Trained(gradients=False))))
    assert chunks.std() > 0.01


def test_a_check_a_server_and_demonstrations_need_no_gradients_either():
    policy = Trained()
    check_policy(policy, trained=False)
    thread = InferenceThread(policy, SAMPLING)
    encoded = {key: torch.from_numpy(value) for key, value in observed().items()}
    x = torch.zeros(ROWS, 16, 2, dtype=torch.float64)
    denoiser = thread.call(lambda: policy.condition(encoded)).result()
    assert thread.call(lambda: denoiser(x, torch.tensor(1.0))).result().numpy().shape == x.shape
    thread.close()
    steps = Demonstrations({"state": np.zeros((20, 3), np.float32)}, np.zeros((20, 2)), np.array([20]))
    errors = measure(gpc.compose([policy, policy]), SAMPLING, steps)
    assert (errors.squares > 0).all()
    assert torch.is_grad_enabled()
