"""LeRobot's benchmarks as environments of gpc: what its policies get under `lerobot-eval` is what they get here."""

from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest

pytest.importorskip("lerobot")
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env as lerobot_make_env
from lerobot.envs.utils import preprocess_observation

from gpc.commands.recorded import Resolved, requests
from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.policy.observation import read_text
from gpc.rollout.env import make_env
from gpc.testing import check_env

PUSHT = {"benchmark": "pusht", "task": "PushT-v0", "settings": {"obs_type": "pixels_agent_pos"}}


def spec(**options):
    return EnvSpec("lerobot", 8, None, options)


def test_pusht_is_what_lerobots_own_evaluation_shows():
    config = EnvConfig.get_choice_class("pusht")(task="PushT-v0", obs_type="pixels_agent_pos")
    theirs = lerobot_make_env(config, n_envs=1)["pusht"][0]
    actions = np.random.default_rng(0).uniform(100, 400, (5, 2)).astype(np.float32)
    with closing(make_env(spec(**PUSHT))) as env, closing(theirs):
        assert env.max_steps == config.episode_length
        frame, batch = env.reset(seed=7)[0], theirs.reset(seed=[7])[0]
        for action in actions:
            expected = preprocess_observation(batch)
            assert frame.keys() == expected.keys()
            assert np.array_equal(frame["observation.state"], expected["observation.state"][0].numpy())
            image = expected["observation.image"][0].numpy().transpose(1, 2, 0)
            assert np.array_equal(np.float32(frame["observation.image"]) / 255, image)
            frame, reward, *_ = env.step(action)
            batch, rewards, *_ = theirs.step(action[None])
            assert reward == rewards[0]


def test_it_keeps_the_contract():
    with closing(make_env(spec(**PUSHT))) as env:
        check_env(env, steps=5)


class Kitchen(gymnasium.Env):
    """A stand-in with the contract of RoboTwin's, RoboCasa's, VLABench's and RoboMME's environments in LeRobot."""

    def __init__(self, number):
        self.task, self.task_description, self._max_episode_steps = f"task-{number}", f"close drawer {number}", 70
        image = gymnasium.spaces.Box(0, 255, (32, 48, 3), np.uint8)
        pixels = gymnasium.spaces.Dict({"front": image, "wrist": image})
        state = gymnasium.spaces.Box(-10, 10, (9,), np.float64)
        self.observation_space = gymnasium.spaces.Dict({"pixels": pixels, "agent_pos": state})
        self.action_space = gymnasium.spaces.Box(-1, 1, (7,), np.float32)

    def reset(self, seed=None, **_):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=9)
        return self._observe(), {"is_success": False}

    def step(self, action):
        self.position[:7] += action
        solved = bool(self.position[0] > 2)
        return self._observe(), float(self.position[0]), solved, False, {"is_success": solved}

    def _observe(self):
        picture = np.full((32, 48, 3), abs(int(10 * self.position[0])) % 255, np.uint8)
        return {"pixels": {"front": picture, "wrist": 255 - picture}, "agent_pos": self.position.copy()}


@pytest.fixture(scope="module")
def kitchen():
    if "kitchen" not in EnvConfig.get_known_choices():

        @EnvConfig.register_subclass("kitchen")
        @dataclass
        class KitchenConfig(EnvConfig):
            task: str = "easy"
            features: dict = field(default_factory=dict)

            @property
            def gym_kwargs(self):
                return {}

    return "kitchen"


@pytest.fixture
def made(kitchen, monkeypatch):
    """What `make_env` of the suite returns: three tasks."""
    suite = {"easy": {i: gymnasium.vector.SyncVectorEnv([lambda i=i: Kitchen(i)]) for i in range(3)}}
    monkeypatch.setattr("gpc.envs.from_lerobot.make_env", lambda config, n_envs: suite)
    return kitchen


