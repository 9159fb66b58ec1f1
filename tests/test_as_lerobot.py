"""A composed policy, used by LeRobot: its own evaluation from the command line, chunks, and chunks that go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lerobot.configs.default import EvalConfig
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_checkpoints import save as save_checkpoint
from lerobot_checkpoints import save_smolvla

import gpc
from gpc.demonstrations import read
from gpc.errors import InputError
from gpc.inference.chunk import sample_chunk
from gpc.inference.settings import Sampling
from gpc.policies.as_lerobot import GpcConfig, save

KEYS = {"keypoints": "observation.environment_state", "agent_pos": "observation.state"}
DEMONSTRATIONS = Path(__file__).parent / "data" / "pusht-held-out.zarr.zip"
SYNCHRONOUS = ["--eval.use_async_envs=false"] if "use_async_envs" in vars(EvalConfig) else []
LEROBOT_EVAL = Path(sys.executable).with_name("lerobot-eval")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A LeRobot checkpoint, kept inside the saved folder, with a flow policy of gpc."""
    root = tmp_path_factory.mktemp("plug-in") / "composed"
    checkpoint = save_checkpoint(root / "members" / "theirs")[0]
    save(root, [tiny[1], f"lerobot:{checkpoint}"], [0.5, 0.5], rename_map=KEYS)
    config = json.loads((root / "config.json").read_text())
    config["policies"][1] = "lerobot:members/theirs"
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture
def policy(folder):
    return get_policy_class("gpc").from_pretrained(folder)


def observe(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"observation.state": 2, "observation.environment_state": 16}
    return {key: 512 * torch.rand(batch, size, generator=generator) for key, size in shapes.items()}


