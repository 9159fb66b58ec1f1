"""Samplers: generators over an explicit, descending grid of sigmas that ends in zero.

All but `renoise` solve `dx/dsigma = (x - denoised) / sigma` (or its stochastic relative). They yield x after every step, so a
caller may look at any level. x is (batch, horizon, action), float64, and starts as `sigmas[0] * noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpc.errors import InputError
from gpc.score.denoiser import Denoiser

Sampler = Callable[[Denoiser, Tensor, Tensor], Iterator[Tensor]]


def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Euler in sigma, which is DDIM with eta = 0 (Song et al. 2021, eq. 12) and a flow model's Euler loop."""
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = _down(denoiser, x, sigma, after)
        yield x


def _down(denoiser: Denoiser, x: Tensor, sigma: Tensor, after: Tensor) -> Tensor:
    denoised = denoiser(x, sigma)
    return denoised + after / sigma * (x - denoised)


def ancestral(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """The DDPM posterior step (Ho et al. 2020, eq. 7), which is DDIM with eta = 1; `noise(i)` is step i's, like x."""
    for i, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = denoiser(x, sigma)
        ratio = (after / sigma) ** 2
        spread = after * (1 - ratio).sqrt()
        x = denoised + ratio * (x - denoised)
        x = x + spread * noise(i) if after > 0 else x
        yield x


def heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Heun's second-order step, Euler into zero (Karras et al. 2022, algorithm 1); two evaluations a step.

    A reference for orders of convergence, not a setting: with 8 evaluations a chunk its success is 7.8 % if dpmpp_2m has 67.2 %
    (docs/results/steps.md), and it equals dpmpp_2m only from 49 evaluations on.
    """
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoiser(x, sigma)) / sigma
        guess = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (guess - denoiser(guess, after)) / after) / 2
        x = x + (after - sigma) * slope
        yield x


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """DPM-Solver++ 2M: second order from the last two evaluations (Lu et al. 2022, algorithm 2), first order into zero."""
    previous, width = None, None
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = denoiser(x, sigma)
        step = (sigma / after).log()  # infinite into zero, where the update is `x = denoised`
        corrected = denoised
        if previous is not None and width is not None and after > 0:
            corrected = denoised + step / (2 * width) * (denoised - previous)
        x = after / sigma * x - torch.expm1(-step) * corrected
        previous, width = denoised, step
        yield x


def renoise(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """The denoised action, noised again by the noise that x started with: the loop of X-VLA (arXiv 2510.10274) in LeRobot.

    No solver of the equation above: exact where denoised does not depend on x, it overshoots a spread-out distribution, and
    the more the finer the grid. Use it for networks that were tuned to it, with their own few steps.
    """
    noise = x / sigmas[0]
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = denoiser(x, sigma) + after * noise
        yield x


def langevin(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Callable[[int], Tensor], corrections: int, rate: float
) -> Iterator[Tensor]:
    """Euler down a level, then `corrections` steps of unadjusted Langevin dynamics on it; `noise(i)` is the i-th's, like x.

    Step size `rate sigma^2` (Song & Ermon 2019, algorithm 1). A sum of scores is not the score of the product of noisy
    densities; the corrections let x reach what the sum is the score of at each level, so that the last one is the product
    (Du et al. 2023, arXiv 2302.11552). The bias of a step at sigma is of order `rate sigma^2` over the data's variance.
    """
    for i, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x = _down(denoiser, x, sigma, after)
        for j in range(corrections if after > 0 else 0):
            x = x + rate * (denoiser(x, after) - x) + after * (2 * rate) ** 0.5 * noise(i * corrections + j)
        yield x


def teleport(denoiser: Denoiser, x: Tensor, sigma: Tensor, after: Tensor, spread: float) -> Tensor:
    """From sigma down to `after` in one evaluation: exact where the data is a Gaussian of standard deviation `spread`.

    Where the noise is large every density looks like one, so the first steps need no solver (Wang & Vastola 2024, arXiv
    2412.09726). With D = (spread^2 x + sigma^2 m) / (spread^2 + sigma^2) the evaluation tells the mean m, given the
    observation; the distance from it shrinks as the noisy Gaussian does. `spread` zero is an Euler step.
    """
    denoised = denoiser(x, sigma)
    mean = denoised + (spread / sigma) ** 2 * (denoised - x)
    shrink = ((spread**2 + after**2) / (spread**2 + sigma**2)).sqrt()
    return mean + shrink * (x - mean)


DETERMINISTIC: dict[str, Sampler] = {"euler": euler, "dpmpp_2m": dpmpp_2m, "renoise": renoise}
METHODS = (*DETERMINISTIC, "ancestral", "langevin")


def last(steps: Iterator[Tensor]) -> Tensor:
    """The sample: what a sampler yields last."""
    x = None
    for x in steps:  # noqa: B007
        pass
    if x is None:
        raise InputError("a sampler needs a grid of at least two sigmas")
    return x
