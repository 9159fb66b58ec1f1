"""A search that is killed, or whose disk fills up, at any moment comes to the same end, bit for bit."""

import json
import time

import numpy as np
import pytest
import zarr
from interrupted import Searches

from gpc.results.run_folder import read_rows

TIMES = 100


def content(folder):
    """Every row and trajectory by key, and the summary."""
    rows = read_rows(folder / "episodes.jsonl")
    arrays = {
        name: array[: len(rows)] for name, array in zarr.open_group(folder / "trajectories.zarr", mode="r").arrays()
    }
    trajectories = {row: {name: array[i].tobytes() for name, array in arrays.items()} for i, row in enumerate(rows)}
    summary = json.loads((folder / "summary.json").read_text())
    assert "timing" in summary
    return trajectories, summary | {"timing": None}  # which differs from run to run


@pytest.fixture(scope="module")
def searches():
    with Searches() as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(searches, tmp_path_factory):
    """What an undisturbed search leaves, its seconds and its bytes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert searches.run(folder / "first")[0] == 0
    begin = time.monotonic()
    code, size = searches.run(folder / "second")
    assert code == 0
    assert int(size) > 10_000
    assert content(folder / "first") == content(folder / "second")
    return content(folder / "second"), time.monotonic() - begin, int(size)


def test_a_hundred_kills_change_nothing(searches, undisturbed, tmp_path):
    wanted, seconds, _ = undisturbed
    rng, kills, run = np.random.default_rng(0), 0, 0
    while kills < TIMES:
        folder, run, code = tmp_path / str(run), run + 1, None
        before = set()
        while code is None:
            code, text = searches.run(folder, seconds=rng.uniform(0, seconds))
            kills += code is None
            rows = set(read_rows(folder / "episodes.jsonl"))
            assert before <= rows
            before = rows
        assert code == 0, text
        assert content(folder) == wanted


def test_a_disk_that_fills_up_at_a_hundred_bytes_changes_nothing(searches, undisturbed, tmp_path):
    wanted, _, size = undisturbed
    rng, faults, run = np.random.default_rng(0), 0, 0
    while faults < TIMES:
        folder, run, code = tmp_path / str(run), run + 1, 1
        while code:
            code, text = searches.run(folder, free=int(rng.integers(size)))
            if code:
                faults += 1
                assert "\n" not in text
                assert "the disk is full" in text
        assert content(folder) == wanted
