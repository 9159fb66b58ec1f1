"""Weights from demonstrations: the mixture of policies with the least one-step denoising error.

On held-out demonstrations x0 with noise of level sigma,

    e_i = denoised_i(x0 + sigma noise) - x0,    G_ij(sigma) = E <e_i, e_j>,

so the mixture w has the error w' G w, the quadratic form that the theory behind composition minimises (arXiv
2510.01068, proposition 1). The levels are evenly spaced in log sigma, the time of the probability-flow ODE. The errors
of a level are divided by the best single policy's and then averaged: at large sigma no policy can predict which of
several good chunks was demonstrated, and this common part would dominate a sum of absolute errors. The result is a
prior: a small denoising error does not imply a successful episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from gpc.composition.align import masks
from gpc.composition.composed import ComposedDenoiser, Composition, compose
from gpc.demonstrations import Demonstrations
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.policy.spec import Observation, Policy
from gpc.score.keyed_noise import NoiseKeys, keyed_noise
from gpc.score.noise import FLOW_START, snap_sigmas
from gpc.types import Array
from gpc.weights.simplex import Weights, one_hot

LEVELS = 10
WINDOWS = 512
BATCH = 128


def least_error_weights(gram: Array) -> Weights:
    """Return the convex weights w with the least w' G w.

    Solved by non-negative least squares (Lawson & Hanson 1974): the v >= 0 with the least v' G v + (1 - sum v)^2 has
    the direction of w, because along any direction the minimum grows with w' G w.

    Args:
        gram: positive semi-definite G, (K, K).
    """
    size = float(np.trace(gram)) / len(gram) or 1.0
    values, vectors = np.linalg.eigh(gram / size)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    solution, _ = optimize.nnls(np.vstack([root, np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1.0))
    return tuple((solution / solution.sum()).tolist())


@dataclass(frozen=True)
class DenoisingError:
    """Gram matrices of the policies' denoising errors; a `Prior` of a search.

    Attributes:
        sigmas: noise levels, descending, (levels,).
        gram: mean products of errors in normalised actions, (levels, K, K).
        windows: number of denoised chunks.
        fingerprint: hash of the demonstrations.
    """

    sigmas: Array
    gram: Array
    windows: int
    fingerprint: str

    @cached_property
    def relative(self) -> Array:
        """Mean over levels of G / the best single policy's squared error, (K, K)."""
        best = self.squares.min(1).clip(np.finfo(float).tiny ** 0.5)
        mean: Array = (self.gram / best[:, None, None]).mean(0)
        return mean

    @property
    def squares(self) -> Array:
        """Mean squared error of each policy, (levels, K)."""
        return np.diagonal(self.gram, axis1=1, axis2=2)

    @property
    def correlation(self) -> Array:
        """Correlation about zero, (levels, K, K); a low one favours composition."""
        size = np.sqrt(self.squares)
        ratio: Array = self.gram / (size[:, :, None] * size[:, None, :])
        return ratio

    def predicted(self, weights: Weights) -> float:
        """Return the RMS error relative to the best single policy at each level."""
        w = np.array(weights)
        return float(np.sqrt(w @ self.relative @ w))

    def best(self) -> Weights:
        """Return the convex weights with the least predicted error."""
        return least_error_weights(self.relative)

    @property
    def best_per_level(self) -> list[Weights]:
        """Convex weights with the least error at each level."""
        return [least_error_weights(gram) for gram in self.gram]

    def explain(
        self, names: Sequence[str], candidates: Sequence[Weights], measured: Mapping[Weights, float]
    ) -> dict[str, Any]:
        """Return the part `denoising_error` of a summary (docs/summary-schema.md).

        Args:
            names: names of the policies.
            candidates: weights whose predicted error is listed.
            measured: success rates by weights.
        """
        parents = [self.predicted(one_hot(i, len(names))) for i in range(len(names))]
        best = self.best()
        part: dict[str, Any] = {
            "windows": self.windows,
            "sigmas": self.sigmas.tolist(),
            "rms": {name: np.sqrt(squares).tolist() for name, squares in zip(names, self.squares.T, strict=True)},
            "correlation": self.correlation.tolist(),
            "weights": list(best),
            "weights_per_level": [list(weights) for weights in self.best_per_level],
            "predicted": [{"weights": list(w), "error": self.predicted(w)} for w in candidates],
            "best_parent": names[int(np.argmin(parents))],
            "pc_gain": 100 * max(0.0, 1 - self.predicted(best) / min(parents)),
            **self._rank_correlation(measured),
        }
        return part | {"verdict": _verdict(part)}

    def _rank_correlation(self, measured: Mapping[Weights, float]) -> dict[str, Any]:
        """Return Spearman's rho of predicted error and success; None if undefined."""
        values = list(measured.values())
        part: dict[str, Any] = {"spearman": None, "spearman_p_value": None, "n_measured": len(values)}
        if len(values) >= 3 and len(set(values)) > 1:
            test = stats.spearmanr([self.predicted(weights) for weights in measured], values)
            part |= {"spearman": float(test.statistic), "spearman_p_value": float(test.pvalue)}
        return part


