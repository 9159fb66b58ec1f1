"""Steering: a cost as a gradient while a chunk is sampled, and as the judge of several finished chunks.

A cost J is a function of actions in the environment's units and of the policy's observation. It has a name if it is an
entry point of the group `gpc.costs`, or after `register_cost`. Both uses are those of inference-time policy steering
(Wang et al. 2024, arXiv 2411.16627): `Steered` is its guided diffusion, `sampler.best_of` its ranking of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpc.errors import InputError, RunError, one_line
from gpc.policy.adapt import PolicyView
from gpc.policy.spec import ActionSpec, Observation, Policy, is_linear
from gpc.registry import load_entry
from gpc.score.denoiser import Denoiser, Wrapper, columns

GROUP = "gpc.costs"
REGISTERED: dict[str, Cost] = {}
CG_MAX_ITER, CG_RTOL = 20, 1e-6  # of conjugate gradients


class Cost(Protocol):
    """A function that is to be small.

    The cost of a verifier is minus its log-probability of success.
    """

    def __call__(self, actions: Tensor, observation: Observation) -> Tensor:
        """Return the cost of each chunk.

        To steer, it must be twice differentiable. To choose among finished chunks it needs no gradient.

        Args:
            actions: (batch, horizon, action), in the environment's units.
            observation: key -> (batch, n_obs_steps, *shape), what the policy reads.

        Returns:
            Finite numbers (batch,).
        """


def smoothness(actions: Tensor, observation: Observation) -> Tensor:
    """Return half the sum of squared second differences along each chunk."""
    return actions.diff(n=2, dim=1).square().sum((1, 2)) / 2


def load_cost(cost: str | Cost) -> Cost:
    """Return a cost by its name; a cost is returned as it is.

    Raises:
        InputError: If the name is unknown, or its package is not installed.
    """
    if not isinstance(cost, str):
        return cost
    if cost in REGISTERED:
        return REGISTERED[cost]
    loaded: Cost = load_entry(GROUP, "cost", cost, REGISTERED)
    return loaded


def cost_name(cost: str | Cost) -> str:
    """Return the name of a cost, for errors and fingerprints."""
    return cost if isinstance(cost, str) else getattr(cost, "__name__", type(cost).__name__)


def register_cost(name: str, cost: Cost) -> None:
    """Register a cost under a name in this process; packages use an entry point."""
    REGISTERED[name] = cost


def evaluate_cost(cost: Cost, name: str, actions: Tensor, observation: Observation) -> Tensor:
    """Evaluate a cost and check its result.

    Args:
        cost: A cost.
        name: Its name, for errors.
        actions: (batch, horizon, action), in the environment's units.
        observation: key -> (batch, n_obs_steps, *shape).

    Returns:
        Costs (batch,).

    Raises:
        RunError: If the result is not one finite float for each chunk.
    """
    result = cost(actions, observation)
    requirement = (
        f"cost {name!r} must be one finite number for each of {len(actions)} chunks, as a tensor of floats, not"
    )
    if not isinstance(result, Tensor) or not result.is_floating_point():
        kind = f"one of {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise RunError(f"{requirement} {kind}")
    if result.shape != actions.shape[:1] or not bool(result.isfinite().all()):
        raise RunError(
            f"{requirement} {tuple(result.shape)} with {int((~result.isfinite()).sum())} that are not finite"
        )
    return result


@dataclass(frozen=True)
class Steered(Wrapper):
    """Denoise under a cost: samples of p exp(-scale J).

    The result is `argmin_a scale J(a) + |a - denoised|^2 / (2 v)` with `v = sigma^2 spread^2 / (sigma^2 + spread^2)`,
    the variance that the noise leaves open of an action of standard deviation `spread`. It is found by one Newton step
    from the denoised action with conjugate gradients.

    For a linear J it is `denoised - scale v grad J`, classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233).
    With the curvature of J a steep convex cost does not overshoot. Along directions in which J curves down, its
    gradient alone counts. For a Gaussian of this spread and a quadratic cost the result is exact. Scale 0 is the
    denoiser itself.

    Attributes:
        cost: J.
        name: Name of the cost, for errors.
        scale: In the inverse of the cost's unit.
        spread: Standard deviation of the actions, in normalised units.
        actions: The policy's action spec.
        observation: The policy's observation.
    """

    cost: Cost
    name: str
    scale: float
    spread: float
    actions: ActionSpec
    observation: Observation

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`.

        Raises:
            RunError: If the cost has no finite gradient, or cannot be differentiated twice.
        """
        denoised = self.denoiser(x, sigma)
        step_size = self.scale / (1 / columns(sigma, x) ** 2 + 1 / self.spread**2)
        with torch.inference_mode(False), torch.enable_grad():
            at = denoised.clone().requires_grad_()
            gradient = self._gradient(at)

            def hessian_vector_product(step: Tensor) -> Tensor:
                """Return (1 + scale v Hessian) step."""
                if not gradient.requires_grad:
                    return step
                (product,) = self._differentiate(gradient, at, step, retain_graph=True, materialize_grads=True)
                return step + step_size * product

            return denoised + conjugate_gradient(hessian_vector_product, -step_size * gradient.detach())

    def _gradient(self, at: Tensor) -> Tensor:
        observation = {key: value.clone() for key, value in self.observation.items()}
        cost = evaluate_cost(self.cost, self.name, self.actions.decode(at), observation)
        if not cost.requires_grad:
            raise RunError(f"cost {self.name!r} has no gradient; in sampler.best_of it needs none")
        (gradient,) = self._differentiate(cost.sum(), at, create_graph=True)
        if not bool(gradient.isfinite().all()):
            raise RunError(f"the gradient of cost {self.name!r} is not finite")
        return gradient

    def _differentiate(self, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        try:
            gradients: tuple[Tensor, ...] = torch.autograd.grad(*args, **options)
        except RuntimeError as error:  # attention and distances, for example, have no second derivative in torch
            raise RunError(
                f"cost {self.name!r} cannot be differentiated twice ({one_line(error, 200)}); in sampler.best_of it needs no "
                "gradient"
            ) from None
        return gradients


def conjugate_gradient(matrix: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve `matrix x = right` for a symmetric matrix, row by row.

    A row stops if its residual is small, or if the matrix is less than the identity along its direction; in the first
    iteration such a row takes `right` itself (Steihaug 1983, SIAM J. Numer. Anal. 20, p. 626, stops below 0). The rows
    do not influence each other.

    Args:
        matrix: The product with a tensor like `right`.
        right: (batch, horizon, action).

    Returns:
        x, like `right`.
    """
    x, residual, direction = torch.zeros_like(right), right, right
    size = first = _dot(residual, residual)
    active = size > 0
    for iteration in range(CG_MAX_ITER):
        image = matrix(direction)
        curvature = _dot(direction, image)
        convex = curvature > (1 - CG_RTOL) * _dot(direction, direction)
        step = torch.where(convex, size / curvature, float(iteration == 0))
        x = x + torch.where(active, step, 0) * direction
        residual = residual - torch.where(active, step, 0) * image
        new = _dot(residual, residual)
        active = active & convex & (new > CG_RTOL**2 * first)
        if not bool(active.any()):
            break
        direction, size = residual + torch.where(active, new / size, 0) * direction, new
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


def steer(
    policy: Policy, cost: Cost | str, scale: float = 1.0, spread: float = 0.5, *, name: str | None = None
) -> Policy:
    """Put a policy, or a composition as one policy, under a cost; see `Steered`.

    Args:
        policy: A policy.
        cost: A cost or the name of one.
        scale: Of the cost, at least 0.
        spread: Standard deviation of the actions, in normalised units.
        name: Name of the result in reports; by default the policy's.

    Raises:
        InputError: If the cost is unknown, a number is out of its range, or the policy is a composition that is no sum
            of scores.
    """
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (scale, spread))
    if not numbers or not 0 <= scale < float("inf") or not 0 < spread < float("inf"):
        raise InputError(f"steer needs a finite scale >= 0 and spread > 0, not {scale} and {spread}")
    if not is_linear(policy):
        raise InputError(
            f"{policy.name} needs its members' own scores or chunks; steer the policies, then compose them"
        )
    if not isinstance(cost, str) and not callable(cost):
        raise InputError(f"steer of {policy.name}: {cost} is neither a cost nor the name of one")
    loaded, label = load_cost(cost), cost_name(cost)

    def condition(policy: Policy, observation: Observation) -> Denoiser:
        return Steered(policy.condition(observation), loaded, label, scale, spread, policy.actions, observation)

    suffix = f"steered by {scale:g} {label}, spread {spread:g}"
    return PolicyView(policy, policy.actions, policy.observations, suffix, condition, display_name=name)
