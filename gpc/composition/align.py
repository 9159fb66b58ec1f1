"""Alignment: what it takes for policies to speak of the same action.

A member sees some steps and dimensions of the common normalised chunk x: `y = r x + b`, where `action = scale x + offset`. The
noise follows: it is `r sigma` there. As long as r is one number that is exact. Where r differs per dimension no sigma is right
for all of them, and a network was trained with one. Up to `NEAR_LEVEL` around the geometric mean, the mean serves (the points
stay exact, the level that the network is told is off by less than its own levels are apart). Above, the dimensions with less
noise are raised to the level of the one with most; see `gpc.composition.noise_matching`. `note` says what is not exact
(docs/alignment.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import geometric_mean

import torch
from torch import Tensor

from gpc.composition.noise_matching import NoiseMatched
from gpc.errors import InputError
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.score.denoiser import Clamp, Denoiser
from gpc.score.noise import NEAR_LEVEL, SAME_LEVEL, NoiseLevels

MAX_SCALE_RATIO = 100.0  # ratios that differ more than this are a mistake in a normaliser


@dataclass(frozen=True)
class AlignedMember:
    """A policy seen from the common coordinate: `y = ratios * x[steps, dims] + shift`, in its own dimensions and steps."""

    policy: Policy
    common: ActionSpec

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The common dimension of each of the policy's own."""
        return _dims(self.policy.actions, self.common.names)

    @cached_property
    def stride(self) -> int:
        """How many common steps one of the policy's own takes."""
        return round(self.policy.actions.dt / self.common.dt)

    @cached_property
    def first(self) -> int:
        """The common step, counted from 0, at which the policy's chunk begins."""
        return self.policy.actions.start * self.stride - self.common.start

    @cached_property
    def steps(self) -> slice:
        """The common steps that are the policy's own."""
        return slice(self.first, self.first + self.stride * (self.policy.actions.horizon - 1) + 1, self.stride)

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """That of the noise the policy sees to the common noise, for each of its dimensions."""
        return tuple(self.common.scale[d] / own for d, own in zip(self.dims, self.policy.actions.scale, strict=True))

    @cached_property
    def shift(self) -> tuple[float, ...]:
        """The policy's normalised action where the common one is 0."""
        own = self.policy.actions
        pairs = zip(self.dims, own.scale, own.offset, strict=True)
        return tuple((self.common.offset[d] - offset) / scale for d, scale, offset in pairs)

    @cached_property
    def needs_noise_matching(self) -> bool:
        """Whether noise is added to what the policy sees."""
        return self._off > NEAR_LEVEL

    @cached_property
    def ratio(self) -> float:
        """That of the noise level which the network is told."""
        return max(self.ratios) if self.needs_noise_matching else self._mean

    @cached_property
    def levels(self) -> NoiseLevels:
        """The policy's levels in the common coordinate."""
        return self.policy.levels.scaled(1 / self.ratio)

    @cached_property
    def coverage(self) -> Tensor:
        """Where the policy's chunk lies in the common one, also between its steps: bool (horizon, action)."""
        at = self._positions
        cover = torch.zeros(self.common.horizon, self.common.dim, dtype=torch.bool)
        cover[:, list(self.dims)] = ((at >= 0) & (at <= self.policy.actions.horizon - 1))[:, None]
        return cover

    @property
    def warning(self) -> str:
        """What is approximate about it, and what it leaves to others; empty where it is exact and has all."""
        told = []
        if len(self.dims) < self.common.dim:
            everything = ", ".join(_names(self.common))
            told.append(f"acts in {', '.join(_names(self.policy.actions))} of {everything}")
        if self.stride > 1:
            told.append(f"plans every {self.stride} steps, between which its actions are interpolated")
        if self.needs_noise_matching:
            most = self.ratio / min(self.ratios)
            told.append(f"is given up to {most:.3g} times the noise: its normaliser differs per dimension")
        elif self._off > SAME_LEVEL:
            told.append(
                f"is told noise levels that are up to {self._off:.1%} off: its normaliser differs per dimension"
            )
        return f"{self.policy.name} {'; it '.join(told)}" if told else ""

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """The policy's denoiser for `denoise`: within its own bound where there is no common one, and raised."""
        bound = self.policy.actions.bound
        if bound is not None and self.common.bound is None:
            denoiser = Clamp(denoiser, bound)
        if self.needs_noise_matching:
            denoiser = NoiseMatched(denoiser, tuple(r / self.ratio for r in self.ratios), self.policy.name)
        return denoiser

    def denoise(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        """What a `prepared` denoiser says of the common x (batch, horizon, action); `masks` says where it counts."""
        return self.to_common(denoiser(self.to_member(x), sigma * self.ratio))

    def slice(self, x: Tensor) -> Tensor:
        """The policy's own steps and dimensions of x (..., horizon, action)."""
        part = x[..., self.steps, :]
        return part if self._all_dims else part[..., list(self.dims)]

    def to_member(self, x: Tensor) -> Tensor:
        """X (..., horizon, action) as the policy has it, normalised its way."""
        part = self.slice(x)
        return part if self._same_units else part * x.new_tensor(self.ratios) + x.new_tensor(self.shift)

    def to_common(self, own: Tensor) -> Tensor:
        """The policy's denoised action (batch, own steps, own action) in the common coordinate."""
        return self.resample(
            own if self._same_units else (own - own.new_tensor(self.shift)) / own.new_tensor(self.ratios)
        )

    def resample(self, own: Tensor) -> Tensor:
        """A chunk (batch, own steps, own action) on the common steps and dimensions.

        Between its steps it is interpolated, before and after them held; what it has no dimension for is zero.
        """
        if self._all_dims and own.shape[1] == self.common.horizon:
            return own
        at = self._positions.clamp(0, own.shape[1] - 1)
        low = at.floor().long()
        spread = torch.lerp(own[:, low], own[:, at.ceil().long()], (at - low).to(own)[:, None])
        out = own.new_zeros(len(own), self.common.horizon, self.common.dim)
        out[..., list(self.dims)] = spread
        return out

    @cached_property
    def _all_dims(self) -> bool:
        return self.dims == tuple(range(self.common.dim))

    @cached_property
    def _same_units(self) -> bool:
        return set(self.ratios) == {1.0} and not any(self.shift)

    @cached_property
    def _positions(self) -> Tensor:
        """Every common step in the policy's own, (horizon,)."""
        return (torch.arange(self.common.horizon, dtype=torch.float64) - self.first) / self.stride

    @cached_property
    def _mean(self) -> float:
        return self.ratios[0] if len(set(self.ratios)) == 1 else geometric_mean(self.ratios)

    @cached_property
    def _off(self) -> float:
        """The largest relative distance of a dimension's noise from their mean."""
        return max(abs(r / self._mean - 1) for r in self.ratios)


def align(policies: Sequence[Policy], common: ActionSpec) -> tuple[AlignedMember, ...]:
    """Every policy in one coordinate: that of `union_spec`, or of `subset_spec`.

    Raises InputError where times, representations or normalisers do not fit.
    """
    members = tuple(AlignedMember(policy, common) for policy in policies)
    for member in members:
        _check_normaliser(member)
    for one, other in combinations(members, 2):
        if set(one.dims) & set(other.dims):
            _check_representation(one.policy, other.policy)
        if not bool((one.coverage.any(1) & other.coverage.any(1)).any()):
            raise InputError(
                f"the chunks of {one.policy.name} and {other.policy.name} share no step; nothing would be composed"
            )
    said = masks(members).bool()
    for member, own in zip(members, said, strict=True):
        if member.policy.actions.relative and (member.stride > 1 or not torch.equal(own, member.coverage)):
            raise InputError(
                f"{member.policy.name} predicts moves, which are neither interpolated nor held; compose it with policies of its "
                "dt, over its steps"
            )
    return members


def masks(members: Sequence[AlignedMember]) -> Tensor:
    """1 where a member has a say, (K, horizon, action): where its chunk lies, and where its dimensions are in no chunk at all."""
    cover = torch.stack([member.coverage for member in members])
    return torch.where(cover.any(0), cover, cover.any(1, keepdim=True)).float()


def union_spec(policies: Sequence[Policy]) -> ActionSpec:
    """The common coordinate: all dimensions by name, in order of appearance, the smallest dt, and the union of all chunks.

    A dimension's scale and offset are those of the first policy that has it, and so is the bound; where these policies have
    different ones there is none, and each keeps to its own. A policy without names has all dimensions. Raises InputError where
    it has another number of them, or where a dt is no multiple of the smallest.
    """
    specs = [policy.actions for policy in policies]
    names = tuple(dict.fromkeys(name for spec in specs for name in spec.names or ())) or None
    dim, dt = len(names) if names else specs[0].dim, min(spec.dt for spec in specs)
    for policy, spec in zip(policies, specs, strict=True):
        if spec.names is None and spec.dim != dim:
            others = f"the named ones are {', '.join(names)}" if names else f"{policies[0].name} in {dim}"
            raise InputError(
                f"{policy.name} acts in {spec.dim} dimensions without names, {others}; say which is which, as in "
                f"'action_names={{{policy.name}: [...]}}'"
            )
        if abs(spec.dt / dt - round(spec.dt / dt)) > SAME_LEVEL:
            raise InputError(
                f"{policy.name} predicts every {spec.dt:g} control steps, another policy every {dt:g}: no multiple of it"
            )
    start, horizon = _extent(specs, dt)
    owners: dict[int, tuple[ActionSpec, int]] = {}
    for spec in specs:
        for own, d in enumerate(_dims(spec, names)):
            owners.setdefault(d, (spec, own))
    scale, offset = zip(*((spec.scale[i], spec.offset[i]) for spec, i in (owners[d] for d in range(dim))), strict=True)
    bounds, moves = {spec.bound for spec, _ in owners.values()}, {spec.relative for spec, _ in owners.values()}
    bound = bounds.pop() if len(bounds) == 1 else None
    relative = moves.pop() if len(moves) == 1 else None
    return ActionSpec(horizon, scale, offset, names, start, dt, bound, relative)


def subset_spec(policies: Sequence[Policy], whole: ActionSpec) -> ActionSpec:
    """The coordinate in which some of a composition's policies act without the others: its dimensions, over their own steps.

    One alone keeps its own normaliser, bound and dt, so that it is itself bit for bit; several have the whole's. Raises InputError
    where they do not have all dimensions.
    """
    dims = [_dims(policy.actions, whole.names) for policy in policies]
    missing = sorted(set(range(whole.dim)).difference(*dims))
    if missing:
        alone, lacking = " + ".join(policy.name for policy in policies), (_names(whole)[d] for d in missing)
        raise InputError(f"{alone} cannot act alone: it has no {', '.join(lacking)}; give weight to a policy that has")
    if len(policies) > 1:
        start, horizon = _extent([policy.actions for policy in policies], whole.dt)
        return replace(whole, start=start, horizon=horizon)
    own, order = policies[0].actions, [dims[0].index(d) for d in range(whole.dim)]
    scale, offset = (tuple(values[i] for i in order) for values in (own.scale, own.offset))
    return replace(own, scale=scale, offset=offset, names=own.names and whole.names)


def _extent(specs: Sequence[ActionSpec], dt: float) -> tuple[int, int]:
    """The union of chunks: where it starts and how long it is, in steps of dt."""
    strides = [round(spec.dt / dt) for spec in specs]
    start = min(spec.start * stride for spec, stride in zip(specs, strides, strict=True))
    end = max((spec.start + spec.horizon - 1) * stride for spec, stride in zip(specs, strides, strict=True))
    return start, end + 1 - start


def _dims(spec: ActionSpec, names: tuple[str, ...] | None) -> tuple[int, ...]:
    """The place of a policy's dimensions among the common names."""
    return tuple(map(names.index, spec.names)) if names and spec.names else tuple(range(spec.dim))


def _names(spec: ActionSpec) -> tuple[str, ...]:
    return spec.names or tuple(f"action[{i}]" for i in range(spec.dim))


def _check_normaliser(member: AlignedMember) -> None:
    if max(member.ratios) <= MAX_SCALE_RATIO * min(member.ratios):
        return
    names, own = _names(member.policy.actions), member.policy.actions
    common = [member.common.scale[d] for d in member.dims], [member.common.offset[d] for d in member.dims]
    sides = (
        ", ".join(f"{name} = {s:g} x + {o:g}" for name, s, o in zip(names, scale, offset, strict=True))
        for scale, offset in (common, (own.scale, own.offset))
    )
    raise InputError(
        f"{member.policy.name} normalises its actions with ratios to the other policies' that differ more than "
        f"{MAX_SCALE_RATIO:g} times: {' against '.join(sides)}; one of them has the wrong units or names"
    )


def _check_representation(a: Policy, b: Policy) -> None:
    one, other = a.actions.relative, b.actions.relative
    if one is None or other is None or one == other:
        return
    moves, targets = (a, b) if one else (b, a)
    raise InputError(
        f"{moves.name} predicts moves (delta actions), {targets.name} absolute targets. Moves from where the robot is when the "
        f"chunk is planned become targets by 'origin={{{moves.name}: OBSERVATION}}'; moves from step to step do not: their sum's "
        "noise grows along the chunk"
    )


def join_observations(policies: Sequence[Policy]) -> ObservationSpec:
    """The union of the policies' observation keys and the longest history; InputError where a key has two shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for policy in policies:
        for key, shape in policy.observations.shapes.items():
            if shapes.setdefault(key, shape) != shape:
                raise InputError(f"{policy.name} reads {key!r} as {shape}, another policy as {shapes[key]}")
    return ObservationSpec(shapes, max(p.observations.n_obs_steps for p in policies))
