"""The checkpoint's own inference: how much of a chunk is executed, and the sampler."""

import json
from dataclasses import dataclass
from pathlib import Path

import beso_checkpoints as beso
import diffusion_policy_checkpoints as pickled
import numpy as np
import pytest
import robomimic.utils.file_utils as file_utils
import test_from_robomimic as robomimic
import torch
from conftest import make_card, save_policy
from diffusers import DDIMScheduler, DDPMScheduler
from diffusion_policy_checkpoints import POLICIES, payload
from diffusion_policy_checkpoints import save as save_pickled
from lerobot.envs.configs import PushtEnv
from lerobot.envs.factory import make_env as make_lerobot
from lerobot_checkpoints import as_lerobot, save
from models import FixedPolicy, Gaussian
from test_from_lerobot import draw, observe

import gpc
from gpc.commands.cli import main
from gpc.commands.setup import env_named
from gpc.errors import InputError
from gpc.inference.chunk import sample_chunk
from gpc.inference.native import common_action_steps, resolved
from gpc.policies.from_robomimic import unet
from gpc.policies.schedulers import sampling_of
from gpc.policy.adapt import rename
from gpc.results.run_folder import read_rows
from gpc.results.trajectories import read_trajectory
from gpc.rollout.env import make_env
from gpc.score.noise import SPACINGS, VariancePreserving
from gpc.serve.metadata import check_metadata, policy_metadata

PUSHT = {"observation.state": "agent_pos", "observation.environment_state": "keypoints"}


@dataclass(frozen=True)
class Declaring(FixedPolicy):
    n_action_steps: int | None = None


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory):
    """Two checkpoints of LeRobot that differ in nothing but `n_action_steps`."""
    runs = tmp_path_factory.mktemp("runs")
    return {n: save(runs / f"executes-{n}", n_action_steps=n)[0] for n in (3, 8)}


def evaluate(folder, *policies, more=()):
    short = ["env.max_steps=12", "episodes=1", "video=0", "sampler.steps=2", "engine.workers=1", f"run_dir={folder}"]
    return main(["evaluate", f"policies=[{','.join(policies)}]", *short, *more])


def test_a_checkpoint_executes_its_own_number_of_actions_which_is_printed_and_recorded(lerobot, tmp_path, capsys):
    for number, folder in lerobot.items():
        assert evaluate(tmp_path / str(number), f"lerobot:{folder}") == 0
        assert capsys.readouterr().out.count(f"n_action_steps={number}, as executes-{number} has it") == 1
        manifest = json.loads((tmp_path / str(number) / "manifest.json").read_text())
        assert manifest["config"]["env"]["n_action_steps"] == manifest["resolved"]["env"]["n_action_steps"] == number
    three, eight = (read_trajectory(tmp_path / name, 0)["action"] for name in ("3", "8"))
    np.testing.assert_array_equal(three[:3], eight[:3])
    assert (three[3:8] != eight[3:8]).any()
    assert evaluate(tmp_path / "8 as 3", f"lerobot:{lerobot[8]}", more=["env.n_action_steps=3"]) == 0
    assert "n_action_steps" not in capsys.readouterr().out
    np.testing.assert_array_equal(read_trajectory(tmp_path / "8 as 3", 0)["action"], three)


def test_two_that_differ_are_named_with_a_number_to_give(lerobot, tmp_path, capsys):
    both = [f"lerobot:{folder}" for folder in lerobot.values()]
    assert evaluate(tmp_path, *both, more=["weights=[0.5,0.5]"]) == 2
    error = capsys.readouterr().err
    assert "(3 of executes-3, 8 of executes-8); give one, as in env.n_action_steps=3" in error


@pytest.mark.parametrize(
    ("counts", "executed"),
    [((None, None), 8), ((3, None), 3), ((3, 3), 3)],
    ids=["none declares one", "one", "both"],
)
def test_what_is_declared_counts(counts, executed):
    policies = [Declaring(Gaussian(), name=str(i), n_action_steps=count) for i, count in enumerate(counts)]
    views = [rename(policies[0], {"state": "pose"}), policies[1]]
    for members in (policies, views):
        nested = gpc.compose([gpc.compose(members), gpc.compose(members)])
        assert common_action_steps([nested], "") == common_action_steps([gpc.AveragedChunks(members)], "") == executed


