"""`check_policy`: the contract of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gpc.demonstrations import Demonstrations, read
from gpc.inference.device import DeviceLike, as_device
from gpc.inference.placement import place
from gpc.policy.names import stored_names
from gpc.policy.observation import TASK
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import karras_sigmas, snap_sigmas
from gpc.score.samplers import euler, last
from gpc.testing.contract import require
from gpc.weights.denoising_error import demonstrated
from gpc.weights.faults import find_fault

EVAL = "if the network has dropout or batch normalisation, call its eval()"


@torch.no_grad()
def check_policy(
    policy: Policy,
    *,
    trained: bool = True,
    seed: int = 0,
    observation: Mapping[str, Tensor] | None = None,
    demonstrations: Demonstrations | str | Path | None = None,
    device: DeviceLike = "auto",
) -> None:
    """Check the contract of `gpc.policy.spec.Policy`.

    Checked: specs; shape, dtype and finiteness of `denoised` over the trained range of sigma; that equal calls give
    equal results and change none of their arguments; that rows of a batch are independent; that a network with a condition
    depends on the observation through it alone.

    Args:
        policy: a policy.
        trained: whether the weights are trained. Then the check also requires that noise is removed at large sigma and
            that `denoised` approaches x as sigma approaches zero, which a wrong sign, schedule or prediction type
            breaks.
        seed: seed of noise and observations.
        observation: key -> (4, n_obs_steps, *shape); by default random images, texts and numbers, as the spec declares them.
            Pass real observations if random ones are far from the training data.
        demonstrations: what the policy was trained on or held-out episodes of the same task, or their file
            (docs/demonstrations.md). Then the check also requires that the policy denoises them better than their mean and
            variance alone do, and names the likely cause if not: reversed time, prediction type, scale and offset, order of
            the dimensions (`gpc.weights.faults`). `observation` is theirs by default.
        device: where the networks compute (docs/gpu.md).

    Raises:
        AssertionError: If the contract is broken; the message names the requirement.
        InputError: If the demonstrations lack what the policy reads.
    """
    kind = type(policy).__name__
    try:
        _check_specs(policy)
        where = as_device(device)
        host, policy = policy, place(policy, where)
        if isinstance(demonstrations, str | Path):
            demonstrations = read(demonstrations, partial(stored_names, policy.observations, {}, str(demonstrations)))
        if demonstrations is not None:
            observation = observation or next(demonstrated(policy, demonstrations, 1, most=4)).observation
        generator = torch.Generator().manual_seed(seed)
        observation = policy.observations.read(observation or _random(policy.observations, generator))
        shape = (4, policy.actions.horizon, policy.actions.dim)
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        high = min(policy.levels.sigma_max, 40.0)
        low = max(policy.levels.sigma_min, 1e-3)
        sigmas = snap_sigmas(karras_sigmas(16, low, high), policy.levels)
        _check_condition(host, observation, sigmas[0] * noise, sigmas[0])
        for sigma in sigmas[:-1]:
            _check_denoised(policy, observation, sigma * noise, sigma)
        for low, high in zip(sigmas[1:-1], sigmas[:-2], strict=True):
            _check_levels(policy, observation, high * noise, torch.stack([low, high, high, low]))
        if policy is not host and not (where.dtype or where.tf32):
            _check_placed(host, policy, observation, [(sigma * noise, sigma) for sigma in sigmas[:-1]])
        if demonstrations is not None:
            fault = find_fault(policy, demonstrations)
            require(fault is None, str(fault))
        if trained:
            _check_limits(policy, observation, noise, sigmas)
    except AssertionError as error:
        raise AssertionError(f"{kind}: {error}") from None


def _random(spec: ObservationSpec, generator: torch.Generator) -> dict[str, Any]:
    """Return four random observations."""
    observation: dict[str, Any] = {}
    for key, shape in spec.shapes.items():
        size = (4, spec.n_obs_steps, *shape)
        if key == TASK:
            observation[key] = [[f"task {row}"] * spec.n_obs_steps for row in range(4)]
        elif key in spec.images:
            observation[key] = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        else:
            observation[key] = torch.randn(size, generator=generator)
    return observation


def _check_specs(policy: Policy) -> None:
    for name, kind in (("actions", ActionSpec), ("observations", ObservationSpec), ("name", str), ("fingerprint", str)):
        value = getattr(policy, name)
        require(isinstance(value, kind), f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    require(bool(policy.name and policy.fingerprint), "name and fingerprint must not be empty")
    require(policy.fingerprint == policy.fingerprint, "the fingerprint changes between two reads")
    trained = policy.levels.trained
    if trained is not None:
        ends = (policy.levels.sigma_min, policy.levels.sigma_max)
        require(
            (trained[0], trained[-1]) == ends,
            f"levels.trained ends at {trained[0]}, {trained[-1]}, the range at {ends}",
        )


def _check_denoised(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigma: Tensor) -> None:
    copies = {"x": x.clone(), **{key: value.clone() for key, value in observation.items()}}
    at = f"at sigma={float(sigma):.4g}"
    out = policy.condition(observation)(x, sigma)
    arguments = {"x": x, **observation}
    changed = [key for key, value in copies.items() if not torch.equal(value, arguments[key])]
    require(not changed, f"condition() or the denoiser changes its arguments: {changed}")
    require(out.shape == x.shape, f"denoised has shape {tuple(out.shape)}, x {tuple(x.shape)}")
    require(out.dtype == x.dtype, f"denoised is {out.dtype}, x is {x.dtype}: the state must stay float64")
    require(bool(torch.isfinite(out).all()), f"denoised is not finite {at}")
    denoiser = policy.condition(observation)
    require(torch.equal(denoiser(x, sigma), out), f"the same call gives another result {at}; {EVAL}")
    require(torch.equal(denoiser(x, sigma.expand(len(x))), out), f"sigma as () and as (batch,) differ {at}")
    other = {key: torch.cat([value[:1], torch.zeros_like(value[1:])]) for key, value in observation.items()}
    mixed = policy.condition(other)(torch.cat([x[:1], -x[1:]]), sigma)
    difference = float((mixed[0] - out[0]).abs().max() / (1 + sigma))
    require(difference < 1e-4, f"a row depends on the other rows of its batch {at} (by {difference:.2g}); {EVAL}")


def _check_condition(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigma: Tensor) -> None:
    """Check that a network depends on an observation through its condition."""
    first, other = (policy.condition({key: value.roll(n, 0) for key, value in observation.items()}) for n in (0, 1))
    if not (isinstance(first, NetworkDenoiser) and isinstance(other, NetworkDenoiser) and first.condition):
        return
    for value in tree_leaves(first.condition):
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        require(
            isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(x),
            f"the condition has a part of {what}; it has tensors with a row for each observation, here {len(x)}",
        )
    swapped = replace(first, condition=other.condition)
    require(
        torch.equal(swapped(x, sigma), other(x, sigma)),
        "the network depends on the observation beside its condition; hand over all of it as condition=(...)",
    )


def _check_placed(
    host: Policy, placed: Policy, observation: dict[str, Tensor], calls: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Check that a policy denoises on its device as on the CPU."""
    one, other = host.condition(observation), placed.condition(observation)
    difference = max(float((one(x, sigma) - other(x, sigma)).abs().max() / (1 + sigma)) for x, sigma in calls)
    require(difference < 1e-4, f"on its device it denoises otherwise than on the CPU (by {difference:.2g})")


