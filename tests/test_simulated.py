"""The simulated robot shows what its environment shows, and the faults that are asked for."""

import numpy as np
import pytest
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from gpc.commands.config import load_config
from gpc.commands.deploy import robot_from
from gpc.commands.simulators import env_named
from gpc.errors import InputError
from gpc.robots.simulated import SimulatedRobot, SimulatedRobotConfig
from gpc.rollout.engine import Engine, Job, LaneSpec, rollout
from gpc.rollout.env import make_env
from gpc.testing.robot import check_robot


def robot(**config):
    return SimulatedRobot(SimulatedRobotConfig(**config))


@pytest.fixture
def pusht():
    made = robot(env="pusht", seed=7)
    made.connect()
    yield made
    if made.is_connected:
        made.disconnect()


def push(x, y):
    return {"action.0": x, "action.1": y}


def test_it_is_a_robot_of_lerobot_under_its_own_type():
    assert isinstance(robot(), Robot)
    assert RobotConfig.get_choice_class("gpc_simulated") is SimulatedRobotConfig
    assert robot_from(load_config("deploy", ["robot.settings.seed=3", "fps=10"])).config.seed == 3


@pytest.mark.parametrize(
    ("env", "key", "camera"), [("pusht", "keypoints", "pixels"), ("lift", "object", "agentview_image")]
)
def test_it_shows_what_the_environment_shows(env, key, camera):
    made = robot(env=env, seed=11, pictures=[camera])
    world = make_env(env_named(env))
    frame, _ = world.reset(seed=11)
    made.connect()
    rng = np.random.default_rng(0)
    for _ in range(3):
        reading = made.get_observation()
        assert set(reading) == set(made.observation_features)
        assert [reading[f"{key}.{i}"] for i in range(len(frame[key]))] == frame[key].tolist()
        np.testing.assert_array_equal(reading[camera], frame[camera])
        assert reading[camera].shape == made.observation_features[camera]
        action = rng.uniform(world.action_space.low, world.action_space.high)
        sent = made.send_action(dict(zip(made.action_features, action.tolist(), strict=True)))
        assert list(sent.values()) == pytest.approx(action.tolist())
        frame, *_ = world.step(np.array(list(sent.values())))
    world.close()
    made.disconnect()


@pytest.mark.parametrize(("env", "key"), [("pusht", "state"), ("lift", "object")])
def test_an_episode_is_that_of_the_rollout_engine(env, key):
    """In another process, the same seed and actions."""
    made = robot(env=env, seed=11)
    spec = env_named(env, ["env.max_steps=16", "env.n_action_steps=8"])
    world = make_env(spec)
    space = world.action_space
    world.close()
    actions = np.random.default_rng(0).uniform(space.low, space.high, (2, 8, *space.shape))
    (episode,) = rollout(
        [Job(0, (1.0,), 11)], lambda *command: actions[command[3]], LaneSpec(spec, (key,)), Engine(lanes=1, workers=1)
    )
    made.connect()
    seen = []
    for chunk in actions:
        seen.append([made.get_observation()[f"{key}.{i}"] for i in range(episode.trajectory[key].shape[1])])
        for action in chunk:
            made.send_action(dict(zip(made.action_features, action.tolist(), strict=True)))
    np.testing.assert_array_equal(seen, episode.trajectory[key])
    assert (made.steps, made.success, made.score) == (16, episode.success, episode.score)
    made.disconnect()


@pytest.mark.parametrize(
    ("env", "picture", "faults"),
    [("pusht", "pixels", {}), ("lift", "agentview_image", {"delay": 2, "dropped": 0.3, "noise": 0.1, "jitter": 0.01})],
)
def test_it_keeps_the_contract_with_and_without_faults(env, picture, faults):
    made = robot(env=env, pictures=[picture], **faults)
    check_robot(made, action=dict.fromkeys(made.action_features, 0.1), steps=5, deadline=2.0)


def test_an_action_out_of_bounds_is_cut_and_says_so(pusht):
    assert pusht.send_action(push(-100.0, 1e6)) == push(0.0, 512.0)
    with pytest.raises(ValueError, match="must be finite"):
        pusht.send_action(push(float("nan"), 0.0))


def test_the_world_moves_at_every_nth_action(pusht):
    pusht.set_rate(30.0, fps=10.0)
    for i in range(7):
        pusht.send_action(push(100.0 + i, 100.0))
    assert pusht.steps == 3


@pytest.mark.parametrize("rate", [5.0, 25.0])
def test_a_rate_that_is_no_multiple_of_the_steps_is_refused(pusht, rate):
    with pytest.raises(InputError, match=f"{rate:g} actions in a second are no multiple of fps=10"):
        pusht.set_rate(rate, fps=10.0)


def test_an_episode_ends_and_stays_ended(pusht):
    pusht.disconnect()
    short = robot(overrides=["env.max_steps=2"])
    short.connect()
    for _ in range(5):
        short.send_action(push(0.0, 0.0))
    assert short.done
    assert (short.steps, short.success) == (2, False)
    short.reset(1)
    assert not short.done
    short.disconnect()


def test_old_and_repeated_observations():
    fresh, late = robot(seed=5), robot(seed=5, delay=2)
    stuck = robot(seed=5, dropped=0.999999)
    for made in (fresh, late, stuck):
        made.connect()
    first, seen = fresh.get_observation(), []
    for _ in range(4):
        seen.append(fresh.get_observation())
        for made in (fresh, late, stuck):
            made.send_action(push(400.0, 400.0))
    assert late.get_observation() == seen[2]  # of four actions the last two are not seen yet
    assert stuck.get_observation() == first
    assert fresh.get_observation() != first
    for made in (fresh, late, stuck):
        made.disconnect()


def test_noise_has_the_spread_that_is_asked_for():
    made = robot(seed=5, noise=2.0)
    made.connect()
    readings = np.array([made.get_observation()["agent_pos.0"] for _ in range(400)])
    assert readings.std() == pytest.approx(2.0, rel=0.15)
    made.disconnect()


def test_the_same_seed_gives_the_same_readings_with_all_faults():
    readings = []
    for _ in range(2):
        made = robot(seed=9, delay=1, dropped=0.3, noise=1.0)
        made.connect()
        for _ in range(6):
            readings.append(made.get_observation())
            made.send_action(push(300.0, 200.0))
        made.disconnect()
    assert readings[:6] == readings[6:]


def test_not_connected_is_an_error():
    made = robot()
    for call in (made.get_observation, made.disconnect, lambda: made.send_action(push(1.0, 1.0))):
        with pytest.raises(DeviceNotConnectedError):
            call()
    made.connect()
    with pytest.raises(DeviceAlreadyConnectedError):
        made.connect()
    made.disconnect()
    assert not made.is_connected


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"env": "push"}, "unknown env 'push'; did you mean 'pusht'"),
        ({"pictures": ["front"]}, "pusht has no camera 'front'; it has pixels"),
        ({"delay": -1}, "delay=-1"),
        ({"dropped": 1.0}, "dropped=1"),
        ({"jitter": -0.1}, "jitter=-0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(config, error):
    with pytest.raises(InputError, match=error):
        robot(**config)
