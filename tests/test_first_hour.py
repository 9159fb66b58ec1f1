"""A new user's first hour, by README and docs alone: checkpoints of three codebases from the trainers to a robot."""

import os
import subprocess
import sys
from pathlib import Path

import first_hour_page

SCRIPT = Path(__file__).with_name("first_hour.sh")


def test_checkpoints_of_three_codebases_go_the_whole_way(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path / "hour"], env=os.environ | {"PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    page = first_hour_page.shape(first_hour_page.PAGE.read_text())
    assert page == first_hour_page.shape(first_hour_page.recorded(tmp_path / "hour"))[: len(page)]
    assert len(page) >= 5
