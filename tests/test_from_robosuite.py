"""robosuite's tasks: against robomimic's own wrapper, step by step, and on machines with little to draw with."""

import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import robomimic.utils.env_utils as env_utils
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.torch_utils as torch_utils
import torch
from saboteur import Saboteur
from scipy.spatial.transform import Rotation
from test_from_robomimic import save

import gpc
import gpc.rollout.gl
from gpc.envs.from_robosuite import STEADY, Robosuite, axis_angle_actions, thin, world_points
from gpc.errors import InputError, RunError
from gpc.policy.env_spec import EnvSpec
from gpc.results.run_folder import read_rows
from gpc.results.trajectories import read_trajectory
from gpc.rollout.engine import Engine, Job, LaneSpec, RolloutStats, rollout
from gpc.rollout.gl import Probe
from gpc.testing import check_env

TASKS = ("Lift", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport")
LOW = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot0_joint_pos", "robot0_gripper_qvel")
OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def settings(task="Lift", **changes):
    """A checkpoint's `env_kwargs`, as robomimic's data sets v1.5 have them."""
    part = OSC | {"input_ref_frame": "world", "gripper": {"type": "GRIP"}} | changes
    robots = ["Panda"] * (2 if task.startswith("TwoArm") else 1)
    config = {"type": "BASIC", "body_parts": {"right": part}}
    return {"robots": robots, "controller_configs": config, "lite_physics": False, "reward_shaping": False}


def robomimic(task, given, images=()):
    kinds = {"rgb": [f"{name}_image" for name in images], "depth": [f"{name}_depth" for name in images], "low_dim": []}
    cameras = {"camera_names": list(images), "camera_heights": 84, "camera_widths": 84} if images else {}
    with contextlib.redirect_stdout(io.StringIO()):
        obs_utils.initialize_obs_utils_with_obs_specs({"obs": kinds})
        metadata = {"env_name": task, "type": 1, "env_kwargs": given | cameras, "env_version": "1.5.1"}
        drawn = dict.fromkeys(("use_image_obs", "use_depth_obs", "render_offscreen"), bool(images))
        return env_utils.create_env_from_metadata(metadata, **drawn)


def robomimics_episode(task, given, actions, images=()):
    """[(frame, reward, success)] at the start of seed 7 and after each action, in robomimic's own wrapper."""
    env = robomimic(task, given, images)
    np.random.seed(7)  # noqa: NPY002
    steps = [(env.reset(), 0.0, False)]
    for action in actions:
        frame, reward, _, info = env.step(action)
        steps.append((frame, reward, info["is_success"]["task"]))
    if images:  # robosuite frees what it drew with in whatever context is current
        env.env.sim._render_context_offscreen.gl_ctx.make_current()
    env.env.close()
    return steps


def our_episode(task, given, actions, keys):
    env = Robosuite(keys, task=task, settings=given)
    steps = [(env.reset(seed=7)[0], 0.0, False)]
    for action in actions:
        frame, reward, _, _, info = env.step(action)
        steps.append((frame, reward, info["is_success"]))
    return steps


@pytest.mark.parametrize("task", TASKS)
def test_30_steps_are_those_of_robomimics_wrapper(task) -> None:
    given = settings(task)
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 14 if task.startswith("TwoArm") else 7))
    pairs = zip(our_episode(task, given, actions, LOW), robomimics_episode(task, given, actions), strict=True)
    for (ours, *outcome), (theirs, *wanted) in pairs:
        assert outcome == wanted
        for key in LOW:
            assert np.array_equal(ours[key], theirs[key]), key


def test_a_picture_is_robomimics_and_so_is_its_depth() -> None:
    pictures, cameras = ("agentview_image", "robot0_eye_in_hand_image"), ("agentview", "robot0_eye_in_hand")
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 7))
    wanted = robomimics_episode("Lift", settings(), actions, cameras)
    found = our_episode("Lift", settings(), actions, (*pictures, "agentview_depth"))
    for (ours, *_), (theirs, *_) in zip(found, wanted, strict=True):
        for key in pictures:
            assert np.array_equal(ours[key], theirs[key]), key
        np.testing.assert_allclose(ours["agentview_depth"], theirs["agentview_depth"], rtol=1e-5)


def trajectory(env, actions, seed=7):
    env.reset(seed=seed)
    return [(env.advance(action)[0], {k: v.tobytes() for k, v in env.observe().items()}) for action in actions]


