"""Rollouts in a run folder that may be interrupted at any time: an evaluation, and a search of the weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from gpc.commands.checks import first_seed, need_two, weights_of
from gpc.commands.config import Config, plain
from gpc.commands.live_page import LivePage
from gpc.commands.progress import progress_of, state_of
from gpc.commands.rollout_setup import RolloutSetup
from gpc.commands.setup import (
    EXECUTORS,
    PER_POLICY_KEYS,
    demonstrations_of,
    device_of,
    device_under,
    engine_of,
    executor_of,
    load_policies,
    print_execution,
    print_notes,
    print_warnings,
    run_dir_of,
    sampling_of,
    search_of,
    setup_of,
)
from gpc.commands.simulators import env_of
from gpc.composition.composed import Composition
from gpc.demonstrations import Demonstrations, read
from gpc.errors import InputError, missing
from gpc.inert import Console, notice
from gpc.inference.device import Device
from gpc.inference.device import prepare as prepare_device
from gpc.inference.settings import Sampling
from gpc.inference.threads import torch_threads
from gpc.objects import describe, described, settings_in
from gpc.policy.names import stored_names
from gpc.policy.spec import Policy
from gpc.registry import SEARCHES
from gpc.results.eval_info import eval_info
from gpc.results.report import write_report
from gpc.results.run_folder import Phase, Row, RunFolder, Writer, searched_seeds
from gpc.results.summary import read_summary, summarize_evaluation, summarize_search
from gpc.results.tracking import RunLog
from gpc.results.video import record_video
from gpc.rollout.engine import Engine, Episode, Job, RolloutStats
from gpc.rollout.executors import Executor, Ray
from gpc.weights.denoising_error import DenoisingError, measure
from gpc.weights.searches import Outcome, Search
from gpc.weights.simplex import Weights, one_hot


@dataclass(eq=False)
class Experiment:
    """Policies in an environment, and how their episodes run.

    Attributes:
        setup: policies, environment and sampler, which determine the results.
        engine: number of lanes and simulator processes.
        executor: this machine, or a cluster.
        console: for notes and the progress bar.
        members: how the policies were loaded and adapted, for `gpc replay`; by default their names alone.
        stats: failures of simulators, and where time went.
        episodes: number of episodes that have run.
        seconds: time that they took.
        log: where the run is followed beside its folder.
        page: the page of its folder while it runs.
    """

    setup: RolloutSetup
    engine: Engine
    executor: Executor
    console: Console
    members: Mapping[str, Any] = field(default_factory=dict)
    stats: RolloutStats = field(default_factory=RolloutStats)
    episodes: int = 0
    seconds: float = 0.0
    log: RunLog = field(default_factory=RunLog)
    page: LivePage | None = None

    def open(self, path: Path, settings: Mapping[str, Any]) -> RunFolder:
        """Open the run folder of these settings."""
        max_steps = self.setup.env.max_steps
        assert max_steps is not None
        return RunFolder(path, settings, max_steps, self._resolved(settings), self.facts)

    @property
    def here(self) -> bool:
        """Whether the networks compute on this machine."""
        return not isinstance(self.executor, Ray)

    @property
    def placed(self) -> Composition:
        """The composition on its device, if that is on this machine."""
        return self.setup.actor.placed if self.here else self.setup.policy

    @property
    def facts(self) -> dict[str, str]:
        """Cards and the versions of their software; not of another machine."""
        return self.setup.actor.device.facts(self.setup.names) if self.here else {}

    def _written(self, folder: RunFolder, advance: Callable[[int], None], state: Callable[[], str], count: int) -> None:
        advance(count)
        self.log.advance(folder)
        if self.page:
            self.page.renew(folder.path, state)

    def _resolved(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration from which `gpc replay` builds an episode again."""
        executors: Mapping[Any, str] = {kind: name for name, kind in EXECUTORS.items()}
        return {
            **self.setup.settings,
            **{key: value for key, value in settings.items() if key != "fingerprints"},
            "rename_map": dict(self.setup.env.rename_map or {}),
            **{key: {} for key in PER_POLICY_KEYS},
            **self.members,
            "engine": settings_in(self.engine),
            "executor": described(self.executor, executors.get),
        }

    def warn_reused_seeds(self, runs: Path, seeds: range) -> None:
        """Print which of these seeds chose weights of these policies in earlier runs."""
        for path, searched in searched_seeds(runs, self.setup.fingerprints).items():
            if searched.intersection(seeds):
                note = (
                    f"{path} chose weights of these policies on seeds {min(searched)} to {max(searched)}, where the chosen ones "
                    "look better than they are; a figure to report needs other seeds"
                )
                print_notes([note], self.console)

    def roll(self, folder: RunFolder, phase: Phase, jobs: Sequence[Job], title: str = "") -> list[Row]:
        """Run the jobs that the folder lacks.

        The progress counts the rows that are on disk.

        Returns:
            The rows of all jobs.
        """
        pending = [job for job in jobs if not _done(folder, phase, job)]
        if pending:
            folder.check_versions()
        setup = self.setup
        for weights in dict.fromkeys(
            job.weights for job in pending
        ):  # also those of a search from outside; no chunk checks them
            setup.check(weights)
        if self.here:
            prepare_device(setup.actor.device)  # the other side of a comparison may have another TF32
        self.log.start(folder)
        # members get a thread each; a network's own threads would change its rounding
        before, finished, begin = len(jobs) - len(pending), partial(folder.phase, phase), time.monotonic()

        def state() -> str:
            done = sum(key in folder.rows for key in keys)
            seconds = (time.monotonic() - begin) / max(1, done - before)
            return state_of(title or phase, done, len(jobs), seconds, finished())

        keys = [(phase, job.candidate, job.seed) for job in jobs]
        try:
            with (
                torch_threads(1),
                progress_of(self.console, title or phase, len(jobs), before, finished) as advance,
                Writer(folder, partial(self._written, folder, advance, state)) as writer,
            ):
                for episode in self.executor(pending, setup.actor, setup.lane, self.engine, self.stats):
                    writer.put(_row(phase, episode), episode.trajectory)
        except BaseException:
            if self.page:
                self.page.stop(folder.path)
            raise
        self.episodes, self.seconds = self.episodes + len(pending), self.seconds + time.monotonic() - begin
        return [folder.rows[key] for key in keys]


