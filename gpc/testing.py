"""The contracts of the package as checks, for the tests of anyone who writes an adapter.

A check returns nothing, or raises an AssertionError whose message names the promise that is broken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from gpc.bridge.robot import Command, Reading, Robot
from gpc.env import Array, Environment, Frame
from gpc.noise import karras_sigmas, snap_sigmas
from gpc.policy import ActionSpec, ObservationSpec, Policy
from gpc.sample import euler, last

Outcome = tuple[float, bool, bool, dict[str, Any]]
Episode = tuple[list[Frame], list[Outcome]]


def check_env(env: Environment, *, seed: int = 0, steps: int = 20) -> None:
    """Check that `env` keeps the contract of `gpc.env.Environment`, in episodes of random actions.

    Plays `steps` steps (or to the end of the episode) from `seed`, a few times over. Checked: spaces, shapes,
    dtypes and bounds; the outcome of `advance`; that looking changes nothing and hands out new arrays; that
    `step` is `advance` and `observe`; that an episode depends on its seed and actions alone.
    """
    try:
        _check_spaces(env)
        env.action_space.seed(seed)
        actions = [env.action_space.sample() for _ in range(steps)]
        _check_looking(env, seed, actions)
        _check_repeats(env, seed, actions)
        _check_seeds(env, seed)
    except AssertionError as error:
        raise AssertionError(f"{type(env).__name__}: {error}") from None


def _require(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)


def _check_spaces(env: Environment) -> None:
    _require(isinstance(env, Environment), "is not a gpc.env.Environment: subclass it")
    space: spaces.Space[Any] = env.observation_space
    boxes = isinstance(space, spaces.Dict) and all(isinstance(box, spaces.Box) for box in space.values())
    _require(boxes, f"observation_space must be a Dict of Box, not {space}")
    action: spaces.Space[Any] = env.action_space
    _require(
        isinstance(action, spaces.Box) and len(action.shape) == 1,
        f"action_space must be a Box of shape (action_dim,), not {action}",
    )


def _check_frame(env: Environment, frame: Frame, source: str) -> None:
    space: Any = env.observation_space
    _require(isinstance(frame, dict), f"{source} returns a {type(frame).__name__}, not a dict")
    _require(
        set(frame) == set(space),
        f"{source} returns the keys {sorted(frame)}, observation_space has {sorted(space)}",
    )
    for key, value in frame.items():
        _require(isinstance(value, np.ndarray), f'{source}["{key}"] is a {type(value).__name__}, not an array')
        found, expected = (value.shape, value.dtype), (space[key].shape, space[key].dtype)
        _require(found == expected, f'{source}["{key}"] is {found}, observation_space says {expected}')
        _require(bool(np.isfinite(value).all()), f'{source}["{key}"] is not finite')
        _require(space[key].contains(value), f'{source}["{key}"] is outside the bounds of observation_space')


def _check_single_keys(env: Environment, frame: Frame) -> None:
    for key, value in frame.items():
        alone = env.observe([key])
        _require(list(alone) == [key], f"observe([{key!r}]) returns the keys {sorted(alone)}")
        _require(np.array_equal(alone[key], value), f"observe([{key!r}]) differs from observe()[{key!r}]")


def _check_outcome(outcome: Outcome) -> None:
    _require(len(outcome) == 4, "advance() must return reward, terminated, truncated, info")
    reward, terminated, truncated, info = outcome
    _require(isinstance(reward, float), f"advance(): the reward is a {type(reward).__name__}, not a float")
    _require(bool(np.isfinite(reward)), f"advance(): the reward is {reward}")
    _require(isinstance(info, dict), f"advance(): info is a {type(info).__name__}, not a dict")
    _require("is_success" in info, 'advance(): info has no "is_success"')
    flags = {"terminated": terminated, "truncated": truncated, 'info["is_success"]': info["is_success"]}
    for name, flag in flags.items():
        _require(isinstance(flag, bool | np.bool_), f"advance(): {name} is a {type(flag).__name__}, not a bool")


def _check_looking(env: Environment, seed: int, actions: Sequence[Array]) -> None:
    frame, info = env.reset(seed=seed)
    _require(isinstance(info, dict), f"reset(): info is a {type(info).__name__}, not a dict")
    _check_frame(env, frame, "reset()")
    _require(_differing(frame, env.observe()) == [], "observe() after reset() differs from what reset() returned")
    for action in actions:
        before = env.observe()
        kept = {key: value.copy() for key, value in before.items()}
        outcome = env.advance(action)
        _check_outcome(outcome)
        after = env.observe()
        _check_frame(env, after, "observe()")
        changed = _differing(before, kept)
        _require(not changed, f"observe() hands out its own buffer: {changed} changed when the world moved")
        changed = _differing(after, env.observe())
        _require(not changed, f"observe() twice in a row differs in {changed}")
        _check_single_keys(env, after)
        if outcome[1] or outcome[2]:
            return


def _check_repeats(env: Environment, seed: int, actions: Sequence[Array]) -> None:
    def watch(action: Array) -> Outcome:
        env.observe()
        return env.advance(action)

    def step(action: Array) -> Outcome:
        frame, reward, terminated, truncated, info = env.step(action)
        changed = _differing(env.observe(), frame)
        _require(not changed, f"step() returns another observation than observe(): {changed} differ")
        return reward, terminated, truncated, info

    watched = _play(env, seed, actions, watch)
    again = _play(env, seed, actions, watch)
    _compare(watched, again, "the same seed and actions give another episode")
    blind = _play(env, seed, actions, env.advance)
    _compare(watched, blind, "observe() changes the world: an episode without it goes another way")
    _compare(watched, _play(env, seed, actions, step), "step() moves otherwise than advance()")


def _check_seeds(env: Environment, seed: int) -> None:
    starts = [env.reset(seed=seed + offset)[0] for offset in range(5)]
    _require(
        any(_differing(starts[0], start) for start in starts[1:]),
        "five seeds give one initial observation: reset() ignores its seed",
    )


def _play(env: Environment, seed: int, actions: Sequence[Array], move: Callable[[Array], Outcome]) -> Episode:
    """The first and the last observation of an episode, and the outcome of every step."""
    frames = [env.reset(seed=seed)[0]]
    outcomes: list[Outcome] = []
    for action in actions:
        outcomes.append(move(action))
        if outcomes[-1][1] or outcomes[-1][2]:
            break
    return [*frames, env.observe()], outcomes


def _compare(first: Episode, second: Episode, message: str) -> None:
    for one, other, when in zip(first[0], second[0], ("first", "last"), strict=True):
        changed = _differing(one, other)
        _require(not changed, f"{message}: {changed} differ in the {when} observation")
    rewards = [[outcome[:3] for outcome in episode[1]] for episode in (first, second)]
    _require(rewards[0] == rewards[1], f"{message}: rewards or ends differ")


def _differing(one: Frame, other: Frame) -> list[str]:
    return [key for key in one if key not in other or not np.array_equal(one[key], other[key])]


def check_policy(
    policy: Policy, *, trained: bool = True, seed: int = 0, observation: dict[str, Tensor] | None = None
) -> None:
    """Check that `policy` keeps the contract of `gpc.policy.Policy`, on a batch of 4 observations, random ones by default.

    Give real ones, key -> (4, n_obs_steps, *shape), where random numbers are far from anything that the policy has seen.

    Checked: specs; shape, dtype and finiteness of `denoised` over the trained range of sigma; that the same call gives the
    same answer and changes nothing that it was given; that rows do not see each other; and, for weights that are
    `trained`, that noise is removed at large sigma and `denoised` goes to x as sigma goes to zero (a wrong sign, a wrong
    schedule or a wrong prediction type shows here). Images are the observations of shape (height, width, 3), as uint8.
    """
    try:
        _check_specs(policy)
        generator = torch.Generator().manual_seed(seed)
        observation = observation or {
            key: _random_observation((4, policy.observations.n_obs_steps, *shape), generator)
            for key, shape in policy.observations.shapes.items()
        }
        shape = (4, policy.actions.horizon, policy.actions.dim)
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        high = min(policy.levels.sigma_max, 40.0)
        low = max(policy.levels.sigma_min, 1e-3)
        sigmas = snap_sigmas(karras_sigmas(16, low, high), policy.levels)
        for sigma in sigmas[:-1]:
            _check_denoised(policy, observation, sigma * noise, sigma)
        for low, high in zip(sigmas[1:-1], sigmas[:-2], strict=True):
            _check_levels(policy, observation, high * noise, torch.stack([low, high, high, low]))
        if trained:
            _check_limits(policy, observation, noise, sigmas)
    except AssertionError as error:
        raise AssertionError(f"{type(policy).__name__}: {error}") from None


def _random_observation(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 5 and shape[-1] == 3:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _check_specs(policy: Policy) -> None:
    for name, kind in (("actions", ActionSpec), ("observations", ObservationSpec), ("name", str), ("fingerprint", str)):
        value = getattr(policy, name)
        _require(isinstance(value, kind), f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    _require(bool(policy.name and policy.fingerprint), "name and fingerprint must not be empty")
    _require(policy.fingerprint == policy.fingerprint, "the fingerprint changes from one look to the next")
    trained = policy.levels.trained
    if trained is not None:
        ends = (policy.levels.sigma_min, policy.levels.sigma_max)
        _require(
            (trained[0], trained[-1]) == ends,
            f"levels.trained ends at {trained[0]}, {trained[-1]}, the range at {ends}",
        )


def _check_denoised(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigma: Tensor) -> None:
    kept = {"x": x.clone(), **{key: value.clone() for key, value in observation.items()}}
    at = f"at sigma={float(sigma):.4g}"
    out = policy.condition(observation)(x, sigma)
    given = {"x": x, **observation}
    changed = [key for key, value in kept.items() if not torch.equal(value, given[key])]
    _require(not changed, f"condition() or the denoiser changes what it was given: {changed}")
    _require(out.shape == x.shape, f"denoised has shape {tuple(out.shape)}, x {tuple(x.shape)}")
    _require(out.dtype == x.dtype, f"denoised is {out.dtype}, x is {x.dtype}: the state must stay float64")
    _require(bool(torch.isfinite(out).all()), f"denoised is not finite {at}")
    denoiser = policy.condition(observation)
    _require(torch.equal(denoiser(x, sigma), out), f"the same call gives another answer {at}")
    _require(torch.equal(denoiser(x, sigma.expand(len(x))), out), f"sigma as () and as (batch,) differ {at}")
    other = {key: torch.cat([value[:1], torch.zeros_like(value[1:])]) for key, value in observation.items()}
    mixed = policy.condition(other)(torch.cat([x[:1], -x[1:]]), sigma)
    apart = float((mixed[0] - out[0]).abs().max() / (1 + sigma))
    _require(apart < 1e-4, f"a row depends on the other rows of its batch {at} (by {apart:.2g})")


def _check_levels(policy: Policy, observation: dict[str, Tensor], x: Tensor, sigmas: Tensor) -> None:
    """Check that each row of a batch is denoised at its own level, sigmas (batch,)."""
    denoiser = policy.condition(observation)
    alone = torch.stack([denoiser(x, sigma)[row] for row, sigma in enumerate(sigmas)])
    apart = float(((denoiser(x, sigmas) - alone).abs().amax((1, 2)) / (1 + sigmas)).max())
    _require(apart < 1e-4, f"rows of sigma=(batch,) are not denoised at their own level (apart by {apart:.2g})")


def _check_limits(policy: Policy, observation: dict[str, Tensor], noise: Tensor, sigmas: Tensor) -> None:
    denoiser = policy.condition(observation)
    high = float(sigmas[0])
    left = float(denoiser(sigmas[0] * noise, sigmas[0]).square().mean().sqrt())
    _require(
        left < 0.5 * high,
        f"at sigma={high:.4g} the denoised action has an RMS of {left:.3g}: the noise is not removed; look at the "
        "prediction type, the sign of the velocity and the schedule",
    )
    clean = last(euler(denoiser, sigmas[0] * noise, sigmas))
    for sigma in sigmas[sigmas < 0.5][:-1]:
        error = float((denoiser(clean + sigma * noise, sigma) - clean).square().mean().sqrt())
        _require(
            error <= 1.2 * float(sigma) + 0.02,
            f"at sigma={float(sigma):.4g} the denoised action is {error:.3g} away from the clean one, further than the noise "
            "itself; look at the prediction type, the sign of the velocity and the schedule",
        )


def check_robot(robot: Robot, *, action: Command | None = None, steps: int = 20, deadline: float = 0.1) -> None:
    """Check that `robot`, not connected yet, keeps the contract of `gpc.bridge.robot.Robot`. It moves: clear its way.

    `action` is sent `steps` times; by default where the robot says first that it is, if its observation has the action's
    features. A read or an action may take `deadline` seconds. Checked: features; that observations are what these promise,
    finite, and new arrays; that `send_action` leaves its argument alone and returns what was sent; that a robot that is not
    connected refuses both; that `disconnect` may be called again.
    """
    try:
        _check_features(robot)
        _check_unconnected(robot, "before connect()", action)
        robot.connect(calibrate=False)
        try:
            sent = _check_connected(robot, action, steps, deadline)
        except BaseException:
            _raises(robot.disconnect)
            raise
        robot.disconnect()
        _check_unconnected(robot, "after disconnect()", sent)
        _check_second_disconnect(robot)
    except AssertionError as error:
        raise AssertionError(f"{type(robot).__name__}: {error}") from None


def _check_features(robot: Robot) -> None:
    sides = {"observation_features": robot.observation_features, "action_features": robot.action_features}
    again = {"observation_features": robot.observation_features, "action_features": robot.action_features}
    for side, features in sides.items():
        _require(isinstance(features, Mapping) and bool(features), f"{side} must be a dict with one feature or more")
        _require(list(features.items()) == list(again[side].items()), f"{side} change from one look to the next")
        for name, feature in features.items():
            array = isinstance(feature, tuple) and all(isinstance(size, int) and size > 0 for size in feature)
            fits = feature is float or (array and side == "observation_features")
            _require(isinstance(name, str) and name != "", f"{side}: the name {name!r} is not a word")
            _require(fits, f"{side}[{name!r}] is {feature!r}, neither float nor the shape of an array")


def _check_unconnected(robot: Robot, when: str, action: Command | None) -> None:
    _require(robot.is_connected is False, f"is_connected is {robot.is_connected!r} {when}")
    _require(_raises(robot.get_observation), f"get_observation() raises nothing {when}")
    if action is not None:
        _require(_raises(lambda: robot.send_action(dict(action))), f"send_action() raises nothing {when}")


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


def _check_connected(robot: Robot, action: Command | None, steps: int, deadline: float) -> Command:
    """Returns the action that was sent."""
    _require(robot.is_connected is True, f"is_connected is {robot.is_connected!r} after connect()")
    _require(isinstance(robot.is_calibrated, bool), f"is_calibrated is {robot.is_calibrated!r}, not a bool")
    sent, seen = dict(action or {}), list[tuple[str, Array, Array]]()
    for _ in range(steps):
        reading = _timed(robot.get_observation, "get_observation()", deadline)
        _check_reading(robot, reading)
        for name, array, copy in seen:
            fresh = not np.shares_memory(array, reading[name]) and np.array_equal(array, copy)
            _require(fresh, f"get_observation()[{name!r}] is the robot's own buffer: an older one changed, or will")
        seen += [(name, value, value.copy()) for name, value in reading.items() if isinstance(value, np.ndarray)]
        sent = sent or _where(robot, reading)  # the first one: an arm that sags would sink with each new one
        _check_sending(robot, sent, deadline)
    return sent


def _check_second_disconnect(robot: Robot) -> None:
    again = Thread(target=_raises, args=(robot.disconnect,), daemon=True)
    again.start()
    again.join(1.0)
    _require(not again.is_alive(), "a second disconnect() does not return within a second")
    _require(not robot.is_connected, "is_connected is true after a second disconnect()")


def _timed(call: Callable[[], Any], name: str, deadline: float) -> Any:
    begin = time.monotonic()
    result = call()
    took = time.monotonic() - begin
    _require(took <= deadline, f"{name} took {took:.3f} s, the deadline is {deadline:g} s")
    return result


def _check_reading(robot: Robot, reading: Reading) -> None:
    features = robot.observation_features
    _require(isinstance(reading, Mapping), f"get_observation() returns a {type(reading).__name__}, not a dict")
    differ = sorted(set(features) ^ set(reading))
    _require(not differ, f"get_observation() and observation_features differ in {differ}")
    for name, value in reading.items():
        what = f"get_observation()[{name!r}]"
        if features[name] is float:
            _check_number(value, what)
            continue
        _require(isinstance(value, np.ndarray), f"{what} is a {type(value).__name__}, not an array")
        _require(value.shape == features[name], f"{what} is {value.shape}, observation_features says {features[name]}")
        picture = len(value.shape) == 3 and value.shape[-1] == 3
        _require(not picture or value.dtype == np.uint8, f"{what} is a picture of {value.dtype}, not of uint8")
        _require(bool(np.isfinite(value).all()), f"{what} is not finite")


def _check_number(value: Any, what: str) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    _require(number, f"{what} is a {type(value).__name__}, not a number")
    _require(bool(np.isfinite(value)), f"{what} is {value}, not finite")


def _where(robot: Robot, reading: Reading) -> Command:
    unknown = [name for name in robot.action_features if name not in reading]
    _require(not unknown, f"the observation does not say where {unknown} are: give an action that may be sent")
    return {name: float(reading[name]) for name in robot.action_features}


def _check_sending(robot: Robot, action: Command, deadline: float) -> None:
    given = dict(action)
    sent = _timed(lambda: robot.send_action(given), "send_action()", deadline)
    _require(given == action, "send_action() changes what it was given")
    _require(isinstance(sent, Mapping), f"send_action() returns a {type(sent).__name__}, not what was sent")
    differ = sorted(set(robot.action_features) ^ set(sent))
    _require(not differ, f"what send_action() returns and action_features differ in {differ}")
    for name, value in sent.items():
        _check_number(value, f"send_action()[{name!r}]")
