"""`evaluate` and `search`: policies in, rows and a summary out, in a run folder that may be interrupted at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpc.cluster import Executor
from gpc.composers import Guidance, Weightable
from gpc.composition import ComposedPolicy
from gpc.config import bind, build
from gpc.control import ChunkActor
from gpc.demonstrations import read
from gpc.denoising_error import DenoisingError, measure
from gpc.env import Environment
from gpc.errors import InputError, missing
from gpc.film import record_video
from gpc.inert import Console, file_name, notice
from gpc.load import load_policy
from gpc.policy import Policy, absolute, check_names, named, rename, simulator_of
from gpc.record import Phase, Row, RunFolder, Writer, searched_seeds
from gpc.report import print_summary, write_report
from gpc.rollout import Engine, EnvSpec, Episode, Health, Job
from gpc.steering import steer
from gpc.summary import summarize_evaluation, summarize_search
from gpc.weight_search import Outcome, Search, Weights, one_hot

BY_POLICY = {"origin": "OBSERVATION", "action_names": "[x,y,z]", "steer": "{cost: smoothness, scale: 1}"}
"""The keys that say something of policies by their names, and how one looks."""

ENVIRONMENTS = tuple(
    f"gpc.envs.{name}" for name in ("pusht:PushT", "from_robosuite:Robosuite", "from_gymnasium:Gymnasium")
)
"""What `env.target` may be: any other name of these modules would be called, too."""

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
        self.compose: Callable[..., ComposedPolicy] = bind(config.composer)
        others = [rival for rival in rivals if all(rival is not policy for policy in policies)]
        everything = resolved(config)
        self.policy = self.compose(adapted(everything, policies, others))
        names = [policy.name for policy in (*policies, *others)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"two policies are called {twice[0]!r}; give one of their folders another name")
        spec: EnvSpec = build(config.env)
        if spec.target == "policy":
            spec = simulator_of([*policies, *others], spec)
        if spec.target not in ENVIRONMENTS:
            raise InputError(f"env.target={spec.target} is not an environment of gpc.envs: {', '.join(ENVIRONMENTS)}")
        observations = self.policy.observations
        keys, steps = tuple(observations.shapes), observations.n_obs_steps
        self.env = replace(spec, observation_keys=keys, n_obs_steps=steps, history=self._history())
        self.engine: Engine = build(config.engine)
        self.executor: Executor = build(config.executor)
        self.actor = ChunkActor(self.policy, build(config.sampler), self.env.n_action_steps)
        self._check_environment(spec)
        self.resolved = {key: value for key, value in everything.items() if key != "run_dir"}  # a folder may be moved
        self.resolved["env"] = {"_target_": "gpc.worker.EnvSpec", **asdict(spec)}
        say_notes(self.policy, console)
        self.health = Health()

    @property
    def names(self) -> list[str]:
        """The policies' names."""
        return [policy.name for policy in self.policy.policies]

    @property
    def parts(self) -> int:
        """How many rows of weights the composer takes."""
        return cast(Weightable, self.policy.composer).parts

    @property
    def fingerprints(self) -> dict[str, str]:
        """The policies' fingerprints by name."""
        return {policy.name: policy.fingerprint for policy in self.policy.policies}

    def check(self, weights: Weights) -> None:
        """Raises InputError where weights do not fit, or where the policies that have weight cannot act without the others."""
        self.compose(self.policy.policies, weights)
        self.actor.check(weights)

    def check_parents(self) -> None:
        """Raises InputError where a policy cannot act alone."""
        for i in range(len(self.names)):
            self.actor.check(one_hot(i, len(self.names)) * self.parts)

    def settings(self, keys: Sequence[str]) -> dict[str, Any]:
        """What determines results: these keys of the configuration and the policies' fingerprints."""
        everything = resolved(self.config)
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
                    for episode in self.executor(todo, self.actor, self.env, self.engine, self.health):
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
            env = spec.make()
        except ImportError as error:
            raise InputError(f"{spec.target} needs a package that is missing ({error}); run gpc doctor") from None
        offered = {key: box.shape for key, box in cast(spaces.Dict, env.observation_space).items()}
        if self.config.video:
            _check_picture(env, self.config.video)
        env.close()
        if env.action_space.shape != (self.policy.actions.dim,):
            actions = self.policy.actions
            names = f" ({', '.join(actions.names)})" if actions.names else ""
            raise InputError(
                f"{self.policy.name} acts in {actions.dim} dimensions{names}, {spec.target} in {env.action_space.shape}; "
                "'action_names={POLICY: [x,y]}' says which dimensions of two policies are the same"
            )
        own = {theirs: key for key, theirs in self.config.rename_map.items()}
        for policy in self.policy.policies:
            for key, shape in policy.observations.shapes.items():
                if offered.get(key) != shape:
                    raise InputError(
                        f"{policy.name} reads {key!r} {shape}, {_not_offered(spec.target, key, own.get(key, key), shape, offered)}"
                    )


