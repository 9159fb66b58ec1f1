"""Real processes in pseudo terminals: `gpc deploy` in a fork for each request, a key typed or a signal sent.

    python terminal.py FOLDER '[["type", "\\u001c"], ["kill", 15]]' KEY=VALUE ...

prints for each its exit status, its last words, why it ended, and whether the terminal is as it was.
"""

import json
import os
import pty
import select
import signal
import sys
import termios
import time
from pathlib import Path

import gpc.commands.deploy
import gpc.policies.bundled  # noqa: F401
from gpc.commands.cli import main
from gpc.robots.from_lerobot import make_robot

LIMIT = 90.0  # seconds for one episode


class Episode:
    """One episode in a terminal of its own; `poll` until it returns true."""

    def __init__(self, run, kind, what, keys):
        self.run, self.kind, self.what = run, kind, what
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.output, self.status, self.end = "", None, time.monotonic() + LIMIT
        self.process = os.fork()
        if self.process == 0:
            os.login_tty(self.theirs)
            code = main(["deploy", *keys, f"run_dir={run}"])
            sys.stdout.flush()
            os._exit(code)

    def poll(self):
        if select.select([self.ours], [], [], 0.02)[0]:
            self.output += os.read(self.ours, 4096).decode()
        if " ok: " in self.output and self.what:
            assert termios.tcgetattr(self.theirs) != self.before  # single keys, without echo
            if self.kind == "type":
                os.write(self.ours, self.what.encode())
            else:
                os.kill(self.process, self.what)
            self.what = None
        ended, result = os.waitpid(self.process, os.WNOHANG | os.WUNTRACED)
        self.status = result if ended else None
        return self.status is not None or time.monotonic() > self.end

    def result(self):
        while select.select([self.ours], [], [], 0.2)[0]:
            self.output += os.read(self.ours, 4096).decode()
        if self.status is None or os.WIFSTOPPED(self.status):
            os.kill(self.process, signal.SIGKILL)
        path, status = Path(self.run, "summary.json"), self.status
        return {
            "exit": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else f"status {status}",
            "output": self.output,
            "why": json.loads(path.read_text()).get("why") if path.exists() else None,
            "restored": termios.tcgetattr(self.theirs) == self.before,
        }


if __name__ == "__main__":
    folder, requests, *keys = sys.argv[1:]
    os.environ["TERM"] = "dumb"  # no colours
    make_robot("gpc_simulated")  # imports once what each fork needs
    episodes = [Episode(f"{folder}/{i}", *request, keys) for i, request in enumerate(json.loads(requests))]
    waiting = list(episodes)
    while waiting:
        waiting = [episode for episode in waiting if not episode.poll()]
    print(json.dumps([episode.result() for episode in episodes]))