def _check_levels(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigmas: Tensor) -> None:
    """Check that each row of a batch is denoised at its own level, sigmas (batch,)."""
    denoiser = policy.condition(observation)
    alone = torch.stack([denoiser(x, sigma)[row] for row, sigma in enumerate(sigmas)])
    difference = float(((denoiser(x, sigmas) - alone).abs().amax((1, 2)) / (1 + sigmas)).max())
    require(
        difference < 1e-4, f"rows of sigma=(batch,) are not denoised at their own level (difference {difference:.2g})"
    )


def _check_limits(policy: Policy, observation: dict[str, Tensor], noise: Tensor, sigmas: Tensor) -> None:
    denoiser = policy.condition(observation)
    high = float(sigmas[0])
    rms = float(denoiser(sigmas[0] * noise, sigmas[0]).square().mean().sqrt())
    require(
        rms < 0.5 * high,
        f"at sigma={high:.4g} the denoised action has an RMS of {rms:.3g}: the noise is not removed; look at the "
        "prediction type, the sign of the velocity and the schedule",
    )
    clean = last(euler(denoiser, sigmas[0] * noise, sigmas))
    for sigma in sigmas[sigmas < 0.5][:-1]:
        error = float((denoiser(clean + sigma * noise, sigma) - clean).square().mean().sqrt())
        require(
            error <= 1.2 * float(sigma) + 0.02,
            f"at sigma={float(sigma):.4g} the denoised action is {error:.3g} away from the clean one, further than the noise "
            "itself; look at the prediction type, the sign of the velocity and the schedule",
        )
