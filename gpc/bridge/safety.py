"""What may be sent to a robot: finite numbers within limits on position, velocity, acceleration and jerk.

The limits hold for the stream that the robot follows. For absolute actions (targets) that is the action itself; for relative
actions (moves) it is the sum of the moves, so that its velocity is the move over dt. An action is accepted only if the robot
can still be brought to rest after it within the limits, so there always is a hold that keeps them.

Only actions that `SafetyFilter` has checked are sent: those of a chunk, and the hold that brings them to rest. A reading of
the robot is where the stream starts, never a command. Comparisons are written so that NaN fails them.
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
ABSOLUTE, RELATIVE = ACTION_KINDS = ("absolute", "relative")
MIN_INTERVAL = 0.9  # of dt between two sendings; less than 1, so that a late sending does not delay all that follow
LONGEST_BRAKE = 1000  # sendings; slower limits than that are refused as if the brake broke them
ORDERS = ("velocity", "acceleration", "jerk")
Bounds = float | Sequence[float] | None


@dataclass(frozen=True)
class SafetyLimits:
    """Limits as a user sets them, in the robot's units and seconds.

    A limit is one number, or one for each action dimension.

    Attributes:
        position: [low, high]; "policy": the range of the policy's normaliser, offset +- scale * bound; None: not limited.
        velocity: None: not limited.
        acceleration: None: not limited.
        jerk: None: not limited.
        actions: "absolute" for targets, "relative" for moves, or a list with one for each dimension. The hold repeats the
            last target, or sends a move of 0. None: "absolute" if the policy states that, else an error.
    """

    position: str | Sequence[Any] | None = "policy"
    velocity: Bounds = None
    acceleration: Bounds = None
    jerk: Bounds = None
    actions: str | Sequence[str] | None = None

    def resolve(self, spec: ActionSpec, dt: float) -> StreamLimits:
        """Return the limits of each action dimension.

        Args:
            spec: the policy's actions.
            dt: seconds between two sent actions.

        Raises:
            InputError: If the policy has no range or kind of action although one is needed, a count is wrong, or the
                limits contradict each other.
        """
        low, high = _range(spec, self.position)
        relative = np.array([kind == RELATIVE for kind in _kinds(spec, self.actions)])
        velocity, acceleration, jerk = (_each(name, getattr(self, name), spec.dim) for name in ORDERS)
        return StreamLimits(low, high, velocity, acceleration, jerk, relative, dt)


@dataclass(frozen=True)
class StreamLimits:
    """Limits of a stream of actions; infinity: not limited.

    Attributes:
        low: smallest values of the action, (dim,).
        high: largest values, (dim,).
        velocity: largest rate of change, (dim,).
        acceleration: (dim,).
        jerk: (dim,).
        relative: which dimensions are moves, (dim,) of bool.
        dt: seconds between two sent actions.

    Raises:
        InputError: If a limit is not positive, low is not below high, or a move of 0 is not allowed.
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
            raise InputError("safety.position must leave room for 0 if safety.actions is relative: 0 is the hold")
        for order, (name, limit) in enumerate(zip(ORDERS, self.rates, strict=True), 1):
            if not (limit * self.dt**order > 0).all():
                raise InputError(f"safety.{name}={limit.tolist()} must be positive; null is unlimited")

    @cached_property
    def rates(self) -> tuple[Array, Array, Array]:
        """The limits of velocity, acceleration and jerk."""
        return self.velocity, self.acceleration, self.jerk

    @property
    def limits_targets(self) -> bool:
        """Whether velocity, acceleration or jerk of an absolute dimension is limited."""
        return bool(np.isfinite(self.rates)[:, ~self.relative].any())

    @cached_property
    def _highest_order(self) -> int:
        """The highest order that has a limit, 1 to 3."""
        return max((order for order, limit in enumerate(self.rates, 1) if np.isfinite(limit).any()), default=1)

    def violation(self, history: Array, upcoming: Array, names: Sequence[str]) -> str | None:
        """Return why actions must not be sent: step, dimension, value and limit.

        Args:
            history: the last three actions that were sent, (3, dim).
            upcoming: actions in the order in which they would be sent, (n, dim).
            names: names of the dimensions.

        Returns:
            None if the actions keep the limits.
        """
        if bad := _first(~np.isfinite(upcoming)):
            return f"{names[bad[1]]}, {bad[0]} actions from now, is {upcoming[bad]}"
        if bad := _first(self._outside(upcoming)):
            return f"the position of {names[bad[1]]}, {bad[0]} actions from now, is {self._with_limits(upcoming, bad)}"
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN fail the comparison
            return self._rate_violation(self.differences(np.concatenate([history, upcoming])), len(upcoming), names)

    def start_violation(self, position: Array, names: Sequence[str]) -> str | None:
        """Return why the stream must not start at a position (dim,), None if it may."""
        rest = np.where(self.relative, 0.0, position)[None]
        if bad := _first(self._outside(rest)):
            place = f"{names[bad[1]]} is at {self._with_limits(rest, bad)}"
            return f"{place}: the robot must start within safety.position; move it there, or widen it"
        return None

    def min_interval(self, history: Array) -> float:
        """Return the shortest time in seconds before the last of (3, dim) is sent.

        Its step then keeps the limit of velocity by real time.
        """
        return max(MIN_INTERVAL * self.dt, float((np.abs(self.differences(history)[-1]) / self.velocity).max()))

    def differences(self, stream: Array) -> Array:
        """Return how far each action after the first moves: (n, dim) -> (n - 1, dim)."""
        return np.where(self.relative, stream[1:], stream[1:] - stream[:-1])

    def brake(self, history: Array) -> Array:
        """Return the next action (dim,) on the shortest way to rest within the limits.

        Without such limits this is the last target again, or a move of 0. With d the last difference and J the jerk's
        limit, the change of difference that leads to rest and ends there together with its own ramp is q(d) with
        q + (q - J) + (q - 2 J) + ... = d.

        Args:
            history: the last three actions that were sent, (3, dim).
        """
        earlier, last = self.differences(history)
        return self._brake(earlier, last, history[-1])

    def at_rest(self, history: Array) -> bool:
        """Return whether the last three actions (3, dim) leave the robot at rest."""
        return not self.differences(history).any()

    def can_stop(self, history: Array) -> bool:
        """Return whether braking after the last three actions (3, dim) keeps the limits."""
        if self._highest_order == 1:
            return True  # the last action again, which keeps them
        earlier, last = self.differences(history)
        position = history[-1]
        stream: list[Array] = []
        for _ in range(LONGEST_BRAKE):
            if not (earlier.any() or last.any()):
                return self.violation(history, np.stack(stream or [*history]), [""] * len(self.low)) is None
            action = self._brake(earlier, last, position)
            earlier, last = last, np.where(self.relative, action, action - position)
            position = action
            stream.append(action)
        return False

    @cached_property
    def _changes(self) -> tuple[Array, Array]:
        """The largest change of a step in one period, and the largest change of that."""
        return self.acceleration * self.dt**2, self.jerk * self.dt**3

    def _brake(self, earlier: Array, last: Array, position: Array) -> Array:
        """Return the action of `brake` after two steps, the last one to a position."""
        max_change, ramp = self._changes
        change, size = last - earlier, np.abs(last)
        n = np.floor((np.sqrt(1 + 8 * size / ramp) - 1) / 2)
        lost = np.where(n > 0, ramp, 0) * n * (n + 1) / 2  # an unlimited jerk has no ramp
        wanted = -np.sign(last) * (size + lost) / (n + 1)
        least, most = np.maximum(-max_change, change - ramp), np.minimum(max_change, change + ramp)
        step = last + np.minimum(np.maximum(wanted, least), most)
        return np.where(self.relative, step, position + step)

    def _outside(self, positions: Array) -> Array:
        """Return which of the positions (n, dim) are not within the limits."""
        width = self.high - self.low
        slack = ROUNDING * np.where(np.isfinite(width), width, 1.0)
        inside = (positions >= self.low - slack) & (positions <= self.high + slack) & np.isfinite(positions)
        return np.asarray(~inside)

    def _with_limits(self, positions: Array, place: tuple[int, int]) -> str:
        return f"{positions[place]:.4g} (limits {self.low[place[1]]:.4g} to {self.high[place[1]]:.4g})"

    def _rate_violation(self, difference: Array, count: int, names: Sequence[str]) -> str | None:
        """Return the first of the last `count` differences that breaks a limit of a rate."""
        for order, (name, limit) in enumerate(zip(ORDERS, self.rates, strict=True), 1):
            rate = np.abs(difference[-count:]) / self.dt**order
            if bad := _first(~(rate <= limit * (1 + ROUNDING))):
                excess = f"{rate[bad]:.4g} (limit {limit[bad[1]]:.4g})"
                return f"the {name} of {names[bad[1]]}, {bad[0]} actions from now, is {excess}"
            if order == self._highest_order:
                break
            difference = difference[1:] - difference[:-1]
        return None


