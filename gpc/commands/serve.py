"""`gpc serve`: a policy, or a composition, for robot clients."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import fields
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpc.commands.config import build
from gpc.commands.setup import compose_from
from gpc.composition.composers import Weightable
from gpc.errors import InputError
from gpc.inert import Console
from gpc.serve.batching import Inference
from gpc.serve.server import Door, PolicyServer


def door_of(config: DictConfig) -> Door:
    """The door that a configuration describes; InputError where a value is of another type."""
    keys = [field.name for field in fields(Door)]
    try:
        return cast(Door, OmegaConf.to_object(OmegaConf.merge(Door, OmegaConf.masked_copy(config, keys))))
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None


def run(config: DictConfig, console: Console) -> None:
    """The command: load, warm up, listen, until it is interrupted or terminated."""
    door = door_of(config)
    policy = compose_from(config, console)
    inference = Inference(policy, build(config.sampler), config.max_batch, config.reproducible)
    weights = cast(Weightable, policy.composer).weights.tolist()
    facts = {"policies": [member.name for member in policy.policies], "weights": weights}

    def ready(address: str) -> None:
        console.print(f"{policy.name} is served on {address}; Ctrl-C ends it", highlight=False, soft_wrap=True)
        if not (door.local or door.certificate):
            note = "note: without a certificate everybody on the way reads along, and gpc's clients send no token"
            console.print(note, highlight=False, soft_wrap=True)

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await PolicyServer(inference, door, facts, config.seed).run(ready, stop)

    asyncio.run(until_told())
    inference.close()
