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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from servers import process_of
from websockets.asyncio.server import ServerConnection, serve

import gpc
from gpc.align import join_observations
from gpc.control import Sampling, plan
from gpc.denoise import Denoiser

POLICIES, WEIGHTS = ("pusht-diffusion", "pusht-flow"), (0.4, 0.6)
CLIENTS = (1, 2, 4, 8, 16)
WARM = 3  # answers of each client that are not timed


def serving_speed(say: Callable[[str], None], quick: bool, threads: int) -> None:
    """Throughput and latency of both servers, then what a remote member costs; a network has so many threads."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="openpi_client")
    seconds = 1 if quick else 8
    say("## gpc serve against the number of clients\n")
    say(
        f"{' + '.join(POLICIES)}, 8 steps; each client asks again when it has its answer, for {seconds} s. openpi's way: see"
    )
    say(
        f"`scripts/bench_serve.py`; the same policy and sampler, one client after the other. {threads} thread(s) for a network in"
    )
    say("both, the faster choice at batch 1.\n")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    say(
        "| clients | gpc: chunks a second | p50 ms | p99 ms | openpi's way: chunks a second | p50 ms | p99 ms | ratio |"
    )
    say("|---|---|---|---|---|---|---|---|")
    keys = [f"policies=[{','.join(POLICIES)}]", f"weights=[{','.join(map(str, WEIGHTS))}]", "port=0", "max_clients=32"]
    ours, theirs = process_of(sys.executable, "-m", "gpc.cli", "serve", *keys), process_of(sys.executable, __file__)
    with ours as (_, own_address), theirs as (_, other_address):
        for count in CLIENTS:
            own, naive = load(own_address, count, seconds), load(other_address, count, seconds)
            figures = " | ".join(f"{figure:.1f}" for figure in (*own, *naive))
            say(f"| {count} | {figures} | {own[0] / naive[0]:.2f} |")
    remote_member(say, 50 if quick else 500)


def load(address: str, count: int, seconds: float) -> tuple[float, float, float]:
    """Chunks a second of so many clients that ask all the time, and the median and the 99th percentile of the wait in ms."""
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
    """One denoising of a policy in another process, and of the same policy here."""
    say("\n## A remote member\n")
    say(f"One denoising of {POLICIES[1]}, here and through `remote:`; median of {calls}, one thread for the network.\n")
    say("| rows | here ms | remote ms | the way there and back ms |")
    say("|---|---|---|---|")
    torch.set_num_threads(1)
    keys = [f"policies=[{POLICIES[1]}]", "port=0", "reproducible=true"]
    with process_of(sys.executable, "-m", "gpc.cli", "serve", *keys) as (_, address):
        members = [gpc.load_policy(POLICIES[1]), gpc.load_policy(f"remote:{address}")]
        for rows in (1, 256):
            spec = members[0].observations
            observation = {key: torch.zeros(rows, 2, *shape) for key, shape in spec.shapes.items()}
            here, there = took([member.condition(observation) for member in members], rows, calls)
            say(f"| {rows} | {here:.2f} | {there:.2f} | {there - here:.2f} |")


def took(denoisers: Sequence[Denoiser], rows: int, calls: int) -> list[float]:
    """Median milliseconds of each denoiser, turn about."""
    x, sigma = torch.ones(rows, 16, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    times: list[list[float]] = [[] for _ in denoisers]
    for _ in range(calls):
        for denoiser, found in zip(denoisers, times, strict=True):
            began = time.perf_counter()
            denoiser(x, sigma)
            found.append(1000 * (time.perf_counter() - began))
    return [median(found) for found in times]


async def openpis_way() -> None:
    """The policy served as openpi serves one."""
    policy, sampling = gpc.compose([gpc.load_policy(name) for name in POLICIES], WEIGHTS), Sampling()

    async def talk(connection: ServerConnection) -> None:
        await connection.send(msgpack_numpy.packb({}))
        chunk = 0
        async for frame in connection:
            observation = {key: value[None] for key, value in msgpack_numpy.unpackb(frame).items()}
            began = time.perf_counter()
            actions = plan(policy, sampling, observation, np.zeros(1, np.int64), np.array([chunk]))[0]
            timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
            await connection.send(msgpack_numpy.packb({"actions": actions, "server_timing": timing}))
            chunk += 1

    async with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(openpis_way())
