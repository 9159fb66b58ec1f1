"""Samplers against independent sources (diffusers, plain loops, closed forms), all in float64."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from models import Gaussian, RandomNetwork, flow_sigmas

from gpc.errors import InputError
from gpc.inference.methods import NAMED
from gpc.score.denoiser import Clamp, NetworkDenoiser
from gpc.score.noise import LinearFlow, VariancePreserving, karras_sigmas, trained_sigmas
from gpc.score.samplers import DETERMINISTIC, ancestral, ddim, dpmpp_2m, euler, heun, last, renoise

COSINE = VariancePreserving.squaredcos(100)
SIGMAS = trained_sigmas(COSINE.levels)
NETWORK = RandomNetwork(0)
DENOISER = NetworkDenoiser(NETWORK, COSINE, "noise", torch.float64)


def double(scheduler):
    """A diffusers scheduler with its tables in float64 (it makes them in float32)."""
    betas = torch.tensor(COSINE.betas, dtype=torch.float64)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, torch.ones((), dtype=torch.float64))
    return scheduler


def start(batch=4):
    return torch.randn(batch, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def theirs(scheduler, x, **options):
    """diffusers' loop on its own state, alpha * x."""
    for t in scheduler.timesteps:
        x = scheduler.step(NETWORK(x, t.expand(len(x))), int(t), x, **options).prev_sample
    return x


def ours_from(native):
    """Our starting state for diffusers' native one."""
    return native / COSINE.scale(SIGMAS[0])


@pytest.mark.parametrize(
    ("sampler", "clip"), [(euler, False), (ddim, False), (ddim, True)], ids=["euler", "ddim", "ddim, clipped"]
)
def test_euler_is_ddim_and_the_sampler_of_that_name_clips_as_it_does(sampler, clip):
    scheduler = double(DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=clip))
    scheduler.set_timesteps(100)
    wanted = theirs(scheduler, start(), eta=0.0)
    found = last(sampler(Clamp(DENOISER, 1.0) if clip else DENOISER, ours_from(start()), SIGMAS))
    assert (found - wanted).abs().max() <= 1e-8


@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_is_ddpm_and_clamp_is_its_clip_sample(clip, monkeypatch):
    scheduler = double(DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=clip))
    scheduler.set_timesteps(100)
    noise = [torch.randn(4, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(100)]
    theirs_noise = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(theirs_noise))
    wanted = theirs(scheduler, start())
    denoiser = Clamp(DENOISER, 1.0) if clip else DENOISER
    found = last(ancestral(denoiser, ours_from(start()), SIGMAS, lambda i: noise[i]))
    assert next(theirs_noise) is noise[99]  # the last step draws none, on either side
    assert (found - wanted).abs().max() <= 1e-8


def test_clamping_changes_the_sample():
    found = [last(euler(d, ours_from(start()), SIGMAS)) for d in (DENOISER, Clamp(DENOISER, 1.0))]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_dpmpp_2m_is_that_of_diffusers():
    grid = trained_sigmas(COSINE.levels, 20)
    scheduler = double(
        DPMSolverMultistepScheduler(
            100, beta_schedule="squaredcos_cap_v2", solver_order=2, algorithm_type="dpmsolver++",
            solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True,
        )
    )  # fmt: skip
    scheduler.set_timesteps(20)
    scheduler.sigmas = grid
    scheduler.timesteps = COSINE.label(grid[:-1])
    alpha = COSINE.scale(grid[0])
    x, clean = start(), []
    for i, t in enumerate(scheduler.timesteps):  # not `step`, which rounds the state to float32
        scheduler._step_index = i
        clean.append(scheduler.convert_model_output(NETWORK(x, t.expand(len(x))), sample=x))
        if i in (0, 19):
            x = scheduler.dpm_solver_first_order_update(clean[-1], sample=x)
        else:
            x = scheduler.multistep_dpm_solver_second_order_update(clean[-2:], sample=x)
    wanted = x
    found = last(dpmpp_2m(DENOISER, start() / alpha, grid))
    assert (found - wanted).abs().max() <= 1e-8


