"""The control loop with its policy on a server that freezes, dies, comes back, or is cut off."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from models import FixedPolicy, Gaussian
from running import PERIOD, SLACK, flown
from toy_robots import Arm

from gpc.bridge.chunk_source import RemoteSource
from gpc.bridge.controller import HOLD, OK, STOPPED, Watchdog
from gpc.bridge.loop import MODES
from gpc.bridge.stop import StopSignal
from gpc.commands.config import load_config
from gpc.commands.deploy import deploy_from
from gpc.errors import InputError
from gpc.inert import Console
from gpc.serve.client import RemotePolicy
from gpc.serve.codec import pack
from gpc.serve.metadata import policy_metadata

# a server of the protocol that is there at once: it computes nothing, and imports no torch
SERVE = """
import sys
import numpy as np
from websockets.sync.server import serve
from gpc.serve.codec import pack
metadata, host, port = bytes.fromhex(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def answer(connection):
    connection.send(metadata)
    for _ in connection:
        connection.send(pack({"actions": np.random.default_rng(0).normal(0, 0.002, (16, 2))}))

with serve(answer, host, port, compression=None) as server:
    print("ready", flush=True)
    server.serve_forever()
"""
WATCHDOG = Watchdog(deadline=0.1, max_age=0.4, observation_deadline=0.15, stop_after=0.25)
MAPPED = {"state": ["state.0", "state.1", "x.pos"]}


class Watched(RemoteSource):
    """Remembers when each chunk was asked for, and which were answered."""

    def __post_init__(self):
        super().__post_init__()
        self.command = []

    def sample(self, request):
        self.command.append(request.at)
        chunk = super().sample(request)
        self.command.remove(request.at)
        return chunk


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(host, port, *before):
    metadata = pack(policy_metadata(FixedPolicy(Gaussian(mean=0.0, std=0.002))) | {"seed": 0})
    command = [*before, sys.executable, "-P", "-c", SERVE, metadata.hex(), host, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def ending(process):
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def held_and_stopped(arm, kept, source, fault):
    """Hold a deadline and a period after the first ask without an answer, then a stop that lasts."""
    held, stopped = kept.first(HOLD), kept.first(STOPPED)
    unanswered = min(source.command)
    assert unanswered < fault + 8 * PERIOD + SLACK
    assert held.at <= unanswered + WATCHDOG.deadline + PERIOD + SLACK
    assert stopped.at <= held.at + WATCHDOG.stop_after + PERIOD + SLACK
    assert held.text.startswith(f"no chunk within {WATCHDOG.deadline:g} s")
    assert {record.mode for record in kept.periods if record.at > stopped.at} <= {STOPPED}
    assert not arm.is_connected


def test_a_frozen_server_is_a_hold_within_the_deadline_then_a_stop():
    arm, frozen = Arm(), []
    with ending(start("127.0.0.1", port := free_port())) as server:
        source = Watched(RemotePolicy(f"ws://127.0.0.1:{port}", timeout=5.0))

        def freeze(arm):
            time.sleep(0.8)
            frozen.append(time.monotonic())
            server.send_signal(signal.SIGSTOP)

        _, kept, _, stop_signal = flown(arm, source, watchdog=WATCHDOG, mapped=MAPPED, meanwhile=freeze)
        assert stop_signal.reason == ""
        held_and_stopped(arm, kept, source, frozen[0])


def test_a_server_that_is_killed_and_comes_back_is_a_hold_that_ends():
    watchdog = Watchdog(deadline=0.2, max_age=0.4, observation_deadline=0.15, stop_after=60)
    arm, stop_signal, port = Arm(), StopSignal(), free_port()
    again = []
    with ending(start("127.0.0.1", port)) as server:
        source = RemoteSource(RemotePolicy(f"ws://127.0.0.1:{port}", timeout=0.3))

        def restart(arm):
            time.sleep(0.6)
            server.kill()
            server.wait()
            again.append(start("127.0.0.1", port))
            time.sleep(0.6)
            stop_signal.finish()

        _, kept, _, _ = flown(
            arm, source, None, watchdog=watchdog, mapped=MAPPED, meanwhile=restart, stop_signal=stop_signal
        )
    with ending(again[0]):
        assert [event.kind for event in kept.events if event.kind not in ("refused", "discarded")] == [
            OK,
            HOLD,
            OK,
            STOPPED,
        ]
        assert kept.first("refused").text.endswith("; is it running?") or "is gone" in kept.first("refused").text
        assert kept.events[-1].text == "the time is over"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable():
    """A network namespace at the other end of a cable: its name, our end, its address."""
    name, ours, theirs = f"gpc{os.getpid()}", f"gpca{os.getpid()}"[:15], f"gpcb{os.getpid()}"[:15]
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', error)}")
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("addr", "add", "10.213.77.1/30", "dev", ours)
        ip("link", "set", ours, "up")
        for words in (
            ["addr", "add", "10.213.77.2/30", "dev", theirs],
            ["link", "set", theirs, "up"],
            ["link", "set", "lo", "up"],
        ):
            ip("-n", name, *words)
        yield name, ours, "10.213.77.2"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_a_network_that_is_cut_is_a_hold_within_the_deadline_then_a_stop(cable):
    name, ours, host = cable
    arm, was_cut = Arm(), []
    with ending(start(host, 8123, "ip", "netns", "exec", name)):
        source = Watched(RemotePolicy(f"ws://{host}:8123", timeout=5.0))

        def cut(arm):
            time.sleep(0.8)
            was_cut.append(time.monotonic())
            ip("link", "set", ours, "down")

        _, kept, _, _ = flown(arm, source, watchdog=WATCHDOG, mapped=MAPPED, meanwhile=cut)
        held_and_stopped(arm, kept, source, was_cut[0])


class Boastful:
    """A client of a server whose policy has a range, a kind of action and a rate to its liking."""

    url = "ws://elsewhere"

    def __init__(self, **actions):
        self.metadata = policy_metadata(FixedPolicy(Gaussian(mean=0.0, std=0.1)))
        self.metadata["actions"] |= {"bound": 1e300, "relative": False} | actions

    def close(self):
        pass


@pytest.mark.parametrize(
    ("actions", "keys", "why"),
    [
        ({}, [], "safety.position=policy needs a policy on this machine whose actions have a range; give"),
        (
            {},
            ["safety.position=[-1,1]"],
            "safety.actions=null needs a policy on this machine whose actions are absolute; name",
        ),
        (
            {"dt": 0.001},
            ["safety.position=[-1,1]", "safety.actions=absolute"],
            "0.001 / fps: 10000 steps in a second; confirm how many actions are sent in a second, as in rate=10000",
        ),
        ({"dt": 2.0}, ["safety.position=[-1,1]", "safety.actions=absolute"], "2 / fps: 5 steps in a second; confirm"),
        ({"dt": 0.001}, ["safety.position=[-1,1]", "safety.actions=absolute", "rate=1000"], "must be a multiple of"),
        (
            {"dt": 100.0},
            ["safety.position=[-1,1]", "safety.actions=absolute", "rate=10"],
            "must be longer than a step of the policy, 10 s",
        ),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_no_limit_and_no_rate_is_what_a_server_says(tmp_path, actions, keys, why, mode):
    config = load_config("deploy", ["robot=simulated", "fps=10", f"mode={mode}", "server=ws://elsewhere", *keys])
    config.robot.observations = MAPPED
    arm = Arm()
    with pytest.raises(InputError, match=re.escape(why)):
        deploy_from(config, RemoteSource(Boastful(**actions)), arm, tmp_path / "run", Console(quiet=True))
    assert arm.threads == set()  # nothing was called