def test_lerobots_own_evaluation_runs_a_composition(folder, tmp_path):
    command = [
        LEROBOT_EVAL, "--policy.type=gpc", "--policy.discover_packages_path=gpc.policies.as_lerobot",
        f"--policy.pretrained_path={folder}", "--policy.device=cpu", "--policy.push_to_hub=false",
        "--env.type=pusht", "--env.obs_type=environment_state_agent_pos", "--env.episode_length=20",
        "--eval.n_episodes=2", "--eval.batch_size=2", *SYNCHRONOUS, f"--output_dir={tmp_path}", "--seed=3",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    assert 0 <= info["overall"]["avg_max_reward"] <= 1


def test_the_folder_is_found_by_lerobots_factory_with_processors_that_change_nothing(folder):
    config = PreTrainedConfig.from_pretrained(folder)
    assert (config.type, config.weights, config.n_obs_steps) == ("gpc", [0.5, 0.5], 2)
    pre, post = make_pre_post_processors(config, pretrained_path=folder)
    seen = pre(observe(0))
    assert all(torch.equal(seen[key], value) for key, value in observe(0).items())
    assert torch.equal(post(torch.arange(4.0).reshape(2, 2)), torch.arange(4.0).reshape(2, 2))


def test_actions_are_those_of_the_composition(policy, folder, tiny):
    noise = torch.randn(1, 2, 16, 2, generator=torch.Generator().manual_seed(1))
    first, second = (policy.select_action(observe(i), noise=noise) for i in (0, 1))
    renamed = [
        gpc.policy.adapt.rename(gpc.load_policy(s), KEYS) for s in (tiny[1], f"lerobot:{folder / 'members' / 'theirs'}")
    ]
    members = gpc.compose(renamed, [0.5, 0.5])
    seen = {key: torch.stack([value, value], 1) for key, value in observe(0).items()}
    chunk = members.actions.decode(sample_chunk(members, seen, noise.double(), policy.config.sampling))
    torch.testing.assert_close(first.double(), chunk[:, 1], rtol=0, atol=1e-4)
    torch.testing.assert_close(second.double(), chunk[:, 2], rtol=0, atol=1e-4)


def test_a_chunk_is_sampled_every_n_action_steps_and_reset_forgets(policy):
    torch.manual_seed(0)
    actions = [policy.select_action(observe(0)) for _ in range(9)]
    policy.reset()
    torch.manual_seed(0)
    again = [policy.select_action(observe(0)) for _ in range(9)]
    assert torch.equal(torch.stack(actions), torch.stack(again))
    assert not torch.equal(actions[0], actions[8])


def test_a_chunk_goes_on_from_what_the_robot_is_doing(policy):
    """The steps that pass during inference are kept exactly, those after execution_horizon are free, between is between."""
    noise = torch.randn(1, 2, 16, 2, generator=torch.Generator().manual_seed(1))
    free = policy.predict_action_chunk(observe(0), noise)
    assert free.shape == (2, 15, 2)
    left_over = free[:, :10] + 50
    policy.reset()
    going_on = policy.predict_action_chunk(observe(0), noise, 3, left_over, 8)
    torch.testing.assert_close(going_on[:, :3], left_over[:, :3])
    apart = (going_on[:, :10] - left_over).abs().mean((0, 2))
    assert apart[:3].max() < 1e-3 < apart[3] < apart[7]
    assert apart[7] < (free[:, 7] - left_over[:, 7]).abs().mean()
    for padded in (
        torch.cat([left_over, torch.zeros(2, 5, 2)], 1),
        torch.zeros(2, 5, 2),
    ):  # by LeRobot's real-time engine
        wanted = policy.predict_action_chunk(observe(0), noise, 3, left_over) if padded.any() else free
        torch.testing.assert_close(policy.predict_action_chunk(observe(0), noise, 3, padded), wanted)
    policy.reset()
    torch.testing.assert_close(policy.predict_action_chunk(observe(0), noise, 0, left_over, 0), free)


@pytest.fixture(scope="module")
def pusht(tmp_path_factory):
    """A trained policy in LeRobot, the frames of a demonstration, and its chunk from any history of them."""
    root = tmp_path_factory.mktemp("pusht")
    save(root, ["pusht-flow"], [1.0], rename_map=KEYS, sampler=Sampling(steps=5))
    policy = get_policy_class("gpc").from_pretrained(root)
    demonstration = read(DEMONSTRATIONS, list(KEYS)).select([0])
    frames = {KEYS[key]: torch.from_numpy(value).float() for key, value in demonstration.observations.items()}
    noise = torch.randn(1, 1, 16, 2, generator=torch.Generator().manual_seed(1))

    def exact(*steps):
        observation = {key: value[list(steps)][None] for key, value in frames.items()}
        chunk = sample_chunk(policy.policy, observation, noise.double(), policy.config.sampling)
        return policy.policy.actions.decode(chunk)[:, 1:].float()

    return policy, lambda step: {key: value[step][None] for key, value in frames.items()}, noise, exact


def test_a_chunk_of_one_frame_repeats_it_whatever_was_seen_a_chunk_ago(pusht):
    """LeRobot's real-time and asynchronous control call once a chunk; a history of two calls is 8 steps apart."""
    policy, frame, noise, exact = pusht
    policy.reset()
    apart, stale = [], []
    for step in range(16, 81, 8):
        chunk = policy.predict_action_chunk(frame(step), noise)
        assert torch.equal(chunk, exact(step, step))
        apart.append((chunk - exact(step - 1, step)).abs().max())
        stale.append((exact(step - 8, step) - exact(step - 1, step)).abs().max())
    assert max(apart) < 0.5 * max(stale)
    assert torch.stack(apart).mean() < 0.4 * torch.stack(stale).mean()


def test_a_chunk_of_all_frames_of_the_history_is_exact(pusht):
    policy, frame, noise, exact = pusht
    policy.reset()
    for step in (16, 24):
        history = {key: torch.stack([frame(step - 1)[key], value], 1) for key, value in frame(step).items()}
        assert torch.equal(policy.predict_action_chunk(history, noise), exact(step - 1, step))
    longer = {key: torch.cat([value[:, :1] + 9, value], 1) for key, value in history.items()}
    assert torch.equal(policy.predict_action_chunk(longer, noise), exact(step - 1, step))


def test_a_chunk_beside_select_action_has_its_history(pusht):
    policy, frame, noise, exact = pusht
    policy.reset()
    for step in range(17):
        action = policy.select_action(frame(step), noise=noise)
        chunk = policy.predict_action_chunk(frame(step), noise)
        assert torch.equal(chunk, exact(max(step - 1, 0), step))
        assert torch.equal(action, exact(max(step // 8 * 8 - 1, 0), step // 8 * 8)[:, step % 8])
    assert torch.equal(policy.predict_action_chunk(frame(30), noise), exact(30, 30))


def test_two_one_arm_policies_are_two_arms_in_lerobot_too(tiny, tmp_path):
    keys = {"action_names": {"tiny-noise": ["l.x", "l.y"], "tiny-flow": ["r.x", "r.y"]}}
    steered = {"steer": {"tiny-flow": {"cost": "smoothness", "scale": 0.01}}}
    save(tmp_path, tiny, [0.5, 0.5], **keys, **steered)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert config.action_names == keys["action_names"]
    assert config.output_features["action"].shape == (4,)
    policy = get_policy_class("gpc").from_pretrained(tmp_path).policy
    assert policy.actions.names == ("l.x", "l.y", "r.x", "r.y")
    assert policy.policies[1].fingerprint.endswith("steered by 0.01 smoothness, spread 0.5")
    for wrong, said in (
        ({"action_names": {"tiny": ["x", "y"]}}, "action_names goes by policy; there is no 'tiny'"),
        ({"action_name": {}}, "unknown setting 'action_name'; did you mean 'action_names'"),
    ):
        with pytest.raises(InputError, match=said):
            save(tmp_path / "none", tiny, [0.5, 0.5], **wrong)


def test_a_member_that_reads_instructions_is_told_lerobots_task(tmp_path):
    vla = save_smolvla(tmp_path / "vla")[0]
    save(tmp_path / "composed", [f"lerobot:{vla}"], [1.0])
    policy = get_policy_class("gpc").from_pretrained(tmp_path / "composed")
    pre, _ = make_pre_post_processors(policy.config, pretrained_path=tmp_path / "composed")
    noise = torch.randn(1, 2, 12, 2, generator=torch.Generator().manual_seed(1))
    seen = {"observation.state": observe(0)["observation.state"], "observation.image": torch.rand(2, 3, 96, 96)}

    def act(*tasks):
        policy.reset()
        return policy.select_action(pre(seen | {"task": list(tasks)}), noise=noise)

    first, second = act("push the T", "push the T"), act("push the T", "pull the T")
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [0.5, 0.6]}, "sum to 1.1"),
        ({"n_action_steps": 16}, "predicts 15 steps"),
        ({"policies": ["pusht-flo"]}, "did you mean 'pusht-flow'"),
    ],
)
def test_what_does_not_fit_is_not_saved(tiny, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        save(tmp_path / "x", **({"policies": tiny, "weights": [0.5, 0.5], "rename_map": KEYS} | options))
    assert not (tmp_path / "x").exists()


def test_an_observation_that_is_not_offered_is_named(policy):
    with pytest.raises(InputError, match=r"offers no 'observation.environment_state'; add it to rename_map"):
        policy.select_action({"observation.state": torch.zeros(1, 2)})


def test_training_is_refused(policy):
    with pytest.raises(InputError, match="train its members"):
        policy.forward({})


def test_the_networks_compute_where_lerobots_command_line_puts_them(folder):
    config = GpcConfig(device="cpu", use_amp=True)
    noise = torch.randn(1, 2, 16, 2, generator=torch.Generator().manual_seed(1))
    plain, halved = (
        get_policy_class("gpc").from_pretrained(folder, config=given).predict_action_chunk(observe(0), noise)
        for given in (GpcConfig(device="cpu"), config)
    )
    assert 1e-4 < (plain - halved).abs().max() < 25  # of 512: bfloat16
    config.device = "cuda:1"
    with pytest.raises(InputError, match=r"device=cuda:1: torch .* finds cpu only here"):
        get_policy_class("gpc").from_pretrained(folder, config=config)
