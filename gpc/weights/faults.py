"""Faults in the description of a network, found with demonstrations: time, prediction, normaliser, order of dimensions.

Demonstrated chunks x0 with noise, x = x0 + sigma noise, show two of them:

- The error of E[x0 | x] is below that of mean and variance alone, sigma^2 v / (sigma^2 + v) with v the variance of a step and
  dimension (Wiener's filter): that of the noise at small sigma, that of the mean chunk at large sigma.
- The error of E[x0 | x] is orthogonal to every function of x. If a linear function of the denoised and the noisy action
  removes a third of the squared error, the network is no such mean (of trained networks it removes a few per cent).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gpc.demonstrations import Demonstrations
from gpc.policy.spec import ActionSpec, Policy
from gpc.score.denoiser import Denoiser, NetworkDenoiser, Prediction, Wrapper, with_noise_keys
from gpc.score.keyed_noise import NoiseKeys
from gpc.score.noise import Karras, LinearFlow, Schedule, VariancePreserving, snap_sigmas
from gpc.weights.denoising_error import demonstrated

SIGMAS = (5.0, 2.0, 1.0, 0.5, 0.2, 0.05)
WINDOWS = 256
SLACK, FLOOR = 1.05, 0.02  # of the error of mean and variance; of a network near the data, in normalised actions
CORRECTABLE = 1 / 3  # of the squared error
CLEARLY = 0.7  # of the error, under another description
SUSPECTS = (
    "look at prediction, schedule, scale, offset, order of dimensions, a last activation, and what condition() reads"
)


@torch.no_grad()
def find_fault(policy: Policy, demonstrations: Demonstrations) -> str | None:
    """Return the fault of a policy that demonstrations show, on one line, or None.

    Args:
        policy: a policy.
        demonstrations: what it was trained on, or held-out episodes of the same task.

    Raises:
        InputError: If demonstrations and policy do not fit.
    """
    levels = [*filter(policy.levels.covers, SIGMAS)] or [policy.levels.sigma_max]
    sigmas = snap_sigmas(torch.tensor([*levels, 0.0], dtype=torch.float64), policy.levels)[:-1]
    parts = list(demonstrated(policy, demonstrations, len(sigmas), WINDOWS))
    clean = torch.cat([part.clean for part in parts])
    noisy = clean + sigmas[:, None, None, None] * torch.cat([part.noise for part in parts], 1)
    keys = [NoiseKeys.of(part.windows, part.windows * 0) for part in parts]
    denoisers = [with_noise_keys(policy.condition(part.observation), k) for part, k in zip(parts, keys, strict=True)]

    def denoised(change: Callable[[NetworkDenoiser], Denoiser]) -> Tensor:
        """Return the result of changed denoisers, (levels, batch, horizon, action)."""
        changed = [_changed(denoiser, change) for denoiser in denoisers]
        rows = [zip(changed, x.split([len(part.clean) for part in parts]), strict=True) for x in noisy]
        return torch.stack([torch.cat([d(x, s) for d, x in row]) for row, s in zip(rows, sigmas, strict=True)])

    def error_of(chunks: Tensor) -> Tensor:
        return (chunks - clean).square().mean((1, 2)).sqrt()

    chunks, level, variance = denoised(lambda network: network), sigmas[:, None, None] ** 2, clean.var(0)
    varying = torch.tensor([constant is None for constant in policy.actions.constants])
    variance += ~varying  # an error there moves no action
    bound = (level * variance / (level + variance)).mean(1).sqrt()  # (levels, action)
    error, most = error_of(chunks), SLACK * bound + FLOOR
    correctable = (_correctable(chunks, noisy, clean) * (error > FLOOR)).mean(0) * varying
    if bool((error <= most).all()) and float(correctable.max()) <= CORRECTABLE:
        return None
    others = [(error_of(denoised(change)), text) for text, change in _other_networks(denoisers[0])]
    fitting = [(float((other / error).mean()), text) for other, text in others if bool((other <= most).all())]
    fraction, cause = min(fitting, default=(1.0, None))
    cause = cause if fraction < CLEARLY else _other_actions(policy.actions, chunks[0], clean)
    line = _line(_names(policy.actions), sigmas, error, bound, correctable)
    return f"{line}; {f'the error falls if {cause}' if cause else SUSPECTS}"


def _line(names: Sequence[str], sigmas: Tensor, error: Tensor, bound: Tensor, correctable: Tensor) -> str:
    """Return what is wrong: an error above its bound, or one that is linear."""
    excess = error - SLACK * bound - FLOOR
    i, k = divmod(int(excess.argmax()), len(names))
    if excess[i, k] > 0:
        return (
            f"at sigma={float(sigmas[i]):.3g} demonstrated actions are denoised with an error of {float(error[i, k]):.3g} in "
            f"dimension {names[k]}, where their mean and variance alone give {float(bound[i, k]):.3g}"
        )
    k = int(correctable.argmax())
    return (
        f"a linear correction removes {100 * float(correctable[k]):.0f} % of the squared error of denoised actions in dimension "
        f"{names[k]}, of a trained network's a few per cent"
    )


def _correctable(chunks: Tensor, noisy: Tensor, clean: Tensor) -> Tensor:
    """Return the linear part of the squared error, (levels, action).

    Args:
        chunks: denoised chunks (levels, batch, horizon, action).
        noisy: noisy chunks, like `chunks`.
        clean: demonstrated chunks (batch, horizon, action).
    """
    error, chunks, noisy = (part.flatten(1, 2).mT for part in (clean - chunks, chunks, noisy))  # (levels, action, n)
    features = torch.stack([chunks, noisy, torch.ones_like(chunks)], -1)
    left = error - (features @ torch.linalg.lstsq(features, error[..., None]).solution)[..., 0]
    part: Tensor = 1 - left.square().mean(-1) / error.square().mean(-1).clamp(min=1e-12)
    return part


def _changed(denoiser: Denoiser, change: Callable[[NetworkDenoiser], Denoiser]) -> Denoiser:
    """Return a denoiser with the network inside it changed."""
    if isinstance(denoiser, NetworkDenoiser):
        return change(denoiser)
    return (
        replace(denoiser, denoiser=_changed(denoiser.denoiser, change)) if isinstance(denoiser, Wrapper) else denoiser
    )


def _other_networks(denoiser: Denoiser) -> Iterator[tuple[str, Callable[[NetworkDenoiser], Denoiser]]]:
    """Yield other descriptions of the network inside a denoiser."""
    while isinstance(denoiser, Wrapper):
        denoiser = denoiser.denoiser
    if not isinstance(denoiser, NetworkDenoiser) or isinstance(denoiser.schedule, Karras):
        return
    predictions: list[Prediction] = [kind for kind in get_args(Prediction) if kind != "edm"]
    schedules = [("", denoiser.schedule), *_other_schedules(denoiser.schedule)]
    for (text, schedule), prediction in product(schedules, predictions):
        kind = f"the prediction is {prediction!r}" if prediction != denoiser.prediction else ""
        if text or kind:
            yield " and ".join(filter(None, [text, kind])), _Change(schedule, prediction)


@dataclass(frozen=True)
class _Change:
    schedule: Schedule
    prediction: Prediction

    def __call__(self, network: NetworkDenoiser) -> Denoiser:
        return replace(network, schedule=self.schedule, prediction=self.prediction)


def _other_schedules(schedule: Schedule) -> Iterator[tuple[str, Schedule]]:
    if isinstance(schedule, LinearFlow):
        reverse = not schedule.reverse
        yield f"the time is reversed, LinearFlow(reverse={reverse})", replace(schedule, reverse=reverse)
    if isinstance(schedule, VariancePreserving):
        steps = len(schedule.betas)
        cosine, linear = VariancePreserving.squaredcos(steps), torch.linspace(1e-4, 0.02, steps).tolist()
        yield "the schedule is squaredcos", cosine
        yield "the schedule has linear betas", VariancePreserving(tuple(linear))


def _other_actions(actions: ActionSpec, chunks: Tensor, clean: Tensor) -> str | None:
    """Return another order of the dimensions, or another scale and offset.

    Demonstrated actions are regressed on the network's at the largest sigma, where little but the observation is left. If
    scale and offset are right, the slope is 1 and the constant 0, since E[x0 | denoised] = denoised.

    Args:
        actions: spec of the policy.
        chunks: denoised chunks (batch, horizon, action).
        clean: demonstrated chunks, like `chunks`.

    Returns:
        The description, if it has less than half of the squared error and of the variance.
    """
    names, dim = _names(actions), actions.dim
    joint = torch.cat([chunks.flatten(0, 1), clean.flatten(0, 1)], 1).T
    covariance, mean = joint.cov().reshape(2 * dim, 2 * dim), joint.mean(1)
    spread = covariance.diagonal().clamp(min=1e-12)
    slope = covariance[:dim, dim:] / spread[:dim, None]  # (network's, demonstrated)
    left = spread[dim:] - slope**2 * spread[:dim, None]  # squared error of the regression
    order = linear_sum_assignment(left / spread[dim:])[1].tolist()
    if order != list(range(dim)) and left[range(dim), order].sum() < 0.5 * min(
        spread[dim:].sum(), left.diagonal().sum()
    ):
        return f"the dimensions are in the order {', '.join(names[i] for i in order)}"
    before = (chunks - clean).square().mean((0, 1))
    wrong = (left.diagonal() < 0.5 * torch.minimum(before, spread[dim:])).nonzero().flatten().tolist()
    texts = []
    for i in wrong:
        k, constant = float(slope[i, i]), float(mean[dim + i] - slope[i, i] * mean[i])
        scale, offset = k * actions.scale[i], constant * actions.scale[i] + actions.offset[i]
        texts.append(
            f"dimension {names[i]} has scale {scale:.3g} and offset {offset:.3g}, not {actions.scale[i]:.3g} and "
            f"{actions.offset[i]:.3g}"
        )
    return ", ".join(texts) or None


def _names(actions: ActionSpec) -> tuple[str, ...]:
    return actions.names or tuple(map(str, range(actions.dim)))
