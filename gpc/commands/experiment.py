"""`evaluate` and `search`: policies in, rows and a summary out, in a run folder that may be interrupted at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from gymnasium import spaces
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpc.commands.config import plain
from gpc.commands.setup import (
    adapted,
    composed,
    engine_of,
    env_of,
    executor_of,
    folder_of,
    loaded,
    sampling_of,
    say_notes,
    weights_of,
)  # fmt: skip
from gpc.commands.simulators import simulator_of
from gpc.composition.composed import Composition
from gpc.demonstrations import read
from gpc.errors import InputError, missing
from gpc.inert import Console, notice
from gpc.inference.actor import ChunkActor
from gpc.objects import build_registered, describe
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import Policy
from gpc.registry import ENVS, SEARCHES
from gpc.results.report import print_summary, write_report
from gpc.results.run_folder import Phase, Row, RunFolder, Writer, searched_seeds
from gpc.results.summary import summarize_evaluation, summarize_search
from gpc.results.video import record_video
from gpc.rollout.engine import Engine, Episode, Job, LaneSpec, RolloutStats
from gpc.rollout.env import Environment, make_env
from gpc.rollout.executors import Executor
from gpc.weights.denoising_error import DenoisingError, measure
from gpc.weights.searches import Outcome, Search
from gpc.weights.simplex import Weights, one_hot

COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


class Experiment:
    """One configuration applied to loaded policies: checks everything before anything runs."""

    def __init__(
        self, config: DictConfig, policies: Sequence[Policy], console: Console, rivals: Sequence[Policy] = ()
    ) -> None:
        """`rivals` are policies of other experiments that meet the same environment."""
        self.config, self.console = config, console
        self.compose: Callable[..., Composition] = partial(composed, config.composer)
        others = [rival for rival in rivals if all(rival is not policy for policy in policies)]
        everything = plain(config)
        self.policy = self.compose(adapted(everything, policies, others))
        names = [policy.name for policy in (*policies, *others)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"two policies are called {twice[0]!r}; give one of their folders another name")
        spec = env_of(config)
        if spec.type == "policy":
            spec = simulator_of([*policies, *others], spec)
        observations = self.policy.observations
        keys, steps = tuple(observations.shapes), observations.n_obs_steps
        self.env, self.lane = spec, LaneSpec(spec, keys, steps, self._history())
        self.engine: Engine = engine_of(config)
        self.executor: Executor = executor_of(config)
        if spec.n_action_steps is None or spec.max_steps is None:
            raise InputError(
                f"env: n_action_steps={spec.n_action_steps}, max_steps={spec.max_steps}; only env=policy takes them from "
                "a checkpoint, give numbers"
            )
        self.actor = ChunkActor(self.policy, sampling_of(config), spec.n_action_steps)
        self._check_environment(spec)
        self.resolved = {key: value for key, value in everything.items() if key != "run_dir"}  # a folder may be moved
        self.resolved["env"] = described_env(spec)
        say_notes(self.policy, console)
        self.stats = RolloutStats()

    @property
    def names(self) -> list[str]:
        """The policies' names."""
        return [policy.name for policy in self.policy.policies]

    @property
    def fingerprints(self) -> dict[str, str]:
        """The policies' fingerprints by name."""
        return {policy.name: policy.fingerprint for policy in self.policy.policies}

    def check(self, weights: Weights) -> None:
        """Raises InputError where weights do not fit, or where the policies that have weight cannot act without the others."""
        self.actor.check(weights)

    def check_parents(self) -> None:
        """Raises InputError where a policy cannot act alone."""
        for i in range(len(self.names)):
            self.actor.check(one_hot(i, len(self.names)))

    def settings(self, keys: Sequence[str]) -> dict[str, Any]:
        """What determines results: these keys of the configuration and the policies' fingerprints."""
        everything = plain(self.config) | {"env": self.resolved["env"]}
        chosen = {key: everything[key] for key in ("env", "sampler", *keys)}
        return {"policies": self.names, "fingerprints": self.fingerprints, **chosen}

    def open(self, path: Path, settings: Mapping[str, Any]) -> RunFolder:
        """The run folder of these `settings`."""
        return RunFolder(path, settings, self.env.max_steps, self.resolved)

    def warn_of_searched(self, runs: Path, seeds: range) -> None:
        """Say which of these seeds have chosen the policies' weights already, in the searches of a folder of runs."""
        for path, searched in searched_seeds(runs, self.fingerprints).items():
            if searched.intersection(seeds):
                self.console.print(
                    f"note: {path} chose weights of these policies on seeds {min(searched)} to {max(searched)}, where the "
                    "chosen ones look better than they are; a figure to report needs other seeds",
                    soft_wrap=True,
                )

    def roll(self, folder: RunFolder, phase: Phase, jobs: Sequence[Job], title: str = "") -> list[Row]:
        """Run the jobs that the folder lacks; returns the rows of all jobs.

        The progress bar counts the rows that are on disk.
        """
        todo = [job for job in jobs if not _done(folder, phase, job)]
        if todo:
            folder.check_versions()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # members get a thread each; a network's own threads would change its rounding
        try:
            with Progress(*COLUMNS, console=self.console, transient=True) as progress:
                bar = progress.add_task(title or phase, total=len(jobs), completed=len(jobs) - len(todo))
                with Writer(folder, partial(progress.advance, bar)) as writer:
                    for episode in self.executor(todo, self.actor, self.lane, self.engine, self.stats):
                        writer.put(_row(phase, episode), episode.trajectory)
        finally:
            torch.set_num_threads(threads)
        return [folder.rows[phase, job.candidate, job.seed] for job in jobs]

    def _history(self) -> dict[str, int]:
        """How many of the last observations any policy reads of a key."""
        history: dict[str, int] = {}
        for spec in (policy.observations for policy in self.policy.policies):
            history |= {key: max(spec.n_obs_steps, history.get(key, 0)) for key in spec.shapes}
        return history

    def _check_environment(self, spec: EnvSpec) -> None:
        """Build the environment once, with all it has, so that what does not fit is said before anything runs."""
        try:
            env = make_env(spec)
        except ImportError as error:
            raise InputError(f"{spec.name} needs a package that is missing ({error}); run gpc doctor") from None
        offered = {key: box.shape for key, box in cast(spaces.Dict, env.observation_space).items()}
        if self.config.video:
            _check_picture(env, self.config.video)
        env.close()
        if env.action_space.shape != (self.policy.actions.dim,):
            actions = self.policy.actions
            names = f" ({', '.join(actions.names)})" if actions.names else ""
            raise InputError(
                f"{self.policy.name} acts in {actions.dim} dimensions{names}, {spec.name} in {env.action_space.shape}; "
                "'action_names={POLICY: [x,y]}' says which dimensions of two policies are the same"
            )
        own = {theirs: key for key, theirs in self.config.rename_map.items()}
        for policy in self.policy.policies:
            for key, shape in policy.observations.shapes.items():
                if offered.get(key) != shape:
                    raise InputError(
                        f"{policy.name} reads {key!r} {shape}, {_not_offered(spec.name, key, own.get(key, key), shape, offered)}"
                    )


