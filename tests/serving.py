"""A policy server in a thread of the test, in a bare process, and as `gpc serve`."""

import asyncio
import signal
import sys
from contextlib import contextmanager
from queue import Queue
from threading import Thread

from models import FixedPolicy, Gaussian
from servers import process_of

from gpc.inference.settings import Sampling
from gpc.serve.batching import InferenceThread
from gpc.serve.listener import Access
from gpc.serve.server import PolicyServer

SAMPLING = Sampling(steps=4)


@contextmanager
def listening(listener):
    """The address of a server that runs in a thread, which ends with the block."""
    ready = Queue()

    async def serve():
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        await listener.run(lambda address: ready.put((address, loop, stop)), stop)

    thread = Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    address, loop, stop = ready.get(timeout=20)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=20)
        assert not thread.is_alive()


@contextmanager
def served(policy, reproducible=False, max_batch=256, port=0, **door):
    """The address of a server of this policy, which ends with the block."""
    inference = InferenceThread(policy, SAMPLING, max_batch, reproducible)
    try:
        with listening(PolicyServer(inference, Access(port=port, **door), {"weights": [1.0]}, seed=100)) as address:
            yield address
    finally:
        inference.close()


def gpc_serve(*keys):
    """`gpc serve` with these keys in another process."""
    return process_of(sys.executable, "-P", "-m", "gpc.commands.cli", "serve", "port=0", *keys)


def alone():
    """A bare server of a policy that costs nothing, in another process."""
    return process_of(
        sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path}; import serving; serving.stand()"
    )


def stand():
    """What `alone` runs."""
    with served(FixedPolicy(Gaussian()), max_clients=32, timeout=1) as address:
        print(f"{address};", flush=True)
        signal.pause()