def test_each_codebase_has_its_own_name_for_it(tmp_path):
    latency = save_pickled(payload("unet"), tmp_path / "latency.ckpt")  # policy.n_action_steps is code there
    plain = payload("dp3")
    del plain["cfg"]["n_action_steps"]
    plain["cfg"]["policy"]["n_action_steps"] = 5
    card = make_card("tiny-noise") | {"inference": {"n_action_steps": 6}}
    sources = {
        f"diffusion_policy:{latency}": 4,
        f"diffusion_policy:{save_pickled(plain, tmp_path / 'plain.ckpt')}": 5,
        f"robomimic:{robomimic.save(tmp_path / 'robomimic.pth')}": 8,
        save_policy(tmp_path / "own", card): 6,
        save_policy(tmp_path / "silent", make_card("tiny-noise")): None,
        **dict.fromkeys(
            ["pusht-diffusion", "pusht-flow", "pusht-beso", "pusht-image", "lift-diffusion", "can-flow"], 8
        ),
    }
    assert {source: gpc.load_policy(source).n_action_steps for source in sources} == sources


def test_a_number_that_is_none_is_refused(tmp_path):
    content = payload("unet")
    content["cfg"]["n_action_steps"] = 2.5
    with pytest.raises(InputError, match=r"wrong has n_action_steps=2\.5, no whole number above 0"):
        gpc.load_policy(f"diffusion_policy:{save_pickled(content, tmp_path / 'wrong.ckpt')}")


def chunk(policy, observation, noise):
    """The normalised chunk under the policy's own sampler; noise (1 + draws, batch, horizon, action)."""
    composed = gpc.compose([policy])
    noise = noise[: policy.sampling.n_noise_draws(composed)].double()
    return sample_chunk(composed, observation, noise, policy.sampling)


def apart(ours, theirs):
    return float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("steps", [None, 10, 8])
