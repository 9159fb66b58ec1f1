"""Samplers: generators over an explicit, descending grid of sigmas that ends in zero.

All but `renoise` solve `dx/dsigma = (x - denoised) / sigma`, or its stochastic relative. They yield x after every step. x is
(batch, horizon, action), float64, and starts as `sigmas[0] * noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpc.errors import InputError
from gpc.score.denoiser import Clamp, Denoiser

Sampler = Callable[[Denoiser, Tensor, Tensor], Iterator[Tensor]]


def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Take Euler steps in sigma.

    This is DDIM with eta = 0 (Song et al. 2021, eq. 12), and the Euler loop of a flow model.
    """
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = _euler_step(denoiser, x, sigma, after)
        yield x


def _euler_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, after: Tensor) -> Tensor:
    denoised = denoiser(x, sigma)
    return denoised + after / sigma * (x - denoised)


def ddim(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Take Euler steps with a clipped action and the noise of the unclipped one.

    This is diffusers' DDIM with `clip_sample`. If the denoiser is no `Clamp`, the steps are those of `euler`.
    """
    clamp = denoiser if isinstance(denoiser, Clamp) else None
    network = denoiser if clamp is None else clamp.denoiser
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = network(x, sigma)
        clipped = denoised if clamp is None else clamp.clip(denoised)
        x = clipped + after / sigma * (x - denoised)
        yield x


def ancestral(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Take DDPM's posterior steps, which is DDIM with eta = 1.

    Ho et al. 2020, eq. 7.

    Args:
        denoiser: A denoiser.
        x: Noisy chunks at `sigmas[0]`.
        sigmas: Descending levels, (steps + 1,), with a zero at the end.
        noise: Standard normal noise of a step by its number, like x.
    """
    for i, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = denoiser(x, sigma)
        ratio = (after / sigma) ** 2
        std = after * (1 - ratio).sqrt()
        x = denoised + ratio * (x - denoised)
        x = x + std * noise(i) if after > 0 else x
        yield x


def heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Take Heun's second-order steps, Euler into zero (Karras et al. 2022, alg. 1).

    A step takes two evaluations. It is a reference for orders of convergence and no setting: with 8 evaluations a chunk
    its success is 7.8 % if that of dpmpp_2m is 67.2 % (docs/results/steps.md); it equals dpmpp_2m from 49 evaluations on.
    """
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoiser(x, sigma)) / sigma
        guess = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (guess - denoiser(guess, after)) / after) / 2
        x = x + (after - sigma) * slope
        yield x


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Take steps of DPM-Solver++ 2M (Lu et al. 2022, algorithm 2).

    Second order from the last two evaluations, first order into zero.
    """
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
    """Denoise, then add the initial noise again at the next level.

    This is the loop of X-VLA (arXiv 2510.10274) in LeRobot. It does not solve the equation above: it is exact if denoised
    does not depend on x, and it overshoots a wide distribution, more so on a finer grid. Use it for networks that were
    tuned to it, with their few steps.
    """
    noise = x / sigmas[0]
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = denoiser(x, sigma) + after * noise
        yield x


def langevin(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Callable[[int], Tensor], corrections: int, rate: float
) -> Iterator[Tensor]:
    """Take Euler steps, each with unadjusted Langevin dynamics at its new level.

    A sum of scores is not the score of the product of noisy densities. The corrections move x to the density whose score
    the sum is, at each level, so that the last one is the product (Du et al. 2023, arXiv 2302.11552). The bias of a
    correction at sigma is of order `rate sigma^2` over the variance of the data.

    Args:
        denoiser: A denoiser.
        x: Noisy chunks at `sigmas[0]`.
        sigmas: Descending levels, (steps + 1,), with a zero at the end.
        noise: Standard normal noise of a correction by its number, like x.
        corrections: Langevin steps at each level.
        rate: Step size over sigma^2 (Song & Ermon 2019, algorithm 1).
    """
    for i, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x = _euler_step(denoiser, x, sigma, after)
        for j in range(corrections if after > 0 else 0):
            x = x + rate * (denoiser(x, after) - x) + after * (2 * rate) ** 0.5 * noise(i * corrections + j)
        yield x


def teleport(denoiser: Denoiser, x: Tensor, sigma: Tensor, after: Tensor, spread: float) -> Tensor:
    """Go from sigma down to `after` in one evaluation, as if the data were Gaussian.

    At large noise every density looks Gaussian, so the first steps need no solver (Wang & Vastola 2024, arXiv 2412.09726).
    The step is exact for a Gaussian of standard deviation `spread`: with D = (spread^2 x + sigma^2 m) / (spread^2 +
    sigma^2) the evaluation gives the mean m, and the distance from m shrinks as that of the noisy Gaussian does. With
    `spread` zero it is an Euler step.
    """
    denoised = denoiser(x, sigma)
    mean = denoised + (spread / sigma) ** 2 * (denoised - x)
    shrink = ((spread**2 + after**2) / (spread**2 + sigma**2)).sqrt()
    return mean + shrink * (x - mean)


DETERMINISTIC: dict[str, Sampler] = {"euler": euler, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "renoise": renoise}
"""The samplers that draw no noise after the start, by name."""


def last(steps: Iterator[Tensor]) -> Tensor:
    """Run a sampler to its end and return the sample.

    Raises:
        InputError: If the grid has fewer than two sigmas.
    """
    x = None
    for x in steps:  # noqa: B007
        pass
    if x is None:
        raise InputError("a sampler needs a grid of at least two sigmas")
    return x
