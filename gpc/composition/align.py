"""Alignment: several action spaces in one coordinate.

A member has some steps and dimensions of the common normalised chunk x: `y = r x + b`, with `action = scale x +
offset`. Its noise is then `r sigma`. If r is one number, that is exact. If r differs per dimension, no sigma is right
for all dimensions of a network that was trained with one. Up to `NEAR_LEVEL` around the geometric mean the network gets
the mean level: the points stay exact, and the level is off by less than its trained levels are apart. Above, the
dimensions with less noise are brought to the level of the dimension with most (`gpc.composition.noise_matching`). So is a
dimension in which only this policy is constant: it has no noise of its own.
`AlignedMember.warning` lists what is not exact (docs/alignment.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import geometric_mean

import torch
from torch import Tensor

from gpc.composition.noise_matching import NoiseMatched
from gpc.errors import InputError
from gpc.policy.spec import CONSTANT, EPS, ActionSpec, Policy
from gpc.score.denoiser import Clamp, Denoiser, start
from gpc.score.noise import NEAR_LEVEL, SAME_LEVEL, NoiseLevels

MAX_SCALE_RATIO = 100.0  # ratios that differ more than this are a mistake in a normaliser


@dataclass(frozen=True)
class AlignedMember:
    """A policy in the common coordinate: `y = ratios * x[steps, dims] + shift`.

    A dimension that is constant for the policy, and not the same constant in the common coordinate, has the ratio 0.

    Attributes:
        policy: The policy, whose normalised action is y.
        common: The common coordinate, whose normalised action is x.
    """

    policy: Policy
    common: ActionSpec

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Common dimension of each of the policy's dimensions."""
        return _dims(self.policy.actions, self.common.names)

    @cached_property
    def stride(self) -> int:
        """Common steps between two steps of the policy."""
        return round(self.policy.actions.dt / self.common.dt)

    @cached_property
    def first(self) -> int:
        """Common step, counted from 0, at which the policy's chunk begins."""
        return self.policy.actions.start * self.stride - self.common.start

    @cached_property
    def steps(self) -> slice:
        """Common steps that are steps of the policy."""
        return slice(self.first, self.first + self.stride * (self.policy.actions.horizon - 1) + 1, self.stride)

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """Noise of y over that of x, for each of the policy's dimensions."""
        return tuple(ratio for ratio, _ in self._lines)

    @cached_property
    def shift(self) -> tuple[float, ...]:
        """The y at x = 0."""
        return tuple(shift for _, shift in self._lines)

    @cached_property
    def _lines(self) -> tuple[tuple[float, float], ...]:
        """Return ratio and shift of each of the policy's dimensions."""
        spec, lines = self.policy.actions, []
        for d, scale, offset, constant in zip(self.dims, spec.scale, spec.offset, spec.constants, strict=True):
            common = self.common.scale[d], self.common.offset[d]
            if common == (scale, offset):
                lines.append((1.0, 0.0))
            elif constant is not None:
                lines.append((0.0, constant))
            else:
                lines.append((common[0] / scale, (common[1] - offset) / scale))
        return tuple(lines)

    @cached_property
    def _constants(self) -> dict[int, float]:
        """Return the common x of each dimension with ratio 0, by the policy's dimension."""
        spec, constants = self.policy.actions, {}
        for i, (d, ratio) in enumerate(zip(self.dims, self.ratios, strict=True)):
            if ratio == 0:
                x, value = self.common.constants[d], spec.offset[i] + spec.scale[i] * (spec.constants[i] or 0.0)
                constants[i] = (value - self.common.offset[d]) / self.common.scale[d] if x is None else x
        return constants

    @cached_property
    def needs_noise_matching(self) -> bool:
        """True if noise is added to the policy's input."""
        return self._off > NEAR_LEVEL or bool(self._constants)

    @cached_property
    def ratio(self) -> float:
        """Level at the network's input over the common level."""
        return max(self._varying) if self.needs_noise_matching else self._mean

    @cached_property
    def levels(self) -> NoiseLevels:
        """Levels of the policy in the common coordinate."""
        return self.policy.levels.scaled(1 / self.ratio)

    @cached_property
    def coverage(self) -> Tensor:
        """Entries of the common chunk that the policy's chunk spans.

        Bool (horizon, action); steps between two steps of the policy count.
        """
        at = self._positions
        cover = torch.zeros(self.common.horizon, self.common.dim, dtype=torch.bool)
        cover[:, list(self.dims)] = ((at >= 0) & (at <= self.policy.actions.horizon - 1))[:, None]
        return cover

    @property
    def warning(self) -> str:
        """Approximations and missing dimensions, for the user; empty if there are none."""
        reasons = []
        if len(self.dims) < self.common.dim:
            everything = ", ".join(_names(self.common))
            reasons.append(f"acts in {', '.join(_names(self.policy.actions))} of {everything}")
        if self.stride > 1:
            reasons.append(f"plans every {self.stride} steps, between which its actions are interpolated")
        if self._constants:
            names = ", ".join(_names(self.policy.actions)[i] for i in self._constants)
            reasons.append(f"is constant in {names}, where its network is given noise around its constant")
        if self.needs_noise_matching and self._off > SAME_LEVEL:
            most = self.ratio / min(self._varying)
            reasons.append(f"is given up to {most:.3g} times the noise: its normaliser differs per dimension")
        elif self._off > SAME_LEVEL:
            reasons.append(
                f"gets noise levels that are up to {self._off:.1%} off: its normaliser differs per dimension"
            )
        return f"{self.policy.name} {'; it '.join(reasons)}" if reasons else ""

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """Wrap the policy's denoiser for `denoise`.

        The result is within the policy's bound if there is no common bound, and its noise is matched.
        """
        bound = self.policy.actions.bound
        if bound is not None and self.common.bound is None:
            denoiser = Clamp(denoiser, bound)
        if self.needs_noise_matching:
            denoiser = NoiseMatched(denoiser, tuple(r / self.ratio for r in self.ratios), self.policy.name)
        return denoiser

    def denoise(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise the common x (batch, horizon, action) with a wrapped denoiser.

        `masks` holds the entries of the result that count.
        """
        return self.start(denoiser, x, sigma)()

    def start(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Callable[[], Tensor]:
        """Begin to denoise; the result waits, see `denoise`."""
        finish = start(denoiser, self.to_member(x), sigma * self.ratio)
        return lambda: self.to_common(finish())

    def slice(self, x: Tensor) -> Tensor:
        """Return the policy's steps and dimensions of x (..., horizon, action)."""
        part = x[..., self.steps, :]
        return part if self._all_dims else part[..., list(self.dims)]

    def to_member(self, x: Tensor) -> Tensor:
        """Convert x (..., horizon, action) to y."""
        part = self.slice(x)
        return part if self._same_units else part * x.new_tensor(self.ratios) + x.new_tensor(self.shift)

    def to_common(self, y: Tensor) -> Tensor:
        """Convert y (batch, policy's horizon, policy's action) to x."""
        x = y if self._same_units else (y - y.new_tensor(self.shift)) / y.new_tensor(self.ratios)
        for dim, constant in self._constants.items():
            x[..., dim] = constant
        return self.resample(x)

    def resample(self, chunk: Tensor) -> Tensor:
        """Put a chunk of the policy on the common steps and dimensions.

        It is interpolated between its steps and held before and after them; other dimensions are zero.

        Args:
            chunk: (batch, policy's horizon, policy's action).

        Returns:
            (batch, horizon, action).
        """
        if self._all_dims and chunk.shape[1] == self.common.horizon:
            return chunk
        at = self._positions.clamp(0, chunk.shape[1] - 1)
        low = at.floor().long()
        resampled = torch.lerp(chunk[:, low], chunk[:, at.ceil().long()], (at - low).to(chunk)[:, None])
        out = chunk.new_zeros(len(chunk), self.common.horizon, self.common.dim)
        out[..., list(self.dims)] = resampled
        return out

    @cached_property
    def _all_dims(self) -> bool:
        return self.dims == tuple(range(self.common.dim))

    @cached_property
    def _same_units(self) -> bool:
        return set(self.ratios) == {1.0} and not any(self.shift)

    @cached_property
    def _positions(self) -> Tensor:
        """Return every common step in steps of the policy, (horizon,)."""
        return (torch.arange(self.common.horizon, dtype=torch.float64) - self.first) / self.stride

    @cached_property
    def _varying(self) -> tuple[float, ...]:
        """Return the ratios above 0; 1 if there are none."""
        return tuple(ratio for ratio in self.ratios if ratio > 0) or (1.0,)

    @cached_property
    def _mean(self) -> float:
        return self._varying[0] if len(set(self._varying)) == 1 else geometric_mean(self._varying)

    @cached_property
    def _off(self) -> float:
        """Return the largest relative distance of a dimension's noise from the mean."""
        return max(abs(r / self._mean - 1) for r in self._varying)


def align(policies: Sequence[Policy], common: ActionSpec) -> tuple[AlignedMember, ...]:
    """Put policies in one coordinate, see `union_spec` and `subset_spec`.

    Raises:
        InputError: If times, representations or normalisers do not fit.
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
    for member, mask in zip(members, masks(members).bool(), strict=True):
        if member.policy.actions.relative and (member.stride > 1 or not torch.equal(mask, member.coverage)):
            raise InputError(
                f"{member.policy.name} predicts moves, which are neither interpolated nor held; compose it with policies of its "
                "dt, over its steps"
            )
    return members


def masks(members: Sequence[AlignedMember]) -> Tensor:
    """Return the entries that each member contributes to, (K, horizon, action).

    The mask is 1 at the entries of the member's chunk. An entry that is in no chunk belongs to every member with that
    dimension.
    """
    cover = torch.stack([member.coverage for member in members])
    return torch.where(cover.any(0), cover, cover.any(1, keepdim=True)).float()


def union_spec(policies: Sequence[Policy]) -> ActionSpec:
    """Return the common coordinate of policies.

    It has all dimensions by name, in order of appearance, the smallest dt, and the union of all chunks. Scale, offset
    and bound of a dimension are those of the first policy in which it varies. If it is constant in all of them, they
    are those of the first; if the constants differ, the scale is the largest distance from the first. If the bounds of
    these policies differ there is no common bound, and each policy keeps its own. A policy without names has all
    dimensions.

    Raises:
        InputError: If a policy without names has another number of dimensions, or a dt is no multiple of the smallest.
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
    having: dict[int, list[tuple[ActionSpec, int]]] = {d: [] for d in range(dim)}
    for spec in specs:
        for i, d in enumerate(_dims(spec, names)):
            having[d].append((spec, i))
    owners = {d: next((pair for pair in pairs if _varies(*pair)), pairs[0]) for d, pairs in having.items()}
    scale, offset = zip(*(_normaliser(having[d], *owners[d]) for d in range(dim)), strict=True)
    bounds, moves = {spec.bound for spec, _ in owners.values()}, {spec.relative for spec, _ in owners.values()}
    bound = bounds.pop() if len(bounds) == 1 else None
    relative = moves.pop() if len(moves) == 1 else None
    return ActionSpec(horizon, scale, offset, names, start, dt, bound, relative)


def _varies(spec: ActionSpec, dim: int) -> bool:
    """Return whether a dimension of a policy is not constant."""
    return spec.constants[dim] is None


def _normaliser(pairs: Sequence[tuple[ActionSpec, int]], owner: ActionSpec, dim: int) -> tuple[float, float]:
    """Return scale and offset of a common dimension, see `union_spec`."""
    scale, offset = owner.scale[dim], owner.offset[dim]
    if _varies(owner, dim):
        return scale, offset
    apart = max(abs(spec.offset[i] - offset) for spec, i in pairs)
    return (apart if apart > max(CONSTANT, EPS * abs(offset)) else scale), offset


def subset_spec(policies: Sequence[Policy], full: ActionSpec) -> ActionSpec:
    """Return the coordinate of some policies of a composition without the others.

    It has the dimensions of the full composition and the steps of these policies. One policy keeps its own normaliser,
    bound and dt, so that its chunks stay the same bit for bit. Several policies have those of the full composition.

    Args:
        policies: Some policies of a composition.
        full: Common coordinate of the composition.

    Raises:
        InputError: If the policies lack a dimension.
    """
    dims = [_dims(policy.actions, full.names) for policy in policies]
    missing = sorted(set(range(full.dim)).difference(*dims))
    if missing:
        alone, lacking = " + ".join(policy.name for policy in policies), (_names(full)[d] for d in missing)
        raise InputError(f"{alone} cannot act alone: it has no {', '.join(lacking)}; give weight to a policy that has")
    if len(policies) > 1:
        start, horizon = _extent([policy.actions for policy in policies], full.dt)
        return replace(full, start=start, horizon=horizon)
    spec, order = policies[0].actions, [dims[0].index(d) for d in range(full.dim)]
    scale, offset = (tuple(values[i] for i in order) for values in (spec.scale, spec.offset))
    return replace(spec, scale=scale, offset=offset, names=spec.names and full.names)


def _extent(specs: Sequence[ActionSpec], dt: float) -> tuple[int, int]:
    """Return start and length of the union of chunks, in steps of dt."""
    strides = [round(spec.dt / dt) for spec in specs]
    start = min(spec.start * stride for spec, stride in zip(specs, strides, strict=True))
    end = max((spec.start + spec.horizon - 1) * stride for spec, stride in zip(specs, strides, strict=True))
    return start, end + 1 - start


def _dims(spec: ActionSpec, names: tuple[str, ...] | None) -> tuple[int, ...]:
    """Return the places of a policy's dimensions among the common names."""
    return tuple(map(names.index, spec.names)) if names and spec.names else tuple(range(spec.dim))


def _names(spec: ActionSpec) -> tuple[str, ...]:
    return spec.names or tuple(f"action[{i}]" for i in range(spec.dim))


def _check_normaliser(member: AlignedMember) -> None:
    if max(member._varying) <= MAX_SCALE_RATIO * min(member._varying):
        return
    names, spec = _names(member.policy.actions), member.policy.actions
    common = [member.common.scale[d] for d in member.dims], [member.common.offset[d] for d in member.dims]
    sides = (
        ", ".join(f"{name} = {s:g} x + {o:g}" for name, s, o in zip(names, scale, offset, strict=True))
        for scale, offset in (common, (spec.scale, spec.offset))
    )
    raise InputError(
        f"{member.policy.name} normalises its actions with ratios to the other policies' that differ more than "
        f"{MAX_SCALE_RATIO:g} times: {' against '.join(sides)}; one of them has the wrong units or names, or was trained on "
        "data that is constant in a dimension, whose scale is then arbitrary"
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