def resolved(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain dicts, lists and values."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def run(config: DictConfig, kind: str, console: Console) -> Path:
    """A command of the command line: load, run, print, report. Returns the run folder."""
    experiment = Experiment(config, loaded(config), console)
    folder = folder_of(config, kind, experiment.env.name, experiment.names)
    COMMANDS[kind](experiment, folder)
    finish(experiment, folder)
    return folder


def loaded(config: DictConfig) -> list[Policy]:
    """The policies that a configuration names; InputError where it names none."""
    if isinstance(config.policies, str):
        raise InputError(f"policies={config.policies} must be a list, as in 'policies=[{config.policies}]'")
    policies = [load_policy(source) for source in config.policies]
    if not policies:
        raise InputError("policies=[] is empty; name at least one")
    return policies


def adapted(settings: Mapping[str, Any], policies: Sequence[Policy], others: Sequence[Policy] = ()) -> list[Policy]:
    """The policies as `rename_map` has their observations, and as each key of `BY_POLICY` has each of them.

    Raises InputError where a name is none of all policies'.
    """
    by_policy: dict[str, dict[str, Any]] = {policy.name: {} for policy in policies}
    for key, example in BY_POLICY.items():
        given = settings.get(key) or {}
        if not isinstance(given, dict):
            raise InputError(f"{key}={given} must go by policy, as in '{key}={{{policies[0].name}: {example}}}'")
        check_names(key, given, [*policies, *others])
        for name in given.keys() & by_policy.keys():
            by_policy[name][key] = given[name]
    return [_adapted(rename(policy, settings["rename_map"]), by_policy[policy.name]) for policy in policies]


def _adapted(policy: Policy, settings: Mapping[str, Any]) -> Policy:
    if "origin" in settings:
        policy = absolute(policy, settings["origin"])
    if "action_names" in settings:
        policy = named(policy, settings["action_names"])
    if "steer" in settings:
        given, known = settings["steer"], ("cost", "scale", "spread")
        if not isinstance(given, Mapping) or "cost" not in given or not set(given) <= set(known):
            example = f"'steer={{{policy.name}: {BY_POLICY['steer']}}}'"
            raise InputError(f"steer of {policy.name} takes {', '.join(known)}, not {given}; give it as in {example}")
        policy = steer(policy, **given)
    return policy


def say_notes(policy: ComposedPolicy, console: Console) -> None:
    """What is approximate about a composition."""
    for note in filter(None, (member.note for member in policy.members)):
        console.print(f"note: {note}", soft_wrap=True)


def compose_from(config: DictConfig, console: Console) -> ComposedPolicy:
    """The composition that a configuration names, under its weights, to be asked for chunks from outside.

    A policy of weight 0 is removed. Notes on what is approximate are printed.

    Raises:
        InputError: the policies that have weight lack a dimension.
    """
    policies = adapted(resolved(config), loaded(config))
    weights = weights_of(config, len(policies))
    whole: ComposedPolicy = bind(config.composer)(policies, weights)
    policy = whole.weighted(torch.tensor(weights, dtype=torch.float64))
    say_notes(policy, console)
    return policy


def weights_of(config: DictConfig, count: int) -> Weights:
    """The weights that a configuration gives `count` policies; one alone needs none."""
    given = [1.0] if config.weights is None and count == 1 else config.weights
    if given is None:
        raise InputError(f"{count} policies need weights, as in 'weights=[{','.join(['0.5'] * 2)}]'")
    return numbers(given)


def folder_of(config: DictConfig, kind: str, env: str, names: Sequence[str]) -> Path:
    """Return the run folder that a configuration names, or one in runs/ whose name is made of environment and policies."""
    return Path(config.run_dir or Path("runs", file_name(f"{kind}-{env.lower()}-{'+'.join(names)}")))


def finish(experiment: Experiment, folder: Path) -> None:
    """Write the video and the page of a run that has its summary, then print its table."""
    if experiment.config.video:
        try:
            record_video(experiment.env, folder, experiment.config.video)
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
        summary = summarize_evaluation(experiment.names, rows, len(experiment.health.breakdowns))
        folder.write_json("summary.json", summary)
    return summary


def numbers(weights: Sequence[Any]) -> Weights:
    """Weights as the configuration has them; InputError where one is no number."""
    if not all(isinstance(w, int | float) for w in weights):
        raise InputError(f"weights=[{', '.join(map(str, weights))}] must be numbers, as in 'weights=[0.4,0.6]'")
    return tuple(float(w) for w in weights)


def run_search(experiment: Experiment, path: Path) -> Mapping[str, Any]:
    """Weights from the search seeds, then winner and parents on the report seeds."""
    config, count = experiment.config, len(experiment.names)
    if count < 2:
        raise InputError("a search needs at least two policies, as in 'policies=[pusht-diffusion,pusht-flow]'")
    if isinstance(experiment.policy.composer, Guidance):
        raise InputError("a search mixes with convex weights; choose composer=convex, scheduled or per_dimension")
    experiment.check_parents()
    prior = _denoising_error(experiment)
    settings = {key: value for key, value in config.search.items() if key != "demonstrations"}
    plan: Search = build(OmegaConf.create(settings), policies=count, parts=experiment.parts, prior=prior)
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
        parents = {
            name: plan.candidates.index(one_hot(i, count) * experiment.parts) for i, name in enumerate(experiment.names)
        }
        jobs = [Job(c, plan.candidates[c], seed) for c in dict.fromkeys([winner, *parents.values()]) for seed in fresh]
        experiment.roll(folder, "report", jobs)
        found = (folder.phase("search"), folder.phase("report"))
        summary = summarize_search(experiment.names, *found, winner, parents, len(experiment.health.breakdowns))
        if prior:
            measured = {tuple(c["weights"]): c["pc_success"] for c in summary["candidates"]}
            summary["denoising_error"] = prior.explain(experiment.names, plan.candidates, measured)
        folder.write_json("summary.json", summary)
    return summary


def _denoising_error(experiment: Experiment) -> DenoisingError | None:
    """What `search.demonstrations` says of the policies; None where there are none."""
    path = experiment.config.search.demonstrations
    if path is None:
        return None
    if experiment.parts > 1:
        raise InputError("search.demonstrations speaks of one weight for each policy; choose composer=convex")
    demonstrations = read(path, list(experiment.policy.observations.shapes))
    with experiment.console.status("denoising the demonstrations"):
        return measure(experiment.policy, experiment.actor.sampling, demonstrations)


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