def test_a_controller_of_robosuite_1_4_becomes_the_one_of_the_converted_data_sets() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 7))
    old = Robosuite(LOW, settings={"robots": ["Panda"], "controller_configs": OSC})
    assert trajectory(old, actions) == trajectory(Robosuite(LOW, settings=settings()), actions)


def test_absolute_actions_are_robomimics() -> None:
    rng = np.random.default_rng(0)
    rotations = rng.normal(size=(20, 6)) * rng.uniform(0.2, 3, (20, 1))
    actions = np.concatenate(
        [rng.uniform([-0.2, -0.2, 0.9], [0.1, 0.2, 1.1], (20, 3)), rotations, rng.normal(size=(20, 1))], -1
    )
    turned = torch_utils.rot_6d_to_axis_angle(torch.from_numpy(rotations)).numpy()
    plain = np.concatenate([actions[:, :3], turned, actions[:, 9:]], -1)
    converted = axis_angle_actions(actions)
    # theirs may be a turn by more than pi the other way round
    matrices = [Rotation.from_rotvec(part[:, 3:6]).as_matrix() for part in (converted, plain)]
    np.testing.assert_allclose(*matrices, atol=1e-6)
    np.testing.assert_array_equal(converted[:, [0, 1, 2, 6]], plain[:, [0, 1, 2, 6]])
    assert np.array_equal(axis_angle_actions(actions.reshape(10, 20)), converted.reshape(10, 14))
    # a checkpoint of robosuite 1.4 says control_delta, one of 1.5 input_type; both mean the target in the world frame
    ours = Robosuite(LOW, absolute=True)
    given = Robosuite(LOW, settings={"controller_configs": settings(input_type="absolute")["controller_configs"]})
    older = Robosuite(LOW, settings={"controller_configs": settings(control_delta=False)["controller_configs"]})
    assert (ours.action_space.shape, given.action_space.shape) == ((10,), (7,))
    assert trajectory(ours, actions) == trajectory(given, converted) == trajectory(older, converted)
    assert np.abs(ours.observe()["robot0_eef_pos"] - actions[-1, :3]).max() < 0.2


def test_two_arms_have_two_absolute_actions() -> None:
    assert Robosuite(("object",), task="TwoArmTransport", absolute=True).action_space.shape == (20,)


@pytest.mark.parametrize("task", ["Lift", *STEADY])
def test_an_episode_does_not_depend_on_those_before_it(task) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    used, fresh = (Robosuite(("object", "agentview_image"), task=task) for _ in range(2))
    trajectory(used, actions, seed=3)
    assert trajectory(used, actions) == trajectory(fresh, actions)


def test_looking_through_cameras_does_not_change_the_physics() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 7))
    blind, seeing = Robosuite(("object",)), Robosuite(("object", "agentview_image"))
    kept = [(reward, frame["object"]) for reward, frame in trajectory(seeing, actions)]
    blind.reset(seed=7)
    drawn = []
    for i, action in enumerate(actions):
        reward = blind.advance(action)[0]
        if i > 4:
            blind.render()
        drawn.append((reward, blind.observe()["object"].tobytes()))
    assert drawn == kept


def test_two_tasks_in_one_process_keep_their_pictures_apart() -> None:
    keys, still = ("agentview_image",), np.zeros(7)
    alone = [trajectory(Robosuite(keys, task=task), [still] * 2) for task in ("Lift", "PickPlaceCan")]
    envs = [Robosuite(keys, task=task) for task in ("Lift", "PickPlaceCan")]
    for env in envs:
        env.reset(seed=7)
    frames = [[], []]
    for _ in range(2):
        for env, kept in zip(envs, frames, strict=True):
            reward = env.advance(still)[0]
            kept.append((reward, {k: v.tobytes() for k, v in env.observe().items()}))
    assert frames == alone


