"""A composition as a policy of LeRobot (0.4.4 and 0.6), for its `lerobot-eval`, `lerobot-rollout` and robots.

The options of these commands are

    --policy.type=gpc --policy.discover_packages_path=gpc.policies.as_lerobot --policy.pretrained_path=FOLDER

`save` writes the folder: a `config.json` of type "gpc" with references to the members, and processors that change nothing
(each member normalises for itself).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from draccus.parsers.decoding import decode
from draccus.parsers.encoding import encode
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from torch import Tensor

from gpc.commands.setup import PER_POLICY_KEYS, adapt_policies, sampler_named
from gpc.composition.composed import ComposedPolicy, compose
from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError, suggest
from gpc.inert import notice_once
from gpc.inference.chunk import sample_chunk
from gpc.inference.device import Device
from gpc.inference.native import common_action_steps, resolved
from gpc.inference.placement import place
from gpc.inference.settings import Sampling
from gpc.policy.load import load_registered
from gpc.policy.names import describe_names, fitting_names
from gpc.policy.observation import TASK
from gpc.policy.spec import Observation, ObservationSpec, Policy
from gpc.results.upgrade import upgraded_sampler
from gpc.schema import convert
from gpc.score.keyed_noise import NoiseKeys

encode.register(Sampling, msgspec.to_builtins)


@partial(decode.register, Sampling)
def _sampling(data: Mapping[str, Any], path: Sequence[str] = ()) -> Sampling:
    """Return the sampler of a config.json."""
    return convert(Sampling, upgraded_sampler(data), "sampling")


@PreTrainedConfig.register_subclass("gpc")
@dataclass
class GpcConfig(PreTrainedConfig):
    """Settings of a composition: members, weights and sampler.

    Members are named as for `load_registered`; a path in the saved folder may be relative to it.

    `rename_map` gives LeRobot's name for each observation that a member calls otherwise; `origin`, `action_names` and `steer`
    go by policy (docs/alignment.md, docs/operators.md).
    """

    policies: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    rename_map: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    action_names: dict[str, list[str]] = field(default_factory=dict)
    steer: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    n_action_steps: int = 8
    rtc_config: RTCConfig | None = None  # LeRobot's real-time control looks for it
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)

    @property
    def observation_delta_indices(self) -> None:
        """Nothing is trained."""
        return None

    action_delta_indices = reward_delta_indices = observation_delta_indices

    def get_optimizer_preset(self) -> Any:
        """Raise InputError: nothing is trained."""
        raise InputError("a gpc composition is not trained; train its members")

    get_scheduler_preset = get_optimizer_preset

    def validate_features(self) -> None:
        """Leave the check of features to the members."""


class GpcPolicy(PreTrainedPolicy):
    """A composition behind LeRobot's interface; actions have the environment's units.

    The networks compute on `config.device`, with `use_amp` in bfloat16; observations, noise and actions are on the host.
    """

    config_class = GpcConfig
    name = "gpc"

    def __init__(self, config: GpcConfig, folder: Path | None = None, **_: Any) -> None:
        super().__init__(config)
        device = Device(config.device or "auto", "bfloat16" if config.use_amp else None)
        composition = _composition(config.policies, config.weights, vars(config), folder)
        self.policy = place(composition, device, reproducible=False)
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: GpcConfig | None = None, **_: Any
    ) -> GpcPolicy:
        """Load the policy of a saved folder.

        A `config` that names policies replaces that of the folder. One without, as LeRobot's command line makes it, has the
        device.
        """
        folder, request = Path(pretrained_name_or_path), config
        if config is None or not config.policies:
            config = PreTrainedConfig.from_pretrained(folder)
            if request:
                config.device, config.use_amp = request.device, request.use_amp
        return cls(config, folder).eval()

    def supports_rtc(self) -> bool:
        """Return True: a chunk continues what is left of the last one."""
        return True

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        self.config._save_pretrained(save_directory)  # the members keep their own weights

    def reset(self) -> None:
        """Forget the observations and the actions of the last episode."""
        self._history: Observation = {}
        self._plan: deque[Tensor] = deque()
        self._chunks = 0

    @torch.inference_mode()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Return the next action (batch, action); sample every `n_action_steps` calls.

        Each call is one time step of the history.
        """
        past, frame = self._history, {key: value[:, -1:] for key, value in self._observe(batch).items()}
        self._history = self._last({key: torch.cat([past.get(key, value), value], 1) for key, value in frame.items()})
        if not self._plan:
            self._plan.extend(self._chunk(self._history, noise).unbind(1)[: self.config.n_action_steps])
        return self._plan.popleft()

    @torch.inference_mode()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Return the chunk from now on (batch, steps, action).

        It is drawn to the left-over of the last chunk, if that is passed.

        The first `inference_delay` steps of the left-over are kept; until `execution_horizon` its weight falls to zero.
        Steps of zeros at its end are the padding of LeRobot's real-time engine, and are left out.

        Values of `batch` may have the steps of the history, (batch, steps, ...). A single frame has the history of
        `select_action` if it is the newest there, else it is repeated: LeRobot's real-time and asynchronous control make one
        call a chunk, so that the frame of the last call is many steps old.
        """
        observation = self._observe(batch)
        if self._history and all(torch.equal(value, self._history[key][:, -1:]) for key, value in observation.items()):
            observation = self._history
        observation = self._last(observation)
        if prev_chunk_left_over is None:
            return self._chunk(observation, noise)
        left_over = _unpadded(prev_chunk_left_over.reshape(-1, *prev_chunk_left_over.shape[-2:]).double().cpu())
        horizon = left_over.shape[1] if execution_horizon is None else execution_horizon
        return self._chunk(observation, noise, self._decided(left_over, inference_delay or 0, horizon))

    def get_optim_params(self) -> dict[str, Any]:
        """Raise InputError: nothing is trained."""
        raise InputError("a gpc composition is not trained; train its members")

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Raise InputError: nothing is trained."""
        raise InputError("a gpc composition is not trained; train its members")

    def _observe(self, batch: Mapping[str, Tensor]) -> Observation:
        """Return the observation of a batch, (batch, steps, ...)."""
        spec = self.policy.observations
        offered = {key: tuple(np.shape(value)) for key, value in batch.items()}
        names = fitting_names(spec, offered, "{}: {} in rename_map of config.json")
        if names:
            notice_once(describe_names(names))
        missing = sorted(set(spec.shapes) - set(batch) - set(names))
        if missing:
            raise InputError(f"the robot or environment offers no {missing[0]!r}; add it to rename_map of config.json")
        values = {key: torch.from_numpy(spec.conform(key, batch[names.get(key, key)])) for key in spec.shapes}
        return {k: value[:, None] if value.ndim == len(spec.shapes[k]) + 1 else value for k, value in values.items()}

    def _last(self, observation: Observation) -> Observation:
        """Return the steps that the policy reads; of fewer, the oldest is repeated."""
        count = self.policy.observations.n_obs_steps
        return {
            key: torch.cat([value[:, :1]] * (count - value.shape[1]) + [value], 1)[:, -count:]
            for key, value in observation.items()
        }

    def _chunk(self, observation: Observation, noise: Tensor | None, known: InpaintTarget | None = None) -> Tensor:
        spec, sampling = self.policy.actions, self.config.sampling
        shape = (sampling.n_noise_draws(self.policy), len(next(iter(observation.values()))), spec.horizon, spec.dim)
        noise = torch.randn(shape, dtype=torch.float64) if noise is None else noise.cpu().double().reshape(shape)
        keys = NoiseKeys.of(np.arange(shape[1]), np.full(shape[1], self._chunks))
        self._chunks += 1
        return spec.decode(sample_chunk(self.policy, observation, noise, sampling, known, keys))[
            :, -spec.start :
        ].float()

    def _decided(self, known: Tensor, delay: int, horizon: int) -> InpaintTarget:
        spec = self.policy.actions
        steps = min(known.shape[1], horizon, spec.horizon + spec.start)
        chunk = torch.zeros(len(known), spec.horizon, spec.dim, dtype=torch.float64)
        weight = torch.zeros(spec.horizon, dtype=torch.float64)
        now = slice(-spec.start, -spec.start + steps)
        chunk[:, now] = known[:, :steps]
        fall = torch.linspace(1, 0, max(steps - delay, 0) + 2)[1:-1]
        weight[now] = torch.cat([torch.ones(min(delay, steps)), fall])
        return InpaintTarget(chunk.numpy(), weight.numpy())


