"""`gpc serve`: a policy, or a composition, for robot clients."""

from __future__ import annotations

from dataclasses import fields

from omegaconf import DictConfig

from gpc.commands.setup import compose_from, device_of, print_native, sampling_of
from gpc.inert import Console
from gpc.inference.native import resolved
from gpc.inference.threads import torch_threads
from gpc.serve.listener import Access
from gpc.serve.server import serve_policy


def access_of(config: DictConfig) -> Access:
    """Return which clients a configuration accepts, and where.

    Raises:
        InputError: If a value is of another type or out of bounds.
    """
    return Access(**{field.name: config[field.name] for field in fields(Access)})


def run(config: DictConfig, console: Console) -> None:
    """Serve the policies of a configuration until a signal ends the process."""
    access = access_of(config)
    with torch_threads(1):  # what is loaded here leaves no threads behind
        policy = compose_from(config, console)
    sampling, weights = resolved(sampling_of(config), [policy]), policy.weights.tolist()
    print_native(sampling_of(config), sampling, console)

    def ready(address: str) -> None:
        console.print(f"{policy.name} is served on {address}; Ctrl-C ends it", highlight=False, soft_wrap=True)
        if not (access.local or access.certificate):
            note = "note: without a certificate the network can read what is sent, and gpc's clients send no token"
            console.print(note, highlight=False, soft_wrap=True)

    serve_policy(
        policy,
        sampling,
        access,
        seed=config.seed,
        max_batch=config.max_batch,
        reproducible=config.reproducible,
        device=device_of(config),
        metadata={"policies": [member.name for member in policy.policies], "weights": weights},
        ready=ready,
    )
    console.print(f"{policy.name} is no longer served", highlight=False, soft_wrap=True)
