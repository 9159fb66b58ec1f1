"""`gpc diagnose`: compare policies before a search.

The composition plays one episode. At each decision, and at each noise level of the sampler, the members' denoised actions are
compared: where they are equal, no weight matters; where they differ, a weight decides. Held-out demonstrations add whose error
is smaller, and whether errors cancel (`gpc.weights.denoising_error`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from gpc.commands.api import Env, experiment_in, in_scratch
from gpc.commands.checks import need_two, weights_of
from gpc.commands.config import Config, plain
from gpc.commands.diagnosis_page import FILE, distances_apart, member_table, prediction, write_diagnosis_page
from gpc.commands.experiment import demonstrations_for, denoising_error
from gpc.commands.keywords import with_hints
from gpc.commands.rollout_setup import RolloutSetup
from gpc.commands.setup import (
    composition_of,
    demonstrations_of,
    device_of,
    load_policies,
    print_execution,
    print_notes,
    print_warnings,
    run_dir_of,
    sampling_of,
    setup_of,
)
from gpc.commands.simulators import env_of
from gpc.composition.composed import Composition, compose
from gpc.composition.composers import Composer
from gpc.demonstrations import Demonstrations
from gpc.disk import as_json, write_atomically, writing
from gpc.errors import missing
from gpc.inert import Console, notice, short
from gpc.inference.chunk import sample_actions, sample_chunk
from gpc.inference.device import DeviceLike
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy
from gpc.results.figures import chunk_plot, disagreement_plot, error_plot, png
from gpc.results.report import shown
from gpc.results.result import frame, opened
from gpc.rollout.engine import Engine
from gpc.rollout.env import Pointing
from gpc.rollout.executors import Local
from gpc.rollout.worker import Lane, LaneCommand
from gpc.schema import Count, Seed, check
from gpc.score.keyed_noise import NoiseKeys, keyed_noise
from gpc.types import Array, Frame
from gpc.weights.faults import find_fault
from gpc.weights.simplex import one_hot, simplex

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

REPEATS = 5  # chunks that are timed; their median counts


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Result of `gpc.diagnose`.

    Attributes:
        content: content of diagnosis.json (docs/diagnosis.md).
        pictures: functions that draw the pictures, by file name.
        folder: folder of the page; without `run_dir` one that is deleted with the result.
    """

    content: Mapping[str, Any]
    pictures: Mapping[str, Callable[[], Figure]]
    folder: Path

    def __repr__(self) -> str:
        names = " + ".join(member["name"] for member in self.content["members"])
        apart = max(max(distances) for distances in self.content["disagreement_by_sigma"].values())
        return f"Diagnosis({short(names, 60)}: at most {apart:.3f} of a normalised action apart)"

    @property
    def verdict(self) -> str:
        """How far apart the policies are, and what demonstrations predict."""
        return " ".join([*distances_apart(self.content), prediction(self.content)])

    def _repr_html_(self) -> str:
        return shown(self.verdict, member_table(self.content), self.plot)

    def plot(self) -> Figure:
        """Draw the disagreement over sigma and along the episode."""
        return disagreement_plot(self.content)

    def report(self, *, show: bool = True) -> Path:
        """Write report.html, diagnosis.json and the pictures; return the page.

        Args:
            show: whether it is opened in a browser, if there is a screen.
        """
        write_diagnosis(self.folder, self.content, self.pictures)
        return opened(self.folder / "report.html", show)

    def to_pandas(self) -> DataFrame:
        """Return the disagreement as a table, one row for each pair and sigma."""
        return frame(
            [
                {"pair": pair, "sigma": sigma, "distance": distance}
                for pair, distances in self.content["disagreement_by_sigma"].items()
                for sigma, distance in zip(self.content["sigmas"], distances, strict=True)
            ]
        )


@with_hints
def diagnose(
    policies: Sequence[Policy | str] | Composition,
    env: Env = "policy",
    *,
    seed: int = 400_000,
    chunks: int = 16,
    demonstrations: str | Path | None = None,
    sampler: Sampling | str = Sampling(),
    device: DeviceLike = "auto",
    run_dir: str | Path | None = None,
    verbose: bool = True,
) -> Diagnosis:
    """Compare policies before a search (docs/diagnosis.md).

    Args:
        policies: two policies or more, or their names, or a composition under the weights that are looked at.
        env: environment, as for `gpc.evaluate`.
        seed: seed of the one episode that is played.
        chunks: chunks of each policy in the picture.
        demonstrations: file of held-out demonstrations (docs/demonstrations.md), which add the likely gain.
        sampler: settings of the sampler, or a name, as for `gpc.evaluate`.
        device: where the networks compute, as for `gpc.evaluate`.
        run_dir: folder of page, diagnosis.json and pictures; by default nothing is kept.
        verbose: whether notes are shown.

    Raises:
        InputError: If policies, environment and settings do not fit, before anything runs.
    """
    check(Seed, seed, "seed")
    check(Count, chunks, "chunks")
    composition = policies if isinstance(policies, Composition) else compose(policies)
    need_two("a diagnosis", len(composition.policies))
    experiment = experiment_in(composition, env, sampler, Engine(), Local(), device, 0, verbose)
    setup, console = experiment.setup, experiment.console
    print_warnings(setup.policy, console)
    setup.check_parents()
    content, pictures = examine(setup, setup.actor.placed, seed, chunks, console, demonstrations)
    if run_dir is None:
        return in_scratch(partial(Diagnosis, content, pictures))
    diagnosis = Diagnosis(content, pictures, Path(run_dir).expanduser())
    diagnosis.report(show=False)
    return diagnosis


