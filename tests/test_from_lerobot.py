"""LeRobot checkpoints, saved by LeRobot itself with random weights: its own chunks, its own actions, and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_checkpoints import save, save_smolvla, statistics
from safetensors.torch import load_file, save_file

import gpc
from gpc.cli import main
from gpc.control import ChunkActor, Sampling
from gpc.denoise import Clamp
from gpc.env import write_text
from gpc.errors import InputError
from gpc.noise import flow_sigmas
from gpc.sample import ancestral, euler, last
from gpc.testing import check_policy

KEYPOINTS = ("observation.state", "observation.environment_state")
CAMERAS = ("observation.state", "observation.images.top", "observation.images.wrist")


@pytest.fixture(scope="module", params=[KEYPOINTS, CAMERAS], ids=["keypoints", "two cameras"])
def saved(request, tmp_path_factory):
    options = (
        {} if request.param is KEYPOINTS else {"crop_shape": (84, 84), "use_separate_rgb_encoder_per_camera": True}
    )
    return save(tmp_path_factory.mktemp("runs") / "tiny", keys=request.param, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("runs") / "keypoints")[0]


@pytest.fixture
def broken(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "broken")


def observe(policy, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        key: torch.from_numpy(
            rng.integers(0, 256, (batch, 2, *shape), np.uint8)
            if len(shape) == 3
            else rng.uniform(0, 512, (batch, 2, *shape)).astype(np.float32)
        )
        for key, shape in policy.observations.shapes.items()
    }


def as_lerobot(observation, step):
    """One time step as LeRobot's environments give it: images (batch, channels, height, width) in [0, 1]."""
    now = {key: value[:, step] for key, value in observation.items()}
    return {k: v.permute(0, 3, 1, 2).float() / 255 if v.dtype == torch.uint8 else v for k, v in now.items()}


def sample(policy, observation, noise, levels, stochastic):
    """Our chunk (batch, horizon, action) on every `levels`-th trained level, from the noise that LeRobot starts with."""
    sigmas = torch.tensor([*policy.levels.trained[::levels][::-1], 0.0], dtype=torch.float64)
    x = (1 + sigmas[0] ** 2).sqrt() * noise[0].double()
    denoiser = policy.condition(observation)
    if not stochastic:
        return last(euler(denoiser, x, sigmas))
    return last(ancestral(Clamp(denoiser, policy.actions.bound), x, sigmas, lambda i: noise[i + 1].double()))


def draw(monkeypatch, noise):
    """Let diffusers draw this noise."""
    draws = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws))


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("scheduler", ["DDPM", "DDIM"])
def test_the_chunk_is_that_of_lerobots_own_scheduler(tmp_path, monkeypatch, scheduler, prediction):
    """DDIM without `clip_sample`: its clipping is not that of a clipped model (docs/design.md, section 1)."""
    options = {"noise_scheduler_type": scheduler, "prediction_type": prediction, "clip_sample": scheduler == "DDPM"}
    folder, theirs, pre, _ = save(tmp_path / "tiny", **options)
    policy = gpc.load_policy(f"lerobot:{folder}")
    observation = observe(policy)
    batch = {k: torch.stack([pre(as_lerobot(observation, i))[k] for i in (0, 1)], 1) for k in KEYPOINTS}
    noise = torch.randn(101, 3, 16, 2, generator=torch.Generator().manual_seed(1))
    draw(monkeypatch, noise[1:])
    with torch.no_grad():
        condition = theirs.diffusion._prepare_global_conditioning(batch)
        wanted = theirs.diffusion.conditional_sample(3, condition, noise=noise[0])
    ours = sample(policy, observation, noise, 1, scheduler == "DDPM")
    assert float((ours - wanted).abs().max()) < 1e-5 * max(1, float(wanted.abs().max()))


