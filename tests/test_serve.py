"""The policy server, met by openpi's own client and by ours."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from running import until
from serving import SAMPLING, served
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from gpc.commands.config import load_config
from gpc.commands.serve import access_of
from gpc.composition.composed import compose
from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError, RunError
from gpc.inference.chunk import sample_actions
from gpc.policy.observation import TASK, TASK_BYTES, read_text
from gpc.policy.spec import ObservationSpec
from gpc.serve import RemotePolicy
from gpc.serve.batching import InferenceThread
from gpc.serve.codec import CHUNK, KNOWN, RESET, SEED, WEIGHT, pack, unpack
from gpc.serve.listener import Access
from gpc.serve.server import PolicyServer, serve_policy

RNG = np.random.default_rng(0)
STATE = np.zeros(3)


def observe(policy, rows=()):
    spec = policy.observations
    return {key: RNG.uniform(0, 512, (*rows, spec.n_obs_steps, *shape)) for key, shape in spec.shapes.items()}


def expected(policy, observation, seed, chunk=0):
    """The chunk from now on, computed here."""
    rows = {key: value[None] for key, value in observation.items()}
    return sample_actions(policy, SAMPLING, rows, np.array([seed]), np.array([chunk]))[0, -policy.actions.start :]


@pytest.fixture(scope="module")
def policy(parents):
    return compose(parents, [0.4, 0.6])


@pytest.fixture(scope="module")
def address(policy):
    with served(policy) as address:
        yield address


def test_openpis_client_gets_the_chunk_that_is_computed_here(policy, address):
    client = WebsocketClientPolicy(address)
    seed = client.get_server_metadata()["seed"]
    for chunk in range(3):
        observation = observe(policy)
        reply = client.infer(observation)
        assert np.array_equal(reply["actions"], expected(policy, observation, seed, chunk))
        assert 0 < reply["policy_timing"]["infer_ms"] <= reply["server_timing"]["infer_ms"]
        assert ("prev_total_ms" in reply["server_timing"]) == (chunk > 0)
    client.infer({RESET: 7})
    assert np.array_equal(client.infer(observation)["actions"], expected(policy, observation, 7))


def test_metadata_say_what_is_served(policy, address):
    metadata = WebsocketClientPolicy(address).get_server_metadata()
    assert metadata["policy"] == policy.name
    assert metadata["fingerprint"] == policy.fingerprint
    assert metadata["observations"] == {"state": [5], "keypoints": [16]}
    assert (metadata["n_obs_steps"], metadata["actions"]["horizon"], metadata["actions"]["start"]) == (2, 16, -1)
    assert metadata["actions"]["names"] == ["x", "y"]


def test_one_frame_stands_for_the_whole_history(policy, address):
    client = RemotePolicy(address)
    newest = {key: value[-1] for key, value in observe(policy).items()}
    twice = {key: np.stack([value, value]) for key, value in newest.items()}
    client.reset(5)
    actions = client.infer(newest)["actions"]
    assert np.array_equal(actions, expected(policy, twice, 5))
    client.reset(5)
    assert np.array_equal(client.infer(twice)["actions"], actions)
    as_float32 = {key: value.astype(np.float32) for key, value in newest.items()}
    assert np.array_equal(client.infer(as_float32 | {SEED: 5, CHUNK: 0})["actions"], actions)


def test_every_client_has_its_own_noise(policy, address):
    one, other = RemotePolicy(address), RemotePolicy(address)
    assert one.metadata["seed"] != other.metadata["seed"]
    observation = observe(policy)
    first = one.infer(observation)["actions"]
    assert not np.array_equal(first, other.infer(observation)["actions"])
    assert not np.array_equal(first, one.infer(observation)["actions"])
    one.reset()
    assert np.array_equal(first, one.infer(observation)["actions"])


def test_a_chunk_goes_on_from_what_is_decided(policy, address):
    client, observation = RemotePolicy(address), observe(policy)
    decided, weight = np.full((15, 2), 200.0), np.zeros(15)
    weight[:5] = 1
    actions = client.infer({**observation, KNOWN: decided, WEIGHT: weight})["actions"]
    assert np.allclose(actions[:5], 200, atol=1e-9)
    assert np.abs(actions[5:] - 200).max() > 1


def test_what_is_known_of_one_chunk_leaves_its_neighbours_alone(policy):
    observation = observe(policy, (2,))
    weight = np.zeros((2, 16))
    weight[1, :6] = 1
    free = sample_actions(policy, SAMPLING, observation, np.arange(2), np.zeros(2, np.int64))
    drawn = sample_actions(
        policy,
        SAMPLING,
        observation,
        np.arange(2),
        np.zeros(2, np.int64),
        InpaintTarget(np.full((2, 16, 2), 200.0), weight),
    )
    assert np.array_equal(drawn[0], free[0])
    assert np.allclose(drawn[1, :6], 200, atol=1e-9)
    assert np.abs(drawn[1, 6:] - free[1, 6:]).max() > 1


def test_clients_that_ask_together_get_bitwise_what_each_gets_alone(policy):
    observations = [observe(policy) for _ in range(8)]
    with served(policy, reproducible=True) as address, ThreadPoolExecutor(8) as threads:
        clients = [RemotePolicy(address) for _ in observations]
        jobs = [threads.submit(c.infer, observation) for c, observation in zip(clients, observations, strict=True)]
        together = [job.result()["actions"] for job in jobs]
        for client, observation, actions in zip(clients, observations, together, strict=True):
            client.reset()
            assert np.array_equal(client.infer(observation)["actions"], actions)


class Gate:
    """A denoiser that waits to be let on, and counts the rows of every call."""

    def __init__(self):
        self.open, self.entered, self.rows = threading.Event(), threading.Event(), []
        self.open.set()

    def __call__(self, x, sigma):
        self.rows.append(len(x))
        self.entered.set()
        assert self.open.wait(20)
        return Gaussian()(x, sigma)

    def close(self):
        self.rows.clear()
        self.entered.clear()
        self.open.clear()


def test_what_comes_while_the_policy_is_busy_is_one_batch_and_the_server_stays_awake():
    gate = Gate()
    with served(FixedPolicy(gate)) as address, ThreadPoolExecutor(6) as threads:
        clients = [RemotePolicy(address) for _ in range(6)]
        gone = connect(address, compression=None).__enter__()
        gone.recv()
        gate.close()
        jobs = [threads.submit(clients[0].infer, {"state": STATE})]
        assert gate.entered.wait(20)
        jobs += [threads.submit(client.infer, {"state": STATE}) for client in clients[1:]]
        gone.send(pack({"state": STATE}))
        assert urllib.request.urlopen(address.replace("ws", "http") + "/healthz").read() == b"OK\n"
        assert RemotePolicy(address).metadata["policy"] == "fixed"
        with pytest.raises(RuntimeError, match="no 'state'"):
            WebsocketClientPolicy(address).infer({})
        gone.close_socket()
        time.sleep(0.3)
        gate.open.set()
        assert all(job.result()["actions"].shape == (16, 2) for job in jobs)
    calls = len(gate.rows) // 2
    assert gate.rows == [1] * calls + [5] * calls


BAD = {
    "missing": ({}, "observation has no 'state'"),
    "shape": ({"state": np.zeros(4)}, r"shape \(4,\), the policy reads \(3,\)"),
    "history": ({"state": np.zeros((3, 3))}, r"shape \(3, 3\); send \(3,\), or \(2, 3\)"),
    "NaN": ({"state": np.array([1, np.nan, 0])}, "NaN or infinity"),
    "too large for float32": ({"state": np.array([1, 1e300, 0])}, "NaN or infinity"),
    "text": ({"state": "left"}, "is a str"),
    "list": ({"state": [1, 2, 3]}, "is a list"),
    "no map": ([1], "message is a list"),
    "seed": ({"state": STATE, SEED: -1}, "whole number"),
    "half a seed": ({"state": STATE, SEED: 0.5}, "whole number"),
    "known alone": ({"state": STATE, KNOWN: np.zeros((16, 2))}, WEIGHT),
    "weight": ({"state": STATE, KNOWN: np.zeros((16, 2)), WEIGHT: np.full(16, 2.0)}, "from 0 to 1"),
    "handle": ({"gpc.denoise": 3, "x": np.zeros((1, 16, 2)), "sigma": np.array(1.0)}, "encode again"),
    "encode": ({"gpc.encode": {"state": np.zeros((0, 2, 3))}}, "1 to 256"),
}


@pytest.fixture(scope="module")
def fixed():
    with served(FixedPolicy(Gaussian())) as address:
        yield WebsocketClientPolicy(address)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_answered_in_one_line_and_the_connection_stays(fixed, name):
    message, words = BAD[name]
    with pytest.raises(RuntimeError, match=words) as error:
        fixed.infer(message)
    assert len(str(error.value).splitlines()) == 2  # openpi's own line, and ours
    assert fixed.infer({"state": STATE})["actions"].shape == (16, 2)


def test_an_observation_that_the_policy_fails_on_is_its_senders_matter_alone():
    def burst(x, sigma):
        return x * float("nan") if seen[0].amax() > 100 else Gaussian()(x, sigma)

    class Bursting(FixedPolicy):
        def condition(self, observation):
            seen[:] = [observation["state"]]
            return super().condition(observation)

    seen = [torch.zeros(1)]
    gate = Gate()
    inner = compose([Bursting(lambda x, sigma: gate(x, sigma) * 0 + burst(x, sigma))], [1.0])
    with served(inner) as address, ThreadPoolExecutor(3) as threads:
        clients = [RemotePolicy(address) for _ in range(3)]
        gate.close()
        first = threads.submit(clients[0].infer, {"state": STATE})
        assert gate.entered.wait(20)
        jobs = [threads.submit(c.infer, {"state": STATE + big}) for c, big in zip(clients[1:], (0, 1000), strict=True)]
        time.sleep(0.3)
        gate.open.set()
        assert first.result()["actions"].shape == jobs[0].result()["actions"].shape == (16, 2)
        with pytest.raises(RunError, match="returned NaN"):
            jobs[1].result()
        assert clients[2].infer({"state": STATE})["actions"].shape == (16, 2)


def test_what_breaks_inside_stays_inside(caplog):
    def broken(x, sigma):
        if x.shape[0] and armed:
            raise ValueError("a secret of the server")
        return x

    armed = []
    with served(FixedPolicy(broken)) as address:
        client = connect(address, compression=None).__enter__()
        client.recv()
        armed.append(True)
        client.send(pack({"state": STATE}))
        assert client.recv() == "internal error; see the server's log"
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv()
        assert closed.value.rcvd.code == 1011
    assert "a secret of the server" in caplog.text


def test_text_reaches_a_policy_that_reads_an_instruction():
    heard = []

    class Listening(FixedPolicy):
        def condition(self, observation):
            heard[:] = [read_text(row.numpy()) for row in observation[TASK][0]]
            return self.denoiser

    policy = Listening(Gaussian(), observations=ObservationSpec({TASK: (TASK_BYTES,)}, 2))
    with served(policy) as address:
        for key in ("prompt", "task"):
            WebsocketClientPolicy(address).infer({key: f"push the T, {key}"})
            assert heard == [f"push the T, {key}"] * 2


def test_a_policy_that_does_not_say_what_to_do_now_is_refused():
    with pytest.raises(InputError, match="not what to do now"):
        InferenceThread(FixedPolicy(Gaussian(), replace(ACTIONS, start=1)), SAMPLING)


def test_the_token_opens_and_nothing_else():
    with served(FixedPolicy(Gaussian()), token="grüße") as address:
        client = WebsocketClientPolicy(address, api_key="grüße")
        assert client.infer({"state": STATE})["actions"].shape == (16, 2)
        for wrong in (None, "", "gruesse", "grüße2"):
            with pytest.raises(InvalidStatus, match="401"):
                WebsocketClientPolicy(address, api_key=wrong)
            with pytest.raises(InputError, match="refuses the token" if wrong else "requires a token"):
                RemotePolicy(address, token=wrong)
        assert urllib.request.urlopen(address.replace("ws", "http") + "/healthz").status == 200


def test_who_may_come_in_is_said_before_anything_listens():
    for host in ("0.0.0.0", "192.168.1.5", "::", "robot.lab"):
        with pytest.raises(InputError, match="set a token"):
            Access(host=host)
        Access(host=host, token="x")
        Access(host=host, insecure=True)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        Access(host=host)
    with pytest.raises(InputError, match="port=70000"):
        Access(port=70000)
    with pytest.raises(InputError, match="key is set"):
        Access(key="key.pem")
    with pytest.raises(InputError, match="cannot be read"):
        Access(certificate="missing.pem").tls()


def test_a_port_that_is_taken_is_said(fixed):
    inference = InferenceThread(FixedPolicy(Gaussian()), SAMPLING)
    taken = int(fixed._uri.rsplit(":")[-1])
    with pytest.raises(InputError, match=f"port={taken}.*in use"):
        asyncio.run(PolicyServer(inference, Access(port=taken), {}).run(print, asyncio.Event()))
    inference.close()


def test_a_full_server_and_a_browser_are_turned_away():
    with served(FixedPolicy(Gaussian()), max_clients=2) as address:
        first, second = RemotePolicy(address), RemotePolicy(address)
        with pytest.raises(InputError, match="max_clients=2 are connected"):
            RemotePolicy(address)
        first.close()
        until(lambda: _comes_in(address))
        assert second.infer({"state": STATE})["actions"].shape == (16, 2)
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin="https://example.com").__enter__()


def _comes_in(address):
    try:
        RemotePolicy(address).close()
    except InputError:
        return False
    return True


def test_tls(tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
         "-out", certificate, "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with served(FixedPolicy(Gaussian()), certificate=str(certificate), key=str(key)) as address:
        assert address.startswith("wss://")
        with pytest.raises(RunError, match="does not answer"):
            RemotePolicy(address)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert RemotePolicy(address).infer({"state": STATE})["actions"].shape == (16, 2)


def test_the_client_speaks_to_openpis_own_kind_of_server_too():
    """One that knows nothing of gpc: any metadata, no seed."""
    import websockets.asyncio.server
    from openpi_client import msgpack_numpy

    ready = []

    async def serve():
        async def talk(connection):
            await connection.send(msgpack_numpy.packb({}))
            async for frame in connection:
                seen = sorted(msgpack_numpy.unpackb(frame))
                await connection.send(msgpack_numpy.packb({"actions": np.ones((4, 2)), "saw": seen}))

        stop = asyncio.Event()
        async with websockets.asyncio.server.serve(talk, "127.0.0.1", 0, compression=None) as server:
            ready.append((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    until(lambda: ready)
    port, loop, stop = ready[0]
    client = RemotePolicy(f"ws://127.0.0.1:{port}")
    assert client.infer({"state": STATE}) == {"actions": pytest.approx(np.ones((4, 2))), "saw": ["state"]}
    client.close()
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_the_robots_side_never_loads_torch():
    code = "import sys, gpc.serve; gpc.serve.RemotePolicy; print('torch' in sys.modules, 'websockets' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False True\n"


def test_a_server_that_is_not_there_and_an_address_that_is_none():
    with pytest.raises(RunError, match=r"ws://127\.0\.0\.1:9 does not answer"):
        RemotePolicy("ws://127.0.0.1:9")
    with pytest.raises(InputError, match="write ws://host:port"):
        RemotePolicy("localhost:8000")


def test_frames_are_ours_to_the_bit(address):
    with connect(address, compression=None) as client:
        metadata = client.recv()
        assert pack(unpack(metadata)) == metadata


def test_a_policy_is_served_from_python_and_torchs_threads_are_put_back():
    torch.set_num_threads(2)
    answers, threads = [], []

    def visit(address):
        try:
            answers.append(RemotePolicy(address).infer({"state": STATE})["actions"])
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def ready(address):
        threads.append(torch.get_num_threads())
        threading.Thread(target=visit, args=(address,)).start()

    try:
        serve_policy(FixedPolicy(Gaussian()), SAMPLING, Access(port=0), reproducible=True, ready=ready)
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)
    assert answers[0].shape == (16, 2)


def test_the_types_of_who_may_connect_are_checked_and_a_token_may_be_digits():
    config = load_config("serve", ["policies=[x]", "token=12345", "port=0"])
    assert access_of(config).token == "12345"
    with pytest.raises(InputError, match="max_clients=many"):
        access_of(load_config("serve", ["policies=[x]", "max_clients=many"]))
