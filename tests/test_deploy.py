"""`gpc deploy` on the simulated robot, and the same from Python."""

import errno
import json
import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import zarr
from models import FixedPolicy, Gaussian
from toy_robots import Arm, Line

import gpc
from gpc.bridge.blending import RealTimeChunking, RecedingHorizon
from gpc.bridge.chunk_source import LocalSource
from gpc.bridge.recording import Recorder
from gpc.bridge.robot import connected
from gpc.bridge.run import EpisodeSettings, deploy
from gpc.bridge.safety import SafetyLimits
from gpc.commands.cli import main
from gpc.commands.config import load_config
from gpc.commands.deploy import blender_from, chunk_source_from, deploy_from, robot_from
from gpc.demonstrations import read
from gpc.errors import InputError
from gpc.inert import Console
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.results.trajectories import read_trajectory

pytest.importorskip("lerobot")
LOCKSTEP = ["robot=simulated", "fps=10", "safety.actions=absolute", "mode=live", "virtual_latency=0"]


def flown(tmp_path, *keys, source=None, robot=None):
    config = load_config("deploy", [*LOCKSTEP, "seconds=4", *keys])
    source, robot = source or chunk_source_from(config, Console(quiet=True)), robot or robot_from(config)
    outcome = deploy_from(config, source, robot, tmp_path / "deployed", Console(quiet=True))
    return outcome, robot, read(tmp_path / "deployed/episode.zarr")


