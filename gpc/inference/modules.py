"""Copies of policies with their networks on a device, and the memory that these take."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gpc.composition.composed import leaves
from gpc.policy.spec import Dtype, Movable, Policy

HALVED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)  # modules whose weights bfloat16 halves


def moved(policy: Policy, device: torch.device, dtype: Dtype | None) -> Policy:
    """Return a copy of a policy with its networks and tensors on a device."""
    if isinstance(policy, nn.Module):  # its own `to` would move this one
        return cast(Policy, module_on(policy, device, dtype))
    if isinstance(policy, Movable):
        return policy.to(device, dtype)
    changes = {}
    for name, value in _attributes(policy).items():
        there = tree_map(lambda leaf: _leaf_on(leaf, device, dtype), value)
        if any(new is not old for new, old in zip(tree_leaves(there), tree_leaves(value), strict=True)):
            changes[name] = there
    if not changes:
        return policy
    copied = copy.copy(policy)  # with what it has cached, as its fingerprint
    for name, there in changes.items():
        object.__setattr__(copied, name, there)
    return copied


def _attributes(policy: Policy) -> dict[str, Any]:
    """Return a policy's attributes by name; a module has itself."""
    return {"": policy} if isinstance(policy, nn.Module) else dict(getattr(policy, "__dict__", {}))


def _leaf_on(leaf: Any, device: torch.device, dtype: Dtype | None) -> Any:
    if isinstance(leaf, nn.Module):
        return module_on(leaf, device, dtype)
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def module_on(module: nn.Module, device: torch.device, dtype: Dtype | None = None) -> nn.Module:
    """Return a copy of a module on a device, without a second copy on the host.

    Args:
        module: A module.
        device: The device.
        dtype: Of the weights of products and convolutions; None: as they are.
    """
    there: dict[int, Any] = {}  # by identity, as `copy.deepcopy` looks them up
    for part in module.modules():
        kind = getattr(torch, dtype) if dtype and isinstance(part, HALVED) else None
        for weight in part.parameters(recurse=False):
            there[id(weight)] = nn.Parameter(weight.to(device, kind, copy=True), requires_grad=False)
        for tensor in [*part.buffers(recurse=False), *(v for v in vars(part).values() if isinstance(v, Tensor))]:
            there[id(tensor)] = tensor.to(device, copy=True)
    return copy.deepcopy(module, there)


class Size(NamedTuple):
    """Weights of a policy's networks.

    Attributes:
        parameters: Their number.
        bytes: Their memory, with buffers.
        halved: Their memory under `dtype=bfloat16`.
    """

    parameters: int
    bytes: int
    halved: int


def size_of(policy: Policy) -> Size:
    """Return the size of the networks in a policy, a view or a composition."""
    parameters, whole, halved = dict[int, int](), dict[int, int](), dict[int, int]()  # by identity
    for leaf in leaves(policy):
        modules = [value for value in tree_leaves(_attributes(leaf)) if isinstance(value, nn.Module)]
        parameters |= {id(weight): weight.numel() for module in modules for weight in module.parameters()}
        for part in (part for module in modules for part in module.modules()):
            for weight in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                whole[id(weight)] = halved[id(weight)] = weight.nbytes
            for weight in part.parameters(recurse=False) if isinstance(part, HALVED) else ():
                halved[id(weight)] = 2 * weight.numel()
    return Size(sum(parameters.values()), sum(whole.values()), sum(halved.values()))