def test_a_suite_has_tasks_with_cameras_and_instructions(made):
    with closing(make_env(spec(benchmark=made, task="easy", task_id=2))) as env:
        names = {"observation.images.front", "observation.images.wrist", "observation.state", "task"}
        assert set(env.observation_space.spaces) == names
        assert env.max_steps == 70
        frame, _ = env.reset(seed=3)
        assert read_text(frame["task"]) == "close drawer 2"
        assert (frame["observation.images.wrist"] == 255 - frame["observation.images.front"]).all()
        check_env(env, steps=5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"benchmark": "liberro"}, "no benchmark 'liberro'"),
        ({"benchmark": "gym_manipulator"}, "is a robot"),
        ({"benchmark": "isaaclab_arena"}, "is code on the hub, which gpc does not run"),
        (
            {"benchmark": "pusht", "task": "PushT-v0", "settings": {"colour": 1}},
            "LeRobot cannot make pusht PushT-v0: .*colour",
        ),
        ({"benchmark": "pusht", "task": "PushT-v9"}, "LeRobot cannot make pusht PushT-v9"),
        ({"benchmark": "aloha"}, "aloha needs a package that is missing"),
    ],
)
def test_what_cannot_be_made_is_one_line(options, words):
    with pytest.raises(InputError, match=words) as error:
        make_env(spec(**options))
    assert "\n" not in str(error.value)


def test_a_task_beyond_the_suite_is_refused(made):
    with pytest.raises(InputError, match="task_id=3: kitchen easy has the tasks 0 to 2"):
        make_env(spec(benchmark=made, task="easy", task_id=3))


def test_settings_of_a_recorded_benchmark_need_permission():
    options = {"benchmark": "libero", "task": "libero_spatial", "task_id": 0, "settings": {"bddl": "/tmp/a"}}
    resolved = Resolved(["pusht-flow"], {"type": "lerobot", "options": options}, {}, {"type": "convex"})
    assert [key for key, _ in requests(resolved, {"type": "convex"}, ["pusht-flow"])] == ["env.options.settings.bddl"]


class Recorded(Kitchen):
    """With initial states that are recorded, of which LIBERO takes the next at each reset."""

    init_state_id = 0

    def reset(self, seed=None, **_):
        super().reset(seed=0)
        self.position[:] = self.init_state_id % 50
        self.init_state_id += 1
        return self._observe(), {"is_success": False}


def test_the_seed_chooses_the_recorded_initial_state(kitchen, monkeypatch):
    suite = {"easy": {4: gymnasium.vector.SyncVectorEnv([lambda: Recorded(4)])}}
    monkeypatch.setattr("gpc.envs.from_lerobot.make_env", lambda config, n_envs: suite)
    with closing(make_env(spec(benchmark=kitchen, task="easy", task_id=4))) as env:
        states = [env.reset(seed=seed)[0]["observation.state"][0] for seed in (7, 8, 7, 57)]
    assert states == [7, 8, 7, 7]


def metaworld():
    return {"benchmark": "metaworld", "task": "metaworld-push-v3", "settings": {"obs_type": "pixels_agent_pos"}}


def libero(suite):
    size = {"observation_height": 64, "observation_width": 64}
    return {"benchmark": "libero", "task": f"libero_{suite}", "task_id": 1, "settings": size}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
        for name, options in [
            ("metaworld", metaworld()),
            *(("libero", libero(s)) for s in ("spatial", "object", "goal", "10")),
        ]
    ],
    ids=lambda options: options["task"],
)
def test_a_benchmark_repeats_an_episode_by_its_seed(options):
    with closing(make_env(spec(**options))) as env:
        actions = np.random.default_rng(0).uniform(-1, 1, (4, *env.action_space.shape))

        def episode(seed):
            frames = [env.reset(seed=seed)[0]]
            for action in actions:
                frame, reward, *_, info = env.step(action)
                assert not info["is_success"]
                frames.append({**frame, "reward": np.array(reward)})
            return frames

        assert env.max_steps >= 280
        one, other, fresh = episode(5), episode(5), episode(6)
        assert all(np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)
        state = "reward" if options["benchmark"] == "metaworld" else "observation.state"
        assert not np.array_equal(one[-1][state], fresh[-1][state])
        images = [key for key in one[0] if "image" in key]
        assert images
        assert all(one[0][key].std() > 10 for key in images)