def evaluate_from(config: Config, console: Console) -> Path:
    """Run `gpc evaluate` and return the run folder."""
    experiment = experiment_of(config, console)
    print_execution(env_of(config), sampling_of(config), experiment.setup, console)
    setup, seed = experiment.setup, first_seed(config["seed"], config["run_dir"])
    weights = weights_of(config, len(setup.names))
    settings = _evaluation_settings(setup, weights, seed)
    folder = run_dir_of(config, "evaluate", setup.env.name, setup.names, settings)
    with logged([experiment], RunLog(config["log"])):
        run_evaluation(experiment, weights, range(seed, seed + config["episodes"]), folder)
        write_outputs(experiment, folder, config["video"])
    return folder


def search_from(config: Config, console: Console) -> Path:
    """Run `gpc search` and return the run folder."""
    method = search_of(config)
    demonstrations = demonstrations_of(config)
    experiment = experiment_of(config, console)
    print_execution(env_of(config), sampling_of(config), experiment.setup, console)
    setup = experiment.setup
    report = range(config["report"]["seed"], config["report"]["seed"] + config["report"]["episodes"])
    settings = _search_settings(setup, method, report) | {"demonstrations": config["demonstrations"]}
    folder = run_dir_of(config, "search", setup.env.name, setup.names, settings)
    with logged([experiment], RunLog(config["log"])):
        run_search(experiment, method, report, folder, demonstrations)
        write_outputs(experiment, folder, config["video"])
    return folder


