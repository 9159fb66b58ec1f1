"""diffusers' schedulers as noise schedules and samplers.

Each setting is read, has no effect on the denoiser, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DDPMScheduler

from gpc.errors import InputError, one_line
from gpc.inference.settings import Sampling
from gpc.policies.checkpoint import MALFORMED
from gpc.policy.spec import is_whole
from gpc.score.denoiser import Prediction
from gpc.score.noise import SPACINGS, VariancePreserving, check_steps

KINDS = ("DDPMScheduler", "DDIMScheduler")
PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "sample"}
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
READ = {*BETAS, "prediction_type", "clip_sample", "clip_sample_range"}
ONLY: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),  # bounds the denoised action by its own quantiles
    "rescale_betas_zero_snr": (False,),  # the last level has no signal, so that no finite sigma is right
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),  # else a second output
}
"""Settings that change the denoiser, and their values that do not."""
SAMPLING = {"timestep_spacing", "steps_offset", "set_alpha_to_one"}  # of diffusers' own sampler
WITHOUT_EFFECT = {"dynamic_thresholding_ratio", "sample_max_value"}  # of thresholding


@dataclass(frozen=True)
class Scheduler:
    """What a scheduler of diffusers states of the training.

    Attributes:
        schedule: noise levels.
        prediction: output of the network.
        bound: limit of the denoised action (`clip_sample`), or None.
    """

    schedule: VariancePreserving
    prediction: Prediction
    bound: float | None


def read_scheduler(settings: Mapping[str, Any], where: str) -> Scheduler:
    """Read the arguments of diffusers' `DDPMScheduler` or `DDIMScheduler`.

    Absent settings have diffusers' defaults.

    Args:
        settings: arguments, and `_target_` if they are a configuration of Hydra.
        where: place of the settings, for errors.

    Raises:
        InputError: If a setting is unknown, or changes the denoiser in a way that gpc does not have.
    """
    if not isinstance(settings, Mapping):
        raise InputError(f"{where} is {one_line(settings, 80)}, no settings of a scheduler")
    _check_names(settings, where)
    prediction = str(settings.get("prediction_type", "epsilon"))
    if prediction not in PREDICTIONS:
        raise InputError(
            f"{where} has prediction_type={one_line(repr(prediction), 80)}; gpc reads {', '.join(PREDICTIONS)}"
        )
    steps = settings.get("num_train_timesteps", 1000)
    check_steps(steps)
    try:
        scheduler: Any = DDPMScheduler(**{key: settings[key] for key in BETAS if key in settings})
        bound = float(settings.get("clip_sample_range", 1.0)) if settings.get("clip_sample", True) else None
    except MALFORMED as error:
        raise InputError(f"{where} does not fit diffusers: {one_line(error, 200)}") from None
    if scheduler.betas.dim() != 1 or len(scheduler.betas) < steps:
        raise InputError(f"{where} has num_train_timesteps={steps} and {scheduler.betas.numel()} trained_betas")
    return Scheduler(VariancePreserving(tuple(scheduler.betas[:steps].tolist())), PREDICTIONS[prediction], bound)


def _check_names(settings: Mapping[str, Any], where: str) -> None:
    """Check that the scheduler and each of its settings is one that gpc has."""
    kind = str(settings.get("_target_", KINDS[0]))
    if kind.rpartition(".")[2] not in KINDS:
        raise InputError(f"{where} is a {one_line(kind, 120)}; gpc reads {', '.join(KINDS)}")
    for key, value in settings.items():
        if key in ONLY and value not in ONLY[key]:
            supported = ", ".join(map(str, ONLY[key]))
            raise InputError(
                f"{where} has {key}={one_line(value, 80)}, which changes the denoiser; gpc reads {supported}"
            )
        if key not in {*READ, *ONLY, *SAMPLING, *WITHOUT_EFFECT, "_target_"}:
            raise InputError(f"{where} has the setting {one_line(key, 80)}, which gpc does not know")


def sampling_of(kind: str, steps: int, settings: Mapping[str, Any]) -> Sampling | None:
    """Return the sampler of a scheduler.

    Args:
        kind: one of `KINDS`.
        steps: number of inference steps.
        settings: arguments of the scheduler; those that are missing have diffusers' defaults.

    Returns:
        None for what gpc has no sampler for: other variances, a grid or an end that is shifted, and DDIM on a grid whose
        steps differ from num_train_timesteps / steps, by which diffusers' DDIM takes the next level.
    """
    arguments: dict[str, Any] = {
        "timestep_spacing": "leading", "steps_offset": 0, "num_train_timesteps": 1000, "clip_sample": True,
        "set_alpha_to_one": True, "variance_type": "fixed_small", **settings,
    }  # fmt: skip
    spacing, trained = arguments["timestep_spacing"], arguments["num_train_timesteps"]
    if (
        spacing not in SPACINGS
        or (spacing == "leading" and arguments["steps_offset"])
        or not is_whole(steps, trained, 1)
    ):
        return None
    if kind == "DDPMScheduler":
        small = arguments["variance_type"] in ("fixed_small", "fixed_small_log")
        return Sampling("ancestral", steps, grid=spacing) if small else None
    even = spacing == "leading" or trained % steps == 0
    if (
        kind != "DDIMScheduler"
        or not arguments["set_alpha_to_one"]
        or not even
        or (spacing == "linspace" and steps != trained)
    ):
        return None
    return Sampling("ddim" if arguments["clip_sample"] else "euler", steps, grid=spacing)
