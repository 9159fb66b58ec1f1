"""The contracts of the package as checks, for the tests of anyone who writes an adapter.

A check returns nothing, or raises an AssertionError whose message names the promise that is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from gpc.rollout.env import Environment
from gpc.types import Array, Frame

Outcome = tuple[float, bool, bool, dict[str, Any]]
Episode = tuple[list[Frame], list[Outcome]]


def check_env(env: Environment, *, seed: int = 0, steps: int = 20) -> None:
    """Check that `env` keeps the contract of `gpc.rollout.env.Environment`, in episodes of random actions.

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
    _require(isinstance(env, Environment), "is not a gpc.rollout.env.Environment: subclass it")
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
