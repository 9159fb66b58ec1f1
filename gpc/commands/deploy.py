"""`gpc deploy`: a policy, or a server, on anything with LeRobot's `Robot` interface."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from gpc.bridge.blending import RealTimeChunking, RecedingHorizon, TemporalEnsembling
from gpc.bridge.chunk_source import ChunkSource, LocalSource, RemoteSource, SourceThread
from gpc.bridge.controller import STOPPED, ChunkController, ChunkSpec, Watchdog
from gpc.bridge.loop import ControlLoop, run_lockstep
from gpc.bridge.realtime import RealTimeSettings, run_realtime
from gpc.bridge.recording import Recorder
from gpc.bridge.robot import Robot, connected, map_features
from gpc.bridge.safety import SafetyFilter, limits_from
from gpc.bridge.stop import StopSignal
from gpc.commands.config import plain
from gpc.commands.setup import compose_from, sampling_of
from gpc.demonstrations import read, write_lerobot
from gpc.errors import InputError, RunError, Stopped, one_line
from gpc.inert import Console, file_name
from gpc.inference.threads import serving_threads, torch_threads
from gpc.objects import build, choose
from gpc.registry import load_entry
from gpc.serve.client import RemotePolicy

STITCHES = {"real_time": RealTimeChunking, "receding_horizon": RecedingHorizon, "ensembling": TemporalEnsembling}
CLOCKS = ("real", "lockstep")
SWITCH = 0.0005  # seconds after which a thread must let another run; Python's 0.005 is a period of 200 Hz


@dataclass(frozen=True)
class Outcome:
    """How an episode ended: why, what the process shall exit with, and the figures of summary.json."""

    reason: str
    code: int
    summary: Mapping[str, Any]


def run(config: DictConfig, console: Console) -> Path:
    """`gpc deploy`. Returns the run folder where the time was up; raises what ended it otherwise.

    InputError before anything moves, RunError where the robot was stopped for a fault, Stopped by a signal or the stop key.
    """
    source = chunk_source_from(config, console)
    robot = robot_from(config)
    folder = Path(config.run_dir or Path("runs", file_name(f"deploy-{robot.name}-{datetime.now():%Y%m%d-%H%M%S}")))
    with torch_threads(serving_threads(config.reproducible)):
        outcome = deploy(config, source, robot, folder, console)
    lost = outcome.summary.get("not_recorded")
    reason = f"{outcome.reason}; not recorded: {lost}" if lost else outcome.reason
    console.print(f"{folder}: {reason}", highlight=False, soft_wrap=True)
    if outcome.code > 1:
        raise Stopped(f"stopped by {outcome.reason}; the robot holds and is disconnected", outcome.code)
    if outcome.code:
        raise RunError(f"stopped: {reason}")
    return folder


def chunk_source_from(config: DictConfig, console: Console) -> ChunkSource:
    """The policies, or the server, that a configuration names."""
    if bool(config.policies) == (config.server is not None):
        raise InputError("give policies, as in 'policies=[pusht-flow]', or server=ws://host:port, one of them")
    if config.server is not None:
        watchdog: Watchdog = build(Watchdog, plain(config.watchdog), "watchdog")
        return RemoteSource(RemotePolicy(config.server, config.token, watchdog.max_age), config.seed)
    return LocalSource(compose_from(config, console), sampling_of(config), config.seed, config.reproducible)


def robot_from(config: DictConfig) -> Robot:
    """The robot of a configuration, not yet connected."""
    settings = {key: value for key, value in plain(config.robot).items() if key not in ("observations", "actions")}
    return cast(Robot, build(load_entry("gpc.robots", "robot", "lerobot"), settings, "robot"))


def deploy(
    config: DictConfig,
    source: ChunkSource,
    robot: Robot,
    folder: Path,
    console: Console,
    stop_signal: StopSignal | None = None,
) -> Outcome:
    """One episode of a planner on a robot, recorded in a folder; a fault while flying is told, not raised.

    Raises InputError before anything moves where something does not fit.
    """
    loop, period = _loop(config, source, robot)
    _check_dataset(config.dataset)
    shown = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    manifest = {key: value for key, value in shown.items() if key not in ("token", "run_dir")}
    real = config.clock.kind == "real"
    recorder = Recorder(folder, manifest, console, config.view, loop.clock.now() if real else 0.0)
    intro = (
        f"{config.mode}: {source.name} on {robot.name}, {1 / period:g} actions in a second; space, q or Ctrl-C stops it"
    )
    console.print(intro, highlight=False, soft_wrap=True)
    if config.mode == "live" and not loop.reports_position and loop.controller.safety_filter.limits.limits_targets:
        console.print(
            f"note: {robot.name} does not say where it is: safety has no velocity, acceleration or jerk for the first action",
            highlight=False,
            soft_wrap=True,
        )
    loop.sink, stop_signal = recorder, stop_signal or StopSignal()
    with stop_signal.listening():  # until the summary is written: a second Ctrl-C must not cost it
        try:
            figures = (_fly if real else _step)(config, loop, source, period, stop_signal)
            fault = (
                loop.controller.mode == STOPPED and loop.controller.reason != stop_signal.reason
            )  # whatever came while it braked
            reason, code = (loop.controller.reason, 1) if fault else (stop_signal.reason, stop_signal.code)
        except RunError as error:
            figures, code = {}, 1  # a fault, whatever was asked for before
            reason = str(error) if stop_signal.reason in str(error) else f"{stop_signal.reason}; {error}"
        finally:
            recorder.close()
        summary = recorder.finish({"why": reason, "mode": config.mode, "events": dict(recorder.kinds), **figures})
    problem = _add(folder, summary, config) if config.dataset is not None else ""
    if problem:
        reason = f"{reason}; not added to dataset={config.dataset}: {problem}"
    return Outcome(reason, code or int(bool(problem or "not_recorded" in summary)), summary)


def _add(folder: Path, summary: Mapping[str, Any], config: DictConfig) -> str:
    """Add the episode to the configuration's LeRobotDataset; returns why it was not, empty if it was."""
    if "not_recorded" in summary:
        return "the record has gaps"
    if not summary["steps"]:
        return "nothing was recorded"
    try:
        write_lerobot(Path(config.dataset), read(folder / "episode.zarr"), round(config.fps), config.task)
    except Exception as error:  # whatever LeRobot raises
        return one_line(error)
    return ""


