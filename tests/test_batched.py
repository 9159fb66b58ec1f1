"""Batches of fixed sizes: every row is that of the network itself, whatever is computed with it."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gpc.composition.composed import compose
from gpc.errors import RunError
from gpc.inference import actor
from gpc.inference.actor import ChunkActor
from gpc.inference.batched import BatchedNetwork
from gpc.inference.placement import Placement
from gpc.inference.settings import Sampling
from gpc.policy.adapt import PolicyView
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import LinearFlow
from gpc.serve.batching import InferenceThread

SIZE = 32


class Recorder:
    """Stands in for a card: it records by keeping the function, whose inputs must stay where they are."""

    device = torch.device("cpu")

    def __init__(self, spoil=lambda out: out):
        self.recordings, self.runs, self.spoil = 0, 0, spoil

    @contextmanager
    def entered(self, policy):
        with torch.inference_mode():
            yield

    def fetch(self, out):
        host = out.clone()
        return lambda: host

    def record(self, function, *inputs):
        self.recordings += 1

        def run():
            self.runs += 1
            return self.spoil(function(*inputs))

        return run


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8 + 1 + 3, 32), nn.Tanh(), nn.Linear(32, 8))
        self.rows = Counter()

    def forward(self, x, label, state):
        self.rows[len(x)] += 1
        return self.layers(torch.cat([x.flatten(1), label[:, None], state["state"]], 1)).reshape(x.shape)


def denoiser(network, rows, seed=0):
    state = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return NetworkDenoiser(network, LinearFlow(), "velocity", condition=({"state": state},))


def noisy(rows, seed=0):
    return torch.randn(rows, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batched(place, sizes=(SIZE,)):
    return BatchedNetwork("p", place, sizes, recorded=True)


SIGMA = torch.tensor(0.7, dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 16, SIZE, SIZE + 1, 3 * SIZE + 5])
def test_rows_are_those_of_the_network_and_its_batches_have_one_size(rows):
    network, place = Network(), Recorder()
    alone = denoiser(network, rows)
    with torch.inference_mode():
        expected = alone(noisy(rows), SIGMA)
    network.rows.clear()
    batches = batched(place)
    for _ in range(4):
        assert torch.allclose(batches.bind(alone)(noisy(rows), SIGMA), expected, atol=1e-6)
    assert {*network.rows} == {SIZE}
    assert place.recordings == 1


def test_the_least_size_that_fits_is_taken_and_each_is_recorded_once():
    network, place = Network(), Recorder()
    batches = batched(place, (1, 4, 16))
    for rows in (1, 1, 3, 4, 5, 40):
        batches.bind(denoiser(network, rows))(noisy(rows), SIGMA)
    assert {*network.rows} == {1, 4, 16}
    assert place.recordings == 3


def test_a_new_observation_reaches_the_recording():
    network, batches = Network(), batched(Recorder())
    outs = [batches.bind(denoiser(network, 4, seed))(noisy(4), SIGMA) for seed in range(5)]
    with torch.inference_mode():
        expected = [denoiser(network, 4, seed)(noisy(4), SIGMA) for seed in range(5)]
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.allclose(out, wanted, atol=1e-6)
    assert not torch.equal(outs[0], outs[4])


def test_calls_that_come_while_it_computes_are_one_batch():
    network, place = Network(), Recorder()
    batches = batched(place)
    for seed in range(2):  # the comparisons at the start
        batches.bind(denoiser(network, 4, seed))(noisy(4), SIGMA)
    started, release = threading.Event(), threading.Event()
    place.spoil = lambda out: (started.set(), release.wait(10), out)[-1]
    bound = [batches.bind(denoiser(network, 5, seed)) for seed in range(6)]
    before = place.runs
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(bound[0], noisy(5), SIGMA)]
        assert started.wait(10)
        jobs += [pool.submit(bound[seed], noisy(5, seed), SIGMA) for seed in range(1, 6)]
        while len(batches._waiting) < 5:
            pass
        release.set()
        outs = [job.result() for job in jobs]
    assert place.runs - before == 2  # the first alone, then the five others together: 25 rows
    with torch.inference_mode():
        for seed, out in enumerate(outs):
            assert torch.allclose(out, denoiser(network, 5, seed)(noisy(5, seed), SIGMA), atol=1e-6)


def test_a_network_that_holds_its_observation_beside_a_condition_is_not_recorded(capfd):
    network, batches = Network(), batched(Recorder())
    for seed in range(4):
        whole = denoiser(network, SIZE, seed)
        held = replace(whole, network=lambda x, label, state, own=whole.condition[0]: network(x, label, own))
        with torch.inference_mode():
            expected = whole(noisy(SIZE), SIGMA)
        assert torch.allclose(batches.bind(held)(noisy(SIZE), SIGMA), expected, atol=1e-6)
    assert capfd.readouterr().err.count("must depend on the observation through it alone") == 1
    assert not batches.recorded


def test_every_recording_is_compared_on_a_second_observation(capfd):
    """Else the size that comes late would repeat the observation of which it was recorded."""
    network, batches = Network(), batched(Recorder(), (1, 4, 16))

    def check(rows, seed):
        whole = denoiser(network, rows, seed)
        held = replace(whole, network=lambda x, label, state, own=whole.condition[0]: network(x, label, own))
        with torch.inference_mode():
            expected = whole(noisy(rows), SIGMA)
        assert torch.allclose(batches.bind(held)(noisy(rows), SIGMA), expected, atol=1e-6)

    for seed, rows in enumerate((1, 4, 16)):
        check(rows, seed)
    assert batches.recorded
    check(1, 9)
    assert not batches.recorded
    assert "must depend on the observation through it alone" in capfd.readouterr().err


def test_a_recording_that_differs_is_refused_in_one_line(capfd):
    network, place = Network(), Recorder(spoil=lambda out: out + 1e-6)
    batches, alone = batched(place), denoiser(network, 4)
    with torch.inference_mode():
        expected = alone(noisy(4), SIGMA)
    for _ in range(3):
        assert torch.allclose(batches.bind(alone)(noisy(4), SIGMA), expected, atol=1e-7)
    assert "p: a recording of its network differs from the network itself by 1" in capfd.readouterr().err
    assert place.runs == 3  # two for the rows' places, one compared
    assert not batches.recorded


def test_a_row_that_depends_on_its_place_is_noticed(capfd):
    place = Recorder(spoil=lambda out: out + torch.arange(len(out)).reshape(-1, 1, 1))
    batched(place).bind(denoiser(Network(), 4))(noisy(4), SIGMA)
    assert f"a row depends on its place in a batch of {SIZE}" in capfd.readouterr().err


def test_an_operation_that_cannot_be_recorded_leaves_the_network_as_it_is(capfd):
    class Fails(Recorder):
        def record(self, function, *inputs):
            raise RuntimeError("operation not permitted when stream is capturing")

    network = Network()
    out = batched(Fails()).bind(denoiser(network, 4))(noisy(4), SIGMA)
    with torch.inference_mode():
        assert torch.allclose(out, denoiser(network, 4)(noisy(4), SIGMA), atol=1e-7)
    assert "fails (operation not permitted" in capfd.readouterr().err


def test_a_condition_without_a_row_for_each_chunk_is_refused():
    with pytest.raises(RunError, match="'p': each tensor of a network's condition needs a row"):
        batched(Recorder()).bind(denoiser(Network(), 3))(noisy(4), SIGMA)


def on(policy, place, *sizes, padded=True):
    network = BatchedNetwork(policy.name, place, sizes, recorded=True)
    return PolicyView(policy, policy.actions, policy.observations, "", Placement(policy, network, padded))


@pytest.mark.parametrize("size", [16, 64])
def test_a_placed_composition_has_the_rows_of_the_one_on_the_cpu_bit_for_bit(parents, size):
    rng = np.random.default_rng(0)
    composition = compose(parents)
    rows = 48
    observation = {
        key: rng.uniform(0, 512, (rows, 2, *shape)).astype(np.float32)
        for key, shape in composition.observations.shapes.items()
    }
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])[np.arange(rows) % 3]
    seeds, chunks = np.arange(rows), np.zeros(rows, int)
    expected = ChunkActor(composition, Sampling(steps=4), 8)(observation, weights, seeds, chunks)
    there = compose([on(policy, Recorder(), size) for policy in parents])
    assert np.array_equal(ChunkActor(there, Sampling(steps=4), 8)(observation, weights, seeds, chunks), expected)


def test_a_server_records_and_compares_every_size_before_its_first_client(parents):
    places = [Recorder(), Recorder()]
    policy = compose([on(member, place, 1, 4, 16) for member, place in zip(parents, places, strict=True)])
    thread = InferenceThread(policy, Sampling(steps=2), max_batch=8)
    thread.close()
    for place, member in zip(places, policy.policies, strict=True):
        assert place.recordings == 3  # 8 rows are computed as 16
        recordings = member.condition_fn.network._recordings.values()
        assert [len(recording.observations) for recording in recordings] == [2, 2, 2]


def test_a_server_refuses_a_recording_of_one_observation_before_its_first_client(parents, capfd):
    class Holds(Placement):
        def __call__(self, policy, observation):
            bound = super().__call__(policy, observation)
            network = bound.network.network
            held = replace(bound.network, network=lambda x, label, *_, own=bound.condition: network(x, label, *own))
            return replace(bound, network=held)

    batches = BatchedNetwork("p", Recorder(), (1, 4), recorded=True)
    policy = PolicyView(
        parents[0], parents[0].actions, parents[0].observations, "", Holds(parents[0], batches, padded=False)
    )
    InferenceThread(policy, Sampling(steps=2), max_batch=1).close()
    assert not batches.recorded
    assert "must depend on the observation through it alone" in capfd.readouterr().err


@pytest.mark.parametrize("rows", [1, 16])
def test_every_member_has_begun_before_the_first_is_waited_for(parents, rows):
    events = []

    class Slow(Recorder):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def fetch(self, out):
            assert threading.current_thread() is threading.main_thread()  # a thread would wait for nothing
            events.append(f"begin {self.name}")
            return lambda: (events.append(f"wait {self.name}"), out.clone())[1]

    there = compose([on(policy, Slow(policy.name), 16, padded=False) for policy in parents])
    observation = there.observations.read(
        {k: np.zeros((rows, 2, *s), np.float32) for k, s in there.observations.shapes.items()}
    )
    for _ in range(3):  # the first two are compared with the network itself
        events.clear()
        there.condition(observation)(noisy(rows).repeat(1, 4, 1), SIGMA)
    assert events == ["begin tiny-noise", "begin tiny-flow", "wait tiny-noise", "wait tiny-flow"]


def rows_of(composition, rows):
    rng = np.random.default_rng(1)
    shapes = composition.observations.shapes.items()
    observation = {key: rng.uniform(0, 512, (rows, 2, *shape)).astype(np.float32) for key, shape in shapes}
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.3, 0.7], [0.0, 1.0]])[np.arange(rows) % 4]
    return observation, weights, np.arange(rows), np.arange(rows) % 3


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_rows_that_threads_share_on_many_cores_are_the_same_bit_for_bit(parents, threads, monkeypatch):
    composition = compose(parents)
    batch = rows_of(composition, 100)
    alone = ChunkActor(composition, Sampling(steps=3), 8)(*batch)
    names, sample = set(), actor.sample_actions

    def noticed(*args):
        names.add(threading.current_thread().name)
        return sample(*args)

    monkeypatch.setattr(actor, "sample_actions", noticed)
    monkeypatch.setattr(actor, "sampling_threads", lambda: threads)
    assert np.array_equal(ChunkActor(composition, Sampling(steps=3), 8)(*batch), alone)
    assert len(names) > 1


def test_on_a_card_rows_of_different_policies_are_sampled_at_the_same_time(parents, monkeypatch):
    """Rows with weight on one parent, on the other and on both meet in the networks, which batch them."""
    batch = rows_of(compose(parents), 48)
    expected = ChunkActor(compose(parents), Sampling(steps=3), 8)(*batch)
    all_three, sample = threading.Barrier(3, timeout=10), actor.sample_actions

    def met(*args):
        all_three.wait()
        return sample(*args)

    monkeypatch.setattr(actor, "sample_actions", met)
    there = compose([on(policy, Recorder(), 64) for policy in parents])
    assert np.array_equal(ChunkActor(there, Sampling(steps=3), 8)(*batch), expected)