@dataclass(frozen=True)
class RecordingComposer:
    """A composer that records (sigma, the members' denoised actions) at each call."""

    composer: Composer
    calls: list[tuple[float, list[Tensor]]] = field(default_factory=list)

    @property
    def stochastic(self) -> bool:
        """Whether the composer follows densities along noisy steps."""
        return self.composer.stochastic

    @property
    def linear(self) -> bool:
        """Whether the result is linear in the members' denoised actions."""
        return self.composer.linear

    def start(self) -> RecordingComposer:
        """Return the composer for a new batch; calls are added to the same list."""
        return replace(self, composer=self.composer.start())

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Combine the denoised actions; record them if all members were called."""
        shared = mask.bool().all(0)
        members = [member[:, shared] for member in denoised if member is not None]
        if len(members) == len(denoised):
            self.calls.append((float(sigma.max()), members))
        return self.composer(x, sigma, denoised, mask)

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """Return which members have influence at a noise level."""
        return self.composer.active_members(mask, sigma)


def disagreement(policy: Composition, sampling: Sampling, observation: Frame, seed: int) -> tuple[Array, Array]:
    """Measure how far apart the members are while the composition samples.

    Args:
        policy: the composition.
        sampling: settings of the sampler.
        observation: arrays (batch, n_obs_steps, *shape) by key.
        seed: of the noise.

    Returns:
        Sigmas (levels,) and distances (levels, pairs, batch): root mean squares over the steps that all members have, in
        units of the first policy's normalised action.
    """
    batch = len(next(iter(observation.values())))
    seeds, chunks = np.full(batch, seed), np.arange(batch)
    recorder = RecordingComposer(policy.composer)
    composed = compose(policy.policies, recorder)
    noise = keyed_noise(seeds, chunks, sampling.n_noise_draws(composed), policy.actions.shape)
    sample_chunk(composed, composed.observations.read(observation), noise, sampling, keys=NoiseKeys.of(seeds, chunks))
    pairs = list(combinations(range(len(policy.policies)), 2))
    distances = [
        [(members[i] - members[j]).square().mean(1).sqrt().numpy() for i, j in pairs] for _, members in recorder.calls
    ]
    return np.array([sigma for sigma, _ in recorder.calls]), np.array(distances)


def play(setup: RolloutSetup, lane: Lane, policy: Composition, seed: int) -> Iterator[tuple[Frame, Array]]:
    """Play one episode of the composition.

    Yields:
        At each decision the observation, (n_obs_steps, *shape) by key, and the picture.
    """
    now, count = -policy.actions.start, setup.actor.n_action_steps
    result = lane.execute(LaneCommand(0, seed, None))
    chunk = 0
    while not result.done:
        yield result.observation, cast(Array, lane.env.render())
        batch = {key: value[None] for key, value in result.observation.items()}
        plan = sample_actions(policy, setup.actor.sampling, batch, np.array([seed]), np.array([chunk]))
        result = lane.execute(LaneCommand(0, None, plan[0, now : now + count]))
        chunk += 1


def seconds(act: Callable[[], object]) -> float:
    """Return the median time of a call, after one call to warm up."""
    act()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def alignment(policy: Composition) -> list[dict[str, Any]]:
    """Return what each member reads and plans, and how it is aligned."""
    entries = []
    for aligned in policy.members:
        member, levels = aligned.policy, aligned.policy.levels
        entries.append(
            {
                "name": member.name,
                "reads": {key: list(shape) for key, shape in member.observations.shapes.items()},
                "n_obs_steps": member.observations.n_obs_steps,
                "steps": [member.actions.start, member.actions.start + member.actions.horizon - 1],
                "sigma": [levels.sigma_min, levels.sigma_max],
                "trained_levels": None if levels.trained is None else len(levels.trained),
                "noise_ratio": aligned.ratio,
                "note": aligned.warning,
            }
        )
    return entries


def examine(
    setup: RolloutSetup,
    policy: Composition,
    seed: int,
    chunks: int,
    console: Console,
    demonstrations: str | Path | None = None,
) -> tuple[dict[str, Any], dict[str, Callable[[], Figure]]]:
    """Compare policies.

    Args:
        setup: policies and environment.
        policy: the composition under its weights, on its device (`ChunkActor.placed`).
        seed: of the episode.
        chunks: chunks of each policy in the picture.
        console: for a note on what takes long.
        demonstrations: file of held-out demonstrations.

    Returns:
        The diagnosis (docs/diagnosis.md), and the functions that draw its pictures, by file name.
    """
    sampling = setup.actor.sampling
    learned = {} if demonstrations is None else _demonstrated(setup, demonstrations, console)
    lane = Lane.of(setup.lane)
    with closing(lane.env), console.status("playing an episode"):
        decisions = list(play(setup, lane, policy, seed))
    observation = {key: np.stack([frame[key] for frame, _ in decisions]) for key in decisions[0][0]}
    sigmas, distances = disagreement(policy, sampling, observation, seed)
    pairs = [f"{a} and {b}" for a, b in combinations(setup.names, 2)]
    count = len(setup.names)
    alone = [policy.with_weights(torch.tensor(one_hot(i, count))) for i in range(count)]
    compared = dict(zip([*setup.names, "composition"], [*alone, policy], strict=True))
    middle = len(decisions) // 2
    frame = {key: value[middle : middle + 1] for key, value in observation.items()}
    actions = {name: _chunks(one, sampling, frame, seed, chunks) for name, one in compared.items()}
    diagnosis: dict[str, Any] = {
        "members": alignment(policy),
        "seed": seed,
        "sigmas": sigmas.tolist(),
        "disagreement_by_sigma": dict(zip(pairs, distances.mean(2).T.tolist(), strict=True)),
        "disagreement_by_decision": dict(zip(pairs, distances.mean(0).tolist(), strict=True)),
        "seconds_per_chunk": {
            name: seconds(partial(_chunks, one, sampling, frame, seed, 1)) for name, one in compared.items()
        },
    }
    pixels = lane.env.pixels if isinstance(lane.env, Pointing) else None
    pictures: dict[str, Callable[[], Figure]] = {
        "disagreement.png": partial(disagreement_plot, diagnosis),
        "chunks.png": partial(chunk_plot, actions, decisions[middle][1], pixels),
    }
    if learned:
        diagnosis |= learned
        pictures["errors.png"] = partial(error_plot, diagnosis["denoising_error"])
    return diagnosis, pictures


def _demonstrated(setup: RolloutSetup, demonstrations: str | Path, console: Console) -> dict[str, Any]:
    """Return what demonstrations add to a diagnosis."""
    content, policy = demonstrations_for(setup, demonstrations), setup.actor.placed
    errors = denoising_error(policy, setup.actor.sampling, content, console)
    return {
        "faults": _faults(policy.policies, content),
        "denoising_error": errors.explain(setup.names, simplex(len(setup.names)), {}),
    }


def _faults(policies: Sequence[Policy], demonstrations: Demonstrations) -> dict[str, str]:
    """Return what demonstrations show to be wrong in a policy's description, by name."""
    dim = demonstrations.actions.shape[1]
    faults = {policy.name: find_fault(policy, demonstrations) for policy in policies if policy.actions.dim == dim}
    return {name: fault for name, fault in faults.items() if fault}