@pytest.mark.parametrize(("scheduler", "clip"), [("DDPM", True), ("DDPM", False), ("DDIM", True), ("DDIM", False)])
def test_the_chunk_is_lerobots(tmp_path, monkeypatch, scheduler, clip, steps):
    options = {"noise_scheduler_type": scheduler, "clip_sample": clip, "num_inference_steps": steps}
    folder, theirs, pre, _ = save(tmp_path / "tiny", **options)
    policy = gpc.load_policy(f"lerobot:{folder}")
    observation = observe(policy)
    frames = [pre(as_lerobot({key: value[:, i] for key, value in observation.items()})) for i in (0, 1)]
    batch = {key: torch.stack([frame[key] for frame in frames], 1) for key in observation}
    noise = torch.randn(101, 3, 16, 2, generator=torch.Generator().manual_seed(1))
    draw(monkeypatch, noise[1:])
    with torch.no_grad():
        condition = theirs.diffusion._prepare_global_conditioning(batch)
        wanted = theirs.diffusion.conditional_sample(3, condition, noise=noise[0])
    rounding = 1e-5 if (scheduler, clip, steps) != ("DDIM", True, None) else 1e-4  # of theirs, at sigma 2029 in float32
    assert apart(chunk(policy, observation, noise), wanted) < rounding


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_chunk_is_robomimics(tmp_path, monkeypatch, solver, clip):
    path = robomimic.save(tmp_path / "tiny.pth", solver=solver)
    content = torch.load(path, weights_only=True)
    config = json.loads(content["config"])
    config["algo"][solver] |= {"clip_sample": clip, "num_inference_timesteps": 8}
    torch.save(content | {"config": json.dumps(config)}, path)
    with unet(**robomimic.SMALL):
        theirs, _ = file_utils.policy_from_checkpoint(device=torch.device("cpu"), ckpt_path=str(path))
    policy = gpc.load_policy(f"robomimic:{path}")
    stack = {key: np.stack([value, value]) for key, value in robomimic.observe(0, False).items()}
    noise = torch.randn(9, 1, 16, 7, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("robomimic.algo.diffusion_policy.torch.randn", lambda *_, **__: noise[0])
    draw(monkeypatch, noise[1:])
    theirs.start_episode()
    wanted = theirs.policy._get_action_trajectory(theirs._prepare_observation(stack))
    monkeypatch.undo()
    seen = {key: torch.from_numpy(value)[None] for key, value in stack.items()}
    assert policy.sampling == gpc.Sampling(
        "ancestral" if solver == "ddpm" else "ddim" if clip else "euler", 8, grid="leading"
    )
    assert apart(chunk(policy, seen, noise)[:, 1:9], wanted) < 1e-5


@pytest.mark.parametrize("case", POLICIES)
def test_the_chunk_is_diffusion_policys(tmp_path, case):
    policy = gpc.load_policy(f"diffusion_policy:{save_pickled(payload(case), tmp_path / 'tiny.ckpt')}")
    ours = policy.actions.decode(chunk(policy, pickled.observe(case), pickled.noise()))
    assert apart(ours, pickled.recorded()[case]["chunk"]) < 1e-5


@pytest.mark.parametrize("case", beso.CASES)
def test_the_chunk_is_besos(tmp_path, case):
    golden = json.loads((Path(__file__).parent / "data" / "beso.json").read_text())[case]
    changes = {"agents.sampler_type": "ddim", "agents.num_sampling_steps": 4}
    policy = gpc.load_policy(f"beso:{beso.save(tmp_path / case, case, golden, changes)}")
    states, goals, noise = beso.inputs(case)
    seen = {"state": states, "goal": goals[:, None].expand(-1, states.shape[1], *goals.shape[1:])}
    found = policy.actions.decode(chunk(policy, {key: seen[key] for key in policy.observations.shapes}, noise[None]))
    assert apart(found, torch.tensor(golden["ddim"]["actions"])) < 1e-5


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_the_levels_are_those_of_diffusers(scheduler, spacing):
    schedule = VariancePreserving.squaredcos(100)
    theirs = scheduler(100, beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
    for steps in (1, 7, 8, 10, 30, 100):
        theirs.set_timesteps(steps)
        wanted = [schedule.levels.trained[i] for i in theirs.timesteps.tolist()]
        assert gpc.Sampling(steps=steps, grid=spacing).sigmas(schedule.levels).tolist() == [*wanted, 0.0]


@pytest.mark.parametrize(
    ("kind", "steps", "settings"),
    [
        ("DDPMScheduler", 10, {"variance_type": "fixed_large"}),
        ("DDPMScheduler", 10, {"steps_offset": 1}),
        ("DDIMScheduler", 10, {"set_alpha_to_one": False}),
        ("DDIMScheduler", 8, {"timestep_spacing": "trailing"}),
        ("DDIMScheduler", 10, {"timestep_spacing": "linspace"}),
        ("DDIMScheduler", 101, {}),
        ("DDIMScheduler", 2.5, {}),
        ("DPMSolverMultistepScheduler", 10, {}),
    ],
)
def test_a_scheduler_that_gpc_does_not_have_is_none(kind, steps, settings):
    assert sampling_of(kind, steps, {"num_train_timesteps": 100, **settings}) is None
    assert sampling_of("DDPMScheduler", 10, {"num_train_timesteps": 100}) == gpc.Sampling(
        "ancestral", 10, grid="leading"
    )


def test_a_native_run_prints_and_records_the_sampler_and_is_replayed_without_the_policys_word(
    tmp_path, capsys, monkeypatch
):
    folder = save(tmp_path / "tiny", noise_scheduler_type="DDIM", num_inference_steps=3)[0]
    run = ["evaluate", f"policies=[lerobot:{folder}]", "sampler=native", "env.max_steps=12", "episodes=1", "video=0"]
    assert main([*run, "engine.workers=1", f"run_dir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert out.count("sampler=native is sampler.method=ddim sampler.steps=3 sampler.grid=leading") == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["resolved"]["sampler"] == manifest["config"]["sampler"]
    assert (
        manifest["config"]["sampler"] | {"method": "ddim", "steps": 3, "grid": "leading"}
        == manifest["config"]["sampler"]
    )
    monkeypatch.setattr("gpc.policies.from_lerobot.families.sampling_of", lambda *_: None)
    assert main(["replay", str(tmp_path / "run"), "--episode", "0", f"--policies=lerobot:{folder}"]) == 0
    monkeypatch.undo()
    policy = gpc.load_policy(f"lerobot:{folder}")
    result = gpc.evaluate(policy, gpc.EnvSpec("pusht", max_steps=12, rename_map=PUSHT), episodes=1, sampler="native")
    assert result.rows == tuple(read_rows(tmp_path / "run" / "episodes.jsonl"))


@dataclass(frozen=True)
class Sampled(FixedPolicy):
    sampling: gpc.Sampling | None = None


def test_a_run_has_one_sampler():
    one, other = gpc.Sampling("ancestral", 100, grid="leading"), gpc.Sampling("euler", 10, grid="flow")
    a, b, none = (Sampled(Gaussian(), name=name, sampling=own) for name, own in (("a", one), ("b", other), ("c", None)))
    assert resolved("native", [gpc.compose([a, rename(a, {"state": "pose"})])]) == one
    assert resolved(other, [none]) == other
    with pytest.raises(
        InputError, match=r"a has sampler.method=ancestral sampler.steps=100 sampler.grid=leading, b has"
    ):
        resolved("native", [gpc.AveragedChunks([a, b])])
    with pytest.raises(
        InputError, match=r"c declares no sampler that gpc has; give one, as in sampler.method=ancestral"
    ):
        resolved("native", [a, none])
    with pytest.raises(InputError, match=r"sampler='euler': give a gpc.Sampling, or 'native'"):
        resolved("euler", [a])


@pytest.mark.parametrize(
    "name", ["pusht-diffusion", "pusht-flow", "pusht-beso", "pusht-image", "lift-flow", "can-flow"]
)
def test_a_bundled_policy_was_measured_with_the_default_sampler(name):
    assert gpc.load_policy(name).sampling == gpc.Sampling()


def test_steps_of_a_native_sampler_are_not_changed_beside_it(tiny, capsys):
    assert main(["evaluate", f"policies=[{tiny[0]}]", "sampler=native", "sampler.steps=4"]) == 2
    assert "steps" in capsys.readouterr().err
    assert main(["evaluate", f"policies=[{tiny[0]}]", "sampler.method=native"]) == 2
    assert "write sampler=native" in capsys.readouterr().err


def test_a_deployed_run_records_what_it_resolves(tmp_path, capsys):
    keys = ["policies=[pusht-flow]", "sampler=native", "robot=simulated", "fps=10", "mode=live", "seconds=1"]
    keys += ["safety.actions=absolute", "virtual_latency=0", f"run_dir={tmp_path / 'run'}"]
    assert main(["deploy", *keys]) == 0
    out = capsys.readouterr().out
    assert "sampler=native is sampler=dpmpp_2m" in out
    assert "n_action_steps=8, as pusht-flow has it" in out
    config = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]
    assert (config["sampler"]["method"], config["sampler"]["steps"], config["stitch"]["n_action_steps"]) == (
        "dpmpp_2m",
        8,
        8,
    )


def test_a_server_declares_what_its_policy_does():
    flow, diffusion = gpc.load_policy("pusht-flow"), Sampled(Gaussian(), name="a", sampling=gpc.Sampling("euler"))
    served = check_metadata(policy_metadata(gpc.compose([flow])), "url")
    assert (served.n_action_steps, served.sampling) == (8, gpc.Sampling())
    served = check_metadata(policy_metadata(gpc.compose([diffusion, Sampled(Gaussian(), name="b")])), "url")
    assert (served.n_action_steps, served.sampling) == (None, None)
    hostile = policy_metadata(flow) | {"sampling": {"method": "euler", "best_of": {"n": 2, "cost": "os.system"}}}
    with pytest.raises(InputError, match="its own sampler names a cost"):
        check_metadata(hostile, "url")


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("evaluate", ["weights=[0.5,0.5]"]),
        ("search", []),
        ("compare", []),
        ("diagnose", []),
        ("serve", ["weights=[0.5,0.5]"]),
        ("deploy", ["weights=[0.5,0.5]", "robot=simulated", "fps=10"]),
    ],
)
def test_every_command_takes_the_native_sampler_and_names_who_has_none(tiny, tmp_path, command, more, capsys):
    keys = [f"policies=[{','.join(tiny)}]", "sampler=native", *more]
    assert main([command, *keys, *([] if command == "serve" else [f"run_dir={tmp_path / 'run'}"])]) == 2
    assert "sampler=native: tiny-noise declares no sampler that gpc has; give one, as in" in capsys.readouterr().err


def test_lerobots_own_evaluation_begins_in_the_same_states():
    seeds = [100_000, 100_001, 100_002]
    env = make_lerobot(PushtEnv(obs_type="environment_state_agent_pos"), n_envs=3, use_async_envs=False)["pusht"][0]
    theirs, _ = env.reset(seed=seeds)
    env.close()
    ours = [make_env(gpc.EnvSpec("pusht", max_steps=300)).reset(seed=seed)[0] for seed in seeds]
    for key, name in (("agent_pos", "agent_pos"), ("keypoints", "environment_state")):
        np.testing.assert_allclose(np.stack([frame[key] for frame in ours]), theirs[name], rtol=1e-5)
    assert len({tuple(frame["agent_pos"]) for frame in ours}) == 3


@pytest.mark.parametrize("seed", [100_000, 100_001])
def test_a_seed_has_the_initial_state_of_diffusion_policys_own_environment(seed):
    """`PushTEnv.reset` there: five draws of a RandomState, in this order."""
    random = np.random.RandomState(seed)
    x, y, block_x, block_y = (random.randint(*ends) for ends in ((50, 450), (50, 450), (100, 400), (100, 400)))
    angle = random.randn() * 2 * np.pi - np.pi
    spec = env_named("pusht_diffusion_policy")
    found = make_env(spec).reset(seed=seed)[0]["state"]
    stock = make_env(env_named("pusht")).reset(seed=seed, options={"reset_to_state": [x, y, block_x, block_y, angle]})
    assert found[:2].tolist() == [x, y]
    np.testing.assert_array_equal(found, stock[0]["state"])
    assert found[4] == pytest.approx(angle % (2 * np.pi), abs=1e-5)
    assert (make_env(env_named("pusht")).reset(seed=seed)[0]["state"] != found).any()
