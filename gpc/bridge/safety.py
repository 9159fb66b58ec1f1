"""What may be sent to a robot: finite numbers first, then limits on position, velocity, acceleration and jerk.

The limits hold for the stream that the robot follows. Of a target (`hold: last`) that is the action itself; of a move
(`hold: zero`) it is the sum of the moves, so that its velocity is the move over dt. An action is admitted only if the robot
can still be brought to rest after it within the limits: whatever happens next, there is a hold that keeps them.

Only actions that `Gate` has checked are sent: those of a plan, and the hold that brings them to rest. A reading of the robot
is where the stream starts from, never a command. Comparisons are written so that NaN fails them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gpc.errors import InputError, RunError
from gpc.policy.spec import ActionSpec
from gpc.types import Array

ROUNDING = 1e-6  # of a limit (of a position: of the range); derivatives of a long stream lose as much
HOLDS = ("last", "zero")
SHORTEST = 0.9  # of dt: two sendings are never closer; less than 1, so that a late one does not delay all that follow
LONGEST_BRAKE = 1000  # sendings; slower limits than that are refused as if the brake broke them
ORDERS = ("velocity", "acceleration", "jerk")


@dataclass(frozen=True)
class StreamLimits:
    """Limits for each action dimension, in the robot's units and seconds; infinity: not limited. All fields are (dim,).

    `position` bounds the action's own values, `moves` says which dimensions are moves, `dt` is the time between two
    sent actions. Raises InputError if a limit is not positive, low is not below high, or a move of 0 is not allowed.
    """

    low: Array
    high: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    relative: Array
    dt: float

    def __post_init__(self) -> None:
        if not 0 < self.dt < np.inf:
            raise InputError(f"the time between two sendings, {self.dt} s, must be positive")
        if not (self.low < self.high).all():
            raise InputError(f"safety.position: low {self.low.tolist()} must be below high {self.high.tolist()}")
        if (self.relative & ((self.low > 0) | (self.high < 0))).any():
            raise InputError("safety.position must leave room for 0 where safety.hold is zero: that is the hold")
        for order, (name, limit) in enumerate(zip(ORDERS, self.rates, strict=True), 1):
            if not (limit * self.dt**order > 0).all():
                raise InputError(f"safety.{name}={limit.tolist()} must be positive; null is unlimited")

    @cached_property
    def rates(self) -> tuple[Array, Array, Array]:
        """The limits of velocity, acceleration and jerk."""
        return self.velocity, self.acceleration, self.jerk

    def violation(self, before: Array, upcoming: Array, names: Sequence[str]) -> str | None:
        """Why `upcoming` (n, dim) must not follow `before` (3, dim), or None: the first step, dimension, value and limit."""
        if bad := _first(~np.isfinite(upcoming)):
            return f"{names[bad[1]]}, {bad[0]} actions from now, is {upcoming[bad]}"
        if bad := _first(self._outside(upcoming)):
            return f"the position of {names[bad[1]]}, {bad[0]} actions from now, is {self._against(upcoming, bad)}"
        return self._too_fast(before, upcoming, names)

    def start_violation(self, position: Array, names: Sequence[str]) -> str | None:
        """Why the stream must not start from `position` (dim,), or None: the first dimension, its value and limits."""
        where = np.where(self.relative, 0.0, position)[None]
        if bad := _first(self._outside(where)):
            found = f"{names[bad[1]]} is at {self._against(where, bad)}"
            return f"{found}: the robot must start within safety.position; move it there, or widen it"
        return None

    def min_interval(self, before: Array) -> float:
        """The seconds that must pass before the last of `before` (3, dim) is sent: its step keeps the limit of velocity."""
        return max(SHORTEST * self.dt, float((np.abs(self.differences(before)[-1]) / self.velocity).max()))

    def _outside(self, positions: Array) -> Array:
        """Which of `positions` (n, dim) are not within the limits."""
        width = self.high - self.low
        slack = ROUNDING * np.where(np.isfinite(width), width, 1.0)
        inside = (positions >= self.low - slack) & (positions <= self.high + slack) & np.isfinite(positions)
        return np.asarray(~inside)

    def _against(self, positions: Array, place: tuple[int, int]) -> str:
        """A position beside its limits."""
        return f"{positions[place]:.4g} (limits {self.low[place[1]]:.4g} to {self.high[place[1]]:.4g})"

    def _too_fast(self, before: Array, upcoming: Array, names: Sequence[str]) -> str | None:
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite or NaN fails the comparison
            difference = self.differences(np.concatenate([before, upcoming]))
            return self._first_excess(difference, len(upcoming), names)

    def _first_excess(self, difference: Array, upcoming: int, names: Sequence[str]) -> str | None:
        for order, (name, limit) in enumerate(zip(ORDERS, self.rates, strict=True), 1):
            found = np.abs(difference[-upcoming:]) / self.dt**order
            if bad := _first(~(found <= limit * (1 + ROUNDING))):
                excess = f"{found[bad]:.4g} (limit {limit[bad[1]]:.4g})"
                return f"the {name} of {names[bad[1]]}, {bad[0]} actions from now, is {excess}"
            if order == self._highest:
                break
            difference = difference[1:] - difference[:-1]
        return None

    @property
    def limits_targets(self) -> bool:
        """Whether velocity, acceleration or jerk of a dimension of targets is limited."""
        return bool(np.isfinite(self.rates)[:, ~self.relative].any())

    @cached_property
    def _highest(self) -> int:
        """The highest order that has a limit, 1 to 3."""
        return max((order for order, limit in enumerate(self.rates, 1) if np.isfinite(limit).any()), default=1)

    def differences(self, stream: Array) -> Array:
        """How far the robot is sent by each action but the first: (n, dim) -> (n - 1, dim)."""
        return np.where(self.relative, stream[1:], stream[1:] - stream[:-1])

    def brake(self, before: Array) -> Array:
        """The next action (dim,) after `before` (3, dim) on the shortest way to rest that acceleration and jerk allow.

        Without such limits: the last target again, no move. With d the last difference and c its last change, the change
        that leads to rest and ends there together with its own ramp is q(d): q + (q - J) + (q - 2 J) + ... = d.
        """
        earlier, last = self.differences(before)
        change, size = last - earlier, np.abs(last)
        hardest, ramp = self.acceleration * self.dt**2, self.jerk * self.dt**3
        n = np.floor((np.sqrt(1 + 8 * size / ramp) - 1) / 2)
        lost = np.where(n > 0, ramp, 0) * n * (n + 1) / 2  # an unlimited jerk has no ramp
        wanted = -np.sign(last) * (size + lost) / (n + 1)
        change = np.clip(wanted, np.maximum(-hardest, change - ramp), np.minimum(hardest, change + ramp))
        step = last + change
        return np.where(self.relative, step, before[-1] + step)

    def at_rest(self, before: Array) -> bool:
        """Whether the stream `before` (3, dim) has come to rest: to hold is to send the same again."""
        return not self.differences(before).any()

    def can_stop(self, before: Array) -> bool:
        """Whether braking after `before` (3, dim) keeps to the limits."""
        if self._highest == 1:
            return True  # the last action again, which keeps to them
        stream = list(before)
        for _ in range(LONGEST_BRAKE):
            if self.at_rest(np.stack(stream[-3:])):
                return self.violation(before, np.stack(stream[3:] or stream), [""] * len(self.low)) is None
            stream.append(self.brake(np.stack(stream[-3:])))
        return False


@dataclass
class SafetyFilter:
    """The last thing before the robot: remembers what was sent and lets through only what may follow it."""

    limits: StreamLimits
    names: Sequence[str]
    before: Array | None = field(default=None)  # the last three sent, (3, dim); at first, where the robot is
    active: bool = False  # an action was admitted: there is something to hold
    _earlier: tuple[Array | None, bool] = (None, False)  # before the last was counted as sent

    def start(self, position: Array | None) -> str | None:
        """Rest at a reading (dim,), from which the next action is measured; None if the robot does not say where it is.

        Returns:
            Why the stream must not start there, or None.
        """
        if position is not None and (reason := self.limits.start_violation(position, self.names)):
            return reason
        self.before = None if position is None else self._rest(position)
        return None

    def violation(self, upcoming: Array) -> str | None:
        """Why a chunk's actions (n, dim), sent one after the other, would break the limits; None if they keep them."""
        return self.limits.violation(self._since(upcoming[0]), upcoming, self.names)

    def accept(self, action: Array) -> str | None:
        """Why an action (dim,) must not be sent; if it may, it counts as sent."""
        if reason := self.violation(action[None]):
            return reason
        if not self.limits.can_stop(np.stack([*self._since(action)[1:], action])):
            return "after this action the robot could not be stopped within its limits"
        self._count(action)
        return None

    def hold(self) -> Array | None:
        """The action that brings or keeps the robot at rest, which counts as sent; None before anything was sent.

        Raises:
            RunError: the hold would break the limits; from now on there is none.
        """
        if self.before is None or not self.active:
            return None
        action = self.limits.brake(self.before)
        if reason := self.violation(action[None]):
            self.active = False
            raise RunError(f"the hold must not be sent: {reason}")
        self._count(action)
        return action

    def assume_rest(self) -> None:
        """Take the robot as at rest where it was last sent: nothing was sent for so long that it has stopped there."""
        if self.before is not None:
            self.before = self._rest(self.before[-1])

    def undo(self) -> None:
        """The last action was not sent after all."""
        self.before, self.active = self._earlier

    @property
    def min_interval(self) -> float:
        """The seconds that must have passed since the sending before when the last action is sent."""
        return 0.0 if self.before is None else self.limits.min_interval(self.before)

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing left to brake."""
        return self.before is None or not self.active or self.limits.at_rest(self.before)

    def _count(self, action: Array) -> None:
        self._earlier = self.before, self.active
        self.before, self.active = np.stack([*self._since(action)[1:], action]), True

    def _since(self, action: Array) -> Array:
        """What was sent before; at first, as if the robot were where it is sent."""
        return self._rest(action) if self.before is None else self.before

    def _rest(self, position: Array) -> Array:
        """A stream (3, dim) that rests there; a move's rest is 0."""
        return np.stack([np.where(self.limits.relative, 0.0, position)] * 3)