def _chunks(policy: Composition, sampling: Sampling, observation: Frame, seed: int, count: int) -> Array:
    """Return chunks (count, steps, action) for one observation, with equal noise."""
    batch = {key: np.repeat(value, count, 0) for key, value in observation.items()}
    actions = sample_actions(policy, sampling, batch, np.full(count, seed), np.arange(count))
    return actions[:, -policy.actions.start :]


def show(diagnosis: Mapping[str, Any], console: Console) -> None:
    """Print a diagnosis."""
    head, *rows = member_table(diagnosis)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"The composition takes {1000 * diagnosis['seconds_per_chunk']['composition']:.0f} ms per chunk.")
    console.print(*distances_apart(diagnosis), sep="\n", soft_wrap=True)
    print_notes((f"{name}: {fault}" for name, fault in diagnosis.get("faults", {}).items()), console)
    console.print(prediction(diagnosis), soft_wrap=True)


def diagnose_from(config: Config, console: Console) -> Path:
    """Run `gpc diagnose` and return the folder of its page."""
    _, _, demonstrations = sampling_of(config), env_of(config), demonstrations_of(config)  # before networks are loaded
    device = device_of(config)
    device.check_here()
    setup = setup_of(config, load_policies(config), device=device)
    print_warnings(setup.policy, console)
    print_execution(env_of(config), sampling_of(config), setup, console)
    need_two("a diagnosis", len(setup.names))
    setup.check_parents()
    policy = setup.actor.placed
    if config["weights"] is not None:
        policy = composition_of(plain(config)["composer"], policy.policies, weights_of(config, len(policy.policies)))
    folder = run_dir_of(config, "diagnose", setup.env.name, setup.names)
    diagnosis, pictures = examine(setup, policy, config["seed"], config["chunks"], console, demonstrations)
    command = plain(config).get("command")
    write_diagnosis(folder, diagnosis | ({"command": command} if command else {}), pictures)
    show(diagnosis, console)
    return folder


def write_diagnosis(folder: Path, diagnosis: Mapping[str, Any], pictures: Mapping[str, Callable[[], Figure]]) -> None:
    """Write diagnosis.json, the pictures and the page."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, as_json(diagnosis))
    for name, draw in pictures.items():
        try:
            write_atomically(folder / name, png(draw()))
        except Exception as error:  # the diagnosis and the other pictures must not be lost
            notice(missing(name, error))
    write_diagnosis_page(folder)
