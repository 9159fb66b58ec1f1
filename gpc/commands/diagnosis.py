"""What two policies have to say to each other, before any search: `gpc diagnose`.

The composition plays one episode. At every decision, and at every noise level of the sampler, the members' denoised actions are
compared: where they are the same, no weight matters; where they differ, a weight decides. Held-out demonstrations tell more:
whose error is smaller, and whether errors cancel (`gpc.weights.denoising_error`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from gpc.commands.experiment import Experiment
from gpc.commands.setup import folder_of, loaded, numbers
from gpc.composition.composed import Composition, compose
from gpc.composition.composers import Composer
from gpc.demonstrations import read
from gpc.disk import write_atomically, writing
from gpc.errors import InputError, missing
from gpc.inert import Console, notice
from gpc.inference.chunk import sample_actions, sample_chunk
from gpc.inference.settings import Sampling
from gpc.policy.spec import observation_tensors
from gpc.results.figures import chunk_plot, disagreement_plot, error_plot, png
from gpc.rollout.env import Pointing
from gpc.rollout.worker import Lane, LaneCommand
from gpc.score.keyed_noise import NoiseKeys, keyed_noise
from gpc.types import Array, Frame
from gpc.weights.denoising_error import DenoisingError, measure
from gpc.weights.simplex import one_hot, simplex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEATS = 5  # chunks that are timed; their median counts


@dataclass(frozen=True)
class Overheard:
    """A composer that writes down what the members say: (sigma, their denoised actions) at every call."""

    composer: Composer
    heard: list[tuple[float, list[Tensor]]] = field(default_factory=list)

    @property
    def stochastic(self) -> bool:
        """See `Composer`."""
        return self.composer.stochastic

    @property
    def linear(self) -> bool:
        """See `Composer`."""
        return self.composer.linear

    def start(self) -> Overheard:
        """See `Composer`; the calls go to the same list."""
        return replace(self, composer=self.composer.start())

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """See `Composer`."""
        shared = mask.bool().all(0)
        said = [member[:, shared] for member in denoised if member is not None]
        if len(said) == len(denoised):
            self.heard.append((float(sigma.max()), said))
        return self.composer(x, sigma, denoised, mask)

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """See `Composer`."""
        return self.composer.active_members(mask, sigma)


def disagreement(policy: Composition, sampling: Sampling, observation: Frame, seed: int) -> tuple[Array, Array]:
    """How far apart the members are while the composition samples: sigmas (levels,) and distances (levels, pairs, batch).

    observation[key] (batch, n_obs_steps, *shape). Root mean square over the steps that all members have, in units of the first
    policy's normalised action.
    """
    batch = len(next(iter(observation.values())))
    seeds, chunks = np.full(batch, seed), np.arange(batch)
    listening = Overheard(policy.composer)
    composed = compose(policy.policies, listening)
    noise = keyed_noise(seeds, chunks, sampling.n_noise_draws(composed), policy.actions.shape)
    keys = NoiseKeys.of(seeds, chunks)
    sample_chunk(composed, observation_tensors(observation), noise, sampling, keys=keys)
    pairs = list(combinations(range(len(policy.policies)), 2))
    apart = [[(said[i] - said[j]).square().mean(1).sqrt().numpy() for i, j in pairs] for _, said in listening.heard]
    return np.array([sigma for sigma, _ in listening.heard]), np.array(apart)


def play(lane: Lane, policy: Composition, sampling: Sampling, seed: int) -> Iterator[tuple[Frame, Array]]:
    """One episode of the composition: what it sees at each decision, (n_obs_steps, *shape) by key, and the picture then."""
    now, count = -policy.actions.start, lane.spec.env.n_action_steps
    report = lane.execute(LaneCommand(0, seed, None))
    chunk = 0
    while not report.done:
        yield report.observation, cast(Array, lane.env.render())
        seen = {key: value[None] for key, value in report.observation.items()}
        actions = sample_actions(policy, sampling, seen, np.array([seed]), np.array([chunk]))[0, now : now + count]
        report = lane.execute(LaneCommand(0, None, actions))
        chunk += 1


def seconds(act: Callable[[], object]) -> float:
    """The median time of a call, after one to warm up."""
    act()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def alignment(policy: Composition) -> list[dict[str, Any]]:
    """What each member brings and how it is seen from the first one's coordinate."""
    found = []
    for member in policy.members:
        own, levels = member.policy, member.policy.levels
        found.append(
            {
                "name": own.name,
                "reads": {key: list(shape) for key, shape in own.observations.shapes.items()},
                "n_obs_steps": own.observations.n_obs_steps,
                "steps": [own.actions.start, own.actions.start + own.actions.horizon - 1],
                "sigma": [levels.sigma_min, levels.sigma_max],
                "trained_levels": None if levels.trained is None else len(levels.trained),
                "noise_ratio": member.ratio,
                "note": member.warning,
            }
        )
    return found


