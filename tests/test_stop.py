"""Requests to stop: every signal, the stop key, a terminal that hangs up; and a terminal that is left as it was."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpc.bridge.stop import SIGNALS, StopSignal
from gpc.demonstrations import read

ENDS = """
import os, signal, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)  # the kernel stops no member of an orphaned group, in which CI may run
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(0)
    status = os.waitpid(process, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    if os.WIFSTOPPED(status) or os.WIFSIGNALED(status):
        print(int(number))
"""
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}


def test_every_signal_that_would_end_or_stop_the_process_is_a_request_to_stop():
    ends = {int(line) for line in subprocess.check_output([sys.executable, "-P", "-c", ENDS], text=True).split()}
    assert {signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGUSR1} <= ends  # as this system has it
    assert set(SIGNALS) == ends - FAULTS - {signal.SIGPIPE, signal.SIGXFSZ}
    # None: a library in this process, as Ray, has a handler of its own, which Python cannot put back
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number in SIGNALS:
        stop_signal = StopSignal()
        with stop_signal.listening():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)  # a second one changes nothing
        assert stop_signal.code == 128 + number
        assert stop_signal.reason in {getattr(number, "name", ""), f"signal {int(number)}"}
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo terminal as standard input; returns its other end."""
    ours, theirs = pty.openpty()
    file = os.fdopen(theirs)
    monkeypatch.setattr(sys, "stdin", file)
    yield os.fdopen(ours, "wb", buffering=0)
    file.close()


def test_a_terminal_that_hangs_up_is_a_request_to_stop_and_no_error(terminal):
    stop_signal = StopSignal()
    with stop_signal.listening():
        stop_signal.poll()
        assert stop_signal.reason == ""
        terminal.close()
        stop_signal.poll()
        stop_signal.poll()
    assert (stop_signal.reason, stop_signal.code) == ("the terminal is gone", 129)


BACKGROUND = """
import os, pty, select, sys
from gpc.bridge.stop import StopSignal
process, ours = pty.fork()
if process:
    os.write(ours, b" \\n")
    print(os.WEXITSTATUS(os.waitpid(process, 0)[1]))
    sys.exit()
select.select([0], [], [])
behind = os.fork()
if behind == 0:
    os.setpgid(0, 0)  # the terminal stays with the other group
    stop_signal = StopSignal()
    with stop_signal.listening():
        stop_signal._terminal = 0  # as if the group had been sent there in flight
        stop_signal.poll()
    os._exit(10 + stop_signal.code)
status = os.waitpid(behind, os.WUNTRACED)[1]
os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)
"""


def test_in_the_background_of_a_terminal_nothing_waits_for_it():
    command = [sys.executable, "-P", "-c", BACKGROUND]
    assert int(subprocess.check_output(command, text=True, timeout=20)) == 10


@pytest.fixture(scope="module")
def flights(tiny, tmp_path_factory):
    """Real flights of the simulated robot in real terminals, one for each request."""
    pytest.importorskip("lerobot")
    folder = tmp_path_factory.mktemp("flights")
    requests = [("type", "\x1c"), ("type", "\x1a"), ("type", "\x03\x03"), ("kill", signal.SIGTERM)]
    watchdog = {"deadline": 5, "max_age": 5, "stop_after": 5, "observation_deadline": 2}
    keys = ["robot=simulated", "fps=20", "safety.actions=absolute", "mode=live", f"policies=[{tiny[1]}]"]
    keys += [f"watchdog.{key}={value}" for key, value in watchdog.items()]
    script = Path(__file__).with_name("terminal.py")
    output = subprocess.check_output([sys.executable, str(script), str(folder), json.dumps(requests), *keys], text=True)
    results = json.loads(output.splitlines()[-1])
    return folder, dict(zip(("ctrl-\\", "ctrl-z", "ctrl-c twice", "SIGTERM"), results, strict=True))


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ("ctrl-\\", signal.SIGQUIT),
        ("ctrl-z", signal.SIGTSTP),
        ("ctrl-c twice", signal.SIGINT),
        ("SIGTERM", signal.SIGTERM),
    ],
)
def test_a_robot_in_flight_is_held_and_disconnected_and_the_terminal_restored(flights, request_, number):
    result = flights[1][request_]
    assert result["exit"] == 128 + number, result["output"]
    assert f"stopped: {number.name}" in result["output"]
    assert f"gpc: stopped by {number.name}; the robot holds and is disconnected" in result["output"]
    assert result["why"] == number.name
    assert result["restored"]


def test_what_was_flown_until_the_signal_is_kept(flights):
    folder, results = flights
    runs = list(folder.glob("*/episode.zarr"))
    assert len(runs) == len(results)
    assert all(len(read(run).actions) > 0 for run in runs)