def test_points_lie_on_the_table_and_on_the_cube() -> None:
    """Within a third of a pixel: the depth of one is that of one sample of several, not of its middle."""
    env = Robosuite(("agentview_points", "agentview_depth", "object"), image_size=(256, 256), points=10**5)
    frame, _ = env.reset(seed=3)
    model, data = env._env.sim.model, env._env.sim.data
    index = model.camera_name2id("agentview")
    pose = data.cam_xmat[index].reshape(3, 3), data.cam_xpos[index]
    every = world_points(frame["agentview_depth"][..., 0], model.cam_fovy[index], *pose).reshape(256, 256, 3)
    assert np.abs(every[192:, 64:192, 2] - 0.8).max() < 0.0008  # the lower middle of the picture is the table
    points = frame["agentview_points"]
    inside = (every > [-0.5, -0.6, 0.81]).all(-1) & (every < [0.6, 0.6, 1.6]).all(-1)
    assert len(np.unique(points, axis=0)) == len(np.unique(every[inside].astype(np.float32), axis=0))
    cube, half = frame["object"][:3], model.geom_size[model.geom_name2id("cube_g0_vis")]
    turn = data.body_xmat[env._env.cube_body_id].reshape(3, 3)
    local = (points[np.abs(points - cube).max(-1) < 0.03] - cube) @ turn
    assert len(local) > 200
    assert np.quantile(np.abs(np.abs(local) - half).min(-1), 0.9) < 0.0015  # from the nearest face


def test_points_are_thinned_to_those_farthest_apart() -> None:
    line = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [1, 0, 0], [0.5, 0, 0]])
    assert thin(line, 3)[:, 0].tolist() == [0, 1, 0.5]
    assert thin(line[:2], 4)[:, 0].tolist() == [0, 0.1, 0, 0.1]
    assert not thin(line[:0], 4).any()


@pytest.mark.parametrize("task", TASKS)
def test_contract(task) -> None:
    check_env(Robosuite(LOW, task=task), steps=5)


def test_contract_with_pictures() -> None:
    check_env(Robosuite(("agentview_image", "agentview_depth", "agentview_points"), points=64), steps=2)


