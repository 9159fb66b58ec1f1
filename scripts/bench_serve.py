"""`gpc serve` against the number of its clients, beside openpi's way of serving: what `scripts/bench.py serve` measures.

openpi's server is on no package registry. Its way is rebuilt here over openpi's own codec: one event loop that unpacks, infers,
packs and sends for each client in turn, and computes in the loop itself. The client is openpi's in both cases.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from servers import process_of
from websockets.asyncio.server import ServerConnection, serve

import gpc
from gpc.composition.composed import join_observations
from gpc.inference.chunk import sample_actions
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec
from gpc.rollout.env import LaneSpec
from gpc.rollout.worker import Lane, LaneCommand
from gpc.score.denoiser import Denoiser
from gpc.score.noise import NoiseLevels
from gpc.serve.batching import InferenceThread
from gpc.serve.listener import Access
from gpc.serve.server import PolicyServer

POLICIES, WEIGHTS = ("pusht-diffusion", "pusht-flow"), (0.4, 0.6)
CLIENTS = (1, 2, 4, 8, 16)
WARM = 3  # answers of each client that are not timed


def serving_speed(say: Callable[[str], None], quick: bool, threads: int) -> None:
    """Measure both servers with `threads` threads a network, then a remote member."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="openpi_client")
    seconds = 1 if quick else 8
    say("## gpc serve against the number of clients\n")
    say(f"{' + '.join(POLICIES)}, 8 steps; each client sends a request when it has a reply, for {seconds} s.")
    say("openpi's way (rebuilt in `scripts/bench_serve.py`): the same policy and sampler, one client after the other.")
    say(
        f"{threads} thread(s) for a network in openpi's way, the faster choice; gpc takes all cores for a single request.\n"
    )
    os.environ["OMP_NUM_THREADS"] = str(threads)
    say("| clients | gpc: chunks a second | p50 ms | p99 ms | openpi: chunks a second | p50 ms | p99 ms | ratio |")
    say("|---|---|---|---|---|---|---|---|")
    keys = [f"policies=[{','.join(POLICIES)}]", f"weights=[{','.join(map(str, WEIGHTS))}]", "port=0", "max_clients=32"]
    ours = process_of(sys.executable, "-P", "-m", "gpc.commands.cli", "serve", *keys)
    theirs = process_of(sys.executable, __file__, "openpi")
    with ours as (_, our_address), theirs as (_, their_address):
        for count in CLIENTS:
            gpc_, naive = load(our_address, count, seconds), load(their_address, count, seconds)
            figures = " | ".join(f"{figure:.1f}" for figure in (*gpc_, *naive))
            say(f"| {count} | {figures} | {gpc_[0] / naive[0]:.2f} |")
    remote_member(say, 500 if quick else 5000)
    remote_simulator(say, 50 if quick else 1000)


def load(address: str, count: int, seconds: float) -> tuple[float, float, float]:
    """Return chunks a second, median and 99th percentile of the wait in ms.

    `count` clients send the next request when they have a reply.
    """
    rng = np.random.default_rng(0)
    shapes = join_observations([gpc.load_policy(name) for name in POLICIES]).shapes
    observation = {key: rng.uniform(0, 512, (2, *shape)) for key, shape in shapes.items()}
    clients = [WebsocketClientPolicy(address) for _ in range(count)]

    def ask(client: WebsocketClientPolicy) -> list[float]:
        waits = []
        for _ in range(WARM):
            client.infer(observation)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            client.infer(observation)
            waits.append(1000 * (time.perf_counter() - began))
        return waits

    with ThreadPoolExecutor(count) as threads:
        waits = np.concatenate(list(threads.map(ask, clients)))
    for client in clients:
        client._ws.close()
    return len(waits) / seconds, float(np.median(waits)), float(np.percentile(waits, 99))


def remote_member(say: Callable[[str], None], calls: int) -> None:
    """Measure the way to a denoiser without cost in another process and back."""
    say("\n## A remote member\n")
    say(
        f"One call of a denoiser that returns its x at once, (rows, 16, 2) float64, through `remote:`; {calls} calls.\n"
    )
    say("| rows | p50 ms | p99 ms |")
    say("|---|---|---|")
    with process_of(sys.executable, __file__, "free") as (_, address):
        member = gpc.load_policy(f"remote:{address}")
        for rows in (1, 256):
            denoiser = member.condition({"state": torch.zeros(rows, 1, 1)})
            x, sigma = torch.ones(rows, 16, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
            waits = []
            for _ in range(calls):
                began = time.perf_counter()
                denoiser(x, sigma)
                waits.append(1000 * (time.perf_counter() - began))
            say(f"| {rows} | {np.median(waits):.2f} | {np.percentile(waits, 99):.2f} |")


def remote_simulator(say: Callable[[str], None], chunks: int) -> None:
    """Measure chunks of PushT in a simulator behind a socket, beside one in this process."""
    say("\n## A remote simulator\n")
    say(f"{chunks} chunks of 8 actions of PushT, `state` of the last two steps; `gpc serve-env` on the same machine.\n")
    say("| simulator | p50 ms | p99 ms |")
    say("|---|---|---|")
    actions = np.random.default_rng(0).uniform(100, 400, (chunks, 8, 2))
    with process_of(sys.executable, "-P", "-m", "gpc.commands.cli", "serve-env", "env=pusht", "port=0") as (_, address):
        for name, env in (
            ("here", EnvSpec("pusht", 8, 10**6)),
            ("remote", EnvSpec("remote", 8, 10**6, {"address": address})),
        ):
            lane, waits = Lane.of(LaneSpec(env, ("state",), 2)), []
            lane.execute(LaneCommand(0, 0, None))
            for chunk in actions:
                began = time.perf_counter()
                ended = lane.execute(LaneCommand(0, None, chunk)).done
                waits.append(1000 * (time.perf_counter() - began))
                if ended:
                    lane.execute(LaneCommand(0, 0, None))
            lane.env.close()
            say(f"| {name} | {np.median(waits):.2f} | {np.percentile(waits, 99):.2f} |")


class Free:
    """A policy without cost."""

    name = fingerprint = "free"
    actions = ActionSpec(16, (1.0, 1.0), (0.0, 0.0))
    observations = ObservationSpec({"state": (1,)}, 1)
    levels = NoiseLevels(0.001, 1000.0)

    def condition(self, observation: Observation) -> Denoiser:
        return lambda x, sigma: x


async def free() -> None:
    """Run a server of `Free`."""
    server = PolicyServer(InferenceThread(Free(), Sampling()), Access(port=0), {})
    await server.run(lambda address: print(address, flush=True), asyncio.Event())


async def openpis_way() -> None:
    """Serve the policy as openpi does."""
    policy, sampling = gpc.compose([gpc.load_policy(name) for name in POLICIES], WEIGHTS), Sampling()

    async def talk(connection: ServerConnection) -> None:
        await connection.send(msgpack_numpy.packb({}))
        chunk = 0
        async for frame in connection:
            observation = {key: value[None] for key, value in msgpack_numpy.unpackb(frame).items()}
            began = time.perf_counter()
            actions = sample_actions(policy, sampling, observation, np.zeros(1, np.int64), np.array([chunk]))[0]
            timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
            await connection.send(msgpack_numpy.packb({"actions": actions, "server_timing": timing}))
            chunk += 1

    async with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run({"openpi": openpis_way, "free": free}[sys.argv[1]]())
