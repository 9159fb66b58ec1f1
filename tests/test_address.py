"""A token goes to the one server that it was given for, whatever a server answers."""

import re
import socket
import time
from contextlib import contextmanager
from threading import Thread

import pytest
from websockets.sync.server import serve

from gpc.commands.config import load_config
from gpc.errors import InputError, RunError
from gpc.policy.load import load_policy
from gpc.serve import RemotePolicy
from gpc.serve.address import Address, is_loopback
from gpc.serve.codec import pack


@contextmanager
def answering(status, *headers):
    """The port of a server that answers every request so, and the requests that it has read."""
    requests = []
    answer = "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 4", "", "no\xe9\n"]).encode("latin-1")

    def attend(listener):
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                requests.append(line.recv(65536).decode("latin-1"))
                line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=attend, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], requests
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch):
    """Write a netrc file, the only one that is read."""
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path.write_text


def refused(port, **token):
    with pytest.raises(InputError) as caught:
        RemotePolicy(f"ws://127.0.0.1:{port}", **token)
    return str(caught.value)


def test_the_token_of_ones_own_server_is_sent_to_no_other(monkeypatch):
    monkeypatch.setenv("GPC_TOKEN", "mine")
    with answering("401 Unauthorized") as (port, requests):
        assert "requires a token" in refused(port)
        with pytest.raises(InputError, match="requires a token"):
            load_policy(f"remote:ws://127.0.0.1:{port}")
    assert len(requests) == 2
    assert not any("mine" in request or "Authorization" in request for request in requests)
    assert load_config("deploy", ["fps=10"]).token is None
    assert load_config("serve", ["policies=[a]"]).token == "mine"


def test_a_host_gets_its_own_password_of_netrc_and_no_default(stored):
    with answering("401 Unauthorized") as (port, requests):
        stored("machine elsewhere login gpc password theirs\ndefault login anonymous password any\n")
        assert "requires a token" in refused(port)
        stored("machine 127.0.0.1 login gpc password hosts\n")
        assert "refuses the token" in refused(port)
        stored(f"machine 127.0.0.1 login gpc password hosts\nmachine 127.0.0.1:{port} login gpc password ports\n")
        refused(port)
        refused(port, token="given")
        refused(port, token="")
    sent = [line for request in requests for line in request.splitlines() if line.startswith("Authorization")]
    assert sent == [f"Authorization: Api-Key {token}" for token in ("hosts", "ports", "given")]


def test_no_redirect_is_followed():
    with answering("401 Unauthorized") as (other, elsewhere):
        for place in (f"ws://127.0.0.1:{other}", f"http://127.0.0.1:{other}/", "ws://[", "/again"):
            for status in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect"):
                with answering(status, f"Location: {place}") as (port, requests):
                    with pytest.raises((InputError, RunError)) as caught:
                        RemotePolicy(f"ws://127.0.0.1:{port}", token="secret")
                    assert f"ws://127.0.0.1:{port}" in str(caught.value)
                    assert "\n" not in str(caught.value)
                assert len(requests) == 1
    assert elsewhere == []


def test_a_refusal_that_is_no_text_is_one_line():
    with answering("503 Service Unavailable") as (port, _):
        assert refused(port).endswith("refuses the connection (503): no\ufffd")


def test_a_token_never_crosses_a_network_in_clear_text(stored):
    for url in ("ws://192.168.1.5:8000", "ws://gpu.lab:8000"):
        assert Address.parse(url).token() is None
        with pytest.raises(InputError, match="over wss:// or to this machine only"):
            RemotePolicy(url, token="given")
    stored("machine gpu.lab login gpc password stored\n")
    assert Address.parse("ws://gpu.lab:8000").token() is None  # an open server is reached, without it
    assert Address.parse("wss://gpu.lab").token() == "stored"
    assert Address.parse("ws://[::1]:8000").token("given") == "given"
    assert is_loopback("127.3.2.1")
    assert not is_loopback("localhost.evil.example")


@pytest.mark.parametrize("url", ["localhost:8000", "ws://", "ws://[::1", "ws://host:99999", "http://host:80", ""])
def test_what_is_no_address_is_one_line(url):
    with pytest.raises(InputError, match="write ws://host:port"):
        RemotePolicy(url)


def test_a_url_holds_no_password_and_its_error_does_not_print_it():
    with pytest.raises(InputError, match="holds no name or password") as caught:
        load_policy("remote:ws://gpc:secret@127.0.0.1:8000")
    assert "secret" not in str(caught.value)


def test_a_damaged_netrc_is_one_line(stored):
    stored("machine\n")
    with pytest.raises(InputError, match=r"netrc.*cannot be read"):
        RemotePolicy("ws://127.0.0.1:9")


def test_a_call_that_must_connect_again_ends_in_its_time_too():
    def slow(connection):
        time.sleep(0.5)
        connection.send(pack({}))
        connection.recv()
        time.sleep(2)

    with serve(slow, "127.0.0.1", 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        client = RemotePolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout=0.8)
        for _ in range(2):  # the second opens a connection
            began = time.monotonic()
            with pytest.raises(RunError, match=r"within 0.8 s; its limit is timeout=, in gpc deploy watchdog"):
                client.call({})
            assert time.monotonic() - began < 1.1
        server.shutdown()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("?timout=6", "has no parameter 'timout'; did you mean 'timeout'"),
        ("?timeout=6&seed=1", "has no parameter 'seed'"),
        ("?timeout=soon", "timeout=soon: give seconds above 0"),
        ("?timeout=", "timeout=: give seconds above 0"),
        ("?timeout=0", "timeout=0: give seconds above 0"),
        ("?timeout=nan", "timeout=nan: give seconds above 0"),
        ("?timeout=inf", "timeout=inf: give seconds above 0"),
    ],
)
def test_a_parameter_of_a_url_is_a_number_of_seconds_or_named(parameters, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Address.parse(f"ws://127.0.0.1:9{parameters}")


def test_the_limit_of_a_call_is_in_the_url_or_ten_seconds():
    assert Address.parse("ws://host:1/path?timeout=60") == Address("ws://host:1/path", "host", 1, False, 60.0)
    paths = []

    def slow(connection):
        paths.append(connection.request.path)
        connection.send(pack({"timeout": 9, "fingerprint": "x"}))
        while connection.recv():
            time.sleep(0.4)
            connection.send(pack({"timeout": 9}))

    with serve(slow, "127.0.0.1", 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        short, long, default = RemotePolicy(f"{url}?timeout=0.2"), RemotePolicy(f"{url}?timeout=60"), RemotePolicy(url)
        with pytest.raises(RunError, match=rf"gave no answer within 0.2 s; {re.escape(url)}\?timeout=60 waits longer"):
            short.call({})
        assert long.call({}) == {"timeout": 9}
        assert (short.timeout, long.timeout, default.timeout) == (0.2, 60, 10)  # not what the server sends
        assert set(paths) == {"/"}
        with pytest.raises(InputError, match=r"in gpc deploy watchdog\.max_age; leave it out of the url"):
            RemotePolicy(f"{url}?timeout=60", timeout=1.0)
        server.shutdown()


def test_a_server_that_requires_a_token_over_a_network_is_reached_with_tls(stored):
    stored("machine gpu.lab login gpc password stored\n")
    with answering("401 Unauthorized") as (port, _):
        redirected = socket.create_connection

        def resolve(address, *args):
            return redirected(("127.0.0.1", port), *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gpc.serve.client.socket.create_connection", resolve)
            with pytest.raises(InputError, match=r"requires a token; a token is sent over wss:// .*tunnel"):
                RemotePolicy(f"ws://gpu.lab:{port}")