@torch.no_grad()
def measure(policy: Composition, sampling: Sampling, demonstrations: Demonstrations) -> DenoisingError:
    """Measure the denoising errors of a composition's members on demonstrations.

    At most `WINDOWS` chunks, evenly spread, are denoised at about `LEVELS` levels of the sampler's range. All members
    denoise the same noisy chunks. Steps and dimensions that a member lacks are left out.

    Raises:
        InputError: If demonstrations and policies do not fit, or the policies share no action dimension.
    """
    sigmas = _levels(policy, sampling)
    composed = compose(policy.policies)
    if not bool(masks(composed.members).bool().all(0).any()):
        raise InputError(f"{policy.name} share no action dimension, so their errors cannot be compared")
    total = torch.zeros(len(sigmas), len(policy.policies), len(policy.policies), dtype=torch.float64)
    for part in demonstrated(policy, demonstrations, len(sigmas)):
        denoiser = composed.condition(part.observation).with_noise_keys(NoiseKeys.of(part.windows, part.windows * 0))
        errors = [_errors(denoiser, part.clean, sigma, draw) for sigma, draw in zip(sigmas, part.noise, strict=True)]
        total += torch.stack([error @ error.T / error.shape[1] for error in errors]) * len(part.windows) / part.total
    return DenoisingError(sigmas.numpy(), total.numpy(), part.total, demonstrations.fingerprint)


class Demonstrated(NamedTuple):
    """Demonstrated chunks, and noise for each level.

    Attributes:
        windows: their numbers, (batch,).
        total: number of windows in all batches.
        observation: key -> (batch, n_obs_steps, *shape).
        clean: normalised chunks (batch, horizon, action).
        noise: (levels, batch, horizon, action).
    """

    windows: Array
    total: int
    observation: Observation
    clean: Tensor
    noise: Tensor


def demonstrated(
    policy: Policy, demonstrations: Demonstrations, levels: int, most: int = WINDOWS
) -> Iterator[Demonstrated]:
    """Yield at most `most` windows of demonstrations, evenly spread, in batches.

    Raises:
        InputError: If demonstrations and policy do not fit.
    """
    spec, reads = policy.actions, policy.observations
    if demonstrations.actions.shape[1:] != (spec.dim,):
        raise InputError(
            f"the demonstrations act in {demonstrations.actions.shape[1:]} dimensions, {policy.name} in {spec.dim}"
        )
    observed, acted = demonstrations.windows(reads.n_obs_steps, spec.start, spec.horizon)
    windows = np.unique(np.linspace(0, len(observed) - 1, most).round().astype(int))
    recorded = {k: _image_bytes(v) if k in reads.images else v for k, v in demonstrations.observations.items()}
    for part in np.array_split(windows, -(-len(windows) // BATCH)):
        frames = {key: value[observed[part]] for key, value in recorded.items()}
        clean = spec.encode(torch.from_numpy(demonstrations.actions[acted[part]]).double())
        noise = keyed_noise(part, np.zeros_like(part), levels, spec.shape)
        yield Demonstrated(part, len(windows), reads.read(frames), clean, noise)


def _image_bytes(values: Array) -> Array:
    """Return images as bytes; Diffusion Policy's files have 0 to 255 in floats."""
    floats = values.dtype.kind == "f" and bool((values > 1).any())
    whole = floats and bool(((values >= 0) & (values <= 255) & (values == np.rint(values))).all())
    return values.astype(np.uint8) if whole else values


def _levels(policy: Composition, sampling: Sampling) -> Tensor:
    """Return descending levels of the sampler's range, even in log sigma."""
    visited = sampling.sigmas(policy.levels)[:-1]
    visited = visited[visited < FLOW_START] if len(visited) > 1 else visited  # t = 1 has no finite level
    even = np.geomspace(float(visited[0]), float(visited[-1]), LEVELS)
    return snap_sigmas(torch.from_numpy(even), policy.levels)[:-1]


def _errors(denoiser: ComposedDenoiser, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the members' errors on shared entries, (K, batch * entries)."""
    x = clean + sigma * noise
    shared = masks(denoiser.members).bool().all(0)
    pairs = zip(denoiser.members, denoiser.denoisers, strict=True)
    return torch.stack([(member.denoise(network, x, sigma) - clean)[:, shared].flatten() for member, network in pairs])


def _verdict(part: Mapping[str, Any]) -> str:
    weights = ", ".join(f"{w:.2f}" for w in part["weights"])
    text = (
        f"On {part['windows']} chunks of held-out demonstrations the weights [{weights}] have the least one-step denoising error, "
        f"{part['pc_gain']:.1f} % below that of {part['best_parent']} alone."
    )
    if part["spearman"] is None:
        return text
    return (
        f"{text} Rank correlation of predicted error and measured success over {part['n_measured']} weights: "
        f"{part['spearman']:+.2f} (Spearman, p = {part['spearman_p_value']:.2g}; -1 would be a perfect prediction)."
    )
