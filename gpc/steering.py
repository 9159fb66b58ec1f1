"""Steering: what a user's cost says of a chunk, as a gradient along the way and as the judge of several finished chunks.

A cost J is a function of actions in the environment's units and of what the policy sees, with a name: an entry point of the group
`gpc.costs`, or `register_cost`. Both ways of using it are those of inference-time policy steering (Wang et al. 2024,
arXiv 2411.16627): `Steered` is its guided diffusion, `sampler.critic` its ranking of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gpc.composition import ComposedPolicy
from gpc.denoise import Denoiser
from gpc.errors import InputError, RunError
from gpc.load import load_entry
from gpc.policy import ActionSpec, Adapted, Observation, Policy

GROUP = "gpc.costs"
REGISTERED: dict[str, Cost] = {}
TURNS, ENOUGH = 20, 1e-6  # of conjugate gradients: how many, and which share of the right side may be left


class Cost(Protocol):
    """What is to be small; a verifier's cost is minus its log-probability of success."""

    def __call__(self, actions: Tensor, observation: Observation) -> Tensor:
        """Actions (batch, horizon, action), observation[key] (batch, n_obs_steps, *shape) -> cost (batch,).

        Actions are in the environment's units; the observation holds what the policy reads. To steer, it must be twice
        differentiable; what judges finished chunks needs no gradient.
        """


def smoothness(actions: Tensor, observation: Observation) -> Tensor:
    """Half the sum of squared second differences along the chunk: how much the motion turns and speeds up."""
    return actions.diff(n=2, dim=1).square().sum((1, 2)) / 2


def load_cost(name: str) -> Cost:
    """A cost by name. Raises InputError where it is unknown or its package is not installed."""
    if name in REGISTERED:
        return REGISTERED[name]
    loaded: Cost = load_entry(GROUP, "cost", name, REGISTERED)
    return loaded


def register_cost(name: str, cost: Cost) -> None:
    """Give a cost a name in this process, as for `sampler.critic`; a package gives its own by an entry point."""
    REGISTERED[name] = cost


def name_of(cost: Cost | str) -> str:
    """What reports call a cost."""
    return cost if isinstance(cost, str) else getattr(cost, "__name__", type(cost).__name__)


def judge(cost: Cost, actions: Tensor, observation: Observation) -> Tensor:
    """The cost of every chunk, (batch,). Raises RunError, naming it, where that is not one finite number each."""
    found = cost(actions, observation)
    if found.shape != actions.shape[:1] or not bool(found.isfinite().all()):
        raise RunError(
            f"cost {name_of(cost)!r} must be one finite number for each of {len(actions)} chunks, "
            f"not {tuple(found.shape)} with {int((~found.isfinite()).sum())} that are not finite"
        )
    return found


@dataclass(frozen=True)
class Steered:
    """`argmin_a scale J(a) + |a - denoised|^2 / (2 v)`, `v = sigma^2 spread^2 / (sigma^2 + spread^2)`: samples of p exp(-scale J).

    Where J is linear it is `denoised - scale v grad J`, classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233); with
    the cost's curvature a steep convex one does not overshoot (one that is not convex may, far). v is what the noise leaves
    open of an action that has standard deviation `spread`, in normalised units; for a Gaussian of this spread and a quadratic
    cost the result is exact. One Newton step from the denoised action, solved by conjugate gradients. Scale 0 is the denoiser
    itself.
    """

    denoiser: Denoiser
    cost: Cost
    scale: float
    spread: float
    actions: ActionSpec
    observation: Observation

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`; raises RunError where the cost has no finite gradient."""
        denoised = self.denoiser(x, sigma)
        left = self.scale / (1 / sigma.max() ** 2 + 1 / self.spread**2)
        with torch.inference_mode(False), torch.enable_grad():
            at = denoised.clone().requires_grad_()
            gradient = self._gradient(at)

            def curved(step: Tensor) -> Tensor:
                """(1 + scale v Hessian) step."""
                if not gradient.requires_grad:
                    return step
                (bent,) = torch.autograd.grad(gradient, at, step, retain_graph=True, materialize_grads=True)
                return step + left * bent

            return denoised + solved(curved, -left * gradient.detach())

    def _gradient(self, at: Tensor) -> Tensor:
        seen = {key: value.clone() for key, value in self.observation.items()}
        cost = judge(self.cost, self.actions.decode(at), seen)
        if not cost.requires_grad:
            raise RunError(f"cost {name_of(self.cost)!r} has no gradient; as sampler.critic it needs none")
        (gradient,) = torch.autograd.grad(cost.sum(), at, create_graph=True)
        if not bool(gradient.isfinite().all()):
            raise RunError(f"the gradient of cost {name_of(self.cost)!r} is not finite")
        return gradient


def solved(matrix: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """`matrix^-1 right` for a symmetric matrix, row by row of right (batch, horizon, action): conjugate gradients.

    A row stops where its rest is small or the matrix is not positive along its direction, at first with `right` itself
    (Steihaug 1983, SIAM J. Numer. Anal. 20, p. 626): what a row becomes does not depend on the others.
    """
    x, rest, along = torch.zeros_like(right), right, right
    size = small = _dot(rest, rest)
    going = size > 0
    for turn in range(TURNS):
        image = matrix(along)
        curvature = _dot(along, image)
        onward = torch.where(curvature > 0, size / curvature, float(turn == 0))
        x = x + torch.where(going, onward, 0) * along
        rest = rest - torch.where(going, onward, 0) * image
        now = _dot(rest, rest)
        going = going & (curvature > 0) & (now > ENOUGH**2 * small)
        if not bool(going.any()):
            break
        along, size = rest + torch.where(going, now / size, 0) * along, now
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


def steer(policy: Policy, cost: Cost | str, scale: float = 1.0, spread: float = 0.5) -> Policy:
    """The policy under a cost; see `Steered`. A composition is steered through its members, whose weights
    should sum to one; each one's cost sees its own dimensions and steps.

    Raises InputError where the cost is unknown, or scale or spread are no positive numbers.
    """
    if not 0 <= scale < float("inf") or not 0 < spread < float("inf"):
        raise InputError(f"steer needs a finite scale >= 0 and spread > 0, not {scale:g} and {spread:g}")
    if isinstance(policy, ComposedPolicy):
        return replace(policy, policies=tuple(steer(member, cost, scale, spread) for member in policy.policies))
    found = load_cost(cost) if isinstance(cost, str) else cost

    def bind(observation: Observation) -> Denoiser:
        return Steered(policy.condition(observation), found, scale, spread, policy.actions, observation)

    change = f"steered by {scale:g} {name_of(cost)}, spread {spread:g}"
    return Adapted(policy, policy.actions, policy.observations, change, bind)
