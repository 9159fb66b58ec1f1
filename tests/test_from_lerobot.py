"""LeRobot checkpoints, saved by LeRobot itself with random weights: its own chunks, its own actions, and refusals."""

import json
import shutil
import sys
from itertools import product

import numpy as np
import pytest
import torch
from lerobot_checkpoints import as_lerobot, change, change_step, parity, save, statistics
from safetensors.torch import load_file, save_file

import gpc
from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.inference.actor import ChunkActor
from gpc.inference.settings import Sampling
from gpc.score.denoiser import Clamp
from gpc.score.samplers import ancestral, euler, last
from gpc.testing.policy import check_policy

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


@pytest.mark.parametrize(
    ("scheduler", "prediction", "keys"),
    [
        *(pytest.param(*case, KEYPOINTS) for case in product(("DDPM", "DDIM"), ("epsilon", "sample"))),
        pytest.param("DDPM", "epsilon", CAMERAS, id="two cameras"),
    ],
)
def test_the_chunk_is_that_of_lerobots_own_scheduler(
    tmp_path, monkeypatch, record_property, scheduler, prediction, keys
):
    """DDIM without `clip_sample`: its clipping is not that of a clipped model (docs/design.md, section 1)."""
    options = {"noise_scheduler_type": scheduler, "prediction_type": prediction, "clip_sample": scheduler == "DDPM"}
    cropped = {"crop_shape": (84, 84)} if keys is CAMERAS else {}
    folder, theirs, pre, _ = save(tmp_path / "tiny", keys=keys, **options, **cropped)
    policy = gpc.load_policy(f"lerobot:{folder}")
    observation = observe(policy)
    frames = [pre(as_lerobot({key: value[:, i] for key, value in observation.items()})) for i in (0, 1)]
    batch = {key: torch.stack([frame[key] for frame in frames], 1) for key in keys}
    if keys is CAMERAS:
        batch["observation.images"] = torch.stack([batch[key] for key in CAMERAS[1:]], 2)
    noise = torch.randn(101, 3, 16, 2, generator=torch.Generator().manual_seed(1))
    draw(monkeypatch, noise[1:])
    with torch.no_grad():
        condition = theirs.diffusion._prepare_global_conditioning(batch)
        wanted = theirs.diffusion.conditional_sample(3, condition, noise=noise[0])
    ours = sample(policy, observation, noise, 1, scheduler == "DDPM")
    assert parity(record_property, theirs, ours, wanted) < 1e-5


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
        post(theirs.select_action(pre(as_lerobot(frame)), noise[i // 8, 0])) for i, frame in enumerate(frames[1:])
    ]
    ours = []
    for chunk, first in enumerate(range(0, 30, 8)):
        seen = {k: torch.stack([frames[first][k], frames[first + 1][k]], 1) for k in frames[0]}
        actions = policy.actions.decode(sample(policy, seen, noise[chunk], 10, True))
        ours += list(actions[:, -policy.actions.start :][0, :8])
    span = policy.actions.scale[0]
    assert float((torch.stack(ours[:30]) - torch.cat(wanted)).abs().max()) < 1e-5 * span


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


def cut(name):
    def do(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return do


PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
MODES = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}


def rename(**names):
    """The checkpoint's own renaming; `own` and `env` stand for what it reads, `seen` for another name."""
    full = {"own": "observation.state", "env": "observation.environment_state", "seen": "observation.seen"}
    return change_step(PRE, 0, config={"rename_map": {full[old]: full[new] for old, new in names.items()}})


def in_quantiles(folder):
    """Actions by QUANTILES, as in pi0.5, of a data set whose statistics have none."""
    change("config.json", normalization_mapping=MODES | {"ACTION": "QUANTILES"})(folder)
    for file, index in ((PRE, 3), (POST, 0)):
        steps = json.loads((folder / file).read_text())["steps"]
        steps[index]["config"]["norm_map"]["ACTION"] = "QUANTILES"
        change(file, steps=steps)(folder)
    edit_statistics(POST, lambda key: "action.q" not in key)(folder)


def edit_statistics(file, keep=lambda key: True, change=lambda key, value: value):
    """Keep some of a normaliser's statistics, changed."""

    def do(folder):
        state = next(folder.glob(f"{file.removesuffix('.json')}*.safetensors"))
        save_file({k: change(k, v) for k, v in load_file(state).items() if keep(k)}, state)

    return do


def no_state_file(folder):
    steps = json.loads((folder / POST).read_text())["steps"]
    del steps[0]["state_file"]
    change(POST, steps=steps)(folder)


def no_normaliser(folder):
    steps = json.loads((folder / POST).read_text())["steps"]
    change(POST, steps=[step for step in steps if step["registry_name"] != "unnormalizer_processor"])(folder)


BREAKAGES = {
    "no score": (change("config.json", type="act"), "LeRobot act policy has no score to compose: it regresses"),
    "a reward model": (change("config.json", type="sarm"), "judges progress and predicts no action"),
    "groot": (change("config.json", type="groot"), "which gpc does not run, and needs peft and dm-tree"),
    "a configuration of 2024": (
        change("config.json", type=None),
        "has no policy type, as LeRobot wrote it before 2025",
    ),
    "unknown type": (
        change("config.json", type="walk"),
        "type 'walk' is not supported; gpc reads diffusion, multi_task_dit, smolvla",
    ),
    "unknown field": (change("config.json", surprise=1), "surprise"),
    "not JSON": (cut("config.json"), "config.json: Input data was truncated"),
    "no actions": (change("config.json", output_features={}), "declares no action or no observation"),
    "a step of another package": (
        change_step(PRE, 0, registry_name=None, **{"class": "os.system"}),
        "has the step 'os.system'; supported are device_processor",
    ),
    "delta actions": (
        change_step(POST, 1, registry_name="map_delta_action_to_robot_action", config={}),
        "'map_delta_action_to_robot_action'; supported after sampling are absolute_actions_processor, device_processor",
    ),
    "a state file outside": (change_step(PRE, 3, state_file="../../secret.safetensors"), "which is not in"),
    "a state file elsewhere": (change_step(PRE, 3, state_file="/etc/hostname"), "which is not in"),
    "a state file that is missing": (
        lambda folder: next(folder.glob("policy_postprocessor*.safetensors")).unlink(),
        "policy_postprocessor.json names the state file .*, which is not in",
    ),
    "no state file": (
        no_state_file,
        "policy_postprocessor.json normalises 'action' by MIN_MAX without its min and max",
    ),
    "a missing statistic": (
        edit_statistics(PRE, lambda key: not key.startswith("observation.state.")),
        "normalises 'observation.state' by MIN_MAX without its min and max",
    ),
    "a missing quantile": (
        in_quantiles,
        "normalises 'action' by QUANTILES without its q01 and q99; save the checkpoint",
    ),
    "statistics of another robot": (
        edit_statistics(POST, change=lambda key, value: torch.cat([value, value]) if "action" in key else value),
        r"the min of 'action' has shape \(4,\), config.json has \(2,\)",
    ),
    "no normaliser": (no_normaliser, "normalises 'action' by IDENTITY, config.json declares MIN_MAX"),
    "another normaliser": (
        change("config.json", normalization_mapping=MODES | {"STATE": "MEAN_STD"}),
        "normalises 'observation.state' by MIN_MAX, config.json declares MEAN_STD",
    ),
    "undeclared actions": (
        change("config.json", normalization_mapping={"STATE": "MIN_MAX", "ENV": "MIN_MAX"}),
        "normalization_mapping has no entry for ACTION",
    ),
    "renamed away": (
        rename(own="seen"),
        "renames 'observation.state' to 'observation.seen', and config.json reads 'observation.state', which nothing provides",
    ),
    "no postprocessor": (lambda folder: (folder / POST).unlink(), "policy_postprocessor.json is missing"),
    "no weights": (lambda folder: None, "model.safetensors is missing"),
}


@pytest.mark.parametrize(("spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_damaged_or_hostile_checkpoint_is_refused_before_its_weights_are_read(broken, spoil, message):
    (broken / "model.safetensors").unlink()
    spoil(broken)
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"lerobot:{broken}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [cut("model.safetensors"), change("config.json", down_dims=[16, 64])])
def test_weights_that_are_cut_short_or_of_another_network_are_refused(broken, spoil):
    spoil(broken)
    with pytest.raises(InputError, match=r"it is cut short|its weights do not fit: 44 of another shape") as caught:
        gpc.load_policy(f"lerobot:{broken}")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(broken, monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot.policies.diffusion.processor_diffusion", None)
    with pytest.raises(InputError, match=r"diffusion policy needs packages that are missing .*'lerobot\[diffusion\]'"):
        gpc.load_policy(f"lerobot:{broken}")


def test_its_own_renaming_is_followed(broken):
    rename(seen="own")(broken)
    assert set(gpc.load_policy(f"lerobot:{broken}").observations.shapes) == {
        "observation.seen",
        "observation.environment_state",
    }


def test_a_camera_that_its_own_renaming_leaves_out_is_said_with_the_map_to_write(tmp_path, capsys):
    folder = save(tmp_path / "cameras", keys=CAMERAS)[0]
    (folder / "model.safetensors").unlink()
    change_step(PRE, 0, config={"rename_map": {"observation.images.front": CAMERAS[1]}})(folder)
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        gpc.load_policy(f"lerobot:{folder}")
    said = capsys.readouterr().err
    assert f"renames cameras, but none to '{CAMERAS[2]}'" in said
    assert f"'rename_map={{{CAMERAS[2]}: ITS KEY}}'" in said
    assert CAMERAS[1] not in said


def test_a_search_composes_a_lerobot_checkpoint_with_one_of_gpc(checkpoint, tiny, tmp_path, capsys):
    """Keys are renamed by the environment's map; the normalisers differ per dimension by 2 %, which is said."""
    bent = statistics(KEYPOINTS)
    bent["action"] |= {"min": torch.tensor([0.0, 0.0]), "max": torch.tensor([512.0, 502.0])}
    folder = save(tmp_path / "bent", stats=bent)[0]
    run = tmp_path / "run"
    small = [
        "env.max_steps=16",
        "search=grid",
        "search.episodes=2",
        "search.step=0.5",
        "report.episodes=2",
        "video=0",
        f"run_dir={run}",
    ]
    assert main(["search", f"policies=[{tiny[1]},lerobot:{folder}]", *small]) == 0
    assert "note: bent gets noise levels that are up to 1.0% off" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert [p["name"] for p in summary["parents"]] == ["tiny-flow", "bent"]
    print_ = json.loads((run / "manifest.json").read_text())["config"]["fingerprints"]["bent"]
    assert json.loads(print_.split(" ", 1)[1])["observation.state"] == "agent_pos"


def test_a_key_that_does_not_map_is_said_with_the_map_to_write(checkpoint, capsys):
    map_ = "rename_map={observation.environment_state: corners}"
    assert main(["evaluate", f"policies=[lerobot:{checkpoint}]", map_, "episodes=1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "reads 'corners' (16,), pusht offers agent_pos (2,), keypoints (16,), obs (20,), pixels (96, 96, 3)" in said
    assert "if 'keypoints' is it, add 'rename_map={observation.environment_state: keypoints}'" in said


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no folder 'nowhere'"),
        ("someone/policy", r"write lerobot:someone/policy@COMMIT"),
        ("someone/policy@main", "write lerobot:someone/policy@COMMIT"),
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
