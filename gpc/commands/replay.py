"""`gpc replay`: run one recorded episode again and compare the results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import to_builtins

from gpc.commands.recorded import Manifest, Request, Settings, Side, read_recorded, rebuilt, requests
from gpc.commands.rollout_setup import RolloutSetup
from gpc.commands.setup import PER_POLICY_KEYS, print_warnings, setup_of
from gpc.errors import InputError, missing, one_line
from gpc.inert import Console, notice
from gpc.inference.device import Device
from gpc.inference.threads import torch_threads
from gpc.policy.adapt import distinct
from gpc.policy.load import bundled_cards, load_policy
from gpc.policy.spec import Policy
from gpc.results.devices import DeviceSettings, device_text
from gpc.results.evidence import Evidence
from gpc.results.run_folder import Row, read_rows, read_versioned, versions
from gpc.results.trajectories import FOLDER, read_trajectory
from gpc.results.video import render, write_video
from gpc.rollout.engine import Engine, Episode, Job, rollout
from gpc.rollout.env import make_env
from gpc.types import Array

ROUNDING = {None: 1e-5, "tf32": 2e-3, "bfloat16": 2e-2}
"""Largest difference of equal chunks on two devices, of a normalised action (docs/gpu.md)."""


class Elsewhere(NamedTuple):
    """A repetition on another device, which gives other bits.

    Attributes:
        devices: Both, as text.
        limit: Largest difference of two chunks that are the same, of a normalised action.
        scale: Unit of a normalised action in each dimension.
    """

    devices: str
    limit: float
    scale: Sequence[float]


@dataclass(frozen=True)
class Replay:
    """A recorded episode and its repetition.

    Attributes:
        row: The recorded results.
        recorded: The recorded arrays (steps, ...); empty if there are none.
        again: The repetition.
        n_action_steps: Actions of a chunk that are executed.
        changed: Versions that differ: (recorded, installed).
        elsewhere: On what other device it was repeated; None on the same.
    """

    row: Row
    recorded: Mapping[str, Array]
    again: Episode
    n_action_steps: int
    changed: Mapping[str, tuple[str, str]]
    elsewhere: Elsewhere | None = None

    @property
    def same(self) -> bool:
        """Whether success, score, steps and every recorded action are equal, bit for bit.

        On another device, whether the actions of the first chunk are: the later ones follow from them.
        """
        row, again = self.row, self.again
        if self.elsewhere and self.recorded:
            return self.apart <= self.elsewhere.limit
        results = (row.success, row.score, row.steps) == (again.success, again.score, again.steps)
        return results and (not self.recorded or self.parting("action") is None)

    @property
    def apart(self) -> float:
        """Largest difference of the first chunk on another device, normalised."""
        assert self.elsewhere
        ours, theirs = (each["action"][: self.n_action_steps] for each in (self.recorded, self.again.trajectory))
        shared = min(len(ours), len(theirs))
        difference = np.abs(ours[:shared] - theirs[:shared]) - np.spacing(np.abs(ours[:shared]))  # recorded as float32
        return float((difference / np.array(self.elsewhere.scale)).max(initial=0))

    def parting(self, key: str) -> int | None:
        """Return the first step at which a recorded array differs.

        Args:
            key: "action", "reward" or an observation. Observations are recorded once for each chunk of actions.

        Returns:
            The step; None if the arrays are equal. If one is longer, the end of the other counts.
        """
        stride = 1 if key in ("action", "reward") else self.n_action_steps
        ours, theirs = self.recorded[key], self.again.trajectory[key]
        if ours.shape[1:] != theirs.shape[1:]:
            return 0
        shared = min(len(ours), len(theirs))
        differ = np.flatnonzero((ours[:shared] != theirs[:shared]).any(axis=tuple(range(1, ours.ndim))))
        if len(differ):
            return int(differ[0]) * stride
        return shared * stride if len(ours) != len(theirs) else None

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        row, again = self.row, self.again
        results = {
            "success": (row.success, again.success),
            "score": (row.score, again.score),
            "steps": (row.steps, again.steps),
        }
        lines = [
            f"{row.phase} seed {row.seed}, weights {list(row.weights)}",
            *(
                f"{name}: {a}, the same" if a == b else f"{name}: {a} recorded, {b} now"
                for name, (a, b) in results.items()
            ),
        ]
        if not self.same:
            return lines + self._differences()
        if self.elsewhere and self.recorded:
            return [
                *lines,
                f"actions: the first {self.n_action_steps} differ by at most {self.apart:.2g} of a normalised action, the limit is "
                f"{self.elsewhere.limit:g} ({self.elsewhere.devices}); the later ones follow from them and are not compared",
            ]
        return [*lines, f"actions: all {row.steps} the same, bit for bit" if self.recorded else "actions: not recorded"]

    def _differences(self) -> list[str]:
        """Return where the two differ, what differed first, and which versions differ."""
        both = [key for key in self.recorded if key in self.again.trajectory]
        partings = {key: step for key in both if (step := self.parting(key)) is not None}
        observed = [step for key, step in partings.items() if key not in ("action", "reward")]
        acted = partings.get("action")
        lines = [f"{key}: differs from step {step} on" for key, step in partings.items()]
        if acted is not None and acted < min(observed, default=acted + 1):
            lines.append("the policies returned other actions for the same observations (pictures are not recorded)")
        elif observed:
            lines.append("the simulator returned other observations first")
        causes = [f"device: {self.elsewhere.devices}"] if self.elsewhere else []
        causes += [f"{name}: {then} recorded, {now} installed" for name, (then, now) in self.changed.items()]
        return [*lines, *(causes or ["all versions that the run recorded are installed: another machine?"])]


@dataclass(frozen=True)
class _Source:
    """A recorded episode: row, arrays if there are any, and manifest."""

    manifest: Mapping[str, Any]
    row: Row
    trajectory: Mapping[str, Array]
    where: str
    command: str


def replay(
    path: Path,
    episode: int,
    sources: Sequence[str],
    console: Console,
    clip: Path | None = None,
    trust: bool = False,
    run: str | None = None,
    device: str | None = None,
) -> Replay:
    """Run a recorded episode again.

    Args:
        path: Run folder, with or without trajectories, or STUDY.json of docs/results/evidence.
        episode: Its line among the rows of the run, from 0.
        sources: Where the policies are now; none: where they were.
        console: For notes.
        clip: Video file to which both are written.
        trust: Whether to load what the manifest names; without, only what is gpc's own is loaded, and `sources`.
        run: Name of the run in a study.
        device: Where the networks compute; None: on the recorded kind of device.

    Raises:
        InputError: If the record does not hold enough, its device is not here, it names something that is not gpc's own, or
            a policy is not the recorded one.
    """
    of_study = path.suffix == ".json"
    source = _read_study(path, run, episode) if of_study else _read_folder(path, run, episode)
    row, trajectory = source.row, source.trajectory
    recorded = read_recorded(source.manifest, source.where)
    if of_study and recorded.resolved and not sources:
        _check_bundled(recorded.resolved.policies)
    placed = _side(recorded.config, row) if row.phase == "compare" else recorded.config
    where = _device(placed, device)
    setup = _setup(source.command, recorded, row, sources, bool(clip), trust, where)
    print_warnings(setup.policy, console, row.weights)
    job = Job(row.candidate, row.weights, row.seed)
    with torch_threads(1):  # as in every rollout: more would change the networks' rounding
        (again,) = rollout([job], setup.actor, setup.lane, Engine(lanes=1, workers=1))
    if clip:
        arrays = {"recorded": trajectory, "now": again.trajectory}
        played = {name: array["action"] for name, array in arrays.items() if array}
        try:
            with closing(make_env(setup.env)) as env:
                write_video(clip, [(name, render(env, row.seed, actions)) for name, actions in played.items()])
        except Exception as error:  # a camera or an encoder that fails must not cost the verdict
            notice(missing("the video", error))
    facts = setup.actor.device.facts(setup.names)
    elsewhere = _elsewhere(placed, setup, recorded.versions.get("card") == facts.get("card"))
    changed = _changed(recorded.versions, versions() | facts)
    return Replay(row, trajectory, again, setup.actor.n_action_steps, changed, elsewhere)


def _device(recorded: DeviceSettings, chosen: str | None) -> Device:
    """Return where to compute.

    Raises:
        InputError: If that is not here.
    """
    device = Device(chosen or recorded.device, recorded.dtype, recorded.tf32)
    try:
        device.check_here()
    except InputError as error:
        other = "" if chosen else "; --device cpu runs the episode on the CPU, where its last digits may differ"
        raise InputError(f"{error}{other}") from None
    return device


def _elsewhere(recorded: DeviceSettings, setup: RolloutSetup, same_card: bool) -> Elsewhere | None:
    """Return on what other device an episode was repeated, if it was."""
    now, then = setup.settings, to_builtins(recorded)
    if device_text(now) == device_text(then) and (same_card or recorded.device == "cpu"):
        return None
    limit = ROUNDING[recorded.dtype or ("tf32" if recorded.tf32 else None)]
    devices = f"{device_text(then)} recorded, {device_text(now)} now{'' if same_card else ', another card'}"
    return Elsewhere(devices, limit, setup.policy.actions.scale)


def _read_folder(path: Path, run: str | None, episode: int) -> _Source:
    if run is not None:
        raise InputError(f"--run names a run of a study; {path} is a run folder")
    manifest, rows = read_versioned(dict[str, Any], path / "manifest.json"), read_rows(path / "episodes.jsonl")
    row = _chosen(rows, episode, str(path))
    trajectory = read_trajectory(path, episode) if (path / FOLDER).exists() else {}
    command = f"{shlex.quote(str(path))} --episode {episode}"
    return _Source(manifest, row, trajectory, str(path / "manifest.json"), command)


def _read_study(path: Path, run: str | None, episode: int) -> _Source:
    study = Evidence(path)
    if run is None:
        raise InputError(f"{path} holds {len(study.runs)} runs; name one, as in --run {next(iter(study.runs), 'NAME')}")
    row = _chosen(study.rows(run), episode, f"{path}, run {run},")
    command = f"{shlex.quote(str(path))} --run {shlex.quote(run)} --episode {episode}"
    return _Source(study.recorded(run).manifest, row, {}, f"{path}, run {run}", command)


def _chosen(rows: Sequence[Row], episode: int, where: str) -> Row:
    if not rows:
        raise InputError(f"{where} has no finished episode")
    if not 0 <= episode < len(rows):
        raise InputError(f"{where} has the episodes 0 to {len(rows) - 1}, not {episode}")
    return rows[episode]


def _setup(
    command: str, recorded: Manifest, row: Row, sources: Sequence[str], draws: bool, trust: bool, device: Device
) -> RolloutSetup:
    """Return policies and environment of a row.

    Raises:
        InputError: If a policy is not the recorded one, or the record names something that is not allowed.
    """
    config, resolved = recorded.config, recorded.resolved
    assert resolved is not None
    names, composer = config.policies, resolved.composer
    if row.phase == "compare":
        side = _side(config, row)
        names, composer = side.policies, side.composer
    places = dict(zip(config.policies, resolved.policies, strict=False))  # of a comparison in Python: one side's
    where = list(sources) or [places.get(name, name) for name in names]
    if len(where) != len(names):
        raise InputError(f"--policies names {len(where)}; the episode was run by {len(names)}: {', '.join(names)}")
    if not trust:
        _refuse(command, names, list(requests(resolved, composer, [] if sources else where)))
    try:
        policies = distinct([load_policy(source) for source in where])
    except InputError as error:
        raise InputError(f"{error}; say where {', '.join(names)} are now, as in --policies loader:path") from None
    present = dict(zip(names, (policy.name for policy in policies), strict=True))
    settings = rebuilt(resolved, composer) | {"video": int(draws)}
    for key in PER_POLICY_KEYS:  # without those of the other side
        settings[key] = {present[name]: value for name, value in settings[key].items() if name in present}
    if isinstance(device.name, Mapping):
        device = replace(device, name={present[name]: kind for name, kind in device.name.items() if name in present})
    setup = setup_of(settings, policies, device=device)
    setup.check(row.weights)
    _check_fingerprints(names, setup.policy.policies, config.fingerprints)
    return setup


def _check_bundled(sources: Sequence[str]) -> None:
    """Check that policies without a loader, which were bundled with gpc, still are.

    Raises:
        InputError: If one is not.
    """
    gone = [source for source in sources if ":" not in source and source not in bundled_cards()]
    if gone:
        raise InputError(
            f"the weights of {', '.join(gone)} are not bundled with this gpc, so the episode cannot be run again; if you have "
            "them, say where, as in --policies loader:path"
        )


def _side(config: Settings, row: Row) -> Side:
    if config.sides is None or not 0 <= row.candidate < len(config.sides):
        raise InputError(f"the manifest has no side {row.candidate}, which the episode is of")
    return config.sides[row.candidate]


def _refuse(command: str, names: Sequence[str], wanted: Sequence[Request]) -> None:
    """Refuse what is not allowed, with the command that allows it.

    Raises:
        InputError: If there is a request.
    """
    if not wanted:
        return
    moved = (
        f"say where {', '.join(names)} are now, as in --policies loader:path, or "
        if wanted[0].key == "policies"
        else ""
    )
    what = ", ".join(f"{key}={value!r}" for key, value in wanted)
    raise InputError(
        f"the run names {one_line(what)}, which is not loaded because a folder names it; {moved}if the folder is your own: "
        f"gpc replay {command} --trust"
    )


def _check_fingerprints(names: Sequence[str], policies: Sequence[Policy], fingerprints: Mapping[str, str]) -> None:
    for name, policy in zip(names, policies, strict=True):
        before = fingerprints.get(name, "none")
        if policy.fingerprint != before:
            raise InputError(
                f"{policy.name} is not the {name} that was recorded: its fingerprint is {policy.fingerprint[:12]}, not "
                f"{before[:12]}; say where that one is with --policies"
            )


def _changed(recorded: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what differs, as the versions of packages: (recorded, installed)."""
    names = [name for name in {**recorded, **now} if recorded.get(name) != now.get(name)]
    return {name: (recorded.get(name, "none"), now.get(name, "none")) for name in names}
