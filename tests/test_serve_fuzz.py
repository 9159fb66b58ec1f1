"""Strangers at the policy server: malformed frames, slow and silent clients. A good client is served all along."""

import contextlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np
import pytest
import serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gpc.serve import RemotePolicy
from gpc.serve import codec as wire
from gpc.serve.codec import FRAME, pack, unpack

FRAMES, THREADS = 10_000, 4
GOOD = {"state": np.linspace(0, 1, 6).reshape(2, 3), "note": ["a", 1, None], wire.SEED: 3, wire.CHUNK: 1}


@pytest.fixture(scope="module")
def process():
    with serving.alone() as found:
        yield found


@pytest.fixture
def watched(process):
    """The server's address, while a good client asks it all the time; afterwards what the client and the memory say."""
    server, address = process
    client = RemotePolicy(address, timeout=5)
    first, done, served, slowest = client.infer(GOOD)["actions"], threading.Event(), [0], [0.0]

    def ask():
        while not done.is_set():
            began = time.monotonic()
            assert np.array_equal(client.infer(GOOD)["actions"], first)
            slowest[0] = max(slowest[0], time.monotonic() - began)
            served[0] += 1
            time.sleep(0.01)

    before = memory(server.pid)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield address
        finally:
            done.set()
        asking.result()
    assert served[0] > 2  # the shortest attack takes a second
    assert slowest[0] < 4
    assert memory(server.pid) - before < 20 * FRAME
    assert server.poll() is None


def memory(pid):
    """The most bytes that a process has ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def array(data, dtype="<f4", shape=(2, 3)):
    return msgpack.packb({"state": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})


def random_bytes(rng):
    return rng.bytes(rng.integers(0, 200))


def cut(rng):
    frame = pack(GOOD)
    return frame[: rng.integers(0, len(frame))]


def flipped(rng):
    frame = bytearray(pack(GOOD))
    for place in rng.integers(0, len(frame), rng.integers(1, 6)):
        frame[place] = rng.integers(256)
    return bytes(frame)


def wrong_dtype(rng):
    codes = ["|O", "|V8", "<c16", "<U4", "|S3", "<M8[s]", "i4,i4", "(9999,9999)f4", "", 7, None, ["<f4"], "<f9"]
    return array(bytes(24), codes[rng.integers(len(codes))])


def wrong_shape(rng):
    shape = [int(n) for n in rng.integers(-(2**62), 2**62, rng.integers(0, 12)) >> rng.integers(0, 62)]
    return array(bytes(rng.integers(64)), shape=shape)


def nested(rng):
    depth = int(rng.integers(1, 3000))
    maps = b"\xdc\x0f\xff" + b"\x80" * 4095
    return [b"\x91" * depth + b"\x80", b"\x81\xa1a" * depth + b"\x80", maps * 3][rng.integers(3)]


def announced(rng):
    return [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"][rng.integers(5)] + rng.bytes(rng.integers(4, 40))


def misused(rng):
    values = [
        None,
        -1,
        2**63,
        "x",
        [],
        {},
        [[]],
        True,
        1.5,
        np.zeros(0),
        np.full((1, 16, 2), np.nan),
        np.int8(4),
        b"\0",
    ]
    keys = ["x", "sigma", "state", wire.RESET, wire.SEED, wire.CHUNK, wire.KNOWN, wire.WEIGHT, wire.ENCODE, wire.HANDLE]
    chosen = {str(key): values[rng.integers(len(values))] for key in rng.choice(keys, rng.integers(1, 5))}
    return pack(chosen if rng.random() < 0.5 else chosen | {"state": GOOD["state"]})


def text(rng):
    return rng.bytes(rng.integers(0, 40)).decode("latin1")


KINDS = [random_bytes, cut, flipped, wrong_dtype, wrong_shape, nested, announced, misused, text]


def attack(address, seed):
    """A share of the frames over one connection; what was answered that should not be."""
    rng, wrong, words = np.random.default_rng(seed), [], set()
    with connect(address, compression=None) as client:
        client.recv(10)
        for number in range(FRAMES // THREADS):
            client.send(KINDS[number % len(KINDS)](rng))
            answer = client.recv(10)
            if isinstance(answer, bytes):
                unpack(answer)  # by chance a good message
                continue
            words.add(answer[:30])
            if "\n" in answer or "Traceback" in answer or "internal" in answer or len(answer) > 400:
                wrong.append(answer)
    return wrong, words


def test_ten_thousand_malformed_frames_are_answered_in_one_line_each(watched):
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda seed: attack(watched, seed), range(THREADS)))
    assert [answer for wrong, _ in found for answer in wrong] == []
    assert len(set().union(*(words for _, words in found))) > 20


def test_frames_at_and_beyond_the_limit(watched):
    blown_up = b"\xdd" + (FRAME - 5).to_bytes(4, "big") + b"\x80" * (FRAME - 5)
    picture = array(bytes(FRAME - 99), "|u1", [FRAME - 99])
    with connect(watched, compression=None) as client:
        client.recv(10)
        for _ in range(4):
            client.send(blown_up)
            assert "not msgpack" in client.recv(10)
            client.send(picture)
            assert "has shape" in client.recv(10)
        client.send(bytes(FRAME + 1))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
        assert closed.value.rcvd.code == 1009


def open_socket(address):
    host, port = address.removeprefix("ws://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def deafly(client, request):
    for _ in range(1000):
        client.send(request)


def test_clients_that_say_half_of_it_or_never_listen(watched):
    silent = [open_socket(watched) for _ in range(50)]
    half = [open_socket(watched) for _ in range(50)]
    for client in half:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nUpgra")
    for _ in range(20):
        with contextlib.suppress(OSError), open_socket(watched) as client:
            client.send(os.urandom(500) + b"\r\n\r\n")
            client.recv(1000)
    unfinished = [connect(watched, compression=None).__enter__() for _ in range(10)]
    for client in unfinished:
        client.socket.send(b"\x82\xff" + (FRAME - 1).to_bytes(8, "big") + bytes(1000))
    with connect(watched, compression=None, max_queue=1) as deaf:
        deaf.recv(10)
        deaf.send(pack({wire.ENCODE: {"state": np.zeros((256, 2, 3))}}))
        handle = unpack(deaf.recv(10))[wire.HANDLE]
        request = pack({wire.HANDLE: handle, "x": np.zeros((256, 16, 2)), "sigma": np.array(1.0)})
        with pytest.raises((ConnectionClosed, OSError)):  # it has hung up
            deafly(deaf, request)
    for client in (*silent, *half):
        client.close()
    for client in unfinished:
        client.close_socket()
