"""`gpc serve`: a policy, or a composition, for robot clients."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import fields
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpc.commands.setup import compose_from, sampling_of
from gpc.composition.composers import HasWeights
from gpc.errors import InputError
from gpc.inert import Console
from gpc.inference.threads import serving_threads, torch_threads
from gpc.serve.batching import InferenceThread
from gpc.serve.server import Access, PolicyServer


def access_of(config: DictConfig) -> Access:
    """The door that a configuration describes; InputError where a value is of another type."""
    keys = [field.name for field in fields(Access)]
    try:
        return cast(Access, OmegaConf.to_object(OmegaConf.merge(Access, OmegaConf.masked_copy(config, keys))))
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None


def run(config: DictConfig, console: Console) -> None:
    """The command: load, warm up, listen, until it is interrupted or terminated."""
    access = access_of(config)
    policy = compose_from(config, console)
    weights = cast(HasWeights, policy.composer).weights.tolist()
    facts = {"policies": [member.name for member in policy.policies], "weights": weights}

    def ready(address: str) -> None:
        console.print(f"{policy.name} is served on {address}; Ctrl-C ends it", highlight=False, soft_wrap=True)
        if not (access.local or access.certificate):
            note = "note: without a certificate everybody on the way reads along, and gpc's clients send no token"
            console.print(note, highlight=False, soft_wrap=True)

    async def until_told(inference: InferenceThread) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await PolicyServer(inference, access, facts, config.seed).run(ready, stop)

    with torch_threads(serving_threads(config.reproducible)):
        inference = InferenceThread(policy, sampling_of(config), config.max_batch, config.reproducible)
        asyncio.run(until_told(inference))
        inference.close()
