"""A policy server in a thread of the test, and one that is `gpc serve` in a process of its own."""

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from queue import Queue
from threading import Thread

from gpc.bridge.inference import Inference
from gpc.bridge.server import Door, PolicyServer
from gpc.control import Sampling

SAMPLING = Sampling(steps=4)


@contextmanager
def served(policy, reproducible=False, max_batch=256, **door):
    """The address of a server of this policy, which ends with the block."""
    inference = Inference(policy, SAMPLING, max_batch, reproducible)
    ready = Queue()

    async def serve():
        stop = asyncio.Event()
        server = PolicyServer(inference, Door(port=0, **door), {"weights": [1.0]}, seed=100)
        loop = asyncio.get_running_loop()
        await server.run(lambda address: ready.put((address, loop, stop)), stop.wait())

    thread = Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    address, loop, stop = ready.get(timeout=20)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=20)
        inference.close()
        assert not thread.is_alive()


@contextmanager
def gpc_serve(*keys):
    """`gpc serve` with these keys in another process: the process and its address."""
    command = [sys.executable, "-m", "gpc.cli", "serve", "port=0", *keys]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert " is served on " in line
        yield process, line.split(" is served on ")[1].split(";")[0]
    finally:
        process.kill()
        process.wait()
