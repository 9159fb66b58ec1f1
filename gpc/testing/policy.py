"""`check_policy`: the contract of a policy."""

from __future__ import annotations

import torch
from torch import Tensor

from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.score.noise import karras_sigmas, snap_sigmas
from gpc.score.samplers import euler, last
from gpc.testing.env import _require


def check_policy(
    policy: Policy, *, trained: bool = True, seed: int = 0, observation: dict[str, Tensor] | None = None
) -> None:
    """Check that `policy` keeps the contract of `gpc.policy.spec.Policy`, on a batch of 4 observations, random ones by default.

    Give real ones, key -> (4, n_obs_steps, *shape), where random numbers are far from anything that the policy has seen.

    Checked: specs; shape, dtype and finiteness of `denoised` over the trained range of sigma; that the same call gives the
    same answer and changes nothing that it was given; that rows do not see each other; and, for weights that are
    `trained`, that noise is removed at large sigma and `denoised` goes to x as sigma goes to zero (a wrong sign, a wrong
    schedule or a wrong prediction type shows here). Images are the observations of shape (height, width, 3), as uint8.
    """
    try:
        _check_specs(policy)
        generator = torch.Generator().manual_seed(seed)
        observation = observation or {
            key: _random_observation((4, policy.observations.n_obs_steps, *shape), generator)
            for key, shape in policy.observations.shapes.items()
        }
        shape = (4, policy.actions.horizon, policy.actions.dim)
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        high = min(policy.levels.sigma_max, 40.0)
        low = max(policy.levels.sigma_min, 1e-3)
        sigmas = snap_sigmas(karras_sigmas(16, low, high), policy.levels)
        for sigma in sigmas[:-1]:
            _check_denoised(policy, observation, sigma * noise, sigma)
        for low, high in zip(sigmas[1:-1], sigmas[:-2], strict=True):
            _check_levels(policy, observation, high * noise, torch.stack([low, high, high, low]))
        if trained:
            _check_limits(policy, observation, noise, sigmas)
    except AssertionError as error:
        raise AssertionError(f"{type(policy).__name__}: {error}") from None


def _random_observation(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 5 and shape[-1] == 3:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _check_specs(policy: Policy) -> None:
    for name, kind in (("actions", ActionSpec), ("observations", ObservationSpec), ("name", str), ("fingerprint", str)):
        value = getattr(policy, name)
        _require(isinstance(value, kind), f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    _require(bool(policy.name and policy.fingerprint), "name and fingerprint must not be empty")
    _require(policy.fingerprint == policy.fingerprint, "the fingerprint changes from one look to the next")
    trained = policy.levels.trained
    if trained is not None:
        ends = (policy.levels.sigma_min, policy.levels.sigma_max)
        _require(
            (trained[0], trained[-1]) == ends,
            f"levels.trained ends at {trained[0]}, {trained[-1]}, the range at {ends}",
        )


def _check_denoised(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigma: Tensor) -> None:
    kept = {"x": x.clone(), **{key: value.clone() for key, value in observation.items()}}
    at = f"at sigma={float(sigma):.4g}"
    out = policy.condition(observation)(x, sigma)
    given = {"x": x, **observation}
    changed = [key for key, value in kept.items() if not torch.equal(value, given[key])]
    _require(not changed, f"condition() or the denoiser changes what it was given: {changed}")
    _require(out.shape == x.shape, f"denoised has shape {tuple(out.shape)}, x {tuple(x.shape)}")
    _require(out.dtype == x.dtype, f"denoised is {out.dtype}, x is {x.dtype}: the state must stay float64")
    _require(bool(torch.isfinite(out).all()), f"denoised is not finite {at}")
    denoiser = policy.condition(observation)
    _require(torch.equal(denoiser(x, sigma), out), f"the same call gives another answer {at}")
    _require(torch.equal(denoiser(x, sigma.expand(len(x))), out), f"sigma as () and as (batch,) differ {at}")
    other = {key: torch.cat([value[:1], torch.zeros_like(value[1:])]) for key, value in observation.items()}
    mixed = policy.condition(other)(torch.cat([x[:1], -x[1:]]), sigma)
    apart = float((mixed[0] - out[0]).abs().max() / (1 + sigma))
    _require(apart < 1e-4, f"a row depends on the other rows of its batch {at} (by {apart:.2g})")


def _check_levels(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigmas: Tensor) -> None:
    """Check that each row of a batch is denoised at its own level, sigmas (batch,)."""
    denoiser = policy.condition(observation)
    alone = torch.stack([denoiser(x, sigma)[row] for row, sigma in enumerate(sigmas)])
    apart = float(((denoiser(x, sigmas) - alone).abs().amax((1, 2)) / (1 + sigmas)).max())
    _require(apart < 1e-4, f"rows of sigma=(batch,) are not denoised at their own level (apart by {apart:.2g})")


def _check_limits(policy: Policy, observation: dict[str, Tensor], noise: Tensor, sigmas: Tensor) -> None:
    denoiser = policy.condition(observation)
    high = float(sigmas[0])
    left = float(denoiser(sigmas[0] * noise, sigmas[0]).square().mean().sqrt())
    _require(
        left < 0.5 * high,
        f"at sigma={high:.4g} the denoised action has an RMS of {left:.3g}: the noise is not removed; look at the "
        "prediction type, the sign of the velocity and the schedule",
    )
    clean = last(euler(denoiser, sigmas[0] * noise, sigmas))
    for sigma in sigmas[sigmas < 0.5][:-1]:
        error = float((denoiser(clean + sigma * noise, sigma) - clean).square().mean().sqrt())
        _require(
            error <= 1.2 * float(sigma) + 0.02,
            f"at sigma={float(sigma):.4g} the denoised action is {error:.3g} away from the clean one, further than the noise "
            "itself; look at the prediction type, the sign of the velocity and the schedule",
        )
