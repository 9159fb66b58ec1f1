"""A simulator behind a socket: what the engine gets is what the simulator here gives."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from servers import process_of
from serving import listening, served
from test_engine import JOBS, homing, table
from toy_envs import Walk

from gpc.commands.cli import main
from gpc.commands.recorded import Resolved, requests
from gpc.envs.remote import Remote
from gpc.errors import InputError, RunError
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.engine import Engine, RolloutStats, rollout
from gpc.rollout.env import LaneSpec, make_env
from gpc.rollout.worker import Lane, LaneCommand
from gpc.schema import convert
from gpc.serve.codec import RESET, pack, unpack
from gpc.serve.env_messages import (
    EXECUTE,
    FRAMES,
    MAKE,
    OBSERVE,
    REWARDS,
    SUCCESS,
    TERMINATED,
    WANTED,
    ServedEnv,
    described,
    read_executed,
    read_frames,
    sent,
)
from gpc.serve.env_server import EnvServer
from gpc.serve.env_session import EnvSession
from gpc.serve.listener import Access
from gpc.testing import check_env

WALK = EnvSpec(Walk, 4, 20)


def serving_env(spec, **access):
    """A server of this environment, as `listening` runs it."""
    return listening(EnvServer(spec, Access(port=0, max_clients=64, **access)))


def remote(address, **settings):
    return LaneSpec(EnvSpec("remote", 4, 20, {"address": address}), ("position",), 2, **settings)


@pytest.fixture(scope="module")
def address():
    with serving_env(WALK) as address:
        yield address


@pytest.fixture(scope="module")
def here():
    return table()


def test_the_engines_table_is_that_of_the_simulator_here(here, address):
    assert table(spec=remote(address), lanes=5, workers=2) == here


@pytest.mark.parametrize("trouble", ["die", "hang", "raise"])
def test_a_broken_simulator_there_is_replaced(here, tmp_path, trouble):
    spec, stats = replace(WALK, options={"trouble": trouble, "marker": str(tmp_path / "once")}), RolloutStats()
    with serving_env(spec) as address:
        assert table(spec=remote(address), stats=stats, lanes=4, timeout=12.0 if trouble == "hang" else 60.0) == here
    assert len(stats.simulator_failures) == 1
    cause = {"die": "process died", "hang": "did not answer within 12 s", "raise": "physics exploded"}[trouble]
    assert cause in stats.simulator_failures[0]


def test_a_server_that_is_killed_ends_the_run_in_one_line(tmp_path):
    code = f"import sys; sys.path[:] = {sys.path}; import test_remote_env; test_remote_env.stand()"
    with process_of(sys.executable, "-P", "-c", code) as (process, address):
        episodes = rollout(JOBS, homing, remote(address), Engine(lanes=4, workers=1))
        next(episodes)
        process.kill()
        with pytest.raises(RunError) as error:
            list(episodes)
    assert f"environment server {address}" in str(error.value)
    assert "\n" not in str(error.value)


def stand():
    """What the test above runs: a server of slow walkers."""
    with serving_env(replace(WALK, options={"trouble": "slow"})) as address:
        print(f"{address};", flush=True)
        signal.pause()


def test_no_simulator_is_left_when_its_client_has_gone(address):
    def children():
        listed = subprocess.run(["pgrep", "-f", "-P", str(os.getpid()), "env_session"], capture_output=True, text=True)
        return set(listed.stdout.split())

    before = children()
    with closing(make_env(remote(address).env)):
        assert len(children() - before) == 1
    for _ in range(100):
        if not children() - before:
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("a simulator process is left")


def test_pusht_with_pictures_is_pusht_here():
    keys = ("state", "pixels", "task")
    spec = EnvSpec("pusht", 8, 20)
    actions = np.random.default_rng(0).uniform(100, 400, (3, 8, 2))
    with serving_env(replace(spec, max_steps=300)) as address:
        there = Lane.of(LaneSpec(replace(spec, type="remote", options={"address": address}), keys, 2, {"pixels": 1}))
        local = Lane.of(LaneSpec(spec, keys, 2, {"pixels": 1}))
        with closing(there.env), closing(local.env):
            for command in [LaneCommand(0, 7, None), *(LaneCommand(0, None, each) for each in actions)]:
                one, other = there.execute(command), local.execute(command)
                assert one._replace(observation={}) == other._replace(observation={})
                assert one.observation.keys() == other.observation.keys()
                for key, value in one.observation.items():
                    assert value.dtype == other.observation[key].dtype
                    assert np.array_equal(value, other.observation[key])
            assert one.done  # after 20 steps, within the last chunk
            assert np.array_equal(there.env.render(), local.env.render())


def test_it_keeps_the_contract_of_environments():
    with serving_env(EnvSpec("pusht", 8, 300)) as address, closing(Remote(address)) as env:
        assert env.max_steps == 300
        check_env(env)


def test_the_commands(tmp_path):
    command = [sys.executable, "-P", "-m", "gpc.commands.cli", "serve-env", "env=pusht", "port=0"]
    common = ["evaluate", "policies=[pusht-flow]", "episodes=2", "env.max_steps=24", "video=0", "engine.lanes=2"]
    with process_of(*command) as (_, address):
        assert main([*common, "env=remote", f"env.options.address={address}", f"run_dir={tmp_path / 'there'}"]) == 0
    assert main([*common, "env=pusht", f"run_dir={tmp_path / 'here'}"]) == 0
    rows = [sorted((tmp_path / name / "episodes.jsonl").read_text().splitlines()) for name in ("here", "there")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["env=policy"], "env=policy names no simulator here"),
        (["env=pusht_diffusion_policy", "env.options.states=x"], "states='x'"),
        (["env=pusht", "host=0.0.0.0"], "set a token"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["serve-env", "port=0", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_what_is_there_must_be_an_environment_of_gpc(policy_address):
    with pytest.raises(InputError, match="serves no environment; start it with: gpc serve-env"):
        Remote(policy_address)
    with pytest.raises(InputError, match="write ws://host:port"):
        Remote("http://localhost")
    with pytest.raises(RunError, match=r"environment server ws://127\.0\.0\.1:9 does not answer"):
        Remote("ws://127.0.0.1:9")


@pytest.fixture
def policy_address(parents):
    with served(parents[0]) as address:
        yield address


def test_a_token_is_needed():
    with serving_env(WALK, token="secret") as address, pytest.raises(InputError, match="requires a token"):
        Remote(address)


def test_an_unknown_key_is_refused_there(address):
    with serving_env(EnvSpec("pusht")) as pusht, pytest.raises(RunError, match="choose from state"):
        Remote(pusht, ("speed",))
    with closing(Remote(address)) as env, pytest.raises(RunError, match="choose from position"):
        env.observe(["speed"])


def test_a_recorded_address_needs_permission():
    node = {"type": "remote", "options": {"address": "ws://lab:1"}}
    resolved = Resolved(["pusht-flow"], node, {}, {"type": "convex"})
    assert list(requests(resolved, {"type": "convex"}, ["pusht-flow"])) == [("env.options.address", "ws://lab:1")]


@pytest.fixture
def session():
    session = EnvSession(EnvSpec("pusht", 8, 20))
    session.answer({MAKE: ["state"]})
    session.answer({RESET: 3})
    return session


HOSTILE = {
    "no map": 3,
    "empty": {},
    "make with names that are none": {MAKE: "state"},
    "make with an unknown name": {MAKE: ["nothing"]},
    "make with a length that is none": {MAKE: None, "max_steps": "long"},
    "make with an endless episode": {MAKE: None, "max_steps": 10**9},
    "a seed below 0": {RESET: -1},
    "text for actions": {EXECUTE: "left", WANTED: []},
    "actions of another width": {EXECUTE: np.zeros((4, 3)), WANTED: []},
    "no actions": {EXECUTE: np.zeros((0, 2)), WANTED: []},
    "actions without end": {EXECUTE: np.full((1, 2), np.inf), WANTED: []},
    "nothing wanted": {EXECUTE: np.zeros((4, 2))},
    "an unknown key wanted": {EXECUTE: np.zeros((4, 2)), WANTED: [["pixels"]]},
    "keys that are no names": {OBSERVE: [1]},
    "too many keys": {OBSERVE: ["state"] * 1000},
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_a_wrong_message_gets_one_line(session, message):
    with pytest.raises(InputError) as error:
        session.answer(message)
    assert "\n" not in str(error.value)
    assert session.answer({OBSERVE: ["state"]})[FRAMES][0]["state"].shape == (5,)


def test_the_first_message_makes_the_environment():
    with pytest.raises(InputError, match="the first message is"):
        EnvSession(WALK).answer({RESET: 0})


def received(session, actions, wanted):
    return unpack(pack(session.answer({EXECUTE: actions, WANTED: wanted})))


def test_a_wrong_answer_is_refused(session):
    served_env = convert(ServedEnv, unpack(pack(described(make_env(EnvSpec("pusht", 8, 20), ("state",))))), "it")
    right = received(session, np.full((4, 2), 200.0), [["state"], ["state"]])
    executed = read_executed(right, 4, [["state"], ["state"]], served_env.observations)
    assert len(executed.rewards) == 4
    assert [frame["state"].shape for frame in executed.frames] == [(5,), (5,)]
    wrong = {
        "1 to 4 finite": {REWARDS: np.full(4, np.nan)},
        "finite numbers": {REWARDS: np.zeros(5)},
        "1 to 4": {REWARDS: None},
        "without an end": {REWARDS: np.zeros(2)},
        "terminated is neither": {TERMINATED: "no"},
        "success is neither": {SUCCESS: 1.0},
        "without 2 observations": {FRAMES: [{"state": np.zeros(5)}]},
        "'state' is no array": {FRAMES: [{"state": np.zeros(6)}] * 2},
    }
    for words, change in wrong.items():
        with pytest.raises(InputError, match=words):
            read_executed(right | change, 4, [["state"], ["state"]], served_env.observations)
    with pytest.raises(InputError, match="is no array"):
        read_frames({FRAMES: [{}]}, [["state"]], served_env.observations)
    assert sent(executed)[REWARDS].tolist() == executed.rewards


SPACES = {"observations": {"a": {"shape": [3], "dtype": "<f8"}}, "low": [-1.0], "high": [1.0], "action_dtype": "<f4"}


@pytest.mark.parametrize(
    "change",
    [
        {"observations": {}},
        {"observations": {"a": {"shape": [2**20, 2**20], "dtype": "<f8"}}},
        {"observations": {"a": {"shape": [-1], "dtype": "<f8"}}},
        {"observations": {"a": {"shape": [3], "dtype": "O"}}},
        {"low": [1.0], "high": [-1.0]},
        {"low": [0.0, 0.0]},
        {"action_dtype": "<i8"},
        {"max_steps": 0},
    ],
)
def test_a_description_beyond_the_limits_is_refused(change):
    convert(ServedEnv, SPACES, "it")
    with pytest.raises(InputError):
        convert(ServedEnv, SPACES | change, "it")
