"""A card by a stand-in for torch.cuda: what is done in which stream, in which order. Tensors stay on the host."""

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import local
from types import SimpleNamespace

import pytest
import torch

from gpc.inference import batched
from gpc.inference.batched import BatchedNetwork
from gpc.inference.device import WARM_UP, Card
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import LinearFlow

HOST = torch.device("cpu")


class FakeCuda:
    """Logs each call with the stream that is current; refuses a recording beside another, as CUDA does."""

    def __init__(self):
        self.log, self.streams, self.recording, self._thread = [], [], False, local()
        cuda = self

        class Stream:
            def __init__(self, device):
                cuda.streams.append(self)
                self.name = f"stream {len(cuda.streams)}"

            def wait_stream(self, other):
                cuda.log.append(f"{self.name} waits for {other.name}")

        class Event:
            def record(self, stream):
                cuda.log.append(f"event in {stream.name}")

            def synchronize(self):
                cuda.log.append("wait")

        class CUDAGraph:
            def replay(self):
                cuda.note("replay")

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, CUDAGraph

    @property
    def current(self):
        return getattr(self._thread, "stream", None)

    def note(self, what):
        self.log.append(f"{what} in {self.current.name}")

    def device(self, device):
        return nullcontext()

    @contextmanager
    def stream(self, stream):
        before, self._thread.stream = self.current, stream
        try:
            yield
        finally:
            self._thread.stream = before

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        if self.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        before, self.recording, self._thread.stream = self.current, True, stream
        self.note("record")
        try:
            yield
        except RuntimeError as error:  # so does the end, before torch sets the stream back
            raise RuntimeError("failed due to a previous error during capture") from error
        finally:
            self.recording = False
        self.note("recorded")
        self._thread.stream = before


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in ("Stream", "Event", "CUDAGraph", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    empty = torch.empty
    monkeypatch.setattr(batched, "CHECKED", 0)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kwargs: empty(*shape, **kwargs))
    return fake


def batches_of(cuda, network):
    """Return a network in batches of 4 rows on a card whose tensors stay on the host."""
    card = Card(torch.device("cuda", 0))
    place = SimpleNamespace(device=HOST, entered=card.entered, record=card.record, fetch=card.fetch)
    batches = BatchedNetwork("p", place, (4,), recorded=True)

    def noted(x, label, state):
        cuda.note("network")
        return network(x, label, state)

    def call(rows=2):
        denoiser = NetworkDenoiser(noted, LinearFlow(), "velocity", condition=(torch.ones(rows, 3),))
        x = torch.zeros(rows, 3, 2, dtype=torch.float64)
        return batches.bind(denoiser)(x, torch.tensor(0.5, dtype=torch.float64))

    return batches, call


def add(x, label, state):
    return x + state[:, :, None]


CALL = ["replay in stream 1", "event in stream 1", "wait"]


def test_a_network_is_recorded_aside_after_warm_up_and_runs_in_its_own_stream(cuda):
    _, call = batches_of(cuda, add)
    call()
    assert cuda.log == [
        "stream 2 waits for stream 1",  # which has filled the inputs
        *["network in stream 2"] * WARM_UP,
        "record in stream 2",
        "network in stream 2",
        "recorded in stream 2",
        "stream 1 waits for stream 2",
        *["replay in stream 1"] * 2,  # rows and places
        *CALL,
    ]
    cuda.log.clear()
    call(3)
    assert cuda.log == CALL
    cuda.log.clear()
    call(6)  # two batches, both begun before the first is waited for
    assert cuda.log == [*CALL[:2] * 2, "wait", "wait"]


def test_recordings_of_a_card_share_one_stream(cuda):
    batches, call = batches_of(cuda, add)
    batches.sizes = (1, 4, 16)
    for rows in batches.sizes:
        call(rows)
    assert len(batches._recordings) == 3
    assert len(cuda.streams) == 2


def test_a_recording_that_fails_names_its_cause_and_leaves_the_stream(cuda, capfd):
    def network(x, label, state):
        if cuda.recording:
            raise RuntimeError("a number is read on the host")
        return add(x, label, state)

    batches, call = batches_of(cuda, network)
    call()
    assert "a recording of its network fails (a number is read on the host)" in capfd.readouterr().err
    assert cuda.log[-3:] == ["network in stream 1", "event in stream 1", "wait"]
    assert not batches.recorded
    assert cuda.current is None


def test_two_policies_are_not_recorded_at_the_same_time(cuda):
    def network(x, label, state):
        time.sleep(0.02)
        return add(x, label, state)

    pair = [batches_of(cuda, network) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda call: call(), [call for _, call in pair]))) == 2
    assert all(batches.recorded for batches, _ in pair)


def test_constants_live_as_long_as_their_recording(cuda):
    made = []

    def network(x, label, state):
        made.append(torch.tensor([1.0]))
        return add(x, label, state) * made[-1]

    batches, call = batches_of(cuda, network)
    call()
    assert len({id(tensor) for tensor in made}) == 1
    kept = weakref.ref(made[0])
    made.clear()
    gc.collect()
    assert kept() is not None
    batches._recordings.clear()
    assert kept() is None
