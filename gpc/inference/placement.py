"""Policies placed on a device: their networks compute there, in batches of few sizes, which are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gpc.composition.average import AveragedChunks
from gpc.composition.composed import ComposedPolicy
from gpc.inert import notice
from gpc.inference.batched import BatchedNetwork, padded
from gpc.inference.device import Card, Device, prepare
from gpc.inference.modules import moved, size_of
from gpc.policy.adapt import PolicyView
from gpc.policy.observation import TASK
from gpc.policy.spec import Movable, Observation, Policy
from gpc.score.denoiser import Denoiser, NetworkDenoiser

LARGE = 100_000_000  # parameters; a vision-language-action policy has more
SIZES = {False: (1, 4, 16, 64, 256), True: (1, 4, 8, 32)}  # of batches, by whether the network is large


@dataclass
class Placer:
    """Places policies on a device, each once: it is not copied and recorded again.

    Attributes:
        device: The devices of policies, by name.
        reproducible: Whether rows must not depend on the size of a batch. All batches on a card then have one size. If not, a
            network on the CPU is recorded for a single row.
    """

    device: Device
    reproducible: bool = True
    _placed: dict[int, tuple[Policy, Policy]] = field(default_factory=dict)  # by identity

    def __call__(self, policy: Policy) -> Policy:
        """Return a policy, a view or a composition with its networks on the device.

        The policy itself stays as it is. It is returned if nothing is to be done.
        """
        prepare(self.device)
        if isinstance(policy, AveragedChunks | ComposedPolicy):
            return policy.with_policies([self._place(part, part.name) for part in policy.policies])
        return self._place(policy, policy.name)

    def _place(self, policy: Policy, name: str) -> Policy:
        """Return a policy with its parts on the device of `name`."""
        if isinstance(policy, PolicyView):
            if isinstance(policy.condition_fn, Placement | SingleRow):
                return policy
            return replace(policy, policy=self._place(policy.policy, name))
        if isinstance(policy, AveragedChunks | ComposedPolicy):
            return policy.with_policies([self._place(part, name) for part in policy.policies])
        if id(policy) not in self._placed:
            self._placed[id(policy)] = policy, self._copied(policy, name)
        return self._placed[id(policy)][1]

    def _copied(self, policy: Policy, name: str) -> Policy:
        """Return a policy whose networks are copied to the device."""
        where = Card(self.device.of(name), self.device.dtype)
        if where.is_host:
            return policy if self.reproducible else _with(policy, SingleRow(BatchedNetwork(name, where, (1,), True)))
        with where.entered(name):
            copied = moved(policy, where.device, where.dtype)
        if copied is policy:
            if not isinstance(policy, Movable):
                notice(
                    f"{name} stays on the CPU: it has no attribute with a network, and no method to(device, dtype) (docs/gpu.md)"
                )
            return policy
        sizes = SIZES[size_of(policy).parameters > LARGE] if where.device.type != "cpu" else ()
        network = BatchedNetwork(name, where, sizes[-1:] if self.reproducible else sizes, where.records)
        return _with(policy, Placement(copied, network, self.reproducible))


def _with(policy: Policy, condition: Placement | SingleRow) -> Policy:
    return PolicyView(policy, policy.actions, policy.observations, "", condition)


def place(policy: Policy, device: Device, reproducible: bool = True) -> Policy:
    """Return a policy with its networks on a device, see `Placer`."""
    return Placer(device, reproducible)(policy)


def batch_sizes(policy: Policy) -> list[int]:
    """Return the sizes of a placed policy's batches, ascending."""
    if isinstance(policy, PolicyView):
        inside = policy.condition_fn
        return list(inside.network.sizes) if isinstance(inside, Placement | SingleRow) else batch_sizes(policy.policy)
    members = policy.policies if isinstance(policy, AveragedChunks | ComposedPolicy) else ()
    return sorted({size for member in members for size in batch_sizes(member)})


@dataclass(eq=False)
class SingleRow:
    """`condition` of a policy on the CPU, whose network is recorded for one row.

    Attributes:
        network: Runs it.
    """

    network: BatchedNetwork

    def __call__(self, policy: Policy, observation: Observation) -> Denoiser:
        """Encode one batch of observations."""
        denoiser = policy.condition(observation)
        if isinstance(denoiser, NetworkDenoiser) and denoiser.condition:
            single = all(len(value) == 1 for value in tree_leaves(denoiser.condition))
            return self.network.bind(denoiser) if single else denoiser
        return denoiser


@dataclass(eq=False)
class Placement:
    """`condition` of a policy whose networks compute on a device.

    Attributes:
        moved: The policy with its networks there.
        network: Runs them.
        padded: Whether observations are encoded in batches of one size; not if a denoiser holds the observation's rows.
    """

    moved: Policy
    network: BatchedNetwork
    padded: bool

    def __call__(self, policy: Policy, observation: Observation) -> Denoiser:
        """Encode one batch of observations, on the host, there."""
        rows = policy.observations.read(observation)
        count = len(next(iter(rows.values())))
        size = self.network.size_of(count) if self.padded else count
        parts = []
        with self.network.place.entered(self.network.policy):
            for begin in range(0, count, size):
                batch = {key: self._there(key, value, begin, size) for key, value in rows.items()}
                parts.append(self.moved.condition(batch))
            encoded = [part for part in parts if isinstance(part, NetworkDenoiser) and part.condition]
            if len(encoded) == len(parts):
                return self.network.bind(_joined(encoded, count))
        if self.padded:
            self.padded = False
            return self(policy, observation)
        (denoiser,) = parts
        return self.network.bind(denoiser) if isinstance(denoiser, NetworkDenoiser) else There(denoiser, self.network)

    def _there(self, key: str, value: Tensor, begin: int, size: int) -> Tensor:
        """Return rows of one key of an observation on the device; the host reads texts."""
        return padded(value, begin, size, value.device if key == TASK else self.network.place.device)


def _joined(parts: Sequence[NetworkDenoiser], count: int) -> NetworkDenoiser:
    """Return one denoiser for the first `count` rows of several."""
    if len(parts) == 1 and all(len(value) == count for value in tree_leaves(parts[0].condition)):
        return parts[0]
    condition = tree_map(lambda *values: torch.cat(values)[:count], *(part.condition for part in parts))
    return replace(parts[0], condition=condition)


@dataclass(frozen=True)
class There:
    """A denoiser that is no `NetworkDenoiser`, on a device."""

    denoiser: Denoiser
    network: BatchedNetwork

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`."""
        device = self.network.place.device
        dtype = torch.float32 if device.type == "mps" else x.dtype  # it has no float64
        with self.network.place.entered(self.network.policy):
            return self.denoiser(x.to(device, dtype), sigma.to(device, dtype)).to(x)
