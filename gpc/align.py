"""Alignment: what it takes for two policies to speak of the same action.

A member's normalised action is `x_i = r x + b` of the common one, where `action = scale x + offset`. The noise follows:
`sigma_i = r sigma`. That is exact as long as r is one number. Where r differs per action dimension, no sigma is right for
all of them: up to `NEAR_LEVEL` around their geometric mean the mean serves (the points stay exact, the level that the
network is told is off by less than its own levels are apart), and `note` says so; above it both normalisers are printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import geometric_mean

import torch
from torch import Tensor

from gpc.denoise import Denoiser
from gpc.errors import InputError
from gpc.noise import NEAR_LEVEL, SAME_LEVEL, NoiseLevels
from gpc.policy import ActionSpec, ObservationSpec, Policy


@dataclass(frozen=True)
class Aligned:
    """A policy seen from the common coordinate: `x_i = ratios * x + shift`, beginning `first` steps into the chunk."""

    policy: Policy
    ratios: tuple[float, ...]
    shift: tuple[float, ...]
    first: int

    @cached_property
    def ratio(self) -> float:
        """That of the noise: the geometric mean of the ratios."""
        return self.ratios[0] if len(set(self.ratios)) == 1 else geometric_mean(self.ratios)

    @property
    def note(self) -> str:
        """What is approximate about it; empty where nothing is."""
        if self.off <= SAME_LEVEL:
            return ""
        return f"{self.policy.name} is told noise levels that are up to {self.off:.1%} off: its normaliser differs per dimension"

    @cached_property
    def off(self) -> float:
        """The largest relative distance of a dimension's noise from what the network is told."""
        return max(abs(r / self.ratio - 1) for r in self.ratios)

    @cached_property
    def levels(self) -> NoiseLevels:
        """The policy's levels in the common coordinate."""
        return self.policy.levels.scaled(1 / self.ratio)

    def chunk(self, horizon: int) -> Tensor:
        """1 on the steps (horizon,) that the policy's chunk has, 0 elsewhere."""
        mask = torch.zeros(horizon)
        mask[self.first : self.first + self.policy.actions.horizon] = 1
        return mask

    def denoise(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        """The policy's denoised action for the common x (batch, horizon, action), zero where it has no opinion."""
        steps = slice(self.first, self.first + self.policy.actions.horizon)
        part = x[:, steps]
        if set(self.ratios) == {1.0} and not any(self.shift):
            own = denoiser(part, sigma)
        else:
            ratios, shift = x.new_tensor(self.ratios), x.new_tensor(self.shift)
            own = (denoiser(part * ratios + shift, sigma * self.ratio) - shift) / ratios
        if own.shape == x.shape:
            return own
        out = torch.zeros_like(x)
        out[:, steps] = own
        return out


def align(policies: Sequence[Policy]) -> tuple[Aligned, ...]:
    """Every policy in the first one's coordinate, over the union of all chunks.

    Raises InputError where action dimensions, names, dt or normalisers do not fit.
    """
    reference = policies[0]
    start = min(p.actions.start for p in policies)
    aligned = []
    for policy in policies:
        _check_same_actions(reference, policy)
        a, b = reference.actions, policy.actions
        ratios = tuple(s / t for s, t in zip(a.scale, b.scale, strict=True))
        shift = tuple((p - q) / t for p, q, t in zip(a.offset, b.offset, b.scale, strict=True))
        member = Aligned(policy, ratios, shift, b.start - start)
        if member.off > NEAR_LEVEL:
            raise InputError(
                f"{reference.name} and {policy.name} normalise their actions with ratios that differ per dimension: "
                f"{_normaliser(a)} against {_normaliser(b)}; one noise level cannot serve both"
            )
        aligned.append(member)
    return tuple(aligned)


def _normaliser(spec: ActionSpec) -> str:
    pairs = zip(_names(spec), spec.scale, spec.offset, strict=True)
    return ", ".join(f"{name} = {scale:g} x + {offset:g}" for name, scale, offset in pairs)


def _names(spec: ActionSpec) -> tuple[str, ...]:
    return spec.names or tuple(f"action[{i}]" for i in range(spec.dim))


def _check_same_actions(a: Policy, b: Policy) -> None:
    one, other = a.actions, b.actions
    if one.dim != other.dim:
        raise InputError(f"{a.name} acts in {one.dim} dimensions ({', '.join(_names(one))}), {b.name} in {other.dim}")
    if one.names and other.names and one.names != other.names:
        raise InputError(f"{a.name} and {b.name} name their actions differently: {one.names} against {other.names}")
    if one.relative is not None and other.relative is not None and one.relative != other.relative:
        moves, targets = (a, b) if one.relative else (b, a)
        raise InputError(
            f"{moves.name} predicts moves from where the robot is (delta actions), {targets.name} absolute targets; "
            "compose policies of one action space"
        )
    if one.dt != other.dt:
        raise InputError(
            f"{a.name} predicts every {one.dt:g} control steps, {b.name} every {other.dt:g}; they must agree"
        )
    if one.start + one.horizon <= other.start or other.start + other.horizon <= one.start:
        raise InputError(f"the chunks of {a.name} and {b.name} share no step; nothing would be composed")


def join_observations(policies: Sequence[Policy]) -> ObservationSpec:
    """The union of the policies' observation keys and the longest history; InputError where a key has two shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for policy in policies:
        for key, shape in policy.observations.shapes.items():
            if shapes.setdefault(key, shape) != shape:
                raise InputError(f"{policy.name} reads {key!r} as {shape}, another policy as {shapes[key]}")
    return ObservationSpec(shapes, max(p.observations.n_obs_steps for p in policies))
