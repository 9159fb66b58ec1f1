"""LeRobot's vision-language-action policies, saved by LeRobot itself with random weights: its own chunks and actions."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lerobot.policies
import numpy as np
import pytest
import torch
from fake_card import run_on_fake_card
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from lerobot.policies.xvla.modeling_xvla import XVLAModel
from lerobot_checkpoints import (
    as_lerobot,
    change,
    change_step,
    parity,
    save,
    save_pi,
    save_smolvla,
    save_xvla,
    shrink_gemma,
    stand_in_for_patched_transformers,
    statistics,
    tiny_vlm,
)
from models import flow_sigmas
from safetensors.torch import load_file, save_file

import gpc
from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.inference.chunk import sample_chunk
from gpc.inference.device import Device
from gpc.inference.modules import size_of
from gpc.inference.placement import place
from gpc.policies.from_lerobot.families import FAMILIES, REFUSED
from gpc.policy.observation import write_text
from gpc.score.samplers import Sampler, euler, last, renoise
from gpc.testing.policy import check_policy

HAS_PI = find_spec("lerobot.policies.pi_gemma") is not None
TASKS = ["push the T", "push the block onto the target"]


class Case(NamedTuple):
    save: Callable
    sampler: Sampler = euler
    encoder: str = "embed_prefix"


CASES = {
    "smolvla": Case(save_smolvla),
    "xvla": Case(save_xvla, renoise, "forward_vlm"),
    "xvla with grippers": Case(partial(save_xvla, dim=20, action_mode="ee6d"), renoise, "forward_vlm"),
    "pi0": Case(partial(save_pi, kind="pi0")),
    "pi05": Case(partial(save_pi, kind="pi05")),
}


class Saved(NamedTuple):
    case: Case
    folder: Path
    theirs: Any
    pre: Callable
    post: Callable
    policy: Any


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """LeRobot saves a case's checkpoint; what pi0 needs for that is in force until the module ends."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_patched_transformers(patch)
        shrink_gemma(patch, tiny_vlm(tmp_path_factory.mktemp("tokenizer") / "vlm"))
        yield lambda name, folder, **options: CASES[name].save(folder, **options)


@pytest.fixture(scope="module", params=CASES)
def vla(request, build, tmp_path_factory):
    folder, *theirs = build(request.param, tmp_path_factory.mktemp("runs") / "vla")
    return Saved(CASES[request.param], folder, *theirs, gpc.load_policy(f"lerobot:{folder}"))


def look(policy, seed, batch=2):
    """An observation with instructions, as gpc's environments give it and as LeRobot's do."""
    rng, frame = np.random.default_rng(seed), {}
    for key, shape in policy.observations.shapes.items():
        image = len(shape) == 3
        frame[key] = rng.integers(0, 256, (batch, *shape), np.uint8) if image else rng.uniform(0, 512, (batch, *shape))
    frame = {k: torch.from_numpy(v if v.dtype == np.uint8 else v.astype(np.float32)) for k, v in frame.items()}
    frame["task"] = torch.from_numpy(np.stack([write_text(task) for task in TASKS]))
    lerobots = as_lerobot({key: value for key, value in frame.items() if key != "task"}) | {"task": TASKS}
    return {key: value[:, None] for key, value in frame.items()}, lerobots


def sample(policy, sampler, observation, noise):
    """Our chunk in LeRobot's ten steps."""
    sigmas = flow_sigmas(10)
    return last(sampler(policy.condition(observation), sigmas[0] * noise.double(), sigmas))


def drawn(seed, *shape):
    """The noise that LeRobot draws first after this seed."""
    torch.manual_seed(seed)
    return torch.randn(shape)


def test_the_chunk_is_that_of_predict_action_chunk(vla):
    mine, lerobots = look(vla.policy, 0)
    noise = drawn(5, 2, 12, vla.policy.actions.dim)
    torch.manual_seed(5)
    wanted = vla.theirs.predict_action_chunk(vla.pre(lerobots))
    apart = [
        float((sample(vla.policy, vla.case.sampler, mine, start) - wanted).abs().max())
        for start in (noise, 0.99 * noise, noise.flip(0))
    ]
    assert apart[0] < 1e-5
    assert min(apart[1:]) > 1e-4


