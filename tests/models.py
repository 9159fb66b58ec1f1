"""Exact models of Gaussians in every parameterisation, random networks, and a minimal policy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpc.composition.composed import ComposedPolicy, compose
from gpc.composition.composers import Guidance
from gpc.composition.superposition import And, Or
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec, Policy
from gpc.score.denoiser import Denoiser, NetworkDenoiser, Prediction
from gpc.score.noise import Karras, NoiseLevels, Schedule


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2) in every action dimension and step, as a denoiser and as the network that would be trained on it."""

    mean: float = 0.3
    std: float = 0.5

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1)
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def network(
        self, schedule: Schedule, prediction: Prediction, sigma_of: Callable[[Tensor], Tensor]
    ) -> NetworkDenoiser:
        """The ideal network of a prediction type: it is given the scaled x and the label, as a real one is."""

        def network(scaled: Tensor, label: Tensor) -> Tensor:
            sigma = sigma_of(label).reshape(-1, 1, 1)
            x = scaled / schedule.scale(sigma)
            clean = self(x, sigma)
            noise = (x - clean) / sigma
            alpha = schedule.scale(sigma)
            if prediction == "edm":
                assert isinstance(schedule, Karras)
                data, total = schedule.sigma_data, sigma**2 + schedule.sigma_data**2
                return (clean - data**2 / total * x) / (sigma * data / total.sqrt())
            return {
                "noise": noise,
                "sample": clean,
                "v": alpha * noise - alpha * sigma * clean,
                "velocity": noise - clean,
                "reverse_velocity": clean - noise,
            }[prediction]

        return NetworkDenoiser(network, schedule, prediction, torch.float64)


class RandomNetwork(nn.Module):
    """A smooth random function of (x, label), float64."""

    def __init__(self, seed: int, horizon: int = 16, dim: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        size = horizon * dim
        self.layers = nn.Sequential(nn.Linear(size + 1, 64), nn.Tanh(), nn.Linear(64, size)).double()

    @torch.inference_mode()
    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        flat = torch.cat([x.flatten(1), label.to(x.dtype)[:, None] / 100], 1)
        return self.layers(flat).reshape(x.shape)


ACTIONS = ActionSpec(16, (1.0, 1.0), (0.0, 0.0), ("x", "y"))
WIDE = NoiseLevels(0.001, 1000.0)
STATE = ObservationSpec({"state": (3,)}, 2)


@dataclass(frozen=True)
class FixedPolicy:
    """A policy whose denoiser does not depend on the observation."""

    denoiser: Denoiser
    actions: ActionSpec = ACTIONS
    levels: NoiseLevels = WIDE
    observations: ObservationSpec = STATE
    name: str = "fixed"
    fingerprint: str = "none"

    def condition(self, observation: Observation) -> Denoiser:
        self.observations.read(observation)
        return self.denoiser


def state(batch: int = 1) -> dict[str, Tensor]:
    """An observation for `FixedPolicy`."""
    return {"state": torch.zeros(batch, 2, 3)}


def flow_sigmas(steps: int, t_max: float = 1 - 1e-9) -> Tensor:
    """Return the levels of t = 1, 1 - 1/steps, ..., 0: a flow model's uniform Euler grid, (steps + 1,)."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64).clamp(max=t_max)
    return t / (1 - t)


def guide(policies: Sequence[Policy], weights: Sequence[float]) -> ComposedPolicy:
    return compose(policies, Guidance(weights))


def either(policies: Sequence[Policy], weights: Sequence[float] = (), temperature: float = 1.0) -> ComposedPolicy:
    return compose(policies, Or(weights, temperature))


def both(policies: Sequence[Policy], weights: Sequence[float] = ()) -> ComposedPolicy:
    return compose(policies, And(weights))
