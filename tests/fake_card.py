"""A card that is not there: torch's fake tensors find every operation that mixes devices."""

from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from gpc.inference.modules import moved
from gpc.policy.spec import Policy
from gpc.score.denoiser import NetworkDenoiser


def run_on_fake_card(policy: Policy, observation: Mapping[str, Any]) -> NetworkDenoiser:
    """Encode an observation and call the network on a fake card; return the denoiser.

    Args:
        policy: a policy of one network.
        observation: key -> (batch, n_obs_steps, *shape), on the host.
    """
    card = torch.device("cuda", 0)
    rows = policy.observations.read(observation)
    count = len(next(iter(rows.values())))
    # within inference mode torch converts real tensors to fake ones too late
    off = partial(torch.inference_mode, False)
    with (
        patch("torch.inference_mode", lambda mode=True: off()),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
    ):
        there = {key: torch.empty(value.shape, dtype=value.dtype, device=card) for key, value in rows.items()}
        condition = type(policy).condition
        denoiser = getattr(condition, "__wrapped__", condition)(moved(policy, card, None), there)
        assert isinstance(denoiser, NetworkDenoiser)
        tensors = tree_leaves(denoiser.condition)
        assert tensors, "no condition: the network cannot be recorded"
        assert {value.device for value in tensors} == {card}
        assert {len(value) for value in tensors} == {count}
        x = torch.empty(count, *policy.actions.shape, dtype=denoiser.dtype, device=card)
        label = denoiser.schedule.label(torch.tensor(1.0)).expand(count)
        label = label.to(card, denoiser.dtype if label.is_floating_point() else None)
        out = denoiser.network(x, label, *denoiser.condition)
        assert out.device == card
        assert out.shape == x.shape
    return denoiser
