"""Real processes in pseudo terminals: `gpc deploy` flies in a fork for each request, a key typed or a signal sent.

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

import lerobot.robots  # noqa: F401  imported once, not in every fork

import gpc.commands.deploy
import gpc.policies.bundled
import gpc.robots.from_lerobot  # noqa: F401
from gpc.commands.cli import main

LIMIT = 60.0  # seconds for one flight


def flight(run, kind, what, keys):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = os.fork()
    if process == 0:
        os.login_tty(theirs)
        code = main(["deploy", *keys, f"run_dir={run}"])
        sys.stdout.flush()
        os._exit(code)
    output, status, end = "", None, time.monotonic() + LIMIT
    while status is None and time.monotonic() < end:
        if select.select([ours], [], [], 0.05)[0]:
            output += os.read(ours, 4096).decode()
        if " ok: " in output and what:
            assert termios.tcgetattr(theirs) != before  # single keys, without echo
            os.write(ours, what.encode()) if kind == "type" else os.kill(process, what)
            what = None
        ended, result = os.waitpid(process, os.WNOHANG | os.WUNTRACED)
        status = result if ended else None
    while select.select([ours], [], [], 0.2)[0]:
        output += os.read(ours, 4096).decode()
    if status is None or os.WIFSTOPPED(status):
        os.kill(process, signal.SIGKILL)
    summary = json.loads(Path(run, "summary.json").read_text()) if Path(run, "summary.json").exists() else {}
    return {
        "exit": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else f"status {status}",
        "output": output,
        "why": summary.get("why"),
        "restored": termios.tcgetattr(theirs) == before,
    }


if __name__ == "__main__":
    folder, requests, *keys = sys.argv[1:]
    os.environ["TERM"] = "dumb"  # no colours
    print(json.dumps([flight(f"{folder}/{i}", *request, keys) for i, request in enumerate(json.loads(requests))]))
