import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import shapely
from gym_pusht.envs.pusht import PushTEnv

import gpc
from gpc.envs.pusht import DIFFUSION_POLICY_POINTS, OUTLINE, PushT, coverage, keypoints
from gpc.errors import InputError, RunError
from gpc.testing import check_env
from gpc.types import Array

TRAINER = Path(__file__).parent / "data/diffusion-policy-trainer"
GOAL = (256.0, 256.0, math.pi / 4)


def random_actions(rng: np.random.Generator, state: Array) -> Array:
    return rng.uniform(0, 512, 2).astype(np.float32)


def pushing_actions(rng: np.random.Generator, state: Array) -> Array:
    return (state[2:4] + rng.normal(0, 40, 2)).astype(np.float32)


def stock_observation(stock: PushTEnv, obs_type: str) -> dict[str, Array]:
    stock.obs_type = obs_type
    return {"state": stock.get_obs()} if obs_type == "state" else stock.get_obs()


def play_both(seed: int, choose, steps: int, keys: tuple[str, ...]) -> Iterator[tuple[PushT, PushTEnv, float]]:
    """Our environment and the stock one after each of the same actions, and how far the rewards differ."""
    ours, stock = PushT(keys), PushTEnv()
    ours.reset(seed=seed)
    stock.reset(seed=seed)
    rng = np.random.default_rng(seed)
    yield ours, stock, 0.0
    for _ in range(steps):
        action = choose(rng, stock_observation(stock, "state")["state"])
        reward, terminated, _, info = ours.advance(action)
        _, stock_reward, stock_terminated, _, stock_info = stock.step(action)
        assert info["coverage"] == pytest.approx(stock_info["coverage"], abs=1e-9)
        assert info["is_success"] == terminated == stock_terminated
        yield ours, stock, abs(reward - stock_reward)


@pytest.mark.parametrize("choose", [random_actions, pushing_actions])
@pytest.mark.parametrize("seed", [0, 1, 2, 100000])
def test_low_dimensional_observations_equal_stock_bitwise(choose, seed: int) -> None:
    places, contacts = [], 0
    for ours, stock, error in play_both(seed, choose, 250, ("state", "keypoints", "agent_pos")):
        frame = ours.observe()
        other = stock_observation(stock, "environment_state_agent_pos")
        state = stock_observation(stock, "state")["state"]
        assert np.array_equal(frame["state"], state)
        assert np.array_equal(frame["keypoints"], other["environment_state"])
        assert np.array_equal(frame["agent_pos"], other["agent_pos"])
        assert error < 1e-9
        contacts += stock.n_contact_points
        places.append(state[2:4])
    pushed = contacts > 100 and np.ptp(places, axis=0).max() > 10
    assert choose is random_actions or pushed, "the actions did not push the block"


@pytest.mark.parametrize("seed", [3, 4])
def test_pixels_and_pictures_equal_stock_bitwise(seed: int) -> None:
    for ours, stock, _ in play_both(seed, pushing_actions, 25, ("pixels",)):
        stock.visualization_width = stock.visualization_height = 384
        assert np.array_equal(ours.observe()["pixels"], stock_observation(stock, "pixels_agent_pos")["pixels"])
        picture = ours.render()
        assert picture.shape == (384, 384, 3)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, stock.render())
    blank = PushT()
    first = (blank.reset(seed=seed), blank.render())[1]
    assert not np.array_equal(first, (blank.advance(np.array([50.0, 50.0])), blank.render())[1])
    assert np.array_equal(first, (blank.reset(seed=seed), blank.render())[1]), "last episode's action is shown"


def test_same_seed_and_actions_repeat_bit_for_bit() -> None:
    actions = np.random.default_rng(5).uniform(100, 400, (300, 2))
    env, results = PushT(("state",)), []
    for fresh in (env, env, PushT(("state",))):
        fresh.reset(seed=7)
        results.append([(*fresh.advance(action)[:2], fresh.observe()["state"].tobytes()) for action in actions])
    assert results[0] == results[1] == results[2]


def test_coverage_equals_polygon_intersection() -> None:
    rng = np.random.default_rng(0)

    def tee(pose) -> shapely.Polygon:
        cos, sin = math.cos(pose[2]), math.sin(pose[2])
        return shapely.Polygon([(pose[0] + u * cos - v * sin, pose[1] + u * sin + v * cos) for u, v in OUTLINE])

    goal, partial = tee(GOAL), 0
    for spread in (1e-7, 0.1, 3, 30, 80):
        for _ in range(300):
            pose = np.array(GOAL) + spread * rng.normal(size=3) * [1, 1, 0.1]
            expected = tee(pose).intersection(goal).area / goal.area
            assert coverage(pose.tolist(), GOAL) == pytest.approx(expected, abs=1e-9)
            partial += 0 < expected < 1
    assert partial > 1000
    assert coverage(GOAL, GOAL) == pytest.approx(1, abs=1e-12)


