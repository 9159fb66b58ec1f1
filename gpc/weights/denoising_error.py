"""Weights from demonstrations: the one-step denoising errors of several policies, and the mixture with the least.

On held-out demonstrations x0 with noise of level sigma,

    e_i = denoised_i(x0 + sigma noise) - x0,    G_ij(sigma) = E <e_i, e_j>,

so the mixture w has the error w' G w: the quadratic form that the theory behind composition minimises (arXiv 2510.01068,
proposition 1). Over levels that are evenly spaced in log sigma, the time of the probability-flow ODE, the errors are divided
by the best single policy's at that level and averaged: at large sigma nobody can know which of several good chunks was
demonstrated, and in absolute numbers this common part would decide alone. It is a prior, not a verdict: a demonstrated
chunk that is well denoised is not yet an episode that succeeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from gpc.composition.align import opinions
from gpc.composition.composed import ComposedDenoiser, ComposedPolicy
from gpc.demonstrations import Demonstrations
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.policy.spec import observation_tensors
from gpc.score.keyed_noise import keyed_noise
from gpc.score.noise import snap_sigmas
from gpc.types import Array
from gpc.weights.simplex import Weights, one_hot

LEVELS = 10
WINDOWS = 512
BATCH = 128


def least(gram: Array) -> Weights:
    """The convex weights with the least w' G w, for a positive semi-definite G (K, K).

    A non-negative least squares (Lawson & Hanson 1974): the v >= 0 with the least v' G v + (1 - sum v)^2 has the direction of w,
    because along any direction its minimum grows with w' G w.
    """
    size = float(np.trace(gram)) / len(gram) or 1.0
    values, vectors = np.linalg.eigh(gram / size)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    found, _ = optimize.nnls(np.vstack([root, np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1.0))
    return tuple((found / found.sum()).tolist())


@dataclass(frozen=True)
class DenoisingError:
    """The error Gram matrices (levels, K, K), mean squares in normalised actions, at descending sigmas (levels,).

    `windows` chunks of demonstrations were denoised, whose content has the hash `fingerprint`. A `weight_search.Prior`.
    """

    sigmas: Array
    gram: Array
    windows: int
    fingerprint: str

    @cached_property
    def relative(self) -> Array:
        """(K, K): the mean over levels of G over the best single policy's squared error."""
        best = self.squares.min(1).clip(np.finfo(float).tiny ** 0.5)
        mean: Array = (self.gram / best[:, None, None]).mean(0)
        return mean

    @property
    def squares(self) -> Array:
        """Each policy's mean squared error (levels, K)."""
        return np.diagonal(self.gram, axis1=1, axis2=2)

    @property
    def correlation(self) -> Array:
        """Of the policies' errors (levels, K, K), about zero; low correlation is where composition pays."""
        size = np.sqrt(self.squares)
        found: Array = self.gram / (size[:, :, None] * size[:, None, :])
        return found

    def predicted(self, weights: Weights) -> float:
        """Root of the mean squared error in units of the best single policy's at each level; below 1 is a gain."""
        w = np.array(weights)
        return float(np.sqrt(w @ self.relative @ w))

    def best(self) -> Weights:
        """The convex weights with the least predicted error."""
        return least(self.relative)

    @property
    def best_per_level(self) -> list[Weights]:
        """The convex weights with the least error at each level."""
        return [least(gram) for gram in self.gram]

    def explain(
        self, names: Sequence[str], candidates: Sequence[Weights], measured: Mapping[Weights, float]
    ) -> dict[str, Any]:
        """The part `denoising_error` of a summary (docs/summary-schema.md); `measured` holds rates of success by weights."""
        parents = [self.predicted(one_hot(i, len(names))) for i in range(len(names))]
        best = self.best()
        found: dict[str, Any] = {
            "windows": self.windows,
            "sigmas": self.sigmas.tolist(),
            "rms": {name: np.sqrt(own).tolist() for name, own in zip(names, self.squares.T, strict=True)},
            "correlation": self.correlation.tolist(),
            "weights": list(best),
            "weights_per_level": [list(weights) for weights in self.best_per_level],
            "predicted": [{"weights": list(w), "error": self.predicted(w)} for w in candidates],
            "best_parent": names[int(np.argmin(parents))],
            "pc_gain": 100 * max(0.0, 1 - self.predicted(best) / min(parents)),
            **self._rank_correlation(measured),
        }
        return found | {"verdict": _verdict(found)}

    def _rank_correlation(self, measured: Mapping[Weights, float]) -> dict[str, Any]:
        """Spearman's rho of predicted error and measured success; None where there are fewer than three or all are equal."""
        values = list(measured.values())
        known: dict[str, Any] = {"spearman": None, "spearman_p_value": None, "n_measured": len(values)}
        if len(values) >= 3 and len(set(values)) > 1:
            test = stats.spearmanr([self.predicted(weights) for weights in measured], values)
            known |= {"spearman": float(test.statistic), "spearman_p_value": float(test.pvalue)}
        return known


