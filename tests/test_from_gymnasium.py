"""gymnasium's environments under gpc's contract."""

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from gpc.envs.from_gymnasium import Gymnasium
from gpc.errors import InputError, RunError
from gpc.policy.observation import read_text
from gpc.testing import check_env


class Corridor(gymnasium.Env):
    """A camera and a text among the observations; success once it has gone far enough."""

    observation_space = gymnasium.spaces.Dict(
        {
            "camera": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "arm": gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-1, 1, (1,), np.float32)}),
            "words": gymnasium.spaces.Text(8),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None, length=2.0):
        self.render_mode, self.length = render_mode, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(0, 0.1, 1).astype(np.float32)
        return self.look(), {}

    def look(self):
        picture = np.full((8, 8, 3), int(self.x[0] * 100) % 256, np.uint8)
        return {"camera": picture, "arm": {"x": self.x}, "words": "go"}

    def step(self, action):
        self.x += action  # in place, so that a frame that is not copied changes
        success = bool(self.x[0] > self.length)
        return self.look(), self.x[0], success, False, {"success": success}

    def render(self):
        return self.look()["camera"]


gymnasium.register("Corridor-v0", Corridor)
gymnasium.register("Buttons-v0", lambda render_mode: Buttons())


class Buttons(Corridor):
    action_space = gymnasium.spaces.Discrete(3)


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        ("FetchPush-v4", 20),
        ("HalfCheetah-v5", 20),
        ("AdroitHandDoor-v1", 10),
        ("FrankaKitchen-v1", 3),
        ("Corridor-v0", 9),
    ],
)
def test_contract(task, steps) -> None:
    check_env(Gymnasium(task=task), steps=steps)


def test_a_trajectory_is_gymnasiums_own() -> None:
    ours, stock = Gymnasium(task="FetchPush-v4", max_steps=9), gymnasium.make("FetchPush-v4", max_episode_steps=9)
    frame, _ = ours.reset(seed=3)
    wanted, _ = stock.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (9, 4)):
        assert {key: value.tobytes() for key, value in frame.items()} == {k: v.tobytes() for k, v in wanted.items()}
        frame, *ours_outcome, info = ours.step(action)
        wanted, *outcome, stock_info = stock.step(action.astype(np.float32))
        assert ours_outcome == outcome
        assert info["is_success"] == bool(stock_info["is_success"])
    assert outcome[2], "max_steps truncate"


def test_keys_of_the_observation_space() -> None:
    goals = {"observation", "achieved_goal", "desired_goal"}
    assert set(Gymnasium(task="FetchReach-v4").observation_space) == goals
    assert set(Gymnasium(task="HalfCheetah-v5").observation_space) == {"state"}
    assert "desired_goal.kettle" in set(Gymnasium(task="FrankaKitchen-v1").observation_space)
    env = Gymnasium(("arm.x",), task="Corridor-v0")
    frame, _ = env.reset(seed=0)
    assert set(frame) == set(env.observation_space) == {"arm.x"}
    assert set(Gymnasium(task="Corridor-v0").observation_space) == {"camera", "arm.x", "task"}


def test_success_is_what_the_environment_says() -> None:
    env = Gymnasium(task="Corridor-v0", settings={"length": 2.5})
    env.reset(seed=0)
    assert [env.advance(np.ones(1))[3]["is_success"] for _ in range(3)] == [False, False, True]
    silent = Gymnasium(task="HalfCheetah-v5")
    silent.reset(seed=0)
    assert silent.advance(np.zeros(6))[3]["is_success"] is None
    kitchen = Gymnasium(task="FrankaKitchen-v1", settings={"tasks_to_complete": ["kettle"]})
    kitchen.reset(seed=0)
    assert kitchen.advance(np.zeros(9))[3]["is_success"] is False
    kitchen._env.unwrapped.tasks_to_complete.clear()
    assert kitchen.advance(np.zeros(9))[3]["is_success"] is True


@pytest.mark.parametrize(
    ("info", "success"),
    [
        ({"is_success": None, "success": True}, True),
        ({"is_success": None, "success": np.float32(0)}, False),
        ({"is_success": False, "success": True}, False),
        ({"success": None}, None),
        ({}, None),
    ],
)
def test_an_entry_of_none_is_no_failure(info, success):
    env = Gymnasium(task=Reporting(info))
    env.reset(seed=0)
    assert env.advance(np.zeros(1))[3]["is_success"] is success


class Reporting(Corridor):
    def __init__(self, info):
        super().__init__()
        self.info = info

    def step(self, action):
        return *super().step(action)[:4], self.info


@pytest.mark.parametrize(
    ("task", "settings", "steps"),
    [
        ("FetchPush-v4", {}, 50),
        ("AdroitHandDoor-v1", {}, 200),
        ("FrankaKitchen-v1", {}, 280),
        ("HalfCheetah-v5", {}, 1000),
        ("Corridor-v0", {}, None),
    ],
)
def test_an_episode_is_as_long_as_registered(task, settings, steps):
    assert Gymnasium(task=task, settings=settings).max_steps == steps
    assert Gymnasium(task=task, settings=settings, max_steps=30).max_steps == 30


