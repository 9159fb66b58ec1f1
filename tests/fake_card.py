"""A card that is not there: torch's fake tensors find every operation that mixes devices, or that no card can record."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpc.inference.constants import Constants
from gpc.inference.modules import moved
from gpc.policy.observation import TASK
from gpc.policy.spec import Policy
from gpc.score.denoiser import NetworkDenoiser

CARD = torch.device("cuda", 0)


class Recordable(TorchDispatchMode):
    """Fails on what a CUDA graph cannot record: numbers read by the host, tensors that come from it or go there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        assert name not in ("aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh"), name
        values = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, torch.Tensor)]
        # a kernel is recorded with the value of a number of the host
        number = name in ("aten.mul", "aten.add", "aten.sub", "aten.div")
        devices = {value.device.type for value in values if not (number and value.ndim == 0)}
        assert devices <= {CARD.type} or name.startswith("prim."), f"{name} on {devices}"
        return out


def run_on_fake_card(policy: Policy, observation: Mapping[str, Any]) -> NetworkDenoiser:
    """Encode an observation and call the network on a fake card; return the denoiser.

    Args:
        policy: a policy of one network.
        observation: key -> (batch, n_obs_steps, *shape), on the host.
    """
    rows = policy.observations.read(observation)
    count = len(next(iter(rows.values())))
    # within inference mode torch converts real tensors to fake ones too late
    off = partial(torch.inference_mode, False)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    copied = patch.object(torch.Tensor, "__deepcopy__", lambda self, memo: self.clone())  # it would set a storage
    # the host reads the instruction, of which a fake tensor has none
    texts = patch("gpc.policies.from_lerobot.read_text", lambda row: "push the T") if TASK in rows else nullcontext()
    with patch("torch.inference_mode", lambda mode=True: off()), texts, copied, fake, torch.no_grad():
        there = {
            key: value if key == TASK else torch.empty(value.shape, dtype=value.dtype, device=CARD)
            for key, value in rows.items()
        }
        condition = type(policy).condition
        denoiser = getattr(condition, "__wrapped__", condition)(moved(policy, CARD, None), there)
        assert isinstance(denoiser, NetworkDenoiser)
        tensors = tree_leaves(denoiser.condition)
        assert tensors, "no condition: the network cannot be recorded"
        assert {value.device for value in tensors} == {CARD}
        assert {len(value) for value in tensors} == {count}
        x = torch.empty(count, *policy.actions.shape, dtype=denoiser.dtype, device=CARD)
        label = denoiser.schedule.label(torch.tensor(1.0)).expand(count)
        label = label.to(CARD, denoiser.dtype if label.is_floating_point() else None)
        call = partial(denoiser.network, x, label, *denoiser.condition)
        with Constants():
            call()  # warms up
            with Recordable():
                out = call()
        assert out.device == CARD
        assert out.shape == x.shape
    return denoiser
