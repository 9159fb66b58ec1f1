"""`gpc deploy` as a whole, on the simulated robot."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr
from rich.console import Console
from toy_robots import Arm, Line

import gpc
from gpc.bridge.deploy import deploy, planner_from, robot_from
from gpc.bridge.planner import LocalPlanner
from gpc.cli import main
from gpc.config import load_config
from gpc.control import Sampling
from gpc.demonstrations import read
from gpc.errors import InputError
from gpc.record import read_trajectory

pytest.importorskip("lerobot")
LOCKSTEP = ["robot=simulated", "fps=10", "safety.hold=last", "mode=live", "clock.kind=lockstep"]


def flown(tmp_path, *keys, planner=None, robot=None):
    config = load_config("deploy", [*LOCKSTEP, "seconds=4", *keys])
    planner, robot = planner or planner_from(config, Console(quiet=True)), robot or robot_from(config)
    outcome = deploy(config, planner, robot, tmp_path / "deployed", Console(quiet=True))
    return outcome, robot, read(tmp_path / "deployed/episode.zarr")


@pytest.mark.parametrize("seed", [100000, 100001])
def test_with_no_latency_the_actions_are_those_of_gpc_evaluate(tmp_path, seed):
    """The bundled policies in their mixture, 40 steps, bit for bit: actions, observations and rewards."""
    policies, weights = ["pusht-diffusion", "pusht-flow"], [0.4, 0.6]
    policy = gpc.compose([gpc.load_policy(name) for name in policies], weights)
    gpc.evaluate(
        policy, "pusht", episodes=1, overrides=[f"seed={seed}", "env.max_steps=40"], run_dir=str(tmp_path / "run")
    )
    recorded = read_trajectory(tmp_path / "run", 0)
    keys = [f"policies=[{','.join(policies)}]", f"weights={weights}", f"seed={seed}", f"robot.settings.seed={seed}"]
    outcome, robot, episode = flown(tmp_path, *keys, "reproducible=true")
    assert (outcome.why, outcome.code) == ("the time is over", 0)
    np.testing.assert_array_equal(episode.actions.astype(np.float32), recorded["action"])
    for key in ("state", "keypoints", "agent_pos"):
        np.testing.assert_array_equal(episode.observations[key][::8], recorded[key])
    assert robot.score == recorded["reward"].max()


@pytest.mark.parametrize("stitch", ["receding_horizon", "ensembling", "real_time"])
@pytest.mark.parametrize("latency", [0.0, 0.2])
def test_every_stitch_flies_under_latency(tmp_path, tiny, stitch, latency):
    keys = [f"policies={tiny}", "weights=[0.4,0.6]", f"stitch={stitch}", f"clock.latency={latency}"]
    outcome, robot, episode = flown(tmp_path, *keys)
    assert outcome.code == 0
    assert robot.steps == len(episode.actions) == 40 - round(latency * 10)  # at first the arm waits
    stream = zarr.open_group(tmp_path / "deployed/episode.zarr", mode="r")["stream"]
    assert np.nanmin(stream["age"]) == pytest.approx(latency)


def test_a_chunk_under_real_time_chunking_goes_on_from_what_is_executed(tmp_path, parents):
    class Watched(LocalPlanner):
        def plan(self, ask):
            chunk = super().plan(ask)
            if ask.known:
                fixed = ask.known.weight == 1
                fixed_steps.append(int(fixed.sum()))
                np.testing.assert_allclose(chunk[fixed], ask.known.actions[0][fixed], atol=1e-9)
                free = super().plan(ask._replace(known=None))
                later = (
                    np.abs(chunk - ask.known.actions[0])[3:8].mean() / np.abs(free - ask.known.actions[0])[3:8].mean()
                )
                assert later < 0.8  # drawn to it
                np.testing.assert_array_less(1, np.abs(chunk - ask.known.actions[0])[-4:].max(1))  # and free at the end
            return chunk

    fixed_steps = []
    planner = Watched(gpc.compose(parents, [0.4, 0.6]), Sampling(steps=4))
    flown(tmp_path, "stitch=real_time", "clock.latency=0.2", planner=planner)
    assert fixed_steps == [1, 3, 3, 3]  # what was executed, and from the second on the steps that a chunk takes to come


def test_the_command_flies_records_and_exits_with_0(tmp_path, tiny, capsys):
    keys = [*LOCKSTEP, f"policies={tiny}", "weights=[0.4,0.6]", "seconds=2", f"run_dir={tmp_path / 'run'}"]
    assert main(["deploy", *keys]) == 0
    assert "the time is over" in capsys.readouterr().out
    assert main(["deploy", *keys]) == 2
    assert "holds an episode already" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["periods"] == summary["steps"] == 20
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert "token" not in manifest["config"]


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_to_the_command_ends_it_in_good_order(tmp_path, tiny, number):
    keys = ["robot=simulated", "fps=20", "safety.hold=last", "mode=live", "watchdog.deadline=5", "watchdog.max_age=5"]
    keys += [
        "watchdog.stop_after=5",
        "watchdog.observation_deadline=2",
        f"policies=[{tiny[1]}]",
        f"run_dir={tmp_path}/run",
    ]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gpc.cli", "deploy", *keys],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    while not any("ok: " in line for line in iter(process.stdout.readline, "") if "ok" in line):
        assert time.monotonic() - began < 60
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert f"gpc: stopped by {number.name}; the robot holds and is disconnected" in errors
    assert json.loads((tmp_path / "run/summary.json").read_text())["why"] == number.name
    assert len(read(tmp_path / "run/episode.zarr").actions) > 0


def test_a_fault_exits_with_1_and_says_why(tmp_path, tiny, capsys):
    keys = [*LOCKSTEP, f"policies={tiny}", "weights=[0.4,0.6]", "seconds=9", f"run_dir={tmp_path / 'run'}"]
    assert main(["deploy", *keys, "safety.velocity=1"]) == 1
    assert "gpc: stopped: " in (told := capsys.readouterr().err)
    assert "the velocity of action." in told


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "give policies"),
        (["policies=[x]", "server=ws://localhost:1"], "one of them"),
        (["server=nowhere"], "write ws://host:port"),
        (["LINE", "mode=alive"], "mode=alive"),
        (["LINE", "fps=0"], "fps=0"),
        (["LINE", "rate=25"], "rate=25 must be a multiple"),
        (["LINE", "clock.kind=sundial"], "clock.kind=sundial"),
        (["LINE", "seconds=null"], "how long"),
        (["LINE", "safety.hold=null", "safety.position=robot"], "safety.position=robot"),
        (["LINE", "safety.hold=zero", "rate=20"], "moves are not interpolated"),
        (["LINE", "watchdog.observation_deadline=0.1"], "longer than a step"),
        (["LINE", "watchdog.deadline=-1"], "watchdog.deadline=-1"),
        (["LINE", "stitch.n_action_steps=16"], "asked for every 16 steps, the policy plans 15"),
        (["LINE", "robot.observations={state: [a, b]}"], "toy has no feature 'a'"),
        (["LINE", "robot.observations={states: [a, b]}"], "names 'states'; the policy reads state"),
        (["LINE", "robot.actions=[x.pos]"], "acts in 2 dimensions, toy in 1"),
        (["LINE", "dataset=."], "is no LeRobotDataset"),
    ],
)
def test_bad_input_is_told_before_anything_moves(tmp_path, keys, why, monkeypatch):
    class Untouched(Arm):
        def connect(self, calibrate=True):
            raise AssertionError("connected")

    toys = {"planner": Line(), "robot": Untouched()} if "LINE" in keys else {}
    with pytest.raises(InputError, match=why.replace("'", ".")):
        flown(tmp_path, *[key for key in keys if key != "LINE"], **toys)


def test_a_policy_that_reads_an_instruction_is_given_it(tmp_path):
    class Told(Line):
        def plan(self, ask):
            self.told = gpc.env.read_text(ask.observation["task"][-1])
            return super().plan(ask)

    planner = Told()
    planner.observations = type(planner.observations)({"state": (2,), "task": (256,)}, 2)
    with pytest.raises(InputError, match="reads an instruction"):
        flown(tmp_path, planner=planner, robot=Arm())
    flown(tmp_path, "task=push it", planner=planner, robot=Arm())
    assert planner.told == "push it"


def test_another_policy_takes_over_between_chunks_only(parents):
    """While a chunk is being sampled by the old one, the new one is put in its place."""

    class Slow:
        def __init__(self, policy, between):
            self.policy, self.between = policy, between
            self.actions, self.observations, self.levels, self.name = (
                policy.actions,
                policy.observations,
                policy.levels,
                "slow",
            )

        def condition(self, observation):
            denoiser = self.policy.condition(observation)

            def denoise(x, sigma):
                self.between()
                return denoiser(x, sigma)

            return denoise

    new = gpc.compose(parents, [0.9, 0.1])
    old = gpc.compose(parents, [0.1, 0.9])
    planner = LocalPlanner(Slow(old, lambda: planner.exchange(new)), Sampling(steps=3))
    random = np.random.default_rng(0)
    shapes = old.observations.shapes
    ask = gpc.bridge.pilot.Ask(
        0, 0, 0.0, {key: random.uniform(0, 512, (2, *shape)) for key, shape in shapes.items()}, None
    )
    during, after = planner.plan(ask), planner.plan(ask)
    np.testing.assert_array_equal(during, LocalPlanner(old, Sampling(steps=3)).plan(ask))
    np.testing.assert_array_equal(after, LocalPlanner(new, Sampling(steps=3)).plan(ask))
    assert np.abs(during - after).max() > 1
    with pytest.raises(InputError, match="cannot take over"):
        LocalPlanner(parents[0], Sampling()).exchange(parents[1])  # it reads keypoints, which are not sensed
