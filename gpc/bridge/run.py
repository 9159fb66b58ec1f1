"""One episode of a policy on a robot, recorded in a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from gpc.bridge.blending import ChunkBlender, RecedingHorizon
from gpc.bridge.chunk_source import ChunkSource, SourceThread, WarmsUp
from gpc.bridge.controller import STOPPED, ChunkController, ChunkSpec, Watchdog
from gpc.bridge.loop import DRY_RUN, LIVE, ControlLoop, run_lockstep
from gpc.bridge.realtime import LoopTimes, run_realtime
from gpc.bridge.recording import Recorder
from gpc.bridge.robot import HasRate, HasVirtualTime, Robot, connected, map_features
from gpc.bridge.safety import SafetyFilter, SafetyLimits
from gpc.bridge.stop import StopSignal
from gpc.demonstrations import read, write_lerobot
from gpc.errors import InputError, RunError, one_line
from gpc.inert import Console
from gpc.objects import described
from gpc.schema import Seconds, check_fields

Hertz = Annotated[float, Meta(gt=0, le=1000)]


@dataclass(frozen=True)
class EpisodeSettings:
    """What an episode does, and how often.

    Attributes:
        fps: steps in a second of the demonstrations that the policy was trained on.
        rate: actions that are sent in a second, a multiple of the policy's steps; actions between two steps are
            interpolated. None: one for each step.
        mode: "dry-run" shows what would be sent; "live" sends it; "shadow" records beside another driver of the robot.
        seconds: length; None: until it is stopped.
        virtual_latency: None: real time. Else virtual time, for a simulated robot, in which each chunk takes this many
            seconds.
        task: instruction, for policies that read one.
        dataset: folder of a LeRobotDataset to which the episode is added.
        view: true shows the episode live in rerun; a path writes it to that .rrd file.
    """

    fps: Hertz
    rate: Hertz | None = None
    mode: str = DRY_RUN
    seconds: Seconds | None = None
    virtual_latency: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    task: str = ""
    dataset: str | None = None
    view: bool | str = False

    def __post_init__(self) -> None:
        check_fields(self, "")

    def check_robot(self, robot: Robot) -> None:
        """Refuse virtual time for a robot that moves in real time.

        Raises:
            InputError: If the robot does not wait for its driver, or the episode has no end.
        """
        if self.virtual_latency is None:
            return
        if self.seconds is None:
            raise InputError("virtual_latency needs the length of the episode: seconds=30")
        if self.mode == LIVE and not (isinstance(robot, HasVirtualTime) and robot.waits_for_driver):
            raise InputError(
                f"virtual_latency with mode=live: {robot.name} does not wait for its driver; leave virtual_latency out"
            )

    def substeps(self, dt: float) -> int:
        """Return the number of actions for each policy step, which is `dt` / fps long.

        Raises:
            InputError: If the rate is no multiple of the policy's steps, or must be given.
        """
        steps = self.fps / dt
        if dt != 1 and self.rate is None:
            raise InputError(
                f"a step of the policy is {dt:g} / fps: {steps:g} steps in a second; confirm how many actions are sent in "
                f"a second, as in rate={steps:g}"
            )
        substeps = 1.0 if self.rate is None else self.rate / steps
        if not (substeps >= 1 and abs(substeps - round(substeps)) <= 1e-9):
            raise InputError(f"rate={self.rate} must be a multiple of the policy's {steps:g} steps in a second")
        return round(substeps)


@dataclass(frozen=True)
class DeployResult:
    """How an episode ended: reason, exit code and the content of summary.json."""

    reason: str
    code: int
    summary: Mapping[str, Any]


def control_loop(
    source: ChunkSource,
    robot: Robot,
    settings: EpisodeSettings,
    blender: ChunkBlender,
    watchdog: Watchdog,
    safety: SafetyLimits,
    observations: Mapping[str, Sequence[str]] | None = None,
    actions: Sequence[str] | None = None,
) -> ControlLoop:
    """Return the loop of an episode; the arguments are those of `deploy`.

    Raises:
        InputError: If the parts do not fit each other.
    """
    settings.check_robot(robot)
    spec, observed = source.actions, source.observations
    substeps = settings.substeps(spec.dt)
    rate = settings.fps / spec.dt * substeps
    if isinstance(robot, HasRate):
        robot.set_rate(rate, settings.fps)
    feature_map = map_features(robot, observed, spec.dim, observations, actions, settings.task)
    limits = safety.resolve(spec, 1 / rate)
    if substeps > 1 and limits.relative.any():
        raise InputError(
            f"rate={settings.rate}: relative actions are not interpolated; leave rate out, or safety.actions=absolute"
        )
    step = substeps / rate
    if watchdog.observation_deadline <= step:
        raise InputError(
            f"watchdog.observation_deadline={watchdog.observation_deadline:g} must be longer than a step of the policy, "
            f"{step:g} s"
        )
    chunks = ChunkSpec(spec.start, spec.horizon, spec.dim, observed.n_obs_steps, substeps)
    controller = ChunkController(chunks, blender, SafetyFilter(limits, feature_map.actions), watchdog)
    return ControlLoop(robot, feature_map, controller, settings.mode)


def deploy(
    source: ChunkSource,
    robot: Robot,
    settings: EpisodeSettings,
    run_dir: str | Path,
    *,
    blender: ChunkBlender | None = None,
    watchdog: Watchdog | None = None,
    safety: SafetyLimits | None = None,
    observations: Mapping[str, Sequence[str]] | None = None,
    actions: Sequence[str] | None = None,
    manifest: Mapping[str, Any] | None = None,
    console: Console | None = None,
    stop_signal: StopSignal | None = None,
) -> DeployResult:
    """Run one episode of a policy on a robot, and record it.

    Must be called in the main thread: signals stop the robot.

    Args:
        source: source of the chunks.
        robot: the robot, not connected yet.
        settings: what the episode does, and how often.
        run_dir: folder of the record, which must not hold an episode yet.
        blender: how chunks become one stream of actions; by default `RecedingHorizon()`.
        watchdog: times after which the robot holds, and stops.
        safety: limits of what is sent.
        observations: the robot's features for a key of the policy; by default key, or key.0, key.1, ...
        actions: the robot's features for the policy's action dimensions; by default all of them, in its order.
        manifest: configuration that the record keeps; by default these arguments.
        console: output for the operator; None: none.
        stop_signal: request to stop from elsewhere.

    Returns:
        How the episode ended; a fault of the robot or the policy is returned, not raised.

    Raises:
        InputError: If something does not fit, before anything moves.
    """
    blender, watchdog, safety = blender or RecedingHorizon(), watchdog or Watchdog(), safety or SafetyLimits()
    loop = control_loop(source, robot, settings, blender, watchdog, safety, observations, actions)
    _check_dataset(settings.dataset)
    if isinstance(source, WarmsUp):
        source.warm_up()
    start = loop.clock.now() if settings.virtual_latency is None else 0.0
    parts = {"stitch": blender, "watchdog": watchdog, "safety": safety}
    content = manifest or {"source": source.name, "robot": robot.name, **asdict(settings), **described(parts)}
    names = loop.feature_map.observations
    limits = loop.controller.safety_filter.limits
    content = {**content, "features": {"observations": names, "actions": loop.feature_map.actions}}
    content["limits"] = {"low": limits.low.tolist(), "high": limits.high.tolist()}
    recorder = Recorder(Path(run_dir), content, console, settings.view, start)
    _announce(console, source, loop)
    loop.sink, stop_signal = recorder, stop_signal or StopSignal()
    with stop_signal.listening():  # until the summary is written: a second Ctrl-C must not lose it
        try:
            figures = _run(loop, source, settings, stop_signal)
            fault = loop.controller.mode == STOPPED and loop.controller.reason != stop_signal.reason
            # a fault counts although the time ended while the robot braked
            reason, code = (loop.controller.reason, 1) if fault else (stop_signal.reason, stop_signal.code)
        except RunError as error:
            figures, code = {}, 1  # a fault counts although a stop was requested before it
            reason = str(error) if stop_signal.reason in str(error) else f"{stop_signal.reason}; {error}"
        finally:
            recorder.close()
        facts = {"why": reason, "mode": settings.mode, "events": dict(recorder.kinds)}
        summary = recorder.finish(facts | figures)
    problem = _add_to_dataset(Path(run_dir), summary, settings)
    if problem:
        reason += f"; not added to dataset={settings.dataset}: {problem}"
    return DeployResult(reason, code or int(bool(problem or "not_recorded" in summary)), summary)


def _announce(console: Console | None, source: ChunkSource, loop: ControlLoop) -> None:
    """Print what is about to run, and what is not limited."""
    if console is None:
        return
    limits, name = loop.controller.safety_filter.limits, loop.robot.name
    rate = 1 / limits.dt
    lines = [f"{loop.mode}: {source.name} on {name}, {rate:g} actions in a second; space, q or Ctrl-C stops it"]
    if loop.mode == LIVE and not loop.reports_position and limits.limits_targets:
        limit = "velocity, acceleration or jerk for the first action"
        lines.append(f"note: {name} does not report its position: safety has no limit of {limit}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _run(loop: ControlLoop, source: ChunkSource, settings: EpisodeSettings, stop_signal: StopSignal) -> dict[str, Any]:
    """Run the episode in real or in virtual time; return its figures for the summary."""
    period = loop.controller.safety_filter.limits.dt
    if settings.virtual_latency is None:
        return _run_realtime(loop, source, LoopTimes(period, settings.seconds), stop_signal)
    assert settings.seconds is not None  # `check_robot`
    try:
        with connected(loop.robot):
            count = round(settings.seconds / period)
            periods = run_lockstep(loop, source, period, count, settings.virtual_latency, stop_signal)
    finally:
        source.close()
    return {"periods": periods}


def _run_realtime(loop: ControlLoop, source: ChunkSource, times: LoopTimes, stop_signal: StopSignal) -> dict[str, Any]:
    thread = SourceThread(source)
    try:
        timing = run_realtime(loop, thread, times, stop_signal)
    finally:
        thread.close()
    durations = 1000 * np.array(thread.durations or [0.0])
    percentiles = np.percentile(durations, [50, 99, 100]).round(3).tolist()
    chunk_ms = dict(zip(("p50", "p99", "max"), percentiles, strict=True))
    return timing.summary() | {"chunks": len(thread.durations), "chunk_ms": chunk_ms}


def _add_to_dataset(run_dir: Path, summary: Mapping[str, Any], settings: EpisodeSettings) -> str:
    """Add the episode to the dataset; return why it was not added, empty if it was."""
    if settings.dataset is None:
        return ""
    if "not_recorded" in summary:
        return "the record has gaps"
    if not summary["steps"]:
        return "nothing was recorded"
    try:
        episode = read(run_dir / "episode.zarr")
        write_lerobot(Path(settings.dataset), episode, round(settings.fps), settings.task)
    except Exception as error:  # whatever LeRobot raises
        return one_line(error)
    return ""


def _check_dataset(path: str | None) -> None:
    """Refuse a folder that is no dataset, before the robot moves."""
    if path is not None and Path(path).exists() and not (Path(path) / "meta/info.json").exists():
        raise InputError(f"dataset={path} exists and is no LeRobotDataset; choose another folder")