def test_success_ends_the_episode_at_the_threshold() -> None:
    env = PushT(("state",))
    # gym-pusht sets the position first and turns about the centre of mass then, which moves the T's origin.
    offset = np.array([45 * math.sin(GOAL[2]), 45 * (1 - math.cos(GOAL[2]))])
    for shift, success in ((1.0, True), (4.0, False)):
        place = np.array(GOAL[:2]) - offset + [shift, 0]
        env.reset(seed=0, options={"reset_to_state": [50, 50, *place, GOAL[2]]})
        reward, terminated, truncated, info = env.advance(np.array([50.0, 50.0]))
        assert (info["is_success"], terminated, truncated) == (success, success, False)
        assert info["is_success"] == (info["coverage"] >= 0.95)
        assert reward == min(info["coverage"] / 0.95, 1)
        assert 0.85 < info["coverage"] < 1


def test_max_steps_truncate() -> None:
    env = PushT(("state",), max_steps=3)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.advance(np.array([0.0, 0.0]))[2] for _ in range(3)] == [False, False, True]


def test_keypoints_of_demonstrations_equal_the_observation() -> None:
    env, rng = PushT(("state", "keypoints")), np.random.default_rng(0)
    env.reset(seed=11)
    frames = []
    for _ in range(200):
        env.advance(pushing_actions(rng, env.observe()["state"]))
        frames.append(env.observe())
    states, expected = (np.stack([frame[key] for frame in frames]) for key in ("state", "keypoints"))
    assert np.ptp(states[:, 4]) > 0.1
    assert keypoints(states[:, 2:]).shape == (200, 16)
    np.testing.assert_allclose(keypoints(states[:, 2:]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("keys", [("state",), ("agent_pos", "pixels"), ("state", "keypoints", "agent_pos", "pixels")])
def test_contract(keys: tuple[str, ...]) -> None:
    env = PushT(keys)
    check_env(env, seed=100000)
    assert set(env.observe()) == set(keys)


def test_only_requested_keys_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PushTEnv, "_render", lambda *_: pytest.fail("drew a picture nobody asked for"))
    env = PushT(("state", "keypoints"))
    env.reset(seed=0)
    env.step(np.array([100.0, 100.0]))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"\['pixel'\].*state, keypoints, agent_pos, pixels"):
        PushT(("state", "pixel"))
    with pytest.raises(InputError, match="choose from state"):
        PushT(())
    with pytest.raises(InputError, match="max_steps is 0"):
        PushT(max_steps=0)
    env = PushT(("state",))
    env.reset(seed=0)
    for action in ([math.nan, 1.0], [1.0, math.inf], [1.0, 2.0, 3.0]):
        with pytest.raises(RunError, match="not two finite numbers"):
            env.advance(np.array(action))


def test_import_is_light_and_silent() -> None:
    code = "import sys, gpc.envs.pusht; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_diffusion_policys_keypoints_are_those_of_its_data():
    """Each observation of its data set is a turned and shifted copy of the points, to a tenth of a pixel."""
    observations = np.load(TRAINER / "chunks.npz")["obs"].reshape(-1, 20)
    for points in observations[:, :18].reshape(-1, 9, 2).astype(np.float64):
        local = DIFFUSION_POLICY_POINTS - DIFFUSION_POLICY_POINTS.mean(0)
        u, _, v = np.linalg.svd(local.T @ (points - points.mean(0)))
        assert np.linalg.det(u @ v) == pytest.approx(1)  # turned, not mirrored
        assert np.abs(local @ u @ v - (points - points.mean(0))).max() < 0.1
    env = PushT(("obs", "keypoints", "agent_pos"))
    frame = env.reset(seed=3)[0]
    assert np.array_equal(frame["obs"][18:], frame["agent_pos"])
    block, vertices = frame["obs"][:18].reshape(9, 2), frame["keypoints"].reshape(8, 2)
    assert np.linalg.norm(block[4] - vertices[6:8].mean(0)) < 16.0  # near the end of the stem


def test_a_checkpoint_of_diffusion_policys_trainer_is_rolled_out(tmp_path):
    files = sorted(TRAINER.glob("*/*/checkpoints/*.ckpt"))
    policies = [gpc.load_policy(f"diffusion_policy:{file}") for file in (files[0], files[-1])]
    env = gpc.EnvSpec("pusht", max_steps=16)
    result = gpc.evaluate(gpc.compose(policies, [0.5, 0.5]), env, episodes=2, sampler=gpc.Sampling(steps=3))
    assert [row.steps for row in result.rows] == [16, 16]