def limits_from(
    spec: ActionSpec,
    dt: float,
    *,
    position: str | Sequence[Any] | None = "policy",
    velocity: float | Sequence[float] | None = None,
    acceleration: float | Sequence[float] | None = None,
    jerk: float | Sequence[float] | None = None,
    hold: str | Sequence[str] | None = None,
) -> StreamLimits:
    """Limits as a configuration has them: one number, or one for each action dimension; None is not limited.

    `position` is [low, high], or "policy": the range of its normaliser, offset +- scale * bound. `hold` is "last" for targets,
    "zero" for moves; None: "last" if the policy's actions are targets. Raises InputError if the policy has no range or kind
    of action, or a count is wrong.
    """
    low, high = _range(spec, position)
    kinds = _holds(spec, hold)
    most = {
        name: _each(name, value, spec.dim) for name, value in zip(ORDERS, (velocity, acceleration, jerk), strict=True)
    }
    return StreamLimits(low, high, relative=np.array([kind == "zero" for kind in kinds]), dt=dt, **most)


def _range(spec: ActionSpec, position: str | Sequence[Any] | None) -> tuple[Array, Array]:
    if position is None:
        return np.full(spec.dim, -np.inf), np.full(spec.dim, np.inf)
    if isinstance(position, str):
        if position != "policy" or spec.bound is None or not np.isfinite(spec.bound):
            needs = " needs a policy on this machine whose actions have a range" if position == "policy" else ""
            raise InputError(
                f"safety.position={position}{needs}; give [low, high], as in 'safety.position=[-1,1]', or null: not limited"
            )
        width = np.array(spec.scale) * spec.bound
        return np.array(spec.offset) - width, np.array(spec.offset) + width
    if len(position) != 2:
        raise InputError(f"safety.position={list(position)} must be [low, high], each a number or a list of {spec.dim}")
    return _each("position", position[0], spec.dim), _each("position", position[1], spec.dim)