def experiment_of(
    config: Config,
    console: Console,
    policies: Sequence[Policy] = (),
    opponents: Sequence[Policy] = (),
    device: Device | None = None,
) -> Experiment:
    """Return the experiment of a configuration.

    Args:
        config: configuration of evaluate, search or compare.
        console: for notes.
        policies: policies that act together; by default all of the configuration, which are loaded.
        opponents: policies of the other side of a comparison.
        device: where the networks compute; by default that of the configuration.
    """
    _ = sampling_of(config), env_of(config)  # errors before networks are loaded
    engine, executor = engine_of(config), executor_of(config)
    device = device_under(executor, device or device_of(config))
    setup = setup_of(config, policies or load_policies(config), opponents, device)
    content = plain(config)
    members = {key: content[key] for key in ("policies", *PER_POLICY_KEYS, "command") if key in content}
    return Experiment(setup, engine, executor, console, members)


@contextmanager
def logged(experiments: Sequence[Experiment], log: RunLog) -> Iterator[None]:
    """Send what the experiments of one run do to its log and its page."""
    page = LivePage(experiments[0].console)
    for experiment in experiments:
        experiment.log, experiment.page = log, page
    with log:
        yield


def write_outputs(experiment: Experiment, folder: Path, video: int) -> None:
    """Write the video and the page of a finished run."""
    if video:
        try:
            record_video(experiment.setup.lane, folder, video)
        except Exception as error:  # a camera or an encoder that fails must not cost the page
            notice(missing("the video", error))
    write_report(folder)
    experiment.log.results(folder)


def _evaluation_settings(setup: RolloutSetup, weights: Weights, seed: int) -> dict[str, Any]:
    """Return what determines the results, without the number of episodes."""
    return setup.settings | {"weights": list(weights), "seed": seed}


def _search_settings(setup: RolloutSetup, method: Search, report: range) -> dict[str, Any]:
    """Return what determines the results, without demonstrations."""
    return setup.settings | {
        "search": describe(SEARCHES, method),
        "report": {"episodes": len(report), "seed": report.start},
    }


def run_evaluation(experiment: Experiment, weights: Weights, seeds: range, path: Path) -> dict[str, Any]:
    """Roll out one weight vector; return the summary."""
    setup = experiment.setup
    setup.check(weights)
    print_warnings(setup.policy, experiment.console, weights)
    experiment.warn_reused_seeds(path.parent, seeds)
    with experiment.open(path, _evaluation_settings(setup, weights, seeds.start)) as folder:
        stop = max([seeds.stop, *(row.seed + 1 for row in folder.phase("evaluate"))])
        if stop > seeds.stop:  # those of a part would favour episodes that end early
            print_notes([f"{path} has begun {stop - seeds.start} episodes; all of them count"], experiment.console)
        seeds = range(seeds.start, stop)
        rows = experiment.roll(folder, "evaluate", [Job(0, weights, seed) for seed in seeds])
        summary: dict[str, Any] = summarize_evaluation(setup.names, rows, len(experiment.stats.simulator_failures))
        summary = write_summary(folder, summary, [experiment])
        task_id = (setup.env.options or {}).get("task_id", 0)
        folder.write_json("eval_info.json", eval_info(rows, summary, setup.env.name, task_id))
    return summary


