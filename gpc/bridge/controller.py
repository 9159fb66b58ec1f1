"""The control loop without clocks and threads: observations and chunks in, actions out, each call at a given time.

              a fresh chunk                 no chunk, no observation, a dead camera, a pause,
    hold  ----------------------->  ok  ----->  a late chunk, an action outside the limits  ----->  hold
      |                              |
      |  held for `stop_after`       |  a request: a signal, the stop key, a robot that fails
      +--------------------------->  stopped  <------------------------------------+   (for good)

In hold and stopped the robot is brought to rest and kept there (`SafetyFilter.hold`). A hold drops the old chunks: only a
chunk whose observation and age are in order ends it; after a gap between two observations, a chunk for a later one. Times
are seconds of one monotonic clock, which runs while the process is suspended (`gpc.bridge.clock`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpc.bridge.blending import ChunkBlender, PlacedChunk
from gpc.bridge.safety import ROUNDING, SafetyFilter
from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError, RunError
from gpc.schema import Seconds, check_fields
from gpc.types import Array, Frame

OK, HOLD, STOPPED = MODES = ("ok", "hold", "stopped")
DELAYS = 10  # past delays of chunks that predict the next one (Black et al. 2025 keep a buffer, too)


@dataclass(frozen=True)
class Watchdog:
    """Times in seconds after which the robot holds, and stops.

    Attributes:
        deadline: for a chunk after its request.
        max_age: of a chunk's observation when the chunk arrives, and of an action after the time for which it is meant.
        observation_deadline: for an observation after the last one.
        frozen_after: for which a camera may show the same picture, bit for bit; None: for ever.
        stop_after: for which the robot holds before it stops.
    """

    deadline: Seconds = 0.5
    max_age: Seconds = 1.0
    observation_deadline: Seconds = 0.3
    frozen_after: Seconds | None = 2.0
    stop_after: Seconds = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "watchdog.")


class ChunkRequest(NamedTuple):
    """A request for a chunk.

    Attributes:
        number: number of the request, from 0.
        step: absolute step of the observation.
        at: time of the observation.
        observation: key -> (n_obs_steps, *shape).
        known: actions that the chunk continues, None if it is sampled freely.
    """

    number: int
    step: int
    at: float
    observation: Mapping[str, Array]
    known: InpaintTarget | None


class ChunkReply(NamedTuple):
    """The chunk (horizon, dim) for a request, or the reason why there is none."""

    number: int
    chunk: Array | None
    reason: str = ""


class Event(NamedTuple):
    """An event for the operator and the record."""

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class ChunkSpec:
    """What chunks and observations look like.

    Attributes:
        start: step of the first action, counted from the observation; 0 or less.
        horizon: steps of a chunk.
        dim: dimensions of an action.
        n_obs_steps: length of the observation history.
        substeps: actions that are sent for each step of a chunk.
    """

    start: int
    horizon: int
    dim: int
    n_obs_steps: int
    substeps: int = 1


@dataclass
class ChunkController:
    """Decides what to send in each period.

    Call `observe` at the beginning of a step, `receive` for each reply, then `act`.

    Attributes:
        spec: shape of chunks and observations.
        blender: how chunks become actions.
        safety_filter: check of every action.
        watchdog: time limits.
        mode: "ok", "hold" or "stopped".
        reason: why the mode is what it is.
        events: events since the list was last cleared.
        step: steps of chunks that were executed.
        accepted_request: request of the newest accepted chunk.
    """

    spec: ChunkSpec
    blender: ChunkBlender
    safety_filter: SafetyFilter
    watchdog: Watchdog
    mode: str = HOLD
    reason: str = "waiting for the first chunk"
    events: list[Event] = field(default_factory=list)
    step: int = 0
    accepted_request: ChunkRequest | None = None
    _substep: int = 0  # actions sent since the step began
    _chunks: list[PlacedChunk] = field(default_factory=list)
    _history: deque[Frame] = field(default_factory=deque)
    _observed_at: float | None = None  # time of the newest observation
    _acted_at: float | None = None  # time of the last call of `act`
    _changed_at: dict[str, float] = field(default_factory=dict)  # time of each camera's newest different picture
    _held_since: float | None = None
    _pending: dict[int, ChunkRequest] = field(default_factory=dict)
    _next_number: int = 0
    _next_request: int = 0  # step at which the next request is due
    _delays: deque[int] = field(default_factory=lambda: deque(maxlen=DELAYS))
    _rejected: str = ""  # why the newest chunk was rejected
    _read_error: str = ""

    def __post_init__(self) -> None:
        end = self.spec.start + self.spec.horizon
        if self.spec.start > 0 or not 1 <= self.blender.request_every <= end:
            raise InputError(
                f"stitch: a chunk is requested every {self.blender.request_every} steps, the policy predicts {end} from "
                f"now; choose 1 to {end}"
            )
        self._history = deque(maxlen=self.spec.n_obs_steps)

    @property
    def step_begins(self) -> bool:
        """Whether the next call of `act` begins a step, so that `observe` is due."""
        return self._substep == 0

    def observe(self, now: float, frame: Frame) -> ChunkRequest | None:
        """Take a new observation.

        Args:
            now: time at which it was taken.
            frame: key -> array.

        Returns:
            The request for a chunk, if one is due.
        """
        if self._observed_at is not None and (gap := now - self._observed_at) > self.watchdog.observation_deadline:
            self.interrupt(now, f"no observation for {gap:.3f} s")
        for key, value in frame.items():
            if value.ndim > 1 and (not self._history or not np.array_equal(value, self._history[-1][key])):
                self._changed_at[key] = now
        self._history.extend([frame] * (1 if self._history else self.spec.n_obs_steps))
        self._observed_at, self._read_error = now, ""
        waiting = [request for request in self._pending.values() if now - request.at <= self.watchdog.deadline]
        if self.mode == STOPPED or waiting or (self.mode == OK and self.step < self._next_request):
            return None
        return self._request(now)

    def receive(self, now: float, reply: ChunkReply) -> None:
        """Take a reply; record and drop a chunk that must not be executed.

        Such a chunk is late, out of order, damaged or outside the limits.
        """
        request = self._pending.get(reply.number)
        if request is None:
            self._log(now, "discarded", f"chunk {reply.number} came out of order")
            return
        for number in [number for number in self._pending if number <= reply.number]:
            del self._pending[number]
        reason = reply.reason if reply.chunk is None else self._rejection(now, request, reply.chunk)
        if reason:
            self._rejected = f"chunk {reply.number}: {reason}"
            self._next_request = self.step  # at the next observation
            self._log(now, "refused", self._rejected)
            return
        assert reply.chunk is not None
        self._rejected, self.accepted_request = "", request
        self._delays.append(self.step - request.step)
        self._chunks = [*self._chunks, self._place(request, reply.chunk)][-self.blender.max_chunks :]

    def act(self, now: float) -> Array | None:
        """Return the action (dim,) to send now.

        Returns:
            None as long as nothing was ever sent and there is no chunk.
        """
        if self._acted_at is not None and now - self._acted_at > self.watchdog.observation_deadline:
            self.safety_filter.assume_rest()
        self._acted_at = now
        reason, action = self._fault(now) or self._drop_late_chunks(now), None
        if self.mode != STOPPED and not reason:
            action = self._next_action()
            reason = "the plan ran out" if action is None else self.safety_filter.accept(action) or ""
        if self.mode == STOPPED or reason:
            return self._hold(now, f"{reason}; {self._rejected}" if self._rejected else reason)
        if self.mode != OK:
            self._set_mode(now, OK, "a fresh chunk")
        self._held_since = None
        self._advance(executed=True)
        return action

    def read_failed(self, now: float, reason: str) -> None:
        """Record that the robot gave no observation."""
        if reason != self._read_error:
            self._log(now, "unread", reason)
        self._read_error = reason

    def interrupt(self, now: float, reason: str) -> None:
        """Drop chunks and requests, and hold until a later observation has a chunk."""
        self._pending.clear()
        self._begin_hold(now, reason)

    def stop(self, now: float, reason: str) -> None:
        """Stop for good; the first reason stays."""
        if self.mode != STOPPED:
            self._set_mode(now, STOPPED, reason)

    @property
    def _step_seconds(self) -> float:
        return self.safety_filter.limits.dt * self.spec.substeps

    def _request(self, now: float) -> ChunkRequest:
        observation = {key: np.stack([frame[key] for frame in self._history]) for key in self._history[-1]}
        request = ChunkRequest(self._next_number, self.step, now, observation, self._known())
        self._pending[self._next_number] = request
        self._next_number += 1
        self._next_request = self.step + self.blender.request_every
        return request

    def _known(self) -> InpaintTarget | None:
        """Return the actions that the next chunk continues."""
        if not self._chunks:
            return None
        first, horizon = self.step + self.spec.start, self.spec.horizon
        actions = [self.blender.blend(self._chunks, first + i) for i in range(horizon)]
        past = -self.spec.start  # steps of the chunk before now
        planned = next((i for i, action in enumerate(actions[past:]) if action is None), horizon - past)
        weights = self.blender.inpaint_weights(horizon - past, planned, max(self._delays, default=0))
        if weights is None:
            return None
        target = np.stack([np.zeros(self.spec.dim) if action is None else action for action in actions])
        past_weights = [float(action is not None) for action in actions[:past]]
        return InpaintTarget(target[None], np.concatenate([past_weights, weights]))

    def _rejection(self, now: float, request: ChunkRequest, chunk: Array) -> str:
        """Return why a chunk is not accepted; empty if it is."""
        shape = (self.spec.horizon, self.spec.dim)
        if now - request.at > self.watchdog.max_age:
            return f"its observation is {now - request.at:.3f} s old (max_age {self.watchdog.max_age:g} s)"
        if chunk.shape != shape or chunk.dtype.kind not in "fiu":
            return f"it is {chunk.dtype} {chunk.shape}, not numbers {shape}"
        upcoming = self._upcoming(self._place(request, chunk))
        if upcoming is None:
            return "it has no step left to execute"
        return self.safety_filter.violation(upcoming) or ""

    def _place(self, request: ChunkRequest, chunk: Array) -> PlacedChunk:
        start = self.spec.start
        return PlacedChunk(request.step + start, chunk.astype(np.float64), request.at + start * self._step_seconds)

    def _upcoming(self, chunk: PlacedChunk) -> Array | None:
        """Return the actions (n, dim) that would be sent of a chunk from now on."""
        first, n = self.step - chunk.first, self.spec.substeps
        if first >= len(chunk.actions):
            return None
        steps = chunk.actions[first:]
        if n == 1:
            return steps
        following = np.concatenate([steps[1:], steps[-1:]])
        share = np.arange(n)[None, :, None] / n
        with np.errstate(invalid="ignore"):  # infinite actions are rejected next
            actions = (1 - share) * steps[:, None] + share * following[:, None]
        return np.asarray(actions.reshape(-1, self.spec.dim)[self._substep :])

    def _next_action(self) -> Array | None:
        """Return the action of this period, interpolated between two steps of the chunks."""
        action = self.blender.blend(self._chunks, self.step)
        if action is None or self._substep == 0:
            return action
        following = self.blender.blend(self._chunks, self.step + 1)
        share = self._substep / self.spec.substeps
        return action if following is None else (1 - share) * action + share * following

    def _fault(self, now: float) -> str:
        """Return why the robot must hold whatever the chunks are; empty if it need not."""
        watchdog = self.watchdog
        if self._observed_at is None or now - self._observed_at > watchdog.observation_deadline:
            duration = "" if self._observed_at is None else f" for {now - self._observed_at:.3f} s"
            return f"no observation{duration}" + (f": {self._read_error}" if self._read_error else "")
        for key, since in self._changed_at.items():
            if watchdog.frozen_after is not None and now - since > watchdog.frozen_after:
                return f"camera {key} has shown the same picture for {now - since:.3f} s"
        oldest = min((request.at for request in self._pending.values()), default=now)
        if now - oldest > watchdog.deadline:
            return f"no chunk within {watchdog.deadline:g} s"
        return ""

    def _drop_late_chunks(self, now: float) -> str:
        """Drop chunks more than `max_age` behind their time.

        Returns:
            The reason to hold if no chunk is left, else an empty text.
        """
        steps = self.step + self._substep / self.spec.substeps
        late = [now - chunk.time - (steps - chunk.first) * self._step_seconds for chunk in self._chunks]
        max_late = self.watchdog.max_age + ROUNDING
        if late and min(late) > max_late:
            return f"the plan is {min(late):.3f} s behind its time (max_age {self.watchdog.max_age:g} s)"
        self._chunks = [chunk for chunk, seconds in zip(self._chunks, late, strict=True) if seconds <= max_late]
        return ""

    def _begin_hold(self, now: float, reason: str) -> float:
        """Drop the chunks; return the time at which the hold began."""
        if self.mode == OK:
            self._set_mode(now, HOLD, reason)
        if self._held_since is None:
            self._held_since = now
        self._chunks = []
        return self._held_since

    def _hold(self, now: float, reason: str) -> Array | None:
        since = self._begin_hold(now, reason)
        if self.mode == HOLD and now - since > self.watchdog.stop_after:
            self._set_mode(now, STOPPED, f"{reason}; held for {self.watchdog.stop_after:g} s")
        self._advance(executed=False)
        try:
            return self.safety_filter.hold()
        except RunError as error:
            self._log(now, "refused", str(error))
            self.stop(now, str(error))
            return None

    def _advance(self, executed: bool) -> None:
        """End a period; in hold observations keep their rhythm, but no step is executed."""
        self._substep = (self._substep + 1) % self.spec.substeps
        self.step += executed and self._substep == 0

    def _set_mode(self, now: float, mode: str, reason: str) -> None:
        self.mode, self.reason = mode, reason
        self._log(now, mode, reason)

    def _log(self, now: float, kind: str, text: str) -> None:
        self.events.append(Event(now, kind, text))