def test_30_steps_from_raw_observations_to_actions_are_those_of_select_action(saved, monkeypatch):
    folder, theirs, pre, post = saved
    theirs.diffusion.num_inference_steps = 10
    policy = gpc.load_policy(f"lerobot:{folder}")
    frames = [{k: v[:, 0] for k, v in observe(policy, 1, seed).items()} for seed in range(30)]
    frames.insert(0, frames[0])  # at the first step the history is the first frame, twice
    noise = torch.randn(4, 11, 1, 16, 2, generator=torch.Generator().manual_seed(1))
    draw(monkeypatch, noise[:, 1:-1].flatten(0, 1))
    theirs.reset()
    wanted = [
        post(theirs.select_action(pre(as_lerobot({k: v[:, None] for k, v in frame.items()}, 0)), noise[i // 8, 0]))
        for i, frame in enumerate(frames[1:])
    ]
    ours = []
    for chunk, first in enumerate(range(0, 30, 8)):
        seen = {k: torch.stack([frames[first][k], frames[first + 1][k]], 1) for k in frames[0]}
        actions = policy.actions.decode(sample(policy, seen, noise[chunk], 10, True))
        ours += list(actions[:, -policy.actions.start :][0, :8])
    span = policy.actions.scale[0]
    assert float((torch.stack(ours[:30]) - torch.cat(wanted)).abs().max()) < 1e-5 * span


TASKS = ["push the T", "push the block onto the target"]


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    return save_smolvla(tmp_path_factory.mktemp("runs") / "vla")


def look(seed, batch=2):
    rng = np.random.default_rng(seed)
    frame = {"observation.state": torch.from_numpy(rng.uniform(0, 512, (batch, 2)).astype(np.float32))}
    return frame | {"observation.image": torch.from_numpy(rng.integers(0, 256, (batch, 96, 96, 3), np.uint8))}


def asked(frame):
    """A frame with its instructions, as gpc's environments give it and as LeRobot's do."""
    words = torch.from_numpy(np.stack([write_text(task) for task in TASKS]))
    ours = {key: value[:, None] for key, value in (frame | {"task": words}).items()}
    return ours, as_lerobot({key: value[:, None] for key, value in frame.items()}, 0) | {"task": TASKS}


def test_30_steps_of_smolvla_are_those_of_select_action(vla):
    folder, theirs, pre, post = vla
    policy = gpc.load_policy(f"lerobot:{folder}")
    noise = torch.randn(4, 2, 12, 2, generator=torch.Generator().manual_seed(1))
    sigmas = flow_sigmas(10)
    theirs.reset()
    wanted, ours = [], []
    for step in range(30):
        mine, lerobots = asked(look(step))
        wanted.append(post(theirs.select_action(pre(lerobots), noise=noise[step // 8])))
        if step % 8 == 0:
            x = last(euler(policy.condition(mine), sigmas[0] * noise[step // 8].double(), sigmas))
            ours += policy.actions.decode(x)[:, :8].unbind(1)
    span = policy.actions.scale[0]
    assert float((torch.stack(ours[:30]) - torch.stack(wanted)).abs().max()) < 1e-5 * span


def test_dimensions_that_the_robot_lacks_stay_on_their_path(tmp_path):
    """A network that does not listen to them gives LeRobot's own chunk, whatever their noise."""
    folder, theirs, pre, _ = save_smolvla(tmp_path / "vla", max_action_dim=8)
    theirs.model.action_in_proj.weight.data[:, 2:] = 0
    theirs.save_pretrained(folder)
    policy = gpc.load_policy(f"lerobot:{folder}")
    noise = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    mine, lerobots = asked(look(0))
    wanted = theirs.predict_action_chunk(pre(lerobots), noise=noise)
    sigmas = flow_sigmas(10)
    ours = last(euler(policy.condition(mine), sigmas[0] * noise[..., :2].double(), sigmas))
    assert float((ours - wanted).abs().max()) < 1e-5
    check_policy(policy, trained=False)


def test_the_prefix_is_encoded_once_and_the_instruction_matters(vla, monkeypatch):
    policy = gpc.load_policy(f"lerobot:{vla[0]}")
    encode, calls = policy.model.model.embed_prefix, []
    monkeypatch.setattr(policy.model.model, "embed_prefix", lambda *a, **k: calls.append(1) or encode(*a, **k))
    mine, _ = asked(look(0))
    x, sigma = torch.randn(2, 12, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    denoiser = policy.condition(mine)
    out = [denoiser(x, sigma * s) for s in (2, 1, 0.5)][1]
    assert len(calls) == 1
    swapped = policy.condition(mine | {"task": mine["task"].flip(0)})(x, sigma)
    assert (out - swapped).abs().min() > 0


def test_smolvla_and_a_diffusion_policy_run_as_one(vla, tmp_path):
    """They differ in horizon (12, 16), start, history, normaliser, input and family."""
    keys = ("observation.state", "observation.environment_state")
    folder = save(tmp_path / "ddpm", stats=statistics(keys, 0, 500))[0]
    run = tmp_path / "run"
    settings = ["weights=[0.5,0.5]", "env.max_steps=16", "episodes=2", "sampler.steps=3", "video=0", f"run_dir={run}"]
    assert main(["evaluate", f"policies=[lerobot:{folder},lerobot:{vla[0]}]", *settings]) == 0
    assert json.loads((run / "summary.json").read_text())["n_episodes"] == 2


def test_actions_that_are_bent_after_sampling_are_refused(vla, tmp_path):
    folder = shutil.copytree(vla[0], tmp_path / "vla")
    change("config.json", adapt_to_pi_aloha=True)(folder)
    with pytest.raises(InputError, match="adapt_to_pi_aloha bends the gripper's actions"):
        gpc.load_policy(f"lerobot:{folder}")


def test_a_language_model_that_is_not_here_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = save_smolvla(tmp_path / "vla")[0]
    shutil.rmtree(tmp_path / "vlm")
    with pytest.raises(InputError, match=r"policy_preprocessor.json cannot be built: .*vlm"):
        gpc.load_policy(f"lerobot:{folder}")


def test_adapters_keep_the_contract(saved):
    check_policy(gpc.load_policy(f"lerobot:{saved[0]}"), trained=False)


def test_the_observation_is_encoded_once_for_a_chunk(checkpoint, monkeypatch):
    policy = gpc.load_policy(f"lerobot:{checkpoint}")
    encode, calls = policy.model.diffusion._prepare_global_conditioning, []
    monkeypatch.setattr(
        policy.model.diffusion, "_prepare_global_conditioning", lambda batch: calls.append(1) or encode(batch)
    )
    actor = ChunkActor(gpc.compose([policy], [1.0]), Sampling(steps=5), 8)
    frames = {key: value.numpy() for key, value in observe(policy).items()}
    actor(frames, np.ones((3, 1)), np.arange(3), np.zeros(3, np.int64))
    assert len(calls) == 1


def test_the_normalisers_of_the_checkpoint_become_the_action_spec(tmp_path):
    keys = ("observation.state", "observation.environment_state")
    folder = save(tmp_path / "run" / "checkpoints" / "000100" / "pretrained_model", stats=statistics(keys, 100, 300))[0]
    policy = gpc.load_policy(f"lerobot:{folder}")
    assert policy.name == "run"
    np.testing.assert_allclose(policy.actions.scale, 100, rtol=1e-6)
    np.testing.assert_allclose(policy.actions.offset, 200, rtol=1e-6)
    assert (policy.actions.start, policy.actions.horizon, policy.actions.bound) == (-1, 16, 1.0)


def test_the_fingerprint_knows_weights_and_normalisers(checkpoint, broken):
    whole = gpc.load_policy(f"lerobot:{checkpoint}").fingerprint
    assert gpc.load_policy(f"lerobot:{broken}").fingerprint == whole
    state = next(broken.glob("policy_postprocessor*.safetensors"))
    save_file({key: value + 1 for key, value in load_file(state).items()}, state)
    assert gpc.load_policy(f"lerobot:{broken}").fingerprint != whole


def change(file, **fields):
    def do(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return do


def change_step(file, index, **fields):
    def do(folder):
        path = folder / file
        content = json.loads(path.read_text())
        content["steps"][index] |= fields
        path.write_text(json.dumps(content))

    return do


def forget_statistic(folder):
    state = next(folder.glob("policy_preprocessor*.safetensors"))
    save_file({k: v for k, v in load_file(state).items() if not k.startswith("observation.state.")}, state)


def cut(name):
    def do(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return do


PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
BREAKAGES = {
    "no score": (change("config.json", type="act"), "LeRobot act policy has no score to compose: it regresses"),
    "unknown type": (change("config.json", type="sarm"), "type 'sarm' is not supported; gpc reads diffusion, smolvla"),
    "a patched transformers": (change("config.json", type="pi05"), "needs a patched transformers"),
    "unknown field": (change("config.json", surprise=1), "surprise"),
    "a step of another package": (
        change_step(PRE, 0, registry_name=None, **{"class": "os.system"}),
        "asks for the step 'os.system'; known are device_processor",
    ),
    "a state file outside": (change_step(PRE, 3, state_file="../../secret.safetensors"), "which is not in"),
    "a state file elsewhere": (change_step(PRE, 3, state_file="/etc/hostname"), "which is not in"),
    "a missing statistic": (forget_statistic, "normalises 'observation.state' by MIN_MAX without its min and max"),
    "not JSON": (cut("config.json"), "is not valid JSON"),
    "truncated weights": (cut("model.safetensors"), "it is cut short or of another network"),
    "another network": (change("config.json", down_dims=[16, 64]), "it is cut short or of another network"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no postprocessor": (lambda folder: (folder / POST).unlink(), "policy_postprocessor.json is missing"),
}


@pytest.mark.parametrize(("spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_damaged_or_hostile_checkpoint_is_refused_in_one_line(broken, spoil, message):
    spoil(broken)
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"lerobot:{broken}")
    assert "\n" not in str(caught.value)


def test_a_search_composes_a_lerobot_checkpoint_with_one_of_gpc(checkpoint, tiny, tmp_path, capsys):
    """Keys are renamed by the environment's map; the normalisers differ per dimension by 2 %, which is said."""
    bent = statistics(KEYPOINTS)
    bent["action"] |= {"min": torch.tensor([0.0, 0.0]), "max": torch.tensor([512.0, 502.0])}
    folder = save(tmp_path / "bent", stats=bent)[0]
    run = tmp_path / "run"
    small = [
        "env.max_steps=16",
        "search.episodes=2",
        "search.step=0.5",
        "report.episodes=2",
        "video=0",
        f"run_dir={run}",
    ]
    assert main(["search", f"policies=[{tiny[1]},lerobot:{folder}]", *small]) == 0
    assert "note: bent is told noise levels that are up to 1.0% off" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert [p["name"] for p in summary["parents"]] == ["tiny-flow", "bent"]
    print_ = json.loads((run / "manifest.json").read_text())["config"]["fingerprints"]["bent"]
    assert json.loads(print_.split(" ", 1)[1])["observation.state"] == "agent_pos"


def test_a_key_that_does_not_map_is_said_with_the_map_to_write(checkpoint, capsys):
    map_ = "rename_map={observation.environment_state: corners}"
    assert main(["evaluate", f"policies=[lerobot:{checkpoint}]", map_, "episodes=1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "reads 'corners' (16,), gpc.envs.pusht:PushT offers agent_pos (2,), keypoints (16,), pixels (96, 96, 3), state (5,)"
        in said
    )
    assert "if 'keypoints' is it, add 'rename_map={observation.environment_state: keypoints}'" in said


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no folder 'nowhere'"),
        ("someone/policy", r"pin its commit, as in lerobot:someone/policy@"),
        ("someone/policy@main", "pin its commit"),
    ],
)
def test_a_checkpoint_that_is_not_here_is_said(source, message):
    with pytest.raises(InputError, match=message):
        gpc.load_policy(f"lerobot:{source}")


def test_without_the_hub_the_error_says_what_to_put_where(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match=r"put its config\.json, model.safetensors and processor files into a folder"):
        gpc.load_policy("lerobot:someone/policy@" + 40 * "a")


def test_a_checkpoint_that_lerobot_trained_keeps_the_contract():
    folder = Path(__file__).parent / "data" / "lerobot-pusht"
    policy = gpc.load_policy(f"lerobot:{folder}")
    assert policy.name == "lerobot-pusht"
    check_policy(policy)
