"""The one thread in which a served policy runs: chunks that are asked for at the same time are sampled in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, cast

import numpy as np

from gpc.errors import InputError
from gpc.inference.actor import pad_batch
from gpc.inference.chunk import InpaintTarget, sample_actions
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy
from gpc.rollout.env import TASK
from gpc.types import Array


@dataclass(frozen=True)
class InferenceRequest:
    """One chunk: observation[key] (n_obs_steps, *shape), the noise of (seed, chunk number), and what is known already:
    `known` (horizon, action) with `weight` (horizon,), zeros where nothing is.
    """

    observation: dict[str, Array]
    seed: int
    chunk: int
    known: Array
    weight: Array

    @property
    def dtypes(self) -> tuple[str, ...]:
        """A picture in bytes and one in floats do not go into one array."""
        return tuple(value.dtype.str for value in self.observation.values())


class InferenceResult(NamedTuple):
    """A whole chunk (horizon, action) in the environment's units, and how long its batch took."""

    chunk: Array
    infer_ms: float


class Task(NamedTuple):
    """Something to compute, and who waits for it."""

    work: InferenceRequest | Callable[[], Any]
    future: Future[Any]


class InferenceThread:
    """Runs what is handed in, in order, without waiting for more: whatever has come while it was busy is the next batch.

    `reproducible` pads batches to a multiple of 16 rows and keeps networks to one thread, so that a chunk is bitwise what
    `gpc evaluate` computes, whatever shares its batch.
    """

    def __init__(self, policy: Policy, sampling: Sampling, max_batch: int = 256, reproducible: bool = False) -> None:
        """Samples one chunk at once: what does not fit is said before anybody asks, and the first answer is not a slow one."""
        if policy.actions.start > 0 or policy.actions.start + policy.actions.horizon < 1:
            raise InputError(f"{policy.name} predicts from step {policy.actions.start}, not what to do now")
        self.policy, self.sampling, self.max_batch, self.reproducible = policy, sampling, max_batch, reproducible
        self._plan([self._blank()])
        self._jobs: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="gpc-inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still computes."""
        return self._thread.is_alive()

    def submit(self, work: InferenceRequest | Callable[[], Any]) -> Future[Any]:
        """An `Answer`, or what the function returns; cancelling what has not begun drops it."""
        future: Future[Any] = Future()
        self._jobs.put(Task(work, future))
        return future

    def close(self) -> None:
        """Finish what was handed in, for a second at most."""
        self._jobs.put(None)
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [each for each in [job, *self._waiting()] if each.future.set_running_or_notify_cancel()]
            chunks = [each for each in jobs if isinstance(each.work, InferenceRequest)]
            for each in jobs:
                if not isinstance(each.work, InferenceRequest):
                    _run_task(each.future, each.work)
            for _, alike in groupby(sorted(chunks, key=_dtypes), _dtypes):
                self._answer(list(alike))

    def _waiting(self) -> list[Task]:
        """What else has come, up to a batch."""
        jobs: list[Task] = []
        while len(jobs) < self.max_batch - 1:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            jobs.append(job)
        return jobs

    def _answer(self, jobs: Sequence[Task]) -> None:
        """Sample the chunks together; where that fails one by one, so that it fails for its cause alone."""
        began = time.perf_counter()
        try:
            chunks = self._plan([cast(InferenceRequest, job.work) for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        took = 1000 * (time.perf_counter() - began)
        for job, chunk in zip(jobs, chunks, strict=True):
            job.future.set_result(InferenceResult(chunk, took))

    def _plan(self, requests: Sequence[InferenceRequest]) -> Array:
        """Whole chunks (len(requests), horizon, action)."""
        rows = np.arange(len(requests))
        taken = [requests[int(row)] for row in (pad_batch(rows) if self.reproducible else rows)]
        observation = {key: np.stack([r.observation[key] for r in taken]) for key in taken[0].observation}
        seeds, chunks = np.array([r.seed for r in taken], np.uint64), np.array([r.chunk for r in taken], np.uint64)
        weight = np.stack([r.weight for r in taken])
        known = InpaintTarget(np.stack([r.known for r in taken]), weight) if weight.any() else None
        return sample_actions(self.policy, self.sampling, observation, seeds, chunks, known)[: len(requests)]

    def _blank(self) -> InferenceRequest:
        spec = self.policy.observations
        observation = {
            key: np.zeros((spec.n_obs_steps, *shape), np.uint8 if keeps_uint8(key, shape) else np.float32)
            for key, shape in spec.shapes.items()
        }
        actions = self.policy.actions
        return InferenceRequest(observation, 0, 0, np.zeros((actions.horizon, actions.dim)), np.zeros(actions.horizon))


def keeps_uint8(key: str, shape: tuple[int, ...]) -> bool:
    """Whether an observation stays as it is where it comes in bytes: a picture (height, width, channels), or text."""
    return key == TASK or len(shape) == 3


def _dtypes(job: Task) -> tuple[str, ...]:
    return cast(InferenceRequest, job.work).dtypes


def _run_task(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