@pytest.mark.parametrize("reverse", [False, True])
def test_a_flow_model_is_a_plain_euler_loop_in_its_own_time(reverse):
    steps = 20
    grid = flow_sigmas(steps, t_max=0.999)
    t = grid / (1 + grid)
    denoiser = NetworkDenoiser(
        NETWORK, LinearFlow(reverse=reverse), "reverse_velocity" if reverse else "velocity", torch.float64
    )
    x = start()
    for now, after in zip(t[:-1], t[1:], strict=True):
        label = (1 - now if reverse else now).expand(len(x))
        velocity = -NETWORK(x, label) if reverse else NETWORK(x, label)
        x = x + (after - now) * velocity
    found = last(euler(denoiser, start() / (1 - t[0]), grid))
    assert (found - x).abs().max() <= 1e-8


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_the_order_of_convergence_is_what_it_should_be(method, order):
    """On a Gaussian the exact flow scales x - mean with sqrt(std^2 + sigma^2)."""
    gaussian, high, low = Gaussian(0.3, 0.5), 5.0, 0.2
    x = torch.linspace(-6, 6, 32, dtype=torch.float64).reshape(1, 16, 2)
    exact = gaussian.mean + (x - gaussian.mean) * np.sqrt((gaussian.std**2 + low**2) / (gaussian.std**2 + high**2))
    errors = []
    for steps in (80, 160, 320, 640):
        grid = karras_sigmas(steps + 1, low, high)[:-1]
        errors.append(float((last(method(gaussian, x, grid)) - exact).abs().max()))
    slopes = np.diff(np.log2(errors))
    assert slopes == pytest.approx(-order, abs=0.1)


def test_renoise_is_the_loop_of_x_vla_in_its_own_time():
    """One noise, kept: x_t = t noise + (1 - t) of the last prediction."""
    steps = 10
    noise, action = start(), torch.zeros_like(start())
    for i in range(steps, 0, -1):
        t = torch.full((len(noise),), i / steps, dtype=torch.float64)
        action = NETWORK(t[:, None, None] * noise + (1 - t[:, None, None]) * action, t)
    grid = flow_sigmas(steps)
    found = last(renoise(NetworkDenoiser(NETWORK, LinearFlow(), "sample", torch.float64), grid[0] * start(), grid))
    assert (found - action).abs().max() <= 1e-8


def test_renoise_is_exact_for_one_action_and_overshoots_a_spread_the_more_the_finer_the_grid():
    """On a Gaussian the sample is mean + width * noise, where width' = std^2 / (std^2 + sigma^2) * width + sigma'."""
    spreads = []
    for steps in (5, 20, 80):
        grid = flow_sigmas(steps)
        width = grid[0]
        for sigma, after in zip(grid[:-1], grid[1:], strict=True):
            width = 0.25 / (0.25 + sigma**2) * width + after
        sample = last(renoise(Gaussian(0.3, 0.5), grid[0] * start(), grid))
        assert (sample - 0.3 - width * start()).abs().max() <= 1e-8
        assert (last(renoise(Gaussian(0.3, 0.0), grid[0] * start(), grid)) - 0.3).abs().max() <= 1e-8
        spreads.append(float(width))
    assert spreads[0] < 0.5 < spreads[1] < spreads[2]


def test_ancestral_samples_have_the_right_mean_and_spread():
    gaussian, n = Gaussian(0.3, 0.5), 20_000
    generator = torch.Generator().manual_seed(0)

    def noise(_=0):
        return torch.randn(n, 1, 1, dtype=torch.float64, generator=generator)

    grid = trained_sigmas(VariancePreserving.squaredcos(1000).levels)
    x = last(ancestral(gaussian, grid[0] * noise(), grid, noise))
    assert x.mean() == pytest.approx(0.3, abs=4 * 0.5 / n**0.5)
    assert x.std() == pytest.approx(0.5, rel=0.02)


def test_a_sampler_yields_after_every_step_and_ends_at_the_denoised_action():
    grid = karras_sigmas(6, 0.02, 10.0)
    for method in DETERMINISTIC.values():
        states = list(method(Gaussian(), 10 * start(), grid))
        assert len(states) == 6
        assert torch.isfinite(states[-1]).all()
    assert len(list(ancestral(Gaussian(), 10 * start(), grid, lambda i: start()))) == 6


def test_heun_asks_twice_a_step_except_into_zero():
    asked = []

    def counting(x, sigma):
        asked.append(float(sigma))
        return Gaussian()(x, sigma)

    last(heun(counting, 10 * start(), karras_sigmas(4, 0.02, 10.0)))
    assert len(asked) == 7


def test_a_grid_of_one_level_is_refused():
    with pytest.raises(InputError, match="two sigmas"):
        last(euler(Gaussian(), start(), torch.tensor([1.0])))


def test_the_named_methods_are_the_deterministic_ones_and_ancestral():
    assert list(NAMED) == ["euler", "ddim", "dpmpp_2m", "renoise", "ancestral"]
    assert {"euler": euler, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "renoise": renoise} == DETERMINISTIC