def _unpadded(left_over: Tensor) -> Tensor:
    """Return (batch, steps, action) without the steps of zeros at its end."""
    used = left_over.abs().amax((0, 2)).nonzero()
    return left_over[:, : int(used.max()) + 1 if len(used) else 0]


def _composition(
    sources: Sequence[str], weights: Sequence[float], settings: Mapping[str, Any], folder: Path | None
) -> ComposedPolicy:
    members: list[Policy] = []
    for source in sources:
        loader, colon, path = source.partition(":")
        inside = folder / path if folder and colon else None
        source = f"{loader}:{inside}" if inside and inside.exists() else source
        members.append(load_registered(source))
    return compose(adapt_policies(settings, members), list(weights))


def make_gpc_pre_post_processors(
    config: GpcConfig, dataset_stats: Any = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Return LeRobot's processors, which batch and rename; members scale numbers."""
    pre = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device="cpu"),
    ]
    return (
        PolicyProcessorPipeline(pre, "policy_preprocessor"),
        PolicyProcessorPipeline(
            [DeviceProcessorStep(device="cpu")],
            "policy_postprocessor",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )


def save(
    folder: str | Path,
    policies: Sequence[str],
    weights: Sequence[float],
    *,
    sampler: Sampling | str = Sampling(),
    n_action_steps: int | None = None,
    rename_map: Mapping[str, str] | None = None,
    **by_policy: Mapping[str, Any],
) -> None:
    """Write a composition as a LeRobot policy folder, for `--policy.pretrained_path`.

    `n_action_steps` is by default that of the members' checkpoints. `by_policy`: `origin`, `action_names`, `steer`; see
    `GpcConfig`. Loads the members first: raises InputError if one is missing or they do not fit.
    """
    unknown = sorted(set(by_policy) - set(PER_POLICY_KEYS))
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}{suggest(unknown[0], list(PER_POLICY_KEYS))}")
    settings: dict[str, Any] = {"rename_map": dict(rename_map or {}), **by_policy}
    policy = _composition(policies, weights, settings, None)
    sampling = resolved(sampler_named(sampler), [policy])
    if n_action_steps is None:
        n_action_steps = common_action_steps([policy], "n_action_steps")
    spec = policy.actions
    if not 1 <= n_action_steps <= spec.start + spec.horizon:
        raise InputError(f"n_action_steps={n_action_steps}: {policy.name} predicts {spec.start + spec.horizon} steps")
    config = GpcConfig(
        n_obs_steps=policy.observations.n_obs_steps,
        input_features={key: _feature(key, policy.observations) for key in policy.observations.shapes if key != TASK},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (spec.dim,))},
        device="cpu",
        push_to_hub=False,
        policies=list(policies),
        weights=list(weights),
        **settings,
        sampling=sampling,
        n_action_steps=n_action_steps,
    )
    for part in (config, *make_gpc_pre_post_processors(config)):
        part.save_pretrained(folder)


def _feature(key: str, spec: ObservationSpec) -> PolicyFeature:
    shape = spec.shapes[key]
    if key in spec.images:
        return PolicyFeature(FeatureType.VISUAL, (shape[-1], *shape[:-1]))
    return PolicyFeature(FeatureType.ENV if key == "observation.environment_state" else FeatureType.STATE, shape)