def test_success_ends_the_episode_and_max_steps_truncate_it() -> None:
    env = Robosuite(("object",), max_steps=3)
    env.reset(seed=0)
    assert [env.advance(np.zeros(7))[1:3] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env.reset(seed=0)
    cube = env._env.cube.joints[0]
    pose = env._env.sim.data.get_joint_qpos(cube)
    env._env.sim.data.set_joint_qpos(cube, [*pose[:2], 1.0, *pose[3:]])
    reward, terminated, truncated, info = env.advance(np.zeros(7))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_evaluate_builds_the_simulator_of_a_checkpoint_and_robomimic_agrees_with_every_episode(tmp_path) -> None:
    given = settings() | {"control_freq": 10, "has_renderer": False, "use_camera_obs": False, "camera_heights": 84}
    metadata = {"env_name": "Lift", "type": 1, "env_kwargs": given, "env_version": "1.5.1"}
    policy = gpc.load_policy(f"robomimic:{save(tmp_path / 'tiny.pth', metadata=metadata)}")
    env, engine, sampling = EnvSpec("policy", None, 20), Engine(workers=1), gpc.Sampling(steps=2)
    result = gpc.evaluate(policy, env, episodes=2, sampler=sampling, engine=engine, run_dir=tmp_path / "run", video=0)
    theirs, _ = file_utils.env_from_checkpoint(ckpt_path=str(tmp_path / "tiny.pth"))
    for i, row in enumerate(read_rows(tmp_path / "run" / "episodes.jsonl")):
        assert row in result.rows
        trajectory = read_trajectory(tmp_path / "run", i)
        np.random.seed(row.seed)  # noqa: NPY002
        frames, rewards = [theirs.reset()], []
        for action in trajectory["action"]:
            frame, reward, _, _ = theirs.step(action)
            frames.append(frame)
            rewards.append(reward)
        assert row.success == theirs.is_success()["task"]
        assert trajectory["reward"].tolist() == rewards
        for key in ("object", "robot0_eef_pos"):
            np.testing.assert_allclose(trajectory[key], [frame[key][-1] for frame in frames[::8]], atol=1e-6)


def wander(observation, weights, seeds, chunks):
    pairs = zip(seeds, chunks, strict=True)
    return np.stack([np.random.default_rng([s, c]).uniform(-1, 1, (8, 7)) for s, c in pairs])


def lift_table(blows, episodes=6):
    """The episode table of Lift while so many simulators are killed and stopped, and what was said of these."""
    spec = LaneSpec(EnvSpec("robosuite", 8, 24), ("object",))
    stats, engine = RolloutStats(), Engine(lanes=4, workers=2, timeout=20.0, retries=20)
    jobs = [Job(0, (1.0,), seed) for seed in range(episodes)]
    table = sorted(rollout(jobs, Saboteur(wander, blows), spec, engine, stats), key=lambda e: e.job)
    rows = [(e.job, e.success, e.score, e.steps, {k: v.tobytes() for k, v in e.trajectory.items()}) for e in table]
    return rows, stats.simulator_failures


def test_killed_and_stopped_simulators_change_no_episode_of_lift() -> None:
    """With twenty of them, on 40 episodes, it is docs/environments.md's measurement."""
    disturbed, causes = lift_table(blows=2)
    assert len(causes) >= 2
    assert disturbed == lift_table(blows=0)[0]


def follow_the_light(observation, weights, seeds, chunks):
    """An action that every pixel of both frames changes."""
    left, right = (
        observation["agentview_image"][..., half, :].mean((1, 2, 3, 4)) for half in (slice(42), slice(42, 84))
    )
    return np.tile(
        np.stack([left - right, left - 128, right - 128, *np.zeros((4, len(left)))], -1)[:, None] / 30, (4, 1)
    )


def test_episodes_on_pictures_from_osmesa_do_not_depend_on_what_else_the_process_draws(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)  # this process may have drawn by another
    spec = LaneSpec(EnvSpec("robosuite", 4, 12), ("agentview_image",), 2)
    jobs = [Job(0, (1.0,), seed) for seed in range(3)]
    tables = []
    for lanes in (1, 3):
        episodes = rollout(jobs, follow_the_light, spec, Engine(lanes=lanes, workers=1))
        tables.append(sorted((e.job, e.score, e.trajectory["action"].tobytes()) for e in episodes))
    assert tables[0] == tables[1]
    assert len({actions for *_, actions in tables[0]}) == 3


LIGHT = """
import sys
import numpy as np
from gpc.envs.from_robosuite import Robosuite
env = Robosuite(("object", "robot0_eef_pos"))
env.reset(seed=0)
env.step(np.zeros(7))
print([name for name in ("torch", "robomimic", "OpenGL") if name in sys.modules])
"""


def test_a_simulator_process_is_light_and_quiet() -> None:
    env = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-P", "-c", LIGHT], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_without_anything_to_draw_with_the_package_is_named_and_numbers_still_work(monkeypatch) -> None:
    monkeypatch.setattr(gpc.rollout.gl, "given_settings", dict)  # earlier tests and robosuite set some
    monkeypatch.setattr(gpc.rollout.gl, "probe", lambda settings: Probe("cannot open shared object file"))
    monkeypatch.setattr(gpc.rollout.gl, "find_library", lambda name: None)
    monkeypatch.setattr("gpc.envs.from_robosuite.choose_gl", gpc.rollout.gl.choose_gl.__wrapped__)
    with pytest.raises(
        InputError, match=r"apt-get install libegl1, or MUJOCO_GL=osmesa .*: apt-get install libosmesa6"
    ):
        Robosuite(("object", "agentview_image"))
    check_env(Robosuite(("object",)), steps=1)


CLUSTER = """
import numpy as np
from gpc.envs.from_robosuite import Robosuite
env = Robosuite(("agentview_image",))
print(env.reset(seed=0)[0]["agentview_image"].std() > 10)
"""


@pytest.mark.parametrize(
    ("visible", "device"),
    [("3", {}), ("3", {"MUJOCO_EGL_DEVICE_ID": "0"}), ("GPU-8f2", {})],
    ids=["index", "both", "name"],
)
def test_a_device_of_egl_is_no_device_of_cuda(visible, device) -> None:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "MUJOCO_GL": "egl"} | device
    env.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-P", "-c", CLUSTER], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="no task 'Lif'; did you mean 'Lift'"):
        Robosuite(task="Lif")
    with pytest.raises(InputError, match=r"\['agentveiw_image'\].*agentview_image"):
        Robosuite(("object", "agentveiw_image"))
    with pytest.raises(InputError, match=r"cannot make Lift.*table_size"):
        Robosuite(settings={"table_size": 1})
    with pytest.raises(InputError, match=r"cannot make Lift.*body_parts"):
        Robosuite(settings={"controller_configs": {"type": "BASIC"}})
    with pytest.raises(InputError, match=r"Wipe: absolute actions are for arms with OSC_POSE and a gripper.*\(6,\)"):
        Robosuite(task="Wipe", absolute=True)
    with pytest.raises(InputError, match="max_steps=0"):
        Robosuite(max_steps=0)
    env = Robosuite(("object",))
    env.reset(seed=0)
    for action in ([np.nan] * 7, [0.0] * 6):
        with pytest.raises(RunError, match=r"\(7,\) finite numbers"):
            env.advance(np.array(action))
