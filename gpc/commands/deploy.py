"""`gpc deploy`: a policy, or a server, on anything with LeRobot's `Robot` interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from gpc.bridge.blending import ChunkBlender, RealTimeChunking, RecedingHorizon, TemporalEnsembling
from gpc.bridge.chunk_source import ChunkSource, LocalSource, RemoteSource
from gpc.bridge.controller import Watchdog
from gpc.bridge.page import write_deploy_page
from gpc.bridge.robot import Robot
from gpc.bridge.run import DeployResult, EpisodeSettings, deploy
from gpc.bridge.safety import SafetyLimits
from gpc.bridge.stop import StopSignal
from gpc.commands.config import plain
from gpc.commands.setup import compose_from, device_of, print_native, sampling_of
from gpc.composition.composed import as_composition
from gpc.errors import InputError, RunError, Stopped, missing
from gpc.inert import Console, file_name, notice
from gpc.inference.native import common_action_steps, origin_of_action_steps, resolved
from gpc.inference.threads import torch_threads
from gpc.objects import build, choose, settings_in
from gpc.policy.spec import Policy
from gpc.registry import load_entry
from gpc.serve.client import RemotePolicy

BLENDERS = {"real_time": RealTimeChunking, "receding_horizon": RecedingHorizon, "ensembling": TemporalEnsembling}


def run(config: DictConfig, console: Console) -> Path:
    """Run `gpc deploy`; return the run folder if the time was up.

    Raises:
        InputError: If something does not fit, before anything moves.
        RunError: If the robot was stopped by a fault.
        Stopped: If it was stopped by a signal or the stop key.
    """
    with torch_threads(1):  # the thread that samples chunks takes more
        source = chunk_source_from(config, console)
        robot = robot_from(config)
        folder = Path(config.run_dir or Path("runs", file_name(f"deploy-{robot.name}-{datetime.now():%Y%m%d-%H%M%S}")))
        result = deploy_from(config, source, robot, folder, console)
    try:
        console.print(f"report: {write_deploy_page(folder)}", highlight=False, soft_wrap=True)
    except Exception as error:  # how the episode ended must not be lost
        notice(missing("the page", error))
    lost = result.summary.get("not_recorded")
    reason = f"{result.reason}; not recorded: {lost}" if lost else result.reason
    console.print(f"{folder}: {reason}", highlight=False, soft_wrap=True)
    if result.code > 1:
        raise Stopped(f"stopped by {result.reason}; the robot holds and is disconnected", result.code)
    if result.code:
        raise RunError(f"stopped: {reason}")
    return folder


def chunk_source_from(config: DictConfig, console: Console) -> ChunkSource:
    """Return the policies, or the server, of a configuration."""
    if bool(config.policies) == (config.server is not None):
        raise InputError("give policies, as in 'policies=[pusht-flow]', or server=ws://host:port, one of them")
    if config.server is not None:
        watchdog: Watchdog = build(Watchdog, plain(config.watchdog), "watchdog")
        return RemoteSource(RemotePolicy(config.server, config.token, watchdog.max_age), config.seed)
    policy = compose_from(config, console)
    sampling = resolved(sampling_of(config), [policy])
    print_native(sampling_of(config), sampling, console)
    return LocalSource(policy, sampling, config.seed, config.reproducible, device_of(config))


def robot_from(config: DictConfig) -> Robot:
    """Return the robot of a configuration, not connected yet."""
    settings = {key: value for key, value in plain(config.robot).items() if key not in ("observations", "actions")}
    return cast(Robot, build(load_entry("gpc.robots", "robot", "lerobot"), settings, "robot"))


def blender_from(settings: Mapping[str, Any], source: ChunkSource) -> ChunkBlender:
    """Return the blender of plain settings; null action steps are the checkpoints'.

    Raises:
        InputError: If a setting does not fit, or two checkpoints have different numbers of action steps.
    """
    return cast(ChunkBlender, choose(BLENDERS, with_action_steps(settings, source), "stitch"))


def with_action_steps(
    settings: Mapping[str, Any], source: ChunkSource, console: Console | None = None
) -> dict[str, Any]:
    """Return the settings of a blender with the checkpoints' action steps for null.

    Where they come from is printed.
    """
    if settings.get("n_action_steps", 1) is not None:
        return dict(settings)
    policies = [cast(Policy, source.policy if isinstance(source, LocalSource) else source)]
    count = common_action_steps(policies, "stitch.n_action_steps")
    if console is not None:
        console.print(f"n_action_steps={count}, {origin_of_action_steps(policies)}", soft_wrap=True)
    return {**settings, "n_action_steps": count}


def deploy_from(
    config: DictConfig,
    source: ChunkSource,
    robot: Robot,
    run_dir: Path,
    console: Console | None = None,
    stop_signal: StopSignal | None = None,
) -> DeployResult:
    """Run the episode of a configuration; see `gpc.bridge.run.deploy`."""
    content = plain(config)
    content["stitch"] = with_action_steps(content["stitch"], source, console)
    if isinstance(source, LocalSource):
        names = [member.name for member in as_composition(source.policy).policies]
        content |= {"sampler": settings_in(source.sampling), **source.device.settings(names)}
        content |= source.device.facts(names)
    settings = EpisodeSettings(**{field.name: content[field.name] for field in fields(EpisodeSettings)})
    return deploy(
        source,
        robot,
        settings,
        run_dir,
        blender=blender_from(content["stitch"], source),
        watchdog=build(Watchdog, content["watchdog"], "watchdog"),
        safety=build(SafetyLimits, content["safety"], "safety"),
        observations=content["robot"]["observations"],
        actions=content["robot"]["actions"],
        manifest={key: value for key, value in content.items() if key not in ("token", "run_dir")},
        console=console,
        stop_signal=stop_signal,
    )
