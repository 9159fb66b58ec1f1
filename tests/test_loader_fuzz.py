"""Every loader, with hostile files and servers by the thousand: nothing but InputError and RunError, little memory, no long call.

`GPC_FUZZ=10 pytest tests/test_loader_fuzz.py` runs ten times as many cases as CI, more than 20,000.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMES = int(os.environ.get("GPC_FUZZ", "1"))
READERS = {  # cases; those of the adapters build a network each
    "cards": 150,
    "safetensors": 300,
    "pickles": 600,
    "beso": 60,
    "server": 600,
    "demonstrations": 150,
    "diffusion_policy": 15,
    "robomimic": 6,
    "lerobot": 10,
    "runs": 150,
}


def report_of(name, count):
    command = [sys.executable, "-W", "ignore", HERE / "loader_fuzz.py", str(count), name]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # scripts, too, where the tests take collect from
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=paths, timeout=7200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]  # below 0: killed by a signal
    return json.loads(done.stdout)[name]


@pytest.mark.parametrize("name", READERS)
def test_hostile_input_ends_in_one_line(name):
    count = TIMES * READERS[name]
    report = report_of(name, count)
    assert report["failures"] == {}
    assert report["loaded"] + report["refused"] == count
    assert report["refused"] > 0
    assert report["megabytes"] < 1024
