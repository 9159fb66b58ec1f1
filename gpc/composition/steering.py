"""Steering: what a user's cost says of a chunk, as a gradient along the way and as the judge of several finished chunks.

A cost J is a function of actions in the environment's units and of what the policy sees, with a name: an entry point of the group
`gpc.costs`, or `register_cost`. Both ways of using it are those of inference-time policy steering (Wang et al. 2024,
arXiv 2411.16627): `Steered` is its guided diffusion, `sampler.critic` its ranking of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpc.composition.composed import ComposedPolicy
from gpc.errors import InputError, RunError
from gpc.policy.adapt import PolicyView
from gpc.policy.spec import ActionSpec, Observation, Policy
from gpc.registry import load_entry
from gpc.score.denoiser import Denoiser, columns

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


def evaluate_cost(cost: Cost, name: str, actions: Tensor, observation: Observation) -> Tensor:
    """The cost of every chunk, (batch,). Raises RunError, naming it, where that is not one finite number each."""
    found = cost(actions, observation)
    wanted = f"cost {name!r} must be one finite number for each of {len(actions)} chunks, as a tensor of floats, not"
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise RunError(f"{wanted} {f'one of {found.dtype}' if isinstance(found, Tensor) else type(found).__name__}")
    if found.shape != actions.shape[:1] or not bool(found.isfinite().all()):
        raise RunError(f"{wanted} {tuple(found.shape)} with {int((~found.isfinite()).sum())} that are not finite")
    return found


@dataclass(frozen=True)
class Steered:
    """`argmin_a scale J(a) + |a - denoised|^2 / (2 v)`, `v = sigma^2 spread^2 / (sigma^2 + spread^2)`: samples of p exp(-scale J).

    Where J is linear it is `denoised - scale v grad J`, classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233); with
    the cost's curvature a steep convex one does not overshoot, and along directions in which J curves down its gradient alone
    counts. v is what the noise leaves open of an action that has standard deviation `spread`, in normalised units; for a
    Gaussian of this spread and a quadratic cost the result is exact. One Newton step from the denoised action, solved by
    conjugate gradients. Scale 0 is the denoiser itself.
    """

    denoiser: Denoiser
    cost: Cost
    name: str
    scale: float
    spread: float
    actions: ActionSpec
    observation: Observation

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`; raises RunError where the cost has no finite gradient, or cannot be differentiated twice."""
        denoised = self.denoiser(x, sigma)
        left = self.scale / (1 / columns(sigma, x) ** 2 + 1 / self.spread**2)
        with torch.inference_mode(False), torch.enable_grad():
            at = denoised.clone().requires_grad_()
            gradient = self._gradient(at)

            def curved(step: Tensor) -> Tensor:
                """(1 + scale v Hessian) step."""
                if not gradient.requires_grad:
                    return step
                (bent,) = self._differentiated(gradient, at, step, retain_graph=True, materialize_grads=True)
                return step + left * bent

            return denoised + conjugate_gradient(curved, -left * gradient.detach())

    def _gradient(self, at: Tensor) -> Tensor:
        seen = {key: value.clone() for key, value in self.observation.items()}
        cost = evaluate_cost(self.cost, self.name, self.actions.decode(at), seen)
        if not cost.requires_grad:
            raise RunError(f"cost {self.name!r} has no gradient; as sampler.critic it needs none")
        (gradient,) = self._differentiated(cost.sum(), at, create_graph=True)
        if not bool(gradient.isfinite().all()):
            raise RunError(f"the gradient of cost {self.name!r} is not finite")
        return gradient

    def _differentiated(self, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        try:
            found: tuple[Tensor, ...] = torch.autograd.grad(*args, **options)
        except RuntimeError as error:  # attention and distances, say, have no second derivative in torch
            raise RunError(
                f"cost {self.name!r} cannot be differentiated twice ({' '.join(str(error).split())[:200]}); as sampler.critic it "
                "needs no gradient"
            ) from None
        return found


def conjugate_gradient(matrix: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """`matrix^-1 right` for a symmetric matrix, row by row of right (batch, horizon, action): conjugate gradients.

    A row stops where its rest is small, or where the matrix is less than the identity along its direction, at first with `right`
    itself (Steihaug 1983, SIAM J. Numer. Anal. 20, p. 626, stops below 0). What a row becomes does not depend on the others.
    """
    x, rest, along = torch.zeros_like(right), right, right
    size = small = _dot(rest, rest)
    going = size > 0
    for turn in range(TURNS):
        image = matrix(along)
        curvature = _dot(along, image)
        convex = curvature > (1 - ENOUGH) * _dot(along, along)
        onward = torch.where(convex, size / curvature, float(turn == 0))
        x = x + torch.where(going, onward, 0) * along
        rest = rest - torch.where(going, onward, 0) * image
        now = _dot(rest, rest)
        going = going & convex & (now > ENOUGH**2 * small)
        if not bool(going.any()):
            break
        along, size = rest + torch.where(going, now / size, 0) * along, now
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


def steer(
    policy: Policy, cost: Cost | str, scale: float = 1.0, spread: float = 0.5, *, name: str | None = None
) -> Policy:
    """The policy, or the composition as a whole, under a cost; see `Steered`. `name` is what reports call it instead.

    Raises InputError where the cost is unknown, where scale or spread are no positive numbers, or for a composition
    that is no sum of scores.
    """
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (scale, spread))
    if not numbers or not 0 <= scale < float("inf") or not 0 < spread < float("inf"):
        raise InputError(f"steer needs a finite scale >= 0 and spread > 0, not {scale} and {spread}")
    if isinstance(policy, ComposedPolicy) and not policy.composer.linear:
        kind = type(policy.composer).__name__.lower()
        raise InputError(
            f"composer={kind} needs its members' own scores or chunks; steer the policies, then compose them"
        )
    if not isinstance(cost, str) and not callable(cost):
        raise InputError(f"steer of {policy.name}: {cost} is neither a cost nor the name of one")
    found = load_cost(cost) if isinstance(cost, str) else cost
    called = cost if isinstance(cost, str) else getattr(cost, "__name__", type(cost).__name__)

    def bind(observation: Observation) -> Denoiser:
        return Steered(policy.condition(observation), found, called, scale, spread, policy.actions, observation)

    change = f"steered by {scale:g} {called}, spread {spread:g}"
    return PolicyView(policy, policy.actions, policy.observations, change, bind, display_name=name)