def run(config: DictConfig, kind: str, console: Console) -> Path:
    """A command of the command line: load, run, print, report. Returns the run folder."""
    experiment = Experiment(config, loaded(config), console)
    folder = folder_of(config, kind, experiment.env.name, experiment.names)
    COMMANDS[kind](experiment, folder)
    finish(experiment, folder)
    return folder


def finish(experiment: Experiment, folder: Path) -> None:
    """Write the video and the page of a run that has its summary, then print its table."""
    if experiment.config.video:
        try:
            record_video(experiment.lane, folder, experiment.config.video)
        except Exception as error:  # a camera or an encoder that fails must not cost the page
            notice(missing("the video", error))
    write_report(folder)
    print_summary(folder, experiment.console)


def run_evaluation(experiment: Experiment, path: Path) -> Mapping[str, Any]:
    """Episodes under one weight vector."""
    config = experiment.config
    weights = weights_of(config, len(experiment.names))
    experiment.check(weights)
    seeds = range(config.seed, config.seed + config.episodes)
    experiment.warn_of_searched(path.parent, seeds)
    jobs = [Job(0, weights, seed) for seed in seeds]
    with experiment.open(path, experiment.settings(("composer", "weights", "episodes", "seed"))) as folder:
        rows = experiment.roll(folder, "evaluate", jobs)
        summary = summarize_evaluation(experiment.names, rows, len(experiment.stats.simulator_failures))
        folder.write_json("summary.json", summary)
    return summary


