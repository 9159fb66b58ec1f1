"""An actor that breaks the simulators of its own engine."""

import itertools
import os
import random
import signal
import subprocess


def simulators():
    """The simulator processes of this process."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "gpc[.]rollout[.]worker"], capture_output=True, text=True
    )
    return {int(pid) for pid in found.stdout.split()}


class Saboteur:
    """Acts as `actor` does, and at each of its first calls kills or stops, in turn, a simulator that is still well."""

    def __init__(self, actor, blows):
        self.actor, self.blows, self.struck, self.random = actor, blows, set(), random.Random(0)
        self.signals = itertools.cycle([signal.SIGKILL, signal.SIGSTOP])

    def __call__(self, *inputs):
        well = sorted(simulators() - self.struck)
        if len(self.struck) < self.blows and well:
            victim = self.random.choice(well)
            os.kill(victim, next(self.signals))
            self.struck.add(victim)
        return self.actor(*inputs)
