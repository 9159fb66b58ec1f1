"""Answers to a client's messages: observations become chunks, noisy chunks become denoised ones.

A message is not trusted: it is checked here, before the policy gets it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpc.errors import InputError
from gpc.inert import notice_once
from gpc.policy.names import describe_names, fitting_names
from gpc.policy.observation import TASK, flatten
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.score.denoiser import Denoiser
from gpc.serve.batching import InferenceRequest, InferenceResult, InferenceThread
from gpc.serve.codec import CHUNK, DENOISED, ENCODE, HANDLE, KNOWN, RESET, SEED, SIGMA, WEIGHT, X, read_array, read_int
from gpc.types import Array

HANDLES = 4  # encoded observations that a session keeps; the oldest is dropped first
SENT = (np.ndarray, np.number, np.bool_, int, float, str)  # types of an observation in a message

Message = Mapping[Any, Any]
Reply = dict[str, Any]


class Session:
    """One client: its seed, its count of chunks, and what it has encoded."""

    def __init__(self, inference: InferenceThread, seed: int) -> None:
        self.inference, self.policy, self.seed = inference, inference.policy, seed
        self.chunks = 0
        self.total_ms: float | None = None  # of the last message, from its arrival until its answer was sent
        self._encoded: OrderedDict[int, tuple[Denoiser, int]] = OrderedDict()

    async def answer(self, message: Any) -> Reply:
        """Return the answer to one message.

        Raises:
            InputError: If it is none of the messages in docs/serving.md.
        """
        if not isinstance(message, dict):
            raise InputError(f"message is a {type(message).__name__}; send an observation: a map of arrays by key")
        if RESET in message:
            self.seed, self.chunks = read_int(message, RESET), 0
            return {RESET: self.seed}
        if ENCODE in message:
            return await self._encode(message[ENCODE])
        if HANDLE in message:
            return await self._denoise(message)
        return await self._infer(message)

    async def _infer(self, message: Message) -> Reply:
        start = time.perf_counter()
        actions = self.policy.actions
        seed, chunk = read_int(message, SEED, self.seed), read_int(message, CHUNK, self.chunks)
        request = InferenceRequest(
            read_observation(message, self.policy.observations), seed, chunk, *read_known(message, actions)
        )
        answer: InferenceResult = await asyncio.wrap_future(self.inference.submit(request))
        self.chunks = chunk + 1
        timing = {"infer_ms": 1000 * (time.perf_counter() - start)}
        if self.total_ms is not None:
            timing["prev_total_ms"] = self.total_ms
        return {
            "actions": answer.chunk[-actions.start :],
            "policy_timing": {"infer_ms": answer.infer_ms},
            "server_timing": timing,
        }

    async def _encode(self, observation: Any) -> Reply:
        """Encode a batch of observations once, for the calls of `_denoise`."""
        batch = read_batch(observation, self.policy.observations, self.inference.max_batch)
        denoiser = await self._compute(lambda: self.inference.placed.condition(batch))
        handle = secrets.randbits(63)  # never that of another session: the client may have connected anew
        self._encoded[handle] = denoiser, len(next(iter(batch.values())))
        if len(self._encoded) > HANDLES:
            self._encoded.popitem(last=False)
        return {HANDLE: handle}

    async def _denoise(self, message: Message) -> Reply:
        """Call the denoiser of an encoded batch."""
        handle = read_int(message, HANDLE)
        if handle not in self._encoded:
            raise InputError(f"{HANDLE}={handle} is not held here (a session holds the last {HANDLES}); encode again")
        denoiser, rows = self._encoded[handle]
        actions = self.policy.actions
        x = read_array(message, X, [(rows, actions.horizon, actions.dim)])
        sigma = read_array(message, SIGMA, [(), (rows,)])
        if not (sigma > 0).all():
            raise InputError(f"{SIGMA} must be positive")
        out: Tensor = await self._compute(lambda: denoiser(torch.from_numpy(x), torch.from_numpy(sigma)))
        return {DENOISED: out.numpy()}

    async def _compute(self, function: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.inference.call(function))


def read_observation(message: Message, spec: ObservationSpec) -> dict[str, Array]:
    """Return a client's observation, key -> (n_obs_steps, *shape).

    Maps in maps are flattened, with names joined by dots. One frame is repeated for the entire history.

    Raises:
        InputError: If a key is missing or has another shape or type, or may be one of several.
    """
    message = dict(flatten(message))
    offered = {
        key: np.shape(value) for key, value in message.items() if isinstance(key, str) and isinstance(value, SENT)
    }
    names = fitting_names(spec, offered, "{}")
    if names:
        notice_once(describe_names(names))
        message |= {key: message[name] for key, name in names.items()}
    arrays = {}
    for key, shape in spec.shapes.items():
        value = read_key(message, key, spec)
        if value.shape == shape:
            value = np.broadcast_to(value, (spec.n_obs_steps, *shape))
        if value.shape != (spec.n_obs_steps, *shape):
            raise InputError(
                f"observation {key!r} has shape {value.shape}; send {shape}, or {(spec.n_obs_steps, *shape)} with its history"
            )
        arrays[key] = value
    return arrays


def read_batch(observation: Any, spec: ObservationSpec, most: int) -> dict[str, Tensor]:
    """Return observations of a remote member, key -> (batch, n_obs_steps, *shape).

    Raises:
        InputError: If a key is missing or has another shape or type, or there are more than `most` rows.
    """
    if not isinstance(observation, dict):
        raise InputError(f"{ENCODE} takes an observation: a map of arrays by key")
    tensors = spec.read({key: read_key(observation, key, spec) for key in spec.shapes})
    rows = {len(value) for value in tensors.values()}
    if len(rows) != 1 or not 1 <= max(rows) <= most:
        raise InputError(f"{ENCODE}: every key needs the same number of rows, 1 to {most} (the server's max_batch)")
    return tensors


def read_key(observation: Message, key: str, spec: ObservationSpec) -> Array:
    """Return one key of an observation as the policy reads it.

    Raises:
        InputError: If it is missing, or not what the policy reads.
    """
    if key not in observation:
        offered = ", ".join(sorted(map(str, observation))) or "nothing"
        if key == TASK:
            raise InputError(f"observation has no {key!r}; send the instruction as text under 'prompt' or 'task'")
        raise InputError(f"observation has no {key!r} {spec.shapes[key]}; it has {offered}"[:300])
    value = observation[key]
    if not isinstance(value, SENT) or (isinstance(value, str) and key != TASK):
        raise InputError(
            f"observation {key!r} is a {type(value).__name__}; send a numpy array of shape {spec.shapes[key]}"
        )
    array = spec.conform(key, value)
    if not np.isfinite(array).all():
        raise InputError(f"observation {key!r} holds NaN or infinity")
    return array


def read_known(message: Message, actions: ActionSpec) -> tuple[Array, Array]:
    """Return actions to continue and their weights: (horizon, action), (horizon,).

    Those of the message begin now, like the actions of the answer.

    Raises:
        InputError: If they have another shape, or a weight is not from 0 to 1.
    """
    chunk, weight = np.zeros((actions.horizon, actions.dim)), np.zeros(actions.horizon)
    now = -actions.start
    if KNOWN in message or WEIGHT in message:
        chunk[now:] = read_array(message, KNOWN, [chunk[now:].shape])
        weight[now:] = read_array(message, WEIGHT, [weight[now:].shape])
        if not ((weight >= 0) & (weight <= 1)).all():
            raise InputError(f"{WEIGHT} must be from 0 to 1")
    return chunk, weight
