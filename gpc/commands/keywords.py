"""Keyword arguments of `gpc.evaluate` and its siblings: an unknown one is an error that names ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from gpc.errors import InputError, suggest

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "report_episodes, or search=gpc.Grid(episodes=N)": ("episodes", "n_episodes", "num_episodes"),
    "episodes": ("n_rollouts", "num_rollouts", "n_trials", "num_trials"),
    "search=gpc.Racing(seed=N), or report_seed": ("seed",),
    "seed": ("random_state", "rng"),
    "search=gpc.Racing(budget=N)": ("budget", "n_iter"),
    "search": ("method", "algorithm", "strategy"),
    "sampler": ("sampling", "scheduler", "solver"),
    "sampler=gpc.Sampling(steps=N)": ("steps", "num_steps", "num_inference_steps"),
    "gpc.compose(policies, WEIGHTS)": ("weights", "composer"),
    "env": ("task", "environment"),
    "env=gpc.EnvSpec(NAME, max_steps=N)": ("max_steps", "max_episode_steps", "horizon"),
    "engine=gpc.Engine(lanes=N)": ("lanes", "n_envs", "num_envs", "batch_size"),
    "engine=gpc.Engine(workers=N)": ("workers", "n_jobs", "num_workers", "n_procs"),
    "run_dir": ("output", "output_dir", "out_dir", "save_dir", "log_dir", "logdir"),
    "verbose": ("progress", "progress_bar", "show_progress", "quiet"),
}
"""Our keyword, and the words of other tools, and keys of the command line, for it."""


def with_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse an unknown keyword argument of a function with a line that names ours.

    Raises:
        InputError: If the function has no argument of a name.
    """
    known = list(signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for word in kwargs:
            if word not in known:
                raise InputError(f"gpc.{function.__name__} takes no {word}={_ours(word, known)}")
        return function(*args, **kwargs)

    return checked


def _ours(word: str, known: list[str]) -> str:
    """Return the end of an error line: the argument that another word stands for."""
    for ours, words in ELSEWHERE.items():
        name = ours.partition("=")[0].partition(",")[0]
        if word in words and (name in known or name.startswith("gpc.")):
            return f"; write {ours}" + ("=..." if ours in known else "")
    return suggest(word, known)