def run_search(experiment: Experiment, path: Path) -> Mapping[str, Any]:
    """Weights from the search seeds, then winner and parents on the report seeds."""
    config, count = experiment.config, len(experiment.names)
    if count < 2:
        raise InputError("a search needs at least two policies, as in 'policies=[pusht-diffusion,pusht-flow]'")
    if not experiment.policy.convex:
        raise InputError("a search mixes with convex weights; choose composer=convex")
    experiment.check_parents()
    prior = _denoising_error(experiment)
    plan: Search = build_registered(SEARCHES, plain(config.search), "search", policies=count, prior=prior)
    fresh = range(config.report.seed, config.report.seed + config.report.episodes)
    if plan.seeds.start < fresh.stop and fresh.start < plan.seeds.stop:
        raise InputError(
            f"search seeds {plan.seeds} and report seeds {fresh} overlap; move report.seed, or use fewer episodes"
        )
    known = {"demonstrations": prior.fingerprint} if prior else {}
    with experiment.open(path, experiment.settings(("composer", "search", "report")) | known) as folder:
        while asked := plan.ask():
            jobs = [Job(c, plan.candidates[c], seed) for c, seed in asked]
            rows = experiment.roll(folder, "search", jobs)
            plan.tell({(r.candidate, r.seed): Outcome(r.success, r.score) for r in rows})
        winner = plan.best()
        parents = {name: plan.candidates.index(one_hot(i, count)) for i, name in enumerate(experiment.names)}
        jobs = [Job(c, plan.candidates[c], seed) for c in dict.fromkeys([winner, *parents.values()]) for seed in fresh]
        experiment.roll(folder, "report", jobs)
        found = (folder.phase("search"), folder.phase("report"))
        summary = summarize_search(experiment.names, *found, winner, parents, len(experiment.stats.simulator_failures))
        if prior:
            measured = {tuple(c["weights"]): c["pc_success"] for c in summary["candidates"]}
            summary["denoising_error"] = prior.explain(experiment.names, plan.candidates, measured)
        folder.write_json("summary.json", summary)
    return summary


def _denoising_error(experiment: Experiment) -> DenoisingError | None:
    """What `demonstrations` says of the policies; None where there are none."""
    path = experiment.config.demonstrations
    if path is None:
        return None
    demonstrations = read(path, list(experiment.policy.observations.shapes))
    with experiment.console.status("denoising the demonstrations"):
        return measure(experiment.policy, experiment.actor.sampling, demonstrations)


def described_env(spec: EnvSpec) -> dict[str, Any]:
    """Return an environment as plain data, as a configuration has it."""
    data: dict[str, Any] = describe(ENVS, {key: getattr(spec, key) for key in ("type", "n_action_steps", "max_steps")})
    return data | {"options": describe(ENVS, spec.options or {})}


def _done(folder: RunFolder, phase: Phase, job: Job) -> bool:
    row = folder.rows.get((phase, job.candidate, job.seed))
    if row and row.weights != job.weights:
        raise InputError(
            f"{folder.path} holds candidate {job.candidate} with weights {list(row.weights)}, the search now proposes "
            f"{list(job.weights)} (another version of Optuna or torch?); use another run_dir"
        )
    return row is not None


def _row(phase: Phase, episode: Episode) -> Row:
    job = episode.job
    return Row(phase, job.candidate, job.seed, job.weights, episode.success, episode.score, episode.steps)


COMMANDS = {"evaluate": run_evaluation, "search": run_search}


def _not_offered(
    target: str, key: str, own: str, shape: tuple[int, ...], offered: Mapping[str, tuple[int, ...] | None]
) -> str:
    """The end of an error line: what the environment has instead, and the map to write."""
    if key in offered:
        return f"{target} offers it as {offered[key]}"
    fits = [name for name, found in offered.items() if found == shape]
    hint = f"; if {fits[0]!r} is it, add 'rename_map={{{own}: {fits[0]}}}'" if fits else ""
    return f"{target} offers " + ", ".join(f"{name} {found}" for name, found in offered.items()) + hint


def _check_picture(env: Environment, count: int) -> None:
    """Draw one now: a machine that cannot shall say so before the episodes."""
    try:
        env.reset(seed=0)
        env.render()
    except InputError as error:
        raise InputError(f"video={count}: {error}; or choose video=0") from None