POLICIES, WEIGHTS, SEEDS = ["pusht-diffusion", "pusht-flow"], [0.4, 0.6], (100000, 100001)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run of the bundled policies in their mixture, an episode of 40 steps for each seed."""
    policy, run = gpc.compose([gpc.load_policy(name) for name in POLICIES], WEIGHTS), tmp_path_factory.mktemp("run")
    gpc.evaluate(policy, gpc.EnvSpec("pusht", max_steps=40), episodes=len(SEEDS), seed=SEEDS[0], run_dir=run, video=0)
    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_with_no_latency_the_actions_are_those_of_gpc_evaluate(tmp_path, evaluated, seed):
    """Bit for bit: actions, observations and rewards."""
    rows = [json.loads(line) for line in (evaluated / "episodes.jsonl").read_text().splitlines()]
    recorded = read_trajectory(evaluated, [row["seed"] for row in rows].index(seed))
    keys = [f"policies=[{','.join(POLICIES)}]", f"weights={WEIGHTS}", f"seed={seed}", f"robot.settings.seed={seed}"]
    outcome, robot, episode = flown(tmp_path, *keys, "reproducible=true")
    assert (outcome.reason, outcome.code) == ("the time is over", 0)
    np.testing.assert_array_equal(episode.actions.astype(np.float32), recorded["action"])
    for key in ("state", "keypoints", "agent_pos"):
        np.testing.assert_array_equal(episode.observations[key][::8], recorded[key])
    assert robot.score == recorded["reward"].max()


@pytest.mark.parametrize("stitch", ["receding_horizon", "ensembling", "real_time"])
@pytest.mark.parametrize("latency", [0.0, 0.2])
def test_every_stitch_flies_under_latency(tmp_path, tiny, stitch, latency):
    keys = [f"policies={tiny}", "weights=[0.4,0.6]", f"stitch={stitch}", f"virtual_latency={latency}"]
    outcome, robot, episode = flown(tmp_path, *keys)
    assert outcome.code == 0
    assert robot.steps == len(episode.actions) == 40 - round(latency * 10)  # at first the arm waits
    stream = zarr.open_group(tmp_path / "deployed/episode.zarr", mode="r")["stream"]
    assert np.nanmin(stream["age"]) == pytest.approx(latency)


def test_a_chunk_under_real_time_chunking_goes_on_from_what_is_executed(tmp_path, parents):
    class Watched(LocalSource):
        def sample(self, request):
            chunk = super().sample(request)
            if request.known:
                fixed = request.known.mask == 1
                fixed_steps.append(int(fixed.sum()))
                np.testing.assert_allclose(chunk[fixed], request.known.actions[0][fixed], atol=1e-9)
                free = super().sample(request._replace(known=None))
                later = (
                    np.abs(chunk - request.known.actions[0])[3:8].mean()
                    / np.abs(free - request.known.actions[0])[3:8].mean()
                )
                assert later < 0.8  # drawn to it
                np.testing.assert_array_less(
                    1, np.abs(chunk - request.known.actions[0])[-4:].max(1)
                )  # and free at the end
            return chunk

    fixed_steps = []
    source = Watched(gpc.compose(parents, [0.4, 0.6]), Sampling(steps=4))
    flown(tmp_path, "stitch=real_time", "virtual_latency=0.2", source=source)
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
        (["server=5"], "server '5'"),
        (["server=ws://127.0.0.1:9", "watchdog.max_age=-1"], "watchdog.max_age=-1"),
        (["server=ws://127.0.0.1:9", "watchdog.max_age=inf"], "watchdog.max_age=inf"),
        (["server=ws://127.0.0.1:9", "watchdog.max_age=long"], "watchdog.max_age=long"),
        (["LINE", "mode=alive"], "mode=alive"),
        (["LINE", "fps=0"], "fps=0"),
        (["LINE", "fps=inf"], "fps=inf"),
        (["LINE", "fps=fast"], "fps=fast"),
        (["LINE", "rate=inf"], "rate=inf"),
        (["LINE", "rate=-20"], "rate=-20"),
        (["LINE", "rate=1010"], "rate=1010"),
        (["LINE", "seconds=inf"], "seconds=inf"),
        (["LINE", "seconds=0"], "seconds=0"),
        (["LINE", "seconds=-1"], "seconds=-1"),
        (["LINE", "seconds=soon"], "seconds=soon"),
        (["LINE", "virtual_latency=-1"], "virtual_latency=-1"),
        (["LINE", "virtual_latency=inf"], "virtual_latency=inf"),
        (["LINE", "rate=25"], "rate=25 must be a multiple"),
        (["LINE", "seconds=null"], "needs the length of the episode"),
        (["LINE", "safety.actions=null", "safety.position=robot"], "safety.position=robot"),
        (["LINE", "safety.actions=relative", "rate=20"], "relative actions are not interpolated"),
        (["LINE", "watchdog.observation_deadline=0.1"], "longer than a step"),
        (["LINE", "watchdog.deadline=-1"], "watchdog.deadline=-1"),
        (["LINE", "watchdog.deadline=null"], "watchdog.deadline=None"),
        (["LINE", "watchdog.max_age=inf"], "watchdog.max_age=inf"),
        (["LINE", "watchdog.stop_after=long"], "watchdog.stop_after=long"),
        (["LINE", "safety.velocity=-1"], "safety.velocity=.-1"),
        (["LINE", "stitch.n_action_steps=16"], "requested every 16 steps, the policy predicts 15"),
        (["LINE", "robot.observations={state: [a, b]}"], "toy has no feature 'a'"),
        (["LINE", "robot.observations={states: [a, b]}"], "names 'states'; the policy reads state"),
        (["LINE", "stitch.n_action_steps=1.5"], "stitch.n_action_steps=1.5"),
        (["LINE", "robot.observations={state: [x.pos, x.pos]}"], "'state' names the feature 'x.pos' twice"),
        (["LINE", "robot.actions=[x.pos, x.pos]"], "robot.actions names the feature 'x.pos' twice"),
        (["LINE", "robot.actions=[x.pos]"], "acts in 2 dimensions, toy in 1"),
        (["LINE", "dataset=."], "is no LeRobotDataset"),
    ],
)
def test_bad_input_is_told_before_anything_moves(tmp_path, keys, why, monkeypatch):
    class Untouched(Arm):
        def connect(self, calibrate=True):
            raise AssertionError("connected")

    toys = {"source": Line(), "robot": Untouched()} if "LINE" in keys else {}
    with pytest.raises(InputError, match=why.replace("'", ".")):
        flown(tmp_path, *[key for key in keys if key != "LINE"], **toys)


def test_virtual_time_sends_nothing_to_a_robot_that_does_not_wait(tmp_path):
    class Real(Arm):
        waits_for_driver = False

    arm = Real()
    with pytest.raises(InputError, match=r"mode=live: toy does not wait for its driver; leave virtual_latency out"):
        flown(tmp_path, source=Line(), robot=arm)
    assert arm.reads == 0
    outcome, _, _ = flown(tmp_path, "mode=dry-run", source=Line(), robot=arm)
    assert (outcome.code, arm.sent) == (0, [])


@pytest.mark.parametrize(
    ("reports_position", "keys", "noted"),
    [
        (False, ["safety.velocity=1"], True),
        (False, ["safety.jerk=1000"], True),
        (True, ["safety.velocity=1"], False),
        (False, [], False),
        (False, ["safety.velocity=1", "mode=dry-run"], False),
        (False, ["safety.velocity=1", "safety.actions=relative"], False),
    ],
)
def test_a_first_action_without_a_limit_is_noted_before_the_start(tmp_path, capsys, reports_position, keys, noted):
    config = load_config("deploy", [*LOCKSTEP, "seconds=0.2", *keys])
    deploy_from(config, Line(), Arm(reports_position=reports_position), tmp_path / "run", Console())
    assert ("note: toy does not report its position" in capsys.readouterr().out) == noted


def failing(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["_Table.flush", "write_atomically"])
def test_a_full_disk_costs_the_record_not_the_flight(tmp_path, monkeypatch, capsys, broken):
    arm, folder = Arm(), tmp_path / "run"
    monkeypatch.setattr("gpc.commands.deploy.chunk_source_from", lambda config, console: Line())
    monkeypatch.setattr("gpc.commands.deploy.robot_from", lambda config: arm)
    prepare = Recorder.__init__

    def then_break(self, *args, **kwargs):
        prepare(self, *args, **kwargs)
        monkeypatch.setattr(f"gpc.bridge.recording.{broken}", failing)

    monkeypatch.setattr(Recorder, "__init__", then_break)
    keys = [*LOCKSTEP, "policies=[pusht-flow]", "seconds=4", f"run_dir={folder}", f"dataset={tmp_path / 'set'}"]
    assert main(["deploy", *keys]) == 1
    assert len(arm.sent) == 40
    assert not arm.is_connected
    out, errors = capsys.readouterr()
    assert "gpc: stopped: the time is over; not added to dataset=" in errors
    assert "the record has gaps; not recorded: " in errors
    assert "No space left on device" in errors
    assert "Traceback" not in out + errors
    assert not (tmp_path / "set").exists()
    if broken == "_Table.flush":
        assert "[Errno 28]" in json.loads((folder / "summary.json").read_text())["not_recorded"]


def test_a_signal_in_virtual_time_ends_the_episode_in_good_order(tmp_path):
    class Signalled(Line):
        def sample(self, request):
            if request.number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().sample(request)

    arm = Arm()
    outcome, _, _ = flown(tmp_path, source=Signalled(), robot=arm)
    assert (outcome.reason, outcome.code) == ("SIGTERM", 143)
    assert 10 < len(arm.sent) < 30
    assert not arm.is_connected


def test_a_fault_is_a_fault_though_the_time_ends_while_the_robot_brakes(tmp_path):
    class Ramp(Line):
        def sample(self, request):
            steps = request.step + self.actions.start + np.arange(self.actions.horizon)
            return np.repeat(0.002 * np.maximum(steps, 0)[:, None] ** 2, 2, 1)

    class Refusing(Arm):
        def send_action(self, action):
            if len(self.sent) == 15:
                self.sent.append(None)
                raise OSError("overload")
            return super().send_action(action)

    keys = ["seconds=2", "safety.position=[-9,9]", "safety.acceleration=0.5"]
    arm = Refusing()
    outcome, _, _ = flown(tmp_path, *keys, source=Ramp(), robot=arm)
    assert len(arm.sent) > 18  # it brakes
    assert (outcome.reason, outcome.code) == ("the robot did not take an action: OSError: overload", 1)
    real = ["virtual_latency=null", "fps=50", "seconds=0.4", "safety.acceleration=12", "safety.position=[-9,9]"]
    config = load_config("deploy", [*LOCKSTEP, *real])
    outcome = deploy_from(config, Ramp(), Refusing(), tmp_path / "real", Console(quiet=True))
    assert (outcome.reason, outcome.code) == ("the robot did not take an action: OSError: overload", 1)


def test_a_robot_that_is_not_disconnected_is_a_fault_though_a_signal_came_first(tmp_path):
    class Stuck(Arm):
        def send_action(self, action):
            if len(self.sent) == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().send_action(action)

        def disconnect(self):
            raise OSError("the port is busy")

    outcome, _, _ = flown(tmp_path, source=Line(), robot=Stuck())
    words = "SIGTERM; the robot was not disconnected: OSError: the port is busy"
    assert (outcome.reason, outcome.code) == (words, 1)
    assert json.loads((tmp_path / "deployed/summary.json").read_text())["why"] == words


def test_a_driver_that_fails_in_virtual_time_is_disconnected_and_named(tmp_path):
    class Unplugged(Arm):
        def connect(self, calibrate=True):
            super().connect(calibrate)
            raise ConnectionError("no\nstatus packet")

    arm, config = Unplugged(), load_config("deploy", [*LOCKSTEP, "seconds=4"])
    outcome = deploy_from(config, Line(), arm, tmp_path / "run", Console(quiet=True))
    assert (outcome.reason, outcome.code) == ("the robot failed: ConnectionError: no status packet", 1)
    assert not arm.is_connected


def test_a_policy_that_reads_an_instruction_is_given_it(tmp_path):
    class Told(Line):
        def sample(self, request):
            self.told = gpc.policy.observation.read_text(request.observation["task"][-1])
            return super().sample(request)

    source = Told()
    source.observations = type(source.observations)({"state": (2,), "task": (256,)}, 2)
    with pytest.raises(InputError, match="reads an instruction"):
        flown(tmp_path, source=source, robot=Arm())
    flown(tmp_path, "task=push it", source=source, robot=Arm())
    assert source.told == "push it"


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
    source = LocalSource(Slow(old, lambda: source.set_policy(new)), Sampling(steps=3))
    random = np.random.default_rng(0)
    shapes = old.observations.shapes
    request = gpc.bridge.controller.ChunkRequest(
        0, 0, 0.0, {key: random.uniform(0, 512, (2, *shape)) for key, shape in shapes.items()}, None
    )
    during, after = source.sample(request), source.sample(request)
    np.testing.assert_array_equal(during, LocalSource(old, Sampling(steps=3)).sample(request))
    np.testing.assert_array_equal(after, LocalSource(new, Sampling(steps=3)).sample(request))
    assert np.abs(during - after).max() > 1
    with pytest.raises(InputError, match="cannot take over"):
        LocalSource(parents[0], Sampling()).set_policy(parents[1])  # it reads keypoints, which are not sensed


def test_networks_are_recorded_before_the_robot_is_connected(parents, tmp_path, monkeypatch):
    recorded = []

    def connect(robot):
        recorded.extend(source._placed.condition_fn.network._recordings.values())
        return connected(robot)

    monkeypatch.setattr("gpc.bridge.run.connected", connect)
    source = LocalSource(parents[0], Sampling(steps=3))
    flown(tmp_path, "stitch.n_action_steps=4", source=source)
    assert [recording.observations for recording in recorded] == [{1, 2}]


def test_other_weights_record_no_network_again(parents):
    source = LocalSource(gpc.compose(parents, [0.1, 0.9]), Sampling(steps=3))
    before = source._placed.policies
    source.set_policy(gpc.compose(parents, [0.9, 0.1]))
    assert all(after is placed for after, placed in zip(source._placed.policies, before, strict=True))


class Timed(Arm):
    """An arm that must know its rate."""

    def set_rate(self, rate, fps):
        self.rates = rate, fps


@pytest.mark.parametrize(("rate", "sent"), [(None, 10.0), (40.0, 40.0)])
def test_the_robot_is_given_the_rate_that_follows_from_the_settings(tmp_path, rate, sent):
    arm = Timed()
    settings = EpisodeSettings(fps=10, rate=rate, mode="live", seconds=1, virtual_latency=0)
    result = deploy(Line(), arm, settings, tmp_path / "run", safety=SafetyLimits(actions="absolute"))
    assert (arm.rates, len(arm.sent), result.code) == ((sent, 10), sent, 0)


def test_objects_are_enough_without_a_configuration(tmp_path, parents):
    """The actions of the command line, from Python."""
    from gpc.robots.from_lerobot import make_robot

    flown(tmp_path, "stitch.n_action_steps=4", source=LocalSource(parents[0], Sampling(steps=4)))
    robot = make_robot("gpc_simulated")
    result = deploy(
        LocalSource(parents[0], Sampling(steps=4)),
        robot,
        EpisodeSettings(fps=10, mode="live", seconds=4, virtual_latency=0),
        tmp_path / "python",
        blender=RecedingHorizon(4),
        safety=SafetyLimits(actions="absolute"),
    )
    assert (result.reason, result.code) == ("the time is over", 0)
    episodes = [read(tmp_path / name / "episode.zarr") for name in ("deployed", "python")]
    np.testing.assert_array_equal(*[episode.actions for episode in episodes])
    recorded = json.loads((tmp_path / "python/manifest.json").read_text())["config"]
    assert (recorded["fps"], recorded["stitch"]["n_action_steps"], recorded["safety"]["actions"]) == (10, 4, "absolute")


@pytest.mark.parametrize(
    ("robot", "setting"), [("simulated", "sends_per_step=2"), ("ros2", "rate=20")], ids=["simulated", "ros2"]
)
def test_a_rate_among_the_settings_of_a_robot_is_refused_with_the_setting_that_holds_it(robot, setting):
    joints = ["robot.settings.joints=[x]"] if robot == "ros2" else []
    config = load_config("deploy", [f"robot={robot}", "fps=10", f"+robot.settings.{setting}", *joints])
    with pytest.raises(
        InputError, match=f"robot.settings.{setting.split('=')[0]} follows from fps and rate; leave it out"
    ):
        robot_from(config)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("clock.kind=lockstep", "virtual_latency=0, with the seconds that a chunk takes"),
        ("clock.latency=0.2", "virtual_latency=0.2"),
        ("safety.hold=last", "safety.actions=absolute for last, relative for zero"),
        ("stitch.every=2", "stitch.request_every=2"),
        ("stitch.kept=8", "stitch.max_chunks=8"),
    ],
)
def test_a_key_of_an_earlier_version_is_answered_with_the_new_form(old, new):
    with pytest.raises(InputError, match=f"{old.split('=')[0]} has changed; write {new}"):
        load_config("deploy", ["robot=simulated", "fps=10", old])


@dataclass(frozen=True)
class Trained(FixedPolicy):
    """A policy whose checkpoint names its simulator."""

    n_action_steps: int | None = None

    @property
    def simulator(self):
        return EnvSpec("pusht", n_action_steps=self.n_action_steps)


def test_without_a_number_of_action_steps_that_of_the_checkpoints_is_taken():
    def source(*counts):
        return LocalSource(gpc.compose([Trained(Gaussian(), n_action_steps=count) for count in counts]), Sampling())

    settings = {"type": "real_time", "n_action_steps": None}
    assert blender_from(settings, source(4, None, 4)) == RealTimeChunking(4)
    assert blender_from(settings | {"n_action_steps": 5}, source(4)) == RealTimeChunking(5)
    average = gpc.AveragedChunks([Trained(Gaussian(), n_action_steps=3)])
    assert blender_from(settings, LocalSource(average, Sampling())) == RealTimeChunking(3)
    with pytest.raises(InputError, match=r"\(6 of fixed, 4 of fixed\); give one, as in stitch.n_action_steps=4"):
        blender_from(settings, source(6, None, 4))
    assert blender_from(settings, source(None)) == blender_from(settings, Line()) == RealTimeChunking(8)