@dataclass
class SafetyFilter:
    """The last check before the robot: accepts only what may follow what was sent.

    Attributes:
        limits: limits of the stream.
        names: names of the action dimensions, for reasons.
        history: the last three actions that were sent, (3, dim); before the first one, where the robot is.
        active: whether an action was accepted, so that there is something to hold.
    """

    limits: StreamLimits
    names: Sequence[str]
    history: Array | None = field(default=None)
    active: bool = False
    _previous: tuple[Array | None, bool] = (None, False)  # history and active before the last action was counted

    def start(self, position: Array | None) -> str | None:
        """Begin the stream at rest where the robot is.

        Args:
            position: reading of the robot in the terms of its actions, (dim,); None if it reports none.

        Returns:
            Why the stream must not start there, or None.
        """
        if position is not None and (reason := self.limits.start_violation(position, self.names)):
            return reason
        self.history = None if position is None else self._at_rest_at(position)
        return None

    def violation(self, upcoming: Array) -> str | None:
        """Return why actions (n, dim) that follow each other break the limits, or None."""
        return self.limits.violation(self._history_for(upcoming[0]), upcoming, self.names)

    def accept(self, action: Array) -> str | None:
        """Count an action (dim,) as sent; return why it must not be sent, or None."""
        if reason := self.violation(action[None]):
            return reason
        if not self.limits.can_stop(np.stack([*self._history_for(action)[1:], action])):
            return "after this action the robot could not be stopped within its limits"
        self._count(action)
        return None

    def hold(self) -> Array | None:
        """Return the action that brings or keeps the robot at rest, and count it as sent.

        Returns:
            None before anything was sent.

        Raises:
            RunError: If the hold would break the limits; from then on there is none.
        """
        if self.history is None or not self.active:
            return None
        action = self.limits.brake(self.history)
        if reason := self.violation(action[None]):
            self.active = False
            raise RunError(f"the hold must not be sent: {reason}")
        self._count(action)
        return action

    def assume_rest(self) -> None:
        """Take the robot as at rest at the last action, after a long time without one."""
        if self.history is not None:
            self.history = self._at_rest_at(self.history[-1])

    def undo(self) -> None:
        """Take back the last action: it was not sent."""
        self.history, self.active = self._previous

    @property
    def min_interval(self) -> float:
        """Seconds that must pass between the sending before and that of the last action."""
        return 0.0 if self.history is None else self.limits.min_interval(self.history)

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing left to brake."""
        return self.history is None or not self.active or self.limits.at_rest(self.history)

    def _count(self, action: Array) -> None:
        self._previous = self.history, self.active
        self.history, self.active = np.stack([*self._history_for(action)[1:], action]), True

    def _history_for(self, action: Array) -> Array:
        """Return what was sent before an action; at first, rest at the action itself."""
        return self._at_rest_at(action) if self.history is None else self.history

    def _at_rest_at(self, position: Array) -> Array:
        """Return a stream (3, dim) that rests at a position; the rest of a move is 0."""
        return np.stack([np.where(self.limits.relative, 0.0, position)] * 3)


def _range(spec: ActionSpec, position: str | Sequence[Any] | None) -> tuple[Array, Array]:
    if position is None:
        return np.full(spec.dim, -np.inf), np.full(spec.dim, np.inf)
    if isinstance(position, str):
        if position != "policy" or spec.bound is None or not np.isfinite(spec.bound):
            needs = " needs a policy on this machine whose actions have a range" if position == "policy" else ""
            raise InputError(
                f"safety.position={position}{needs}; give [low, high], as in 'safety.position=[-1,1]', or null: not limited"
            )
        resolved = np.spacing(np.abs(spec.offset).astype(np.float32))  # of a constant, whose range is 0
        width = np.maximum(np.array(spec.scale) * spec.bound, resolved)
        return np.array(spec.offset) - width, np.array(spec.offset) + width
    if len(position) != 2:
        raise InputError(f"safety.position={list(position)} must be [low, high], each a number or a list of {spec.dim}")
    return _each("position", position[0], spec.dim), _each("position", position[1], spec.dim)


def _kinds(spec: ActionSpec, actions: str | Sequence[str] | None) -> Sequence[str]:
    """Return the kind of each action dimension."""
    if actions is None:
        if spec.relative is not False:
            raise InputError(
                "safety.actions=null needs a policy on this machine whose actions are absolute; name their kind, as in "
                "safety.actions=absolute (targets), safety.actions=relative (moves) or "
                "'safety.actions=[relative,relative,absolute]' (moves and a gripper)"
            )
        actions = ABSOLUTE
    kinds = [actions] * spec.dim if isinstance(actions, str) else list(actions)
    if len(kinds) != spec.dim or not set(kinds) <= set(ACTION_KINDS):
        raise InputError(f"safety.actions={actions} must be absolute or relative, one for all or a list of {spec.dim}")
    return kinds


def _each(name: str, value: Any, dim: int) -> Array:
    """Return one number for each dimension."""
    try:
        numbers = (
            np.full(dim, np.inf) if value is None else np.broadcast_to(np.asarray(value, np.float64), (dim,)).copy()
        )
    except (ValueError, TypeError):
        numbers = np.full(dim, np.nan)
    if np.isnan(numbers).any():
        raise InputError(f"safety.{name}={value} must be a number, or a list of {dim}")
    return numbers


def _first(bad: Array) -> tuple[int, int] | None:
    """Return the first (step, dimension) that is true."""
    if not bad.any():
        return None
    step, dimension = np.argwhere(bad)[0]
    return int(step), int(dimension)