def write_summary(folder: RunFolder, summary: Mapping[str, Any], experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Write summary.json with versions and times; return its content.

    Without new episodes the recorded times stay.
    """
    episodes, rows = sum(each.episodes for each in experiments), sum(each.stats.rows for each in experiments)
    timing: Any = None
    if episodes:
        acting = sum(each.stats.actor_seconds for each in experiments)
        seconds = sum(each.seconds for each in experiments)
        chunk = 1000 * acting / rows if rows else None
        timing = {"n_episodes": episodes, "seconds_per_episode": seconds / episodes, "ms_per_chunk": chunk}
    elif (folder.path / "summary.json").is_file():
        timing = read_summary(folder.path).get("timing")
    content = {**summary, "versions": folder.versions, "timing": timing}
    folder.write_json("summary.json", content)
    return content


def run_search(
    experiment: Experiment, method: Search, report: range, path: Path, demonstrations: str | Path | None = None
) -> dict[str, Any]:
    """Find weights, then compare winner and parents; return the summary.

    Args:
        experiment: policies and environment.
        method: the search, not started.
        report: report seeds.
        path: run folder.
        demonstrations: file of held-out demonstrations, which start the search.

    Raises:
        InputError: If the search does not fit the policies, or its seeds overlap the report seeds.
    """
    setup = experiment.setup
    names, count = setup.names, len(setup.names)
    need_two("a search", count)
    if not setup.policy.convex:
        raise InputError("a search mixes with convex weights; choose composer=convex")
    setup.check_parents()
    print_warnings(setup.policy, experiment.console)
    prior = None
    if demonstrations is not None:
        policy, content = experiment.placed, demonstrations_for(setup, demonstrations)
        prior = denoising_error(policy, setup.actor.sampling, content, experiment.console)
    search = _start(method, names, prior, report)
    settings = _search_settings(setup, method, report) | ({"demonstrations": prior.fingerprint} if prior else {})
    with experiment.open(path, settings) as folder:
        while pairs := search.ask():
            jobs = [Job(c, search.candidates[c], seed) for c, seed in pairs]
            rows = experiment.roll(folder, "search", jobs)
            search.tell({(r.candidate, r.seed): Outcome(r.success, r.score) for r in rows})
        winner = search.best()
        parents = {name: search.candidates.index(one_hot(i, count)) for i, name in enumerate(names)}
        chosen = dict.fromkeys([winner, *parents.values()])
        experiment.roll(folder, "report", [Job(c, search.candidates[c], seed) for c in chosen for seed in report])
        rows_of = (folder.phase("search"), folder.phase("report"))
        failures = len(experiment.stats.simulator_failures)
        summary: dict[str, Any] = summarize_search(names, *rows_of, winner, parents, failures)
        if prior:
            measured = {tuple(c["weights"]): c["pc_success"] for c in summary["candidates"]}
            summary["denoising_error"] = prior.explain(names, search.candidates, measured)
        write_summary(folder, summary, [experiment])
    return summary


def _start(method: Search, names: Sequence[str], prior: DenoisingError | None, report: range) -> Search:
    """Return a search of these policies before its first round, checked."""
    search = method.start(len(names), prior)
    for i, name in enumerate(names):
        weights = one_hot(i, len(names))
        if weights not in search.candidates:
            raise InputError(f"{type(method).__name__} lacks the candidate {weights}, {name} alone")
    if search.seeds.start < report.stop and report.start < search.seeds.stop:
        raise InputError(
            f"search seeds {search.seeds} and report seeds {report} overlap; move report.seed, or use fewer episodes"
        )
    return search


def demonstrations_for(setup: RolloutSetup, path: str | Path) -> Demonstrations:
    """Read demonstrations with the observations that the policies read."""
    return read(path, partial(stored_names, setup.policy.observations, setup.env.rename_map or {}, str(path)))


def denoising_error(
    policy: Composition, sampling: Sampling, demonstrations: Demonstrations, console: Console
) -> DenoisingError:
    """Measure the policies' denoising errors on held-out demonstrations."""
    with console.status("denoising the demonstrations"):
        return measure(policy, sampling, demonstrations)


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
    total = float(np.sum(episode.trajectory.get("reward", np.nan), dtype=np.float64))
    results = episode.success, episode.score, episode.steps, episode.reported, total if isfinite(total) else None
    return Row(phase, job.candidate, job.seed, job.weights, *results)
