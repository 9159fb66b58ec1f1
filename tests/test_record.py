import json
import signal
import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest

from gpc.errors import InputError, RunError
from gpc.record import Row, RunFolder, read_rows, read_trajectory

CONFIG = {"policies": ["a"], "sampler": {"steps": 8}}
STEPS = {"action": np.arange(8, dtype=np.float32).reshape(4, 2)}


def row(seed, candidate=0, phase="search"):
    return Row(phase, candidate, seed, (0.1, 0.9), seed % 2 == 0, 1 / (1 + seed), 10)


def test_rows_and_trajectories_come_back(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        for seed in (3, 1, 2):
            folder.append(row(seed), STEPS)
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        assert folder.phase("search") == [row(1), row(2), row(3)]
    np.testing.assert_array_equal(read_trajectory(tmp_path, 2)["action"], STEPS["action"])
    with pytest.raises(InputError, match="no episode 900 that can be read"):
        read_trajectory(tmp_path, 900)


def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.append(row(1), STEPS)
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"phase": "sea')
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.append(row(2), STEPS)
    assert read_rows(tmp_path / "episodes.jsonl") == [row(1), row(2)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.append(row(1), STEPS)
    path = tmp_path / "episodes.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(RunError, match="line 1 is damaged"):
        RunFolder(tmp_path, CONFIG, 4)


def test_another_configuration_is_refused_naming_the_difference(tmp_path):
    RunFolder(tmp_path, CONFIG, 4).close()
    with pytest.raises(InputError, match=r"sampler\.steps=8, now it is 16; use another run_dir"):
        RunFolder(tmp_path, {"policies": ["a"], "sampler": {"steps": 16}}, 4)


BEFORE = {
    "sampler": {"_target_": "gpc.control.Sampling", "steps": 8},
    "composer": {"_target_": "gpc.composition.either"},
    "sides": [{"composer": {"_target_": "gpc.composition.either"}}],
}
AFTER = {
    "sampler": BEFORE["sampler"] | {"candidates": 1, "reuse": {}},
    "composer": BEFORE["composer"] | {"temperature": 1.0},
    "sides": [{"composer": BEFORE["composer"] | {"temperature": 1.0}}],
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler": AFTER["sampler"] | {"candidates": 2}}, r"sampler\.candidates=1, now it is 2"),
        ({"composer": AFTER["composer"] | {"temperature": 0.0}}, r"composer\.temperature=1\.0, now it is 0\.0"),
        ({"sides": [{"composer": AFTER["composer"] | {"temperature": 0.0}}]}, r"begun with sides=.*0\.0"),
    ],
)
def test_a_setting_of_a_later_version_was_at_its_default_before(changed, said, tmp_path):
    RunFolder(tmp_path, BEFORE, 4).close()
    RunFolder(tmp_path, AFTER, 4).close()
    with pytest.raises(InputError, match=said):
        RunFolder(tmp_path, AFTER | changed, 4)


def test_two_processes_cannot_write_in_one_folder(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4), pytest.raises(InputError, match="in use by another gpc process"):
        RunFolder(tmp_path, CONFIG, 4)


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_finished(tmp_path):
    """On a file system of 1 MiB: /dev/full cannot stand in for a folder."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        big = [{"action": np.random.default_rng(seed).normal(size=(20_000, 2))} for seed in range(20)]
        with RunFolder(tmp_path, CONFIG, 20_000) as folder:
            folder.append(row(0), STEPS)
            with pytest.raises(RunError, match=r"the disk is full; \d+ finished episodes are kept"):
                deque(folder.append(row(seed), big[seed]) for seed in range(1, 20))
            kept = len(folder.rows)
        assert len(read_rows(tmp_path / "episodes.jsonl")) == kept >= 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from gpc.record import Row, RunFolder
with RunFolder(Path(sys.argv[1]), {}, 3) as folder:
    first = len(folder.rows)
    for seed in range(first, first + 10_000):
        folder.append(Row("search", 0, seed, (1.0,), True, 0.5, 3), {"action": np.zeros((3, 2))})
        print(seed, flush=True)
"""


def test_fifty_kills_lose_no_acknowledged_row_and_tear_none(tmp_path):
    rng, acknowledged = np.random.default_rng(0), set()
    for _ in range(50):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        line = child.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0]
        acknowledged |= {int(word) for word in (line + rest).split("\n") if word}
    rows = read_rows(tmp_path / "episodes.jsonl", mend=True)
    seeds = [r.seed for r in rows]
    assert acknowledged <= set(seeds)
    assert len(acknowledged) >= 50
    assert seeds == list(range(len(seeds)))
    assert all(json.loads(text) for text in (tmp_path / "episodes.jsonl").read_text().splitlines())
