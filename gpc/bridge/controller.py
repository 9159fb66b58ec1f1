"""The control loop without clocks and threads: observations and chunks in, actions out, each call at a given time.

              a fresh chunk                 no chunk, no observation, a dead camera, a pause,
    hold  ----------------------->  ok  ----->  an old plan, an action outside the limits  ----->  hold
      |                              |
      |  held for `stop_after`       |  told to: a signal, the stop key, a robot that fails
      +--------------------------->  stopped  <------------------------------------+   (for good)

In hold and stopped the robot is brought to rest and kept there (`Gate.hold`). A hold throws the old plans away: only a chunk
whose observation and age are in order ends it; after a gap between two observations, a chunk for a later one. Times are
seconds of one monotonic clock, which runs while the process is suspended (`gpc.bridge.clock`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpc.bridge.blending import ChunkBlender, PlacedChunk
from gpc.bridge.safety import ROUNDING, SafetyFilter
from gpc.errors import InputError, RunError
from gpc.inference.chunk import InpaintTarget
from gpc.schema import Seconds, check_fields
from gpc.types import Array, Frame

OK, HOLD, STOPPED = MODES = ("ok", "hold", "stopped")
DELAYS = 10  # so many past delays tell the next (Black et al. 2025 keep a buffer, too)


@dataclass(frozen=True)
class Watchdog:
    """How long each thing may take, in seconds, before the robot holds; and after `stop_after` in hold it stops.

    `deadline`: a chunk after it was asked for. `max_age`: the observation of a chunk when it arrives, and an action after the
    time that its chunk meant it for. `observation_deadline`: an observation after the last. `frozen_after`: how long a camera
    may show the same picture, bit for bit (None: for ever).
    """

    deadline: Seconds = 0.5
    max_age: Seconds = 1.0
    observation_deadline: Seconds = 0.2
    frozen_after: Seconds | None = 2.0
    stop_after: Seconds = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "watchdog.")


class ChunkRequest(NamedTuple):
    """A chunk asked for: its number, the absolute step and time of its observation, and what is decided already."""

    number: int
    step: int
    at: float
    observation: Mapping[str, Array]  # (n_obs_steps, *shape) by key
    known: InpaintTarget | None


class ChunkReply(NamedTuple):
    """What came back: a chunk (horizon, dim), or why there is none."""

    number: int
    chunk: Array | None
    reason: str = ""


class Event(NamedTuple):
    """Something that the operator and the record should know."""

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class ChunkSpec:
    """What chunks and observations look like; `substeps` actions are sent for each step of a chunk."""

    start: int
    horizon: int
    dim: int
    n_obs_steps: int
    substeps: int = 1


@dataclass
class ChunkController:
    """Call, each period: `observe` (at the beginning of a step), `receive` (each answer), then `act`."""

    expected: ChunkSpec
    blender: ChunkBlender
    safety_filter: SafetyFilter
    watchdog: Watchdog
    mode: str = HOLD
    reason: str = "waiting for the first chunk"
    events: list[Event] = field(default_factory=list)
    step: int = 0  # actions of the plan that were executed
    accepted_request: ChunkRequest | None = None  # what the newest accepted chunk answered
    _sub: int = 0  # sendings since the step began
    _plans: list[PlacedChunk] = field(default_factory=list)
    _history: deque[Frame] = field(default_factory=deque)
    _seen: float | None = None  # when the newest observation was taken
    _acted: float | None = None  # when `act` was last called
    _moved: dict[str, float] = field(default_factory=dict)  # when each camera last showed something new
    _held_since: float | None = None
    _asked: dict[int, ChunkRequest] = field(default_factory=dict)
    _number: int = 0
    _due: int = 0
    _delays: deque[int] = field(default_factory=lambda: deque(maxlen=DELAYS))
    _refused: str = ""
    _failing: str = ""

    def __post_init__(self) -> None:
        end = self.expected.start + self.expected.horizon
        if self.expected.start > 0 or not 1 <= self.blender.request_every <= end:
            raise InputError(
                f"stitch: a chunk is asked for every {self.blender.request_every} steps, the policy plans {end} from now; "
                f"choose 1 to {end}"
            )
        self._history = deque(maxlen=self.expected.n_obs_steps)

    @property
    def begins_step(self) -> bool:
        """Whether the next call of `act` is a step's first: then `observe` is due."""
        return self._sub == 0

    def observe(self, now: float, frame: Frame) -> ChunkRequest | None:
        """A new observation, taken at `now`; the chunk to ask for on seeing it, if one is due."""
        if self._seen is not None and (gap := now - self._seen) > self.watchdog.observation_deadline:
            self.interrupt(now, f"no observation for {gap:.3f} s")
        for key, value in frame.items():
            if value.ndim > 1 and (not self._history or not np.array_equal(value, self._history[-1][key])):
                self._moved[key] = now
        self._history.extend([frame] * (1 if self._history else self.expected.n_obs_steps))
        self._seen, self._failing = now, ""
        waiting = [request for request in self._asked.values() if now - request.at <= self.watchdog.deadline]
        if self.mode == STOPPED or waiting or (self.mode == OK and self.step < self._due):
            return None
        return self._ask(now)

    def receive(self, now: float, answer: ChunkReply) -> None:
        """An answer; a chunk that is late, out of order, damaged or outside the limits changes nothing but the record."""
        request = self._asked.get(answer.number)
        if request is None:
            self._note(now, "discarded", f"chunk {answer.number} came out of order")
            return
        for number in [number for number in self._asked if number <= answer.number]:
            del self._asked[number]
        reason = answer.reason if answer.chunk is None else self._objection(now, request, answer.chunk)
        if reason:
            self._refused = f"chunk {answer.number}: {reason}"
            self._due = self.step  # ask again at the next observation
            self._note(now, "refused", self._refused)
            return
        assert answer.chunk is not None
        self._refused, self.accepted_request = "", request
        self._delays.append(self.step - request.step)
        self._plans = [*self._plans, self._placed(request, answer.chunk)][-self.blender.max_chunks :]

    def act(self, now: float) -> Array | None:
        """The action (dim,) to send now; None as long as nothing was ever sent and nothing is planned."""
        if self._acted is not None and now - self._acted > self.watchdog.observation_deadline:
            self.safety_filter.assume_rest()
        self._acted = now
        reason, action = self._trouble(now) or self._overdue(now), None
        if self.mode != STOPPED and not reason:
            action = self._next()
            reason = "the plan ran out" if action is None else self.safety_filter.accept(action) or ""
        if self.mode == STOPPED or reason:
            return self._hold(now, f"{reason}; {self._refused}" if self._refused else reason)
        if self.mode != OK:
            self._change(now, OK, "a fresh chunk")
        self._held_since = None
        self._advance(consumed=True)
        return action

    def failed(self, now: float, reason: str) -> None:
        """The robot gave no observation."""
        if reason != self._failing:
            self._note(now, "unread", reason)
        self._failing = reason

    def interrupt(self, now: float, reason: str) -> None:
        """Hold until there is a chunk for a later observation: what was planned or asked before is void."""
        self._asked.clear()
        self._begin_hold(now, reason)

    def stop(self, now: float, reason: str) -> None:
        """Stop for good; the first reason stays."""
        if self.mode != STOPPED:
            self._change(now, STOPPED, reason)

    def _ask(self, now: float) -> ChunkRequest:
        request = ChunkRequest(self._number, self.step, now, self._stacked(), self._known())
        self._asked[self._number] = request
        self._number += 1
        self._due = self.step + self.blender.request_every
        return request

    def _stacked(self) -> dict[str, Array]:
        return {key: np.stack([frame[key] for frame in self._history]) for key in self._history[-1]}

    def _known(self) -> InpaintTarget | None:
        """What the next chunk shall go on from."""
        if not self._plans:
            return None
        first, horizon = self.step + self.expected.start, self.expected.horizon
        ahead = [self.blender.blend(self._plans, first + i) for i in range(horizon)]
        behind = -self.expected.start  # steps of the chunk that lie in the past
        left = next((i for i, action in enumerate(ahead[behind:]) if action is None), horizon - behind)
        inpaint_weights = self.blender.inpaint_weights(horizon - behind, left, max(self._delays, default=0))
        if inpaint_weights is None:
            return None
        actions = np.stack([np.zeros(self.expected.dim) if action is None else action for action in ahead])
        past = [float(action is not None) for action in ahead[:behind]]
        return InpaintTarget(actions[None], np.concatenate([past, inpaint_weights]))

    def _objection(self, now: float, request: ChunkRequest, chunk: Array) -> str:
        """Why a chunk is not taken; empty if it is."""
        wanted = (self.expected.horizon, self.expected.dim)
        if now - request.at > self.watchdog.max_age:
            return f"its observation is {now - request.at:.3f} s old (max_age {self.watchdog.max_age:g} s)"
        if chunk.shape != wanted or chunk.dtype.kind not in "fiu":
            return f"it is {chunk.dtype} {chunk.shape}, not numbers {wanted}"
        upcoming = self._upcoming(self._placed(request, chunk))
        if upcoming is None:
            return "it has no step left to execute"
        return self.safety_filter.violation(upcoming) or ""

    def _placed(self, request: ChunkRequest, chunk: Array) -> PlacedChunk:
        begins = request.at + self.expected.start * self._seconds
        return PlacedChunk(request.step + self.expected.start, chunk.astype(np.float64), begins)

    def _upcoming(self, plan: PlacedChunk) -> Array | None:
        """What would be sent of a plan from now on, (n, dim)."""
        first, n = self.step - plan.first, self.expected.substeps
        if first >= len(plan.actions):
            return None
        steps = plan.actions[first:]
        if n == 1:
            return steps
        after = np.concatenate([steps[1:], steps[-1:]])
        share = np.arange(n)[None, :, None] / n
        with np.errstate(invalid="ignore"):  # what is infinite is refused next
            whole = (1 - share) * steps[:, None] + share * after[:, None]
        return np.asarray(whole.reshape(-1, self.expected.dim)[self._sub :])

    def _next(self) -> Array | None:
        """The action of this sending, between two steps of the plan."""
        action = self.blender.blend(self._plans, self.step)
        if action is None or self._sub == 0:
            return action
        after = self.blender.blend(self._plans, self.step + 1)
        share = self._sub / self.expected.substeps
        return action if after is None else (1 - share) * action + share * after

    def _trouble(self, now: float) -> str:
        """What forbids going on, whatever the plan; empty if nothing."""
        watchdog = self.watchdog
        if self._seen is None or now - self._seen > watchdog.observation_deadline:
            lasting = "" if self._seen is None else f" for {now - self._seen:.3f} s"
            return f"no observation{lasting}" + (f": {self._failing}" if self._failing else "")
        for key, since in self._moved.items():
            if watchdog.frozen_after is not None and now - since > watchdog.frozen_after:
                return f"camera {key} has shown the same picture for {now - since:.3f} s"
        oldest = min((request.at for request in self._asked.values()), default=now)
        if now - oldest > watchdog.deadline:
            return f"no chunk within {watchdog.deadline:g} s"
        return ""

    @property
    def _seconds(self) -> float:
        """Of a step."""
        return self.safety_filter.limits.dt * self.expected.substeps

    def _overdue(self, now: float) -> str:
        """Drop plans that meant this action for a time before `max_age`; why, if that was all of them."""
        steps = self.step + self._sub / self.expected.substeps
        late = [now - plan.begins - (steps - plan.first) * self._seconds for plan in self._plans]
        longest = self.watchdog.max_age + ROUNDING
        if late and min(late) > longest:
            return f"the plan is {min(late):.3f} s behind its time (max_age {self.watchdog.max_age:g} s)"
        self._plans = [plan for plan, seconds in zip(self._plans, late, strict=True) if seconds <= longest]
        return ""

    def _begin_hold(self, now: float, reason: str) -> float:
        """Throw the plans away; returns since when the hold lasts."""
        if self.mode == OK:
            self._change(now, HOLD, reason)
        if self._held_since is None:
            self._held_since = now
        self._plans = []
        return self._held_since

    def _hold(self, now: float, reason: str) -> Array | None:
        since = self._begin_hold(now, reason)
        if self.mode == HOLD and now - since > self.watchdog.stop_after:
            self._change(now, STOPPED, f"{reason}; held for {self.watchdog.stop_after:g} s")
        self._advance(consumed=False)
        try:
            return self.safety_filter.hold()
        except RunError as error:
            self._note(now, "refused", str(error))
            self.stop(now, str(error))
            return None

    def _advance(self, consumed: bool) -> None:
        """A sending is over. In hold no step of a plan is consumed, but observations keep their rhythm."""
        self._sub = (self._sub + 1) % self.expected.substeps
        self.step += consumed and self._sub == 0

    def _change(self, now: float, mode: str, reason: str) -> None:
        self.mode, self.reason = mode, reason
        self._note(now, mode, reason)

    def _note(self, now: float, kind: str, text: str) -> None:
        self.events.append(Event(now, kind, text))
