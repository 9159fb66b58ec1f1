"""The one thread in which a served policy computes; chunks that are requested at the same time are one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError
from gpc.inference.actor import pad_batch
from gpc.inference.chunk import sample_actions
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy
from gpc.types import Array


@dataclass(frozen=True)
class InferenceRequest:
    """One chunk to sample.

    Attributes:
        observation: key -> (n_obs_steps, *shape), as the policy reads it.
        seed: seed of the noise.
        chunk: number of the chunk in its episode.
        known: actions to continue, (horizon, action).
        weight: how far each step is drawn to `known`, (horizon,) from 0 to 1.
    """

    observation: dict[str, Array]
    seed: int
    chunk: int
    known: Array
    weight: Array


class InferenceResult(NamedTuple):
    """A chunk (horizon, action) in the environment's units, and its batch's time."""

    chunk: Array
    infer_ms: float


class Task(NamedTuple):
    """Something to compute, and the future of its result."""

    work: InferenceRequest | Callable[[], Any]
    future: Future[Any]


class InferenceThread:
    """Computes what is submitted, in order.

    Requests that come while it is busy are the next batch; it never waits for more of them. With `reproducible` batches are
    padded, so that a chunk is bitwise that of `gpc evaluate`, whatever shares its batch; networks must compute with one thread
    (`gpc.inference.threads.torch_threads`).
    """

    def __init__(self, policy: Policy, sampling: Sampling, max_batch: int = 256, reproducible: bool = False) -> None:
        """Sample one chunk, and start the thread.

        Args:
            policy: policy to serve.
            sampling: settings of the sampler.
            max_batch: largest number of chunks in a batch.
            reproducible: whether batches are padded.

        Raises:
            InputError: If the policy and the sampler do not fit.
        """
        if policy.actions.start > 0 or policy.actions.start + policy.actions.horizon < 1:
            raise InputError(f"{policy.name} predicts from step {policy.actions.start}, not what to do now")
        self.policy, self.sampling, self.max_batch, self.reproducible = policy, sampling, max_batch, reproducible
        self._sample([self._blank()])
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="gpc-inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def submit(self, work: InferenceRequest | Callable[[], Any]) -> Future[Any]:
        """Queue a request or a function.

        Returns:
            The future of an `InferenceResult`, or of what the function returns. Cancelling it drops work that has not started.
        """
        future: Future[Any] = Future()
        self._tasks.put(Task(work, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, within a second."""
        self._tasks.put(None)
        self._thread.join(timeout=1)

    @torch.no_grad()
    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            tasks = [each for each in [task, *self._waiting()] if each.future.set_running_or_notify_cancel()]
            chunks = [each for each in tasks if isinstance(each.work, InferenceRequest)]
            for each in tasks:
                if not isinstance(each.work, InferenceRequest):
                    _run_task(each.future, each.work)
            if chunks:
                self._run_batch(chunks)

    def _waiting(self) -> list[Task]:
        """Return the other tasks that have come, up to a batch."""
        tasks: list[Task] = []
        while len(tasks) < self.max_batch - 1:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is None:
                self._tasks.put(None)
                break
            tasks.append(task)
        return tasks

    def _run_batch(self, tasks: Sequence[Task]) -> None:
        """Sample the chunks together, or one by one if that fails for one of them."""
        start = time.perf_counter()
        try:
            chunks = self._sample([cast(InferenceRequest, task.work) for task in tasks])
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].future.set_exception(error)
            else:
                for task in tasks:
                    self._run_batch([task])
            return
        duration = 1000 * (time.perf_counter() - start)
        for task, chunk in zip(tasks, chunks, strict=True):
            task.future.set_result(InferenceResult(chunk, duration))

    def _sample(self, requests: Sequence[InferenceRequest]) -> Array:
        """Return chunks (len(requests), horizon, action)."""
        rows = np.arange(len(requests))
        batch = [requests[int(row)] for row in (pad_batch(rows) if self.reproducible else rows)]
        observation = {key: np.stack([r.observation[key] for r in batch]) for key in batch[0].observation}
        seeds, chunks = np.array([r.seed for r in batch], np.uint64), np.array([r.chunk for r in batch], np.uint64)
        weight = np.stack([r.weight for r in batch])
        target = InpaintTarget(np.stack([r.known for r in batch]), weight) if weight.any() else None
        return sample_actions(self.policy, self.sampling, observation, seeds, chunks, target)[: len(requests)]

    def _blank(self) -> InferenceRequest:
        """Return a request with an observation of zeros."""
        spec = self.policy.observations
        steps = spec.n_obs_steps
        observation = {k: spec.conform(k, np.zeros((steps, *shape), np.uint8)) for k, shape in spec.shapes.items()}
        actions = self.policy.actions
        return InferenceRequest(observation, 0, 0, np.zeros((actions.horizon, actions.dim)), np.zeros(actions.horizon))


def _run_task(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