def _holds(spec: ActionSpec, hold: str | Sequence[str] | None) -> Sequence[str]:
    if hold is None:
        if spec.relative is not False:
            raise InputError(
                "safety.hold=null needs a policy on this machine whose actions are targets; name the hold of each dimension, "
                "as in safety.hold=last (targets), safety.hold=zero (moves) or 'safety.hold=[zero,zero,last]' (moves and a "
                "gripper)"
            )
        hold = "last"
    kinds = [hold] * spec.dim if isinstance(hold, str) else list(hold)
    if len(kinds) != spec.dim or not set(kinds) <= set(HOLDS):
        raise InputError(f"safety.hold={hold} must be last or zero, one for all or a list of {spec.dim}")
    return kinds


def _each(name: str, value: Any, dim: int) -> Array:
    """One number for each dimension."""
    try:
        found = np.full(dim, np.inf) if value is None else np.broadcast_to(np.asarray(value, np.float64), (dim,)).copy()
    except (ValueError, TypeError):
        found = np.full(dim, np.nan)
    if np.isnan(found).any():
        raise InputError(f"safety.{name}={value} must be a number, or a list of {dim}")
    return found


def _first(bad: Array) -> tuple[int, int] | None:
    """The first (step, dimension) that is true."""
    if not bad.any():
        return None
    step, dimension = np.argwhere(bad)[0]
    return int(step), int(dimension)
