"""Networks on a card: the CPU's chunks, rows that do not depend on their batch, recordings, runs that resume.

`make test-gpu` runs what is marked gpu, on a machine with a card. The same checks run on the CPU everywhere.
"""

import json

import numpy as np
import pytest
import torch
from adapters import ADAPTERS, chunk

import gpc
from gpc.errors import GpcError
from gpc.inference.placement import Placement
from gpc.policy.adapt import PolicyView

COUNT = torch.cuda.device_count()
CARD = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(COUNT == 0, reason="torch finds no CUDA")])
DEVICES = ["cpu", CARD]
EXACT = gpc.Device("cpu")


@pytest.fixture(scope="module")
def policy_of(tmp_path_factory):
    """The policy of an adapter, made once; skips if its library is missing."""
    made = {}

    def make(name):
        try:
            if name not in made:
                made[name] = ADAPTERS[name](tmp_path_factory.mktemp("policy"))
        except (ImportError, GpcError) as error:
            pytest.skip(f"{name}: {error}")
        return made[name]

    return make


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_chunk_is_that_of_the_cpu_and_its_rows_are_their_own(policy_of, name, device):
    policy, there = policy_of(name), gpc.Device(device)
    whole = chunk(policy, there)
    assert float((whole - chunk(policy, EXACT)).abs().max()) < 1e-5
    assert torch.equal(whole, chunk(policy, there))
    order = np.array([3, 11, 0, 7])
    if device != "cpu":  # the CPU repeats rows up to a multiple of 16
        assert torch.equal(chunk(policy, there, order), whole[order])
    else:
        assert torch.equal(chunk(policy, there, np.resize(order, 16))[:4], whole[order])


@pytest.mark.gpu
@pytest.mark.skipif(COUNT == 0, reason="torch finds no CUDA")
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_recording_gives_what_the_network_gives(policy_of, name, monkeypatch):
    policy = policy_of(name)
    recorded, networks = chunk(policy, gpc.Device("cuda")), []
    start = gpc.inference.batched.BatchedNetwork.start

    def eager(self, call):
        networks.append(self)
        self.recorded = False
        return start(self, call)

    monkeypatch.setattr("gpc.inference.batched.BatchedNetwork.start", eager)
    assert torch.equal(chunk(policy, gpc.Device("cuda")), recorded)
    assert networks


@pytest.mark.gpu
@pytest.mark.skipif(COUNT == 0, reason="torch finds no CUDA")
@pytest.mark.parametrize("name", [name for name in ADAPTERS if "SmolVLA" not in name])
def test_a_condition_is_tensors_so_that_the_network_is_recorded(policy_of, name):
    there = gpc.inference.placement.place(policy_of(name), gpc.Device("cuda"))
    chunk(there, gpc.Device("cuda"))
    assert isinstance(there, PolicyView)
    assert isinstance(there.condition_fn, Placement)
    assert there.condition_fn.network.recorded
    assert there.condition_fn.network._recordings


@pytest.mark.parametrize(
    "devices",
    [
        {"pusht-diffusion": "cpu", "pusht-flow": "cpu"},
        pytest.param(
            {"pusht-diffusion": "cuda", "pusht-flow": "cpu"},
            marks=[pytest.mark.gpu, pytest.mark.skipif(COUNT == 0, reason="torch finds no CUDA")],
        ),
        pytest.param(
            {"pusht-diffusion": "cuda:0", "pusht-flow": "cuda:1"},
            marks=[pytest.mark.gpu, pytest.mark.skipif(COUNT < 2, reason="torch finds no second CUDA device")],
        ),
    ],
    ids=["one", "card and CPU", "two cards"],
)
def test_a_composition_on_two_devices_is_that_on_the_cpu(devices):
    pair = gpc.compose([gpc.load_policy(name) for name in devices])
    apart = chunk(pair, gpc.Device(devices)) - chunk(pair, EXACT)
    assert float(apart.abs().max()) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_a_search_that_is_stopped_goes_on_to_the_same_table(device, tmp_path, monkeypatch):
    pair = [gpc.load_policy(name) for name in ("pusht-diffusion", "pusht-flow")]
    settings = {"report_episodes": 2, "device": device, "sampler": gpc.Sampling(steps=2)}
    env, method = gpc.EnvSpec("pusht", max_steps=16), gpc.Grid(step=0.5, episodes=2)

    def table(folder, lanes):
        gpc.search(pair, env, search=method, engine=gpc.Engine(lanes, 1), run_dir=folder, video=0, **settings)
        rows = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
        return sorted((tuple(row["weights"]), row["seed"], row["score"]) for row in rows)

    straight = table(tmp_path / "straight", 4)
    replies, act = iter(range(3)), gpc.inference.actor.ChunkActor.__call__

    def stopped(self, *args):
        if next(replies, None) is None:
            raise gpc.errors.RunError("stopped")
        return act(self, *args)

    monkeypatch.setattr("gpc.inference.actor.ChunkActor.__call__", stopped)
    with pytest.raises(gpc.errors.RunError, match="stopped"):
        table(tmp_path / "stopped", 3)
    monkeypatch.setattr("gpc.inference.actor.ChunkActor.__call__", act)
    assert table(tmp_path / "stopped", 3) == straight
