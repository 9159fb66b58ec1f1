"""The scripted experts, on robosuite itself: they succeed, in every mode, and recover what goes wrong."""

import subprocess
import sys

import numpy as np
import pytest

from gpc.envs.experts import ARCS, SIDES, SPEEDS, TAIL, TASKS, Expert, play
from gpc.envs.from_robosuite import Robosuite
from gpc.errors import InputError
from gpc.rollout.env import Environment

KEYS = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
FRAME = {
    "object": np.array([0.02, 0.01, 0.82, 0, 0, 0.3, 0.954, 0.1, 0, 0]),
    "robot0_eef_pos": np.array([-0.1, 0.0, 1.0]),
    "robot0_eef_quat": np.array([1.0, 0, 0.05, 0]),
}


class Clumsy(Environment):
    """An environment whose gripper opens by itself for a while."""

    def __init__(self, env, steps):
        self.env, self.steps = env, steps
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, *, seed=None, options=None):
        self.step_count = 0
        return self.env.reset(seed=seed)

    def advance(self, action):
        self.step_count += 1
        opened = np.append(action[:-1], -1.0) if self.step_count in self.steps else action
        return self.env.advance(opened)

    def observe(self, keys=None):
        return self.env.observe(keys)


@pytest.fixture(scope="module")
def envs():
    return {task: Robosuite(KEYS, 300, task) for task in TASKS}


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("task", list(TASKS))
def test_an_expert_succeeds_and_its_episode_ends_soon_after(envs, task, seed):
    episode = play(envs[task], task, seed)
    assert episode.success
    assert len(episode.frames) == len(episode.actions) == len(episode.rewards) < 250
    assert episode.actions.shape[1:] == envs[task].action_space.shape
    assert np.abs(episode.actions).max() <= 1
    assert np.flatnonzero(episode.rewards)[0] == len(episode.rewards) - 1 - TAIL


def test_the_same_seed_gives_the_same_episode(envs):
    first, again, other = (play(envs["Lift"], "Lift", seed) for seed in (3, 3, 4))
    assert np.array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions[:20], other.actions[:20])


def test_a_dropped_can_is_picked_up_again(envs):
    plain = play(envs["PickPlaceCan"], "PickPlaceCan", 12)
    raised = next(i for i, frame in enumerate(plain.frames) if frame["object"][9] > 0.93)
    clumsy = play(Clumsy(envs["PickPlaceCan"], range(raised, raised + 15)), "PickPlaceCan", 12)
    assert plain.tries == 1
    assert clumsy.tries > 1
    assert clumsy.success


def test_every_mode_is_drawn_about_equally_often():
    for task, rules in TASKS.items():
        modes = [Expert(task, seed).modes for seed in range(600)]
        for field, choices in {"side": SIDES, "arc": ARCS, "grasp": rules.grasps, "speed": SPEEDS}.items():
            drawn = [getattr(mode, field) for mode in modes]
            assert set(drawn) == set(choices)
            assert min(drawn.count(choice) for choice in choices) > 0.8 * 600 / len(choices)


def test_one_frame_has_several_answers():
    directions = {}
    for seed in range(60):
        expert = Expert("Lift", seed)
        directions.setdefault((expert.modes.side, expert.modes.grasp), []).append(expert.act(FRAME))
    mean = {mode: np.mean(actions, axis=0) for mode, actions in directions.items()}
    heading = {side: np.arctan2(*mean[side, "near"][1::-1]) for side in SIDES}
    assert heading["right"] + 0.3 < heading["straight"] < heading["left"] - 0.3
    assert abs(mean["straight", "near"][5] - mean["straight", "far"][5]) > 0.3


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="no expert for 'Stack'; there is one for each of Lift"):
        Expert("Stack", 0)


def test_an_expert_needs_no_torch():
    code = "import sys, gpc.envs.experts; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"
