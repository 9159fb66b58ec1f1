"""A search that may be killed, or run out of disk, at any moment; each run is a fork of one process, so that it starts at once.

Everything is gpc's own but one thing: a simulator is a thread, not a process, so that hundreds of runs need not start one each.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from models import FixedPolicy, Gaussian

from gpc.commands.experiment import Experiment, run_search
from gpc.commands.rollout_setup import prepare
from gpc.composition.composed import compose
from gpc.errors import GpcError
from gpc.inert import Console
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.results.run_folder import versions
from gpc.rollout import worker
from gpc.rollout.engine import Engine
from gpc.rollout.executors import Local
from gpc.weights.searches import Grid

ACTIONS, STATE = ActionSpec(16, (256.0, 256.0), (256.0, 256.0), ("x", "y")), ObservationSpec({"state": (5,)}, 2)
POLICIES = [
    FixedPolicy(Gaussian(mean, 0.4), ACTIONS, observations=STATE, name=name) for name, mean in (("a", -0.3), ("b", 0.4))
]
METHOD, REPORT = Grid(step=0.5, episodes=4), range(200_000, 200_004)


class Simulator:
    """A simulator process that is a thread."""

    def __init__(self, command, env, pass_fds, stdin):
        connection = Connection(os.dup(pass_fds[0]))
        threading.Thread(target=worker.serve, args=(connection,), daemon=True).start()

    def kill(self):
        """It ends when the engine closes its socket."""

    def wait(self):
        return 0


class Disk:
    """`os.write` on a disk with so many free bytes; counts what is written."""

    def __init__(self, free):
        self.free, self.written, self.write = free, 0, os.write

    def __call__(self, file, content):
        fits = memoryview(content)[: max(0, self.free - self.written)]
        if len(content) and not len(fits):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = self.write(file, fits)
        self.written += count
        return count


def searching(connection):
    """Fork a search for every (folder, free bytes) that comes; answer its pid, then (exit code, error, bytes written)."""
    torch.set_num_threads(1)
    versions()  # starts git
    subprocess.Popen = Simulator
    setup = prepare(compose(POLICIES), EnvSpec("pusht", max_steps=16), Sampling(steps=2))
    experiment = Experiment(setup, Engine(lanes=4), Local(), Console(quiet=True))
    while True:
        folder, free = connection.recv()
        out, own = os.pipe()
        if not (pid := os.fork()):
            os.write(own, search(experiment, folder, free).encode())
            os._exit(0)
        os.close(own)
        connection.send(pid)
        with open(out) as answer:
            connection.send(answer.read())
        connection.recv()  # until then the pid is the child's
        os.waitpid(pid, 0)


def search(experiment, folder, free):
    """The error's exit code and text, or the bytes that the run wrote."""
    os.write = disk = Disk(free)
    try:
        run_search(experiment, METHOD, REPORT, Path(folder))
        return f"0 {disk.written}"
    except GpcError as error:
        return f"{error.exit_code} {error}"
    finally:
        os.write = disk.write


class Searches:
    """Runs the search; `with` ends the process that it is forked from."""

    def __init__(self):
        self.ours, theirs = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=searching, args=(theirs,), daemon=True)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *_):
        self.process.kill()

    def run(self, folder, free=sys.maxsize, seconds=None):
        """Its exit code (None if it was killed after so many seconds), and the error or the bytes written."""
        self.ours.send((str(folder), free))
        pid = self.ours.recv()
        if not self.ours.poll(seconds):
            os.kill(pid, signal.SIGKILL)
        code, _, text = self.ours.recv().partition(" ")
        self.ours.send(None)
        return int(code) if code else None, text