def test_an_environment_may_hold_the_length_of_its_episodes():
    timed, arm = TimeLimit(Corridor(), 70), Corridor()
    arm.max_path_length = 500  # as Meta-World's
    assert (Gymnasium(task=timed).max_steps, Gymnasium(task=arm).max_steps) == (70, 500)
    arm.max_path_length = 3
    env = Gymnasium(task=arm)
    env.reset(seed=0)
    assert [env.advance(np.zeros(1))[2] for _ in range(3)] == [False, False, True]


class Old(gymnasium.Env):
    """The interface before gymnasium 0.26, observations of many kinds, and no render_mode."""

    observation_space = gymnasium.spaces.Tuple(
        (
            gymnasium.spaces.Box(0, 1, (2,), np.float32),
            gymnasium.spaces.Discrete(5),
            gymnasium.spaces.Dict({"bits": gymnasium.spaces.MultiBinary(3), "instruction": gymnasium.spaces.Text(20)}),
        )
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def seed(self, seed=None):
        self.random = np.random.default_rng(seed)

    def reset(self):
        self.count = 0
        self.at = self.random.uniform(0, 1, 2).astype(np.float32)
        return self.look()

    def look(self):
        return self.at, self.count, {"bits": np.array([1, 0, 1], np.int8), "instruction": "open the drawer"}

    def step(self, action):
        self.count += 1
        return self.look(), 0.5, self.count == 4, {"success": self.count == 4, "TimeLimit.truncated": False}


gymnasium.register("Old-v0", Old, max_episode_steps=30)


@pytest.mark.parametrize(("task", "steps"), [(Old(), None), ("Old-v0", 30)])
def test_the_old_interface_and_observations_of_every_kind(task, steps):
    env = Gymnasium(task=task)
    assert env.max_steps == steps
    check_env(env, steps=3)
    frame, _ = env.reset(seed=3)
    assert set(frame) == {"0", "1", "2.bits", "task"}
    assert frame["0"].tobytes() == np.random.default_rng(3).uniform(0, 1, 2).astype(np.float32).tobytes()
    assert (frame["1"].tolist(), frame["2.bits"].tolist()) == ([0], [1, 0, 1])
    assert read_text(frame["task"]) == "open the drawer"
    outcomes = [env.advance(np.zeros(1)) for _ in range(4)]
    assert env.observe(["1"])["1"].tolist() == [4]
    assert [outcome[:3] for outcome in outcomes] == [(0.5, False, False)] * 3 + [(0.5, True, False)]
    assert outcomes[-1][3]["is_success"] is True
    with pytest.raises(RunError, match=r"Old\S* draws no picture: it needs the render_mode 'rgb_array'"):
        env.render()


def test_a_reset_without_a_seed_is_named():
    class Seedless(Corridor):
        def reset(self):
            return super().reset()

    with pytest.raises(InputError, match="reset\\(\\) of Seedless takes no seed, on which an episode must depend"):
        Gymnasium(task=Seedless()).reset(seed=0)


def test_a_picture_for_the_video() -> None:
    env = Gymnasium(task="FetchReach-v4")
    env.reset(seed=0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 10
    env.close()


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="'FetchPusch-v4'; did you mean 'FetchPush-v4'"):
        Gymnasium(task="FetchPusch-v4")
    with pytest.raises(InputError, match="no_such_module"):
        Gymnasium(task="no_such_module:X-v0")
    with pytest.raises(InputError, match=r"'gym_pusht/PushT-v1'; the package .*, as in gym_pusht:gym_pusht/PushT-v1"):
        Gymnasium(task="gym_pusht/PushT-v1")
    with pytest.raises(
        InputError, match=r"'gym_pusht/Push-v0' after the import of gym_pusht; did you mean 'gym_pusht/P"
    ):
        Gymnasium(task="gym_pusht:gym_pusht/Push-v0")
    with pytest.raises(InputError, match=r"'Stack-v9'; of another package, write PACKAGE:Stack-v9"):
        Gymnasium(task="Stack-v9")
    with pytest.raises(InputError, match=r"FetchPush-v1: .*mujoco"):
        Gymnasium(task="FetchPush-v1")
    with pytest.raises(InputError, match=r"cannot make FetchPush-v4.*speed"):
        Gymnasium(task="FetchPush-v4", settings={"speed": 1})
    with pytest.raises(InputError, match=r"takes actions from Discrete\(3\)"):
        Gymnasium(task="Buttons-v0")
    with pytest.raises(InputError, match=r"\['stat'\].*choose from state"):
        Gymnasium(("stat",), task="HalfCheetah-v5")
    env = Gymnasium(task="HalfCheetah-v5")
    env.reset(seed=0)
    with pytest.raises(RunError, match=r"\(6,\) finite numbers"):
        env.advance(np.full(6, np.nan))