def test_the_native_sampler_is_lerobots(vla, record_property):
    mine, lerobots = look(vla.policy, 0)
    noise = drawn(5, 1, 2, 12, vla.policy.actions.dim).double()
    torch.manual_seed(5)
    wanted = vla.theirs.predict_action_chunk(vla.pre(lerobots))
    assert vla.policy.sampling == gpc.Sampling("renoise" if vla.case.sampler is renoise else "euler", 10, grid="flow")
    ours = sample_chunk(vla.policy, mine, noise, vla.policy.sampling)
    assert parity(record_property, vla.theirs, ours, wanted) < 1e-5


def test_30_steps_are_those_of_select_action(vla):
    vla.theirs.reset()
    wanted, ours, spec = [], [], vla.policy.actions
    for step in range(30):
        mine, lerobots = look(vla.policy, step)
        torch.manual_seed(step // 8)
        wanted.append(vla.post(vla.theirs.select_action(vla.pre(lerobots))))
        if step % 8 == 0:
            x = sample(vla.policy, vla.case.sampler, mine, drawn(step // 8, 2, 12, spec.dim))
            ours += spec.decode(x)[:, :8].unbind(1)
    assert float((torch.stack(ours[:30]) - torch.stack(wanted)).abs().max()) < 1e-5 * max(spec.scale)


def test_all_that_is_seen_is_encoded_once_and_matters(vla, monkeypatch):
    encode, calls = getattr(vla.policy.model.model, vla.case.encoder), []
    monkeypatch.setattr(vla.policy.model.model, vla.case.encoder, lambda *a, **k: calls.append(1) or encode(*a, **k))
    mine, _ = look(vla.policy, 0)
    x, sigma = torch.randn(2, 12, vla.policy.actions.dim, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    denoiser = vla.policy.condition(mine)
    out = [denoiser(x, sigma * s) for s in (2, 1, 0.5)][1]
    assert len(calls) == 1
    for key in mine:
        swapped = vla.policy.condition(mine | {key: mine[key].flip(0)})(x, sigma)
        assert (out - swapped).abs().max() > 0, key


def _image_tokens(self, image):
    return image.new_zeros(len(image), 4, self.config.text_config.hidden_size)


def _two_views(self, tokens, images, mask):
    width, (rows, views) = self.vlm.config.vision_config.projection_dim, images.shape[:2]
    seen = images.new_zeros(rows, 4, width)
    return {"vlm_features": seen, "aux_visual_inputs": seen.repeat(1, views - 1, 1)}


def test_the_network_mixes_no_devices_and_can_be_recorded(vla, monkeypatch):
    """What the host reads once for a chunk is made up: the encoders of pictures, pi0.5's state in its prompt."""
    monkeypatch.setattr(SmolVLMWithExpertModel, "embed_image", _image_tokens)
    monkeypatch.setattr(XVLAModel, "forward_vlm", _two_views)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.5)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.zeros(self.shape))
    mine, _ = look(vla.policy, 0)
    run_on_fake_card(vla.policy, mine)


def test_bfloat16_halves_the_weights_and_moves_the_output_a_little(vla):
    policy = vla.policy
    mine, _ = look(policy, 0)
    x, sigma = drawn(0, 2, 12, policy.actions.dim).double(), torch.tensor(1.0, dtype=torch.float64)
    halved = place(policy, Device("cpu", "bfloat16"))
    assert size_of(halved.condition_fn.moved).bytes == size_of(policy).halved < size_of(policy).bytes
    exact = policy.condition(mine)(x, sigma)
    assert 0 < float((halved.condition(mine)(x, sigma) - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_families_keep_the_contract(vla):
    check_policy(vla.policy, trained=False)


def deafen(theirs):
    """Make a network of 8 action dimensions deaf to the last 6."""
    if theirs.config.type == "xvla":
        encoder = theirs.model.transformer.action_encoder
        encoder.fc.weight.data.view(-1, encoder.input_size, encoder.output_size)[:, 2:8] = 0
    else:
        theirs.model.action_in_proj.weight.data[:, 2:] = 0


@pytest.mark.parametrize("name", ["smolvla", "xvla", "pi0"])
def test_dimensions_that_the_robot_lacks_stay_on_their_path(build, tmp_path, name):
    """A network that does not listen to them gives LeRobot's own chunk, whatever their noise."""
    folder, theirs, pre, _ = build(name, tmp_path / "vla", max_action_dim=8)
    deafen(theirs)
    theirs.save_pretrained(folder)
    policy = gpc.load_policy(f"lerobot:{folder}")
    mine, lerobots = look(policy, 0)
    noise = drawn(5, 2, 12, 8)
    torch.manual_seed(5)
    wanted = theirs.predict_action_chunk(pre(lerobots))
    ours = sample(policy, CASES[name].sampler, mine, noise[..., :2])
    assert ours.shape == (2, 12, 2)
    assert float((ours - wanted).abs().max()) < 1e-5
    check_policy(policy, trained=False)


def test_a_gripper_is_a_probability_that_does_not_see_its_own_noise(tmp_path):
    policy = gpc.load_policy(f"lerobot:{save_xvla(tmp_path / 'vla', dim=14, action_mode='joint')[0]}")
    grippers, sigma = [6, 13], torch.tensor(1.0, dtype=torch.float64)
    x = 10 * torch.randn(2, 12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[..., grippers] += 1
    denoiser = policy.condition(look(policy, 0)[0])
    out = denoiser(x, sigma)
    assert ((out[..., grippers] > 0) & (out[..., grippers] < 1)).all()
    assert torch.equal(denoiser(other, sigma), out)


def test_x_vla_in_half_precision_is_lerobots_within_its_rounding(tmp_path):
    folder, theirs, pre, _ = save_xvla(tmp_path / "vla", dtype="bfloat16")
    policy = gpc.load_policy(f"lerobot:{folder}")
    mine, lerobots = look(policy, 0)
    torch.manual_seed(5)
    noise = torch.randn(2, 12, 2, dtype=torch.bfloat16)
    torch.manual_seed(5)
    wanted = theirs.predict_action_chunk(pre(lerobots))
    assert float((sample(policy, renoise, mine, noise) - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


@pytest.mark.parametrize("name", ["smolvla", "xvla", "pi0"])
def test_cameras_that_lerobot_fills_in_as_empty_are_not_asked_of_the_environment(build, tmp_path, name):
    folder, theirs, pre, _ = build(name, tmp_path / "vla", empty_cameras=1)
    assert "observation.images.empty_camera_0" in json.loads((folder / "config.json").read_text())["input_features"]
    policy = gpc.load_policy(f"lerobot:{folder}")
    assert not any("empty" in key for key in policy.observations.shapes)
    theirs = type(theirs).from_pretrained(folder)  # X-VLA pads one more view when it is loaded
    mine, lerobots = look(policy, 0)
    noise = drawn(5, 2, 12, 2)
    torch.manual_seed(5)
    wanted = theirs.predict_action_chunk(pre(lerobots))
    assert float((sample(policy, CASES[name].sampler, mine, noise) - wanted).abs().max()) < 1e-5


@pytest.mark.skipif(not HAS_PI, reason="the stock transformers of LeRobot 0.4.4 drops the time of pi0.5")
def test_the_velocity_of_pi05_depends_on_the_time(build, tmp_path):
    policy = gpc.load_policy(f"lerobot:{build('pi05', tmp_path / 'vla')[0]}")
    denoiser = policy.condition(look(policy, 0)[0])
    with torch.inference_mode():
        early, late = (
            denoiser.network(drawn(0, 2, 12, 2), torch.full((2,), t), *denoiser.condition) for t in (0.9, 0.1)
        )
    assert float((early - late).abs().max()) > 0.01 * float(early.abs().max())


def test_weights_under_the_names_of_openpi_are_the_same_policy(build, tmp_path):
    folder = build("pi0", tmp_path / "vla")[0]
    x, sigma = drawn(0, 2, 12, 2).double(), torch.tensor(1.0, dtype=torch.float64)
    policy = gpc.load_policy(f"lerobot:{folder}")
    mine, _ = look(policy, 0)
    weights = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in weights.items()}, folder / "model.safetensors")
    bare = gpc.load_policy(f"lerobot:{folder}")
    assert torch.equal(bare.condition(mine)(x, sigma), policy.condition(mine)(x, sigma))


def test_smolvla_computes_in_the_dtype_of_its_weights_and_sees_each_patch_at_its_place(tmp_path):
    def halve(policy):
        policy.model.vlm_with_expert.to(torch.bfloat16)

    folder, theirs, pre, _ = save_smolvla(tmp_path / "vla", initialise=halve)
    policy, places = gpc.load_policy(f"lerobot:{folder}"), []
    embeddings = policy.model.model.vlm_with_expert.get_vlm_model().vision_model.embeddings
    embeddings.position_embedding.register_forward_pre_hook(lambda module, args: places.append(args[0]))
    mine, lerobots = look(policy, 0)
    noise = drawn(5, 2, 12, 2)
    torch.manual_seed(5)
    wanted = theirs.predict_action_chunk(pre(lerobots))
    assert float((sample(policy, euler, mine, noise) - wanted).abs().max()) < 1e-5
    assert torch.equal(places[0][0], torch.arange(16))


@pytest.mark.skipif(HAS_PI, reason="this LeRobot brings the patch")
@pytest.mark.parametrize("kind", ["pi0", "pi05"])
@pytest.mark.parametrize(
    "installed", [None, SimpleNamespace(check_whether_transformers_replace_is_installed_correctly=bool)]
)
def test_without_the_patched_transformers_pi_is_refused_before_its_weights_are_read(
    build, tmp_path, monkeypatch, kind, installed
):
    folder = build(kind, tmp_path / "vla")[0]
    (folder / "model.safetensors").unlink()
    monkeypatch.setitem(sys.modules, "transformers.models.siglip.check", installed)
    with pytest.raises(InputError, match=f"a LeRobot {kind} policy needs LeRobot 0.6 .*, or a patched transformers"):
        gpc.load_policy(f"lerobot:{folder}")


def test_every_policy_type_of_lerobot_is_read_or_refused_with_its_reason():
    ours = {"gpc"}  # as_lerobot registers it
    policies = {path.name for path in Path(lerobot.policies.__path__[0]).iterdir() if list(path.glob("modeling_*.py"))}
    theirs = PreTrainedConfig.get_known_choices().keys() | policies - {"rtc"}
    assert theirs - ours <= FAMILIES.keys() | REFUSED.keys()
    assert not FAMILIES.keys() & REFUSED.keys()


POST = "policy_postprocessor.json"
BREAKAGES = {
    "bent grippers": (
        "smolvla",
        change("config.json", adapt_to_pi_aloha=True),
        "adapt_to_pi_aloha bends the gripper's",
    ),
    "no tokens": (
        "smolvla",
        change_step("policy_preprocessor.json", 3, registry_name="to_batch_processor", config={}),
        "has no step 'tokenizer_processor', which a LeRobot smolvla policy cannot do without",
    ),
    "sigmoid after squared error": (
        "xvla",
        change("config.json", action_mode="so101_bimanual"),
        "fits its grippers by squared error and then bends them",
    ),
    "an unknown action space": (
        "xvla",
        change("config.json", action_mode="walk"),
        "'walk' is unknown; gpc reads agibot",
    ),
    "another action space": (
        "xvla",
        change("config.json", action_mode="ee6d"),
        "'ee6d' makes actions of 20 dimensions, output_features declares 2",
    ),
    "converted rotations": (
        "xvla",
        change_step(POST, 1, registry_name="xvla_rotation_6d_to_axis_angle", config={}),
        "the step 'xvla_rotation_6d_to_axis_angle'; supported after sampling are absolute_actions_processor, device_processor",
    ),
    "relative actions": (
        "smolvla",
        change_step(POST, 1, registry_name="absolute_actions_processor", config={"enabled": True}),
        "enables absolute_actions_processor: actions relative to a state are no scale and offset",
    ),
    "no domain": (
        "xvla",
        change_step("policy_preprocessor.json", 5, registry_name="to_batch_processor", config={}),
        "has no step 'xvla_add_domain_id', which a LeRobot xvla policy cannot do without",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "smolvla": save_smolvla(tmp_path_factory.mktemp("smolvla") / "vla")[0],
        "xvla": save_xvla(tmp_path_factory.mktemp("xvla") / "vla")[0],
    }


@pytest.mark.parametrize(("name", "spoil", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_what_cannot_be_served_is_refused_before_the_weights_are_read(folders, tmp_path, name, spoil, message):
    folder = shutil.copytree(folders[name], tmp_path / "broken")
    (folder / "model.safetensors").unlink()
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        gpc.load_policy(f"lerobot:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vlm", "someone/vlm"], ids=["a folder", "a name of the hub"])
def test_a_language_model_that_is_not_here_is_named_and_not_fetched(folders, tmp_path, monkeypatch, name):
    def fetched(*_, **__):
        raise AssertionError("the hub was asked")

    sends = {
        "requests": "requests.adapters.HTTPAdapter.send",
        "httpx": "httpx.Client.send",
    }  # hub before 1.0, and from it on
    for send in (path for package, path in sends.items() if find_spec(package)):
        monkeypatch.setattr(send, fetched)
    folder = shutil.copytree(folders["smolvla"], tmp_path / "vla")
    path = folder / "policy_preprocessor.json"
    processors = json.loads(path.read_text())
    for step in processors["steps"]:
        if step["registry_name"] == "tokenizer_processor":
            step["config"]["tokenizer_name"] = name
    path.write_text(json.dumps(processors))
    with pytest.raises(InputError, match=rf"policy_preprocessor.json cannot be read: .*{name}"):
        gpc.load_policy(f"lerobot:{folder}")


def test_a_chunk_begins_now_however_many_observations_are_kept(tmp_path):
    folder = save_smolvla(tmp_path / "vla", n_obs_steps=2)[0]
    assert gpc.load_policy(f"lerobot:{folder}").actions.start == 0


CAMERA = "rename_map={observation.state: agent_pos, observation.image: pixels, observation.images.top: pixels}"
SMALL = ["weights=[0.5,0.5]", "env.max_steps=8", "episodes=2", "sampler.steps=2", "video=0", CAMERA]


def test_smolvla_and_a_diffusion_policy_run_as_one(folders, tmp_path):
    """They differ in horizon (12, 16), start, history, normaliser, camera, input and family."""
    keys = ("observation.state", "observation.images.top")
    folder = save(tmp_path / "ddpm", keys=keys, stats=statistics(keys, 0, 500), crop_shape=(84, 84))[0]
    members, run = f"policies=[lerobot:{folder},lerobot:{folders['smolvla']}]", tmp_path / "run"
    assert main(["evaluate", members, *SMALL, f"run_dir={run}"]) == 0
    assert json.loads((run / "summary.json").read_text())["n_episodes"] == 2


def test_smolvla_and_a_policy_of_other_normalisers_compose_and_say_at_what_price(folders, tmp_path, capsys):
    stats = statistics(("observation.state", "observation.images.top"))
    stats["action"] |= {"max": torch.tensor([512.0, 256.0])}
    folder = save(tmp_path / "ddpm", keys=("observation.state", "observation.images.top"), stats=stats)[0]
    members, run = f"policies=[lerobot:{folder},lerobot:{folders['smolvla']}]", tmp_path / "run"
    assert main(["evaluate", members, *SMALL, f"run_dir={run}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "note: vla is given up to 2 times the noise: its normaliser differs per dimension" in said
