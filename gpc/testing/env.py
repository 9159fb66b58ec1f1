"""`check_env`: the contract of an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from gpc.rollout.env import Environment
from gpc.testing.contract import require
from gpc.types import Array, Frame

StepOutcome = tuple[float, bool, bool, dict[str, Any]]
Playback = tuple[list[Frame], list[StepOutcome]]


def check_env(env: Environment, *, seed: int = 0, steps: int = 20) -> None:
    """Check the contract of `gpc.rollout.env.Environment`.

    Checked in a few episodes of random actions: spaces, shapes, dtypes and bounds; the outcome of `advance`; that
    `observe` changes nothing and returns new arrays; that `step` is `advance` and `observe`; that an episode depends on
    its seed and actions alone.

    Args:
        env: an environment.
        seed: seed of the episodes and of the actions.
        steps: steps of an episode, or fewer if it ends before.

    Raises:
        AssertionError: If the contract is broken; the message names the requirement.
    """
    try:
        _check_spaces(env)
        env.action_space.seed(seed)
        actions = [env.action_space.sample() for _ in range(steps)]
        _check_observing(env, seed, actions)
        _check_repeats(env, seed, actions)
        _check_seeds(env, seed)
    except AssertionError as error:
        raise AssertionError(f"{type(env).__name__}: {error}") from None


def _check_spaces(env: Environment) -> None:
    require(isinstance(env, Environment), "is not a gpc.rollout.env.Environment: subclass it")
    space: spaces.Space[Any] = env.observation_space
    boxes = isinstance(space, spaces.Dict) and all(isinstance(box, spaces.Box) for box in space.values())
    require(boxes, f"observation_space must be a Dict of Box, not {space}")
    action: spaces.Space[Any] = env.action_space
    require(
        isinstance(action, spaces.Box) and len(action.shape) == 1,
        f"action_space must be a Box of shape (action_dim,), not {action}",
    )


def _check_frame(env: Environment, frame: Frame, source: str) -> None:
    space: Any = env.observation_space
    require(isinstance(frame, dict), f"{source} returns a {type(frame).__name__}, not a dict")
    require(
        set(frame) == set(space),
        f"{source} returns the keys {sorted(frame)}, observation_space has {sorted(space)}",
    )
    for key, value in frame.items():
        require(isinstance(value, np.ndarray), f'{source}["{key}"] is a {type(value).__name__}, not an array')
        actual, expected = (value.shape, value.dtype), (space[key].shape, space[key].dtype)
        require(actual == expected, f'{source}["{key}"] is {actual}, observation_space has {expected}')
        require(bool(np.isfinite(value).all()), f'{source}["{key}"] is not finite')
        require(space[key].contains(value), f'{source}["{key}"] is outside the bounds of observation_space')


def _check_single_keys(env: Environment, frame: Frame) -> None:
    for key, value in frame.items():
        alone = env.observe([key])
        require(list(alone) == [key], f"observe([{key!r}]) returns the keys {sorted(alone)}")
        require(np.array_equal(alone[key], value), f"observe([{key!r}]) differs from observe()[{key!r}]")


def _check_outcome(outcome: StepOutcome) -> None:
    require(len(outcome) == 4, "advance() must return reward, terminated, truncated, info")
    reward, terminated, truncated, info = outcome
    require(isinstance(reward, float), f"advance(): the reward is a {type(reward).__name__}, not a float")
    require(bool(np.isfinite(reward)), f"advance(): the reward is {reward}")
    require(isinstance(info, dict), f"advance(): info is a {type(info).__name__}, not a dict")
    require("is_success" in info, 'advance(): info has no "is_success"')
    flags = {"terminated": terminated, "truncated": truncated}
    if info["is_success"] is not None:
        flags['info["is_success"]'] = info["is_success"]
    for name, flag in flags.items():
        require(isinstance(flag, bool | np.bool_), f"advance(): {name} is a {type(flag).__name__}, not a bool")


def _check_observing(env: Environment, seed: int, actions: Sequence[Array]) -> None:
    frame, info = env.reset(seed=seed)
    require(isinstance(info, dict), f"reset(): info is a {type(info).__name__}, not a dict")
    _check_frame(env, frame, "reset()")
    require(_differing(frame, env.observe()) == [], "observe() after reset() differs from what reset() returned")
    for action in actions:
        before = env.observe()
        copies = {key: value.copy() for key, value in before.items()}
        outcome = env.advance(action)
        _check_outcome(outcome)
        after = env.observe()
        _check_frame(env, after, "observe()")
        changed = _differing(before, copies)
        require(not changed, f"observe() returns a buffer of its own: {changed} changed when the world moved")
        changed = _differing(after, env.observe())
        require(not changed, f"observe() twice in a row differs in {changed}")
        _check_single_keys(env, after)
        if outcome[1] or outcome[2]:
            return


def _check_repeats(env: Environment, seed: int, actions: Sequence[Array]) -> None:
    def observe_and_advance(action: Array) -> StepOutcome:
        env.observe()
        return env.advance(action)

    def step(action: Array) -> StepOutcome:
        frame, reward, terminated, truncated, info = env.step(action)
        changed = _differing(env.observe(), frame)
        require(not changed, f"step() returns another observation than observe(): {changed} differ")
        return reward, terminated, truncated, info

    observed = _play(env, seed, actions, observe_and_advance)
    again = _play(env, seed, actions, observe_and_advance)
    _compare(observed, again, "the same seed and actions give another episode")
    blind = _play(env, seed, actions, env.advance)
    _compare(observed, blind, "observe() changes the world: an episode without it goes another way")
    _compare(observed, _play(env, seed, actions, step), "step() moves otherwise than advance()")


def _check_seeds(env: Environment, seed: int) -> None:
    starts = [env.reset(seed=seed + offset)[0] for offset in range(5)]
    require(
        any(_differing(starts[0], start) for start in starts[1:]),
        "five seeds give one initial observation: reset() ignores its seed",
    )


def _play(env: Environment, seed: int, actions: Sequence[Array], move: Callable[[Array], StepOutcome]) -> Playback:
    """Return the first and last observation, and the outcome of every step."""
    frames = [env.reset(seed=seed)[0]]
    outcomes: list[StepOutcome] = []
    for action in actions:
        outcomes.append(move(action))
        if outcomes[-1][1] or outcomes[-1][2]:
            break
    return [*frames, env.observe()], outcomes


def _compare(first: Playback, second: Playback, message: str) -> None:
    for one, other, when in zip(first[0], second[0], ("first", "last"), strict=True):
        changed = _differing(one, other)
        require(not changed, f"{message}: {changed} differ in the {when} observation")
    rewards = [[outcome[:3] for outcome in episode[1]] for episode in (first, second)]
    require(rewards[0] == rewards[1], f"{message}: rewards or ends differ")


def _differing(one: Frame, other: Frame) -> list[str]:
    return [key for key in one if key not in other or not np.array_equal(one[key], other[key])]