def diagnose(experiment: Experiment, policy: Composition) -> tuple[dict[str, Any], dict[str, Callable[[], Figure]]]:
    """Return the diagnosis (docs/diagnosis.md), and the functions that draw its pictures, by file name."""
    config, sampling = experiment.config, experiment.actor.sampling
    errors = _errors(experiment, sampling)
    lane = Lane.of(experiment.lane)
    try:
        decisions = list(play(lane, policy, sampling, config.seed))
    finally:
        lane.env.close()
    observation = {key: np.stack([seen[key] for seen, _ in decisions]) for key in decisions[0][0]}
    sigmas, apart = disagreement(policy, sampling, observation, config.seed)
    pairs = [f"{a} and {b}" for a, b in combinations(experiment.names, 2)]
    alone = [policy.with_weights(torch.tensor(one_hot(i, len(policy.policies)))) for i in range(len(policy.policies))]
    everyone = dict(zip([*experiment.names, "composition"], [*alone, policy], strict=True))
    middle = len(decisions) // 2
    seen = {key: value[middle : middle + 1] for key, value in observation.items()}
    chunks = {name: _chunks(one, sampling, seen, config.seed, config.chunks) for name, one in everyone.items()}
    found: dict[str, Any] = {
        "members": alignment(policy),
        "seed": config.seed,
        "sigmas": sigmas.tolist(),
        "disagreement_by_sigma": dict(zip(pairs, apart.mean(2).T.tolist(), strict=True)),
        "disagreement_by_decision": dict(zip(pairs, apart.mean(0).tolist(), strict=True)),
        "seconds_per_chunk": {
            name: seconds(partial(_chunks, one, sampling, seen, config.seed, 1)) for name, one in everyone.items()
        },
    }
    pixels = lane.env.pixels if isinstance(lane.env, Pointing) else None
    pictures: dict[str, Callable[[], Figure]] = {
        "disagreement.png": partial(disagreement_plot, found),
        "chunks.png": partial(chunk_plot, chunks, decisions[middle][1], pixels),
    }
    if errors:
        found["denoising_error"] = errors.explain(experiment.names, simplex(len(experiment.names)), {})
        pictures["errors.png"] = partial(error_plot, found["denoising_error"])
    return found, pictures


def _errors(experiment: Experiment, sampling: Sampling) -> DenoisingError | None:
    path, policy = experiment.config.demonstrations, experiment.policy
    return path and measure(policy, sampling, read(path, list(policy.observations.shapes)))


def _chunks(policy: Composition, sampling: Sampling, seen: Frame, seed: int, count: int) -> Array:
    """So many chunks (count, steps, action) for one observation, from now on; every policy meets the same noise."""
    many = {key: np.repeat(value, count, 0) for key, value in seen.items()}
    return sample_actions(policy, sampling, many, np.full(count, seed), np.arange(count))[:, -policy.actions.start :]


def show(found: Mapping[str, Any], console: Console) -> None:
    """The diagnosis in words."""
    table = Table("policy", "reads", "steps", "sigma", "ms per chunk", "how it is seen")
    for member in found["members"]:
        low, high = member["sigma"]
        table.add_row(
            member["name"],
            f"{', '.join(member['reads'])} ({member['n_obs_steps']} times)",
            "{} to {}".format(*member["steps"]),
            f"{low:.3g} to {high:.3g}, {member['trained_levels'] or 'any'} levels",
            f"{1000 * found['seconds_per_chunk'][member['name']]:.0f}",
            member["note"] or f"exactly, noise x {member['noise_ratio']:.3g}",
        )
    console.print(table)
    console.print(f"The composition takes {1000 * found['seconds_per_chunk']['composition']:.0f} ms per chunk.")
    for pair, apart in found["disagreement_by_sigma"].items():
        widest = int(np.argmax(apart))
        console.print(
            f"{pair} are furthest apart at sigma {found['sigmas'][widest]:.2g} ({apart[widest]:.3f} of a normalised action) "
            f"and end {apart[-1]:.3f} apart.",
            soft_wrap=True,
        )
    verdict = found.get("denoising_error", {}).get("verdict")
    console.print(verdict or "Held-out demonstrations would tell the likely gain: demonstrations=FILE.", soft_wrap=True)


def run(config: DictConfig, kind: str, console: Console) -> Path:
    """`gpc diagnose`: load, look, print. Returns the folder with diagnosis.json and the pictures."""
    experiment = Experiment(config, loaded(config), console)
    if len(experiment.names) < 2:
        raise InputError(f"diagnose compares policies; name a second one beside {experiment.names[0]}")
    experiment.check_parents()
    policy = experiment.policy
    if config.weights is not None:
        policy = experiment.compose(policy.policies, numbers(config.weights))
    folder = folder_of(config, kind, experiment.env.name, experiment.names)
    with console.status("playing an episode"):
        found, pictures = diagnose(experiment, policy)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "diagnosis.json", json.dumps(found, indent=1) + "\n")
    for name, draw in pictures.items():
        try:
            write_atomically(folder / name, png(draw()))
        except Exception as error:  # the diagnosis and the other pictures must not be lost
            notice(missing(name, error))
    show(found, console)
    return folder