def measure(policy: ComposedPolicy, sampling: Sampling, demonstrations: Demonstrations) -> DenoisingError:
    """Denoise noisy chunks of the demonstrations with every member, at about `LEVELS` levels of the sampler's range.

    At most `WINDOWS` chunks, evenly spread; a chunk meets the same noise whoever denoises it. Steps and dimensions that a
    member lacks are left out. Raises InputError where demonstrations and policies do not fit.
    """
    spec = policy.actions
    if demonstrations.actions.shape[1:] != (spec.dim,):
        raise InputError(
            f"the demonstrations act in {demonstrations.actions.shape[1:]} dimensions, {policy.name} in {spec.dim}"
        )
    observed, acted = demonstrations.windows(policy.observations.n_obs_steps, spec.start, spec.horizon)
    chosen = np.unique(np.linspace(0, len(observed) - 1, WINDOWS).round().astype(int))
    sigmas = _levels(policy, sampling)
    if not bool(opinions(policy.members).bool().all(0).any()):
        raise InputError(f"{policy.name} share no action dimension, so their errors cannot be compared")
    total = torch.zeros(len(sigmas), len(policy.policies), len(policy.policies), dtype=torch.float64)
    for part in np.array_split(chosen, -(-len(chosen) // BATCH)):
        observation = {key: value[observed[part]] for key, value in demonstrations.observations.items()}
        clean = spec.encode(torch.from_numpy(demonstrations.actions[acted[part]]).double())
        noise = keyed_noise(part, np.zeros_like(part), len(sigmas), spec.shape)
        denoiser = policy.condition(observation_tensors(observation))
        errors = [_errors(denoiser, clean, sigma, own) for sigma, own in zip(sigmas, noise, strict=True)]
        total += torch.stack([error @ error.T / error.shape[1] for error in errors]) * len(part) / len(chosen)
    return DenoisingError(sigmas.numpy(), total.numpy(), len(chosen), demonstrations.fingerprint)


def _levels(policy: ComposedPolicy, sampling: Sampling) -> Tensor:
    """Evenly spaced in log sigma over the sampler's range, on trained levels where there are such; descending."""
    visited = sampling.sigmas(policy.levels)[:-1]
    even = np.geomspace(float(visited[0]), float(visited[-1]), LEVELS)
    return snap_sigmas(torch.from_numpy(even), policy.levels)[:-1]


@torch.inference_mode()
def _errors(denoiser: ComposedDenoiser, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Every member's error where all of them have an opinion, (K, batch * steps * action)."""
    x = clean + sigma * noise
    shared = opinions(denoiser.members).bool().all(0)
    pairs = zip(denoiser.members, denoiser.denoisers, strict=True)
    return torch.stack([(m.denoise(own, x, sigma) - clean)[:, shared].flatten() for m, own in pairs])


def _verdict(found: Mapping[str, Any]) -> str:
    weights = ", ".join(f"{w:.2f}" for w in found["weights"])
    text = (
        f"On {found['windows']} chunks of held-out demonstrations the weights [{weights}] have the least one-step denoising error, "
        f"{found['pc_gain']:.1f} % below that of {found['best_parent']} alone."
    )
    if found["spearman"] is None:
        return text
    return (
        f"{text} Rank correlation of predicted error and measured success over {found['n_measured']} weights: "
        f"{found['spearman']:+.2f} (Spearman, p = {found['spearman_p_value']:.2g}; -1 would be a perfect prediction)."
    )