def _loop(config: DictConfig, source: ChunkSource, robot: Robot) -> tuple[ControlLoop, float]:
    """Everything that flies, and the seconds between two sendings."""
    spec, observations = source.actions, source.observations
    _check_clock(config, robot)
    substeps, period = _rhythm(config, spec.dt)
    mapped = cast(dict[str, Any], OmegaConf.to_container(config.robot))
    feature_map = map_features(
        robot, observations.shapes, spec.dim, mapped["observations"], mapped["actions"], config.task
    )
    limits = build(limits_from, plain(config.safety), "safety", spec=spec, dt=period)
    if substeps > 1 and limits.relative.any():
        raise InputError(
            f"rate={config.rate}: moves are not interpolated, only targets; leave rate out, or safety.hold=last"
        )
    watchdog: Watchdog = build(Watchdog, plain(config.watchdog), "watchdog")
    step, allowed = period * substeps, watchdog.observation_deadline
    if allowed <= step:
        raise InputError(
            f"watchdog.observation_deadline={allowed:g} must be longer than a step of the policy, {step:g} s"
        )
    expected = ChunkSpec(spec.start, spec.horizon, spec.dim, observations.n_obs_steps, substeps)
    blender = choose(STITCHES, plain(config.stitch), "stitch")
    controller = ChunkController(expected, blender, SafetyFilter(limits, feature_map.actions), watchdog)
    return ControlLoop(robot, feature_map, controller, config.mode), period


def _check_clock(config: DictConfig, robot: Robot) -> None:
    """Refuse virtual time for a robot that moves in real time: no period waits for the clock."""
    if config.clock.kind not in CLOCKS:
        raise InputError(f"clock.kind={config.clock.kind}: choose one of {', '.join(CLOCKS)}")
    if config.clock.kind == "real":
        return
    if config.seconds is None:
        raise InputError("clock.kind=lockstep needs to know how long: seconds=30")
    if config.mode == "live" and not getattr(robot, "waits_for_driver", False):
        raise InputError(
            f"clock.kind=lockstep mode=live: {robot.name} does not wait for its driver; use clock.kind=real"
        )


def _rhythm(config: DictConfig, dt: float) -> tuple[int, float]:
    """How many actions are sent for each step of the policy, and the seconds between them."""
    steps = config.fps / dt
    if dt != 1 and config.rate is None:
        raise InputError(
            f"a step of the policy is {dt:g} / fps: {steps:g} steps in a second; confirm how many actions are sent in a "
            f"second, as in rate={steps:g} (and, with robot=ros2, robot.settings.rate={steps:g})"
        )
    substeps = 1.0 if config.rate is None else config.rate / steps
    if not (substeps >= 1 and abs(substeps - round(substeps)) <= 1e-9):
        raise InputError(f"rate={config.rate} must be a multiple of the policy's {steps:g} steps in a second")
    return round(substeps), 1 / (steps * round(substeps))


def _fly(
    config: DictConfig, loop: ControlLoop, source: ChunkSource, period: float, stop_signal: StopSignal
) -> dict[str, Any]:
    """In real time."""
    thread, before = SourceThread(source), sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        timing = run_realtime(loop, thread, RealTimeSettings(period, config.seconds), stop_signal)
    finally:
        sys.setswitchinterval(before)
        thread.close()
    took = np.percentile(1000 * np.array(thread.seconds or [0.0]), [50, 99, 100]).round(3).tolist()
    chunks = {"chunks": len(thread.seconds), "chunk_ms": dict(zip(("p50", "p99", "max"), took, strict=True))}
    return timing.summary() | chunks


def _step(
    config: DictConfig, loop: ControlLoop, source: ChunkSource, period: float, stop_signal: StopSignal
) -> dict[str, Any]:
    """In virtual time."""
    try:
        with connected(loop.robot):
            steps = run_lockstep(
                loop, source, period, round(config.seconds / period), config.clock.latency, stop_signal
            )
    finally:
        source.close()
    return {"periods": steps}


def _check_dataset(path: str | None) -> None:
    """Said before the robot moves, not after."""
    if path is not None and Path(path).exists() and not (Path(path) / "meta/info.json").exists():
        raise InputError(f"dataset={path} exists and is no LeRobotDataset; choose another folder")
