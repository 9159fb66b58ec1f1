"""The one thread in which a served policy computes; chunks that are requested at the same time are one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from gpc.batching import BatchThread
from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError
from gpc.inference.actor import pad_batch
from gpc.inference.batched import CHECKED
from gpc.inference.chunk import sample_actions
from gpc.inference.device import Device
from gpc.inference.placement import batch_sizes, place
from gpc.inference.settings import Sampling
from gpc.inference.threads import Threads, use_threads
from gpc.machine import cores
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


class InferenceThread:
    """Computes what sessions submit, in order.

    Requests that come while it is busy are the next batch; it never waits for more of them. With `reproducible` batches are
    padded and networks compute with one thread, so that a chunk is bitwise that of `gpc evaluate`, whatever shares its batch.
    Without, a single request is computed with several threads.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        max_batch: int = 256,
        reproducible: bool = False,
        device: Device = Device("cpu"),
    ) -> None:
        """Start the thread, and sample batches of each size that its networks compute in.

        Args:
            policy: policy to serve.
            sampling: settings of the sampler.
            max_batch: largest number of chunks in a batch.
            reproducible: whether batches are padded.
            device: where networks compute.

        Raises:
            InputError: If the policy and the sampler do not fit.
        """
        if policy.actions.start > 0 or policy.actions.start + policy.actions.horizon < 1:
            raise InputError(f"{policy.name} predicts from step {policy.actions.start}, not what to do now")
        self.policy, self.sampling, self.max_batch, self.reproducible = policy, sampling, max_batch, reproducible
        self.placed = place(policy, device, reproducible)
        self._threads = Threads(1 if reproducible else cores())
        self._thread = BatchThread(self._sample, max_batch, "gpc-inference", torch.inference_mode)
        try:
            # the first two of a size, which differ, are compared; the third of one row has several threads
            sizes = sorted([1, *CHECKED * (batch_sizes(self.placed) or [1])])
            for number, size in enumerate(sizes):
                self.call(partial(self._sample, [self._plain(number)] * min(size, max_batch))).result()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.alive

    def submit(self, request: InferenceRequest) -> Future[InferenceResult]:
        """Queue a request; cancelling its future drops it if it has not started."""
        return self._thread.submit(request)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Queue a function, which is called by itself; networks compute with one thread."""

        def alone() -> Any:
            use_threads(1)
            return function()

        return self._thread.call(alone)

    def close(self) -> None:
        """Finish what was submitted, within a second."""
        self._thread.close(timeout=1)

    def _sample(self, requests: Sequence[InferenceRequest]) -> list[InferenceResult]:
        """Sample the chunks of requests together."""
        start = time.perf_counter()
        rows = np.arange(len(requests))
        threads = self._threads if len(rows) == 1 else Threads(1)
        batch = [requests[int(row)] for row in (pad_batch(rows) if self.reproducible else rows)]
        observation = {key: np.stack([r.observation[key] for r in batch]) for key in batch[0].observation}
        seeds, chunks = np.array([r.seed for r in batch], np.uint64), np.array([r.chunk for r in batch], np.uint64)
        weight = np.stack([r.weight for r in batch])
        target = InpaintTarget(np.stack([r.known for r in batch]), weight) if weight.any() else None
        sampled = threads.sample(
            lambda: sample_actions(self.placed, self.sampling, observation, seeds, chunks, target)
        )[: len(requests)]
        duration = 1000 * (time.perf_counter() - start)
        return [InferenceResult(chunk, duration) for chunk in sampled]

    def _plain(self, number: int) -> InferenceRequest:
        """Return a request with an observation of one number, without an instruction."""
        actions = self.policy.actions
        known, weight = np.zeros((actions.horizon, actions.dim)), np.zeros(actions.horizon)
        return InferenceRequest(self.policy.observations.plain(number), 0, 0, known, weight)
