"""`gpc serve-env`: a simulator for engines in other processes."""

from __future__ import annotations

from omegaconf import DictConfig

from gpc.commands.serve import access_of
from gpc.commands.simulators import POLICY, env_of
from gpc.errors import InputError
from gpc.inert import Console
from gpc.serve.env_server import serve_env


def run(config: DictConfig, console: Console) -> None:
    """Serve the environment of a configuration until a signal ends the process."""
    spec = env_of(config)
    if spec.type == POLICY:
        raise InputError(f"env={POLICY} names no simulator here, where there is no policy; choose one, as in env=pusht")

    def ready(address: str) -> None:
        console.print(
            f"{spec.name} is served on {address}; run with env=remote env.options.address={address}; Ctrl-C ends it",
            highlight=False,
            soft_wrap=True,
        )

    serve_env(spec, access_of(config), ready)
