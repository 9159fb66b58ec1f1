"""Errors that a configuration shows come before torch, simulators and loaders are imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "lerobot", "transformers", "diffusers", "robomimic", "robosuite", "mujoco", "scipy", "zarr", "pandas")
"""Blocked: a command that imports one of them ends in an error of its own."""
RUNNER = f"""
import contextlib, io, json, sys
for name in {HEAVY!r}:
    sys.modules[name] = None
from gpc.commands.cli import main
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(arguments)
    print(json.dumps([code, " ".join(said.getvalue().split())]))
"""
PAIR, WEIGHTS = "policies=[pusht-diffusion,pusht-flow]", "weights=[0.4,0.6]"
HUB = (
    "for the hub write lerobot:lerobot/diffusion_pusht@COMMIT, since a name alone may mean other weights tomorrow; "
    "`git ls-remote https://huggingface.co/lerobot/diffusion_pusht HEAD` prints the commit, 40 digits"
)
CASES = {
    "a file that is missing": (["policies=[robomimic:no.pth]"], "no file 'no.pth'; robomimic:FILE.pth takes"),
    "a folder that is missing": (["policies=[lerobot:no]"], "no folder 'no'; lerobot:FOLDER takes"),
    "an experiment instead of a file": (
        ["policies=[robomimic:exp]"],
        "no file 'exp'; write robomimic:exp/models/model_epoch_2.pth",
    ),
    "a bundled name": (["policies=[pusht-flw]"], "called 'pusht-flw'; did you mean 'pusht-flow'?"),
    "a name of the hub": (["policies=[lerobot/diffusion_pusht]"], f"needs loader and commit; {HUB}"),
    "a name of the hub without a commit": (["policies=[lerobot:lerobot/diffusion_pusht]"], HUB),
    "a name of the hub at a branch": (["policies=[lerobot:lerobot/diffusion_pusht@main]"], HUB),
    "a folder of LeRobot without a loader": (["policies=[pi]"], "by its files it is lerobot:pi: write that"),
    "a training of LeRobot without a loader": (["policies=[train/run]"], "it is lerobot:train/run: write that"),
    "a weights file of LeRobot": (["policies=[pi/model.safetensors]"], "it is lerobot:pi: write that"),
    "a file of Diffusion Policy": (
        ["policies=[dp/checkpoints/epoch=1, a.ckpt]"],
        "it is diffusion_policy:dp/checkpoints/epoch=1, a.ckpt: write that",
    ),
    "a training of Diffusion Policy": (["policies=[dp]"], "it is diffusion_policy:dp/checkpoints/latest.ckpt: write"),
    "a file of robomimic": (
        ["policies=[exp/models/model_epoch_1.pth]"],
        "robomimic:exp/models/model_epoch_1.pth: write",
    ),
    "a training of BESO": (["policies=[beso]"], "by its files it is beso:beso: write that"),
    "a weights file of BESO": (["policies=[beso/model_state_dict.pth]"], "by its files it is beso:beso: write that"),
    "a file of no codebase": (
        ["policies=[notes.txt]"],
        "notes.txt has no loader; write LOADER:notes.txt with one of b",
    ),
    "a policy twice": (["policies=[pusht-flow,pusht-flow]", WEIGHTS], "policies names 'pusht-flow' twice"),
    "no policy": (["policies=[]"], "policies=[] is empty"),
    "no list": (["policies=pusht-flow"], "as in 'policies=[pusht-flow]'"),
    "no url": (["policies=[remote:nowhere]"], "write ws://host:port"),
    "no weights": ([PAIR], "2 policies need weights"),
    "too few weights": ([PAIR, "weights=[1]"], "1 weights for 2 policies"),
    "words as weights": ([PAIR, "weights=[a,b]"], "must be numbers"),
    "an environment": ([PAIR, WEIGHTS, "env=pusth"], "did you mean 'pusht'"),
    "an id of gymnasium": ([PAIR, WEIGHTS, "env=gymnasium", "env.options.task=Pend-v1"], "environment 'Pend"),
    "an id of another package": ([PAIR, WEIGHTS, "env=gym_pusht/PushT-v0"], "as in gym_pusht:gym_pusht/PushT-v0"),
    "an option of an environment": ([PAIR, WEIGHTS, "env.options.taks=x"], "unknown key 'env.options.taks'"),
    "a key": ([PAIR, WEIGHTS, "epsiodes=3"], "did you mean 'episodes'"),
    "a run of another seed": (
        [PAIR, WEIGHTS, "run_dir=run", "seed=7"],
        "run was started with seed=5, now it is 7; use another",
    ),
    "a run folder that is a file": ([PAIR, WEIGHTS, "run_dir=notes.txt"], "run_dir=notes.txt is a file"),
}
OTHERS = {
    "a run of other report seeds": (
        ["search", PAIR, "run_dir=searched"],
        "started with report.episodes=3, now it is 50",
    ),
    "one policy to search": (["search", "policies=[pusht-flow]"], "a search needs at least two policies"),
    "demonstrations": (["search", PAIR, "demonstrations=no.zarr"], "no.zarr does not exist"),
    "one policy to diagnose": (["diagnose", "policies=[pusht-flow]"], "a diagnosis needs at least two policies"),
    "one side": (["compare", PAIR, WEIGHTS], "compare takes two lists of weights"),
    "a policy to serve": (["serve", "policies=[robomimic:no.pth]"], "no file 'no.pth'"),
    "a policy to deploy": (["deploy", "fps=10", "policies=[lerobot:no]"], "no folder 'no'"),
    "a server to deploy": (["deploy", "fps=10", "server=nowhere"], "write ws://host:port"),
}
ALL = {**{name: (["evaluate", *given], words) for name, (given, words) in CASES.items()}, **OTHERS}
FILES = (
    "pi/config.json", "pi/model.safetensors", "train/run/checkpoints/000002/pretrained_model/config.json",
    "dp/.hydra/config.yaml", "dp/checkpoints/epoch=1, a.ckpt", "dp/checkpoints/latest.ckpt", "exp/models/model_epoch_1.pth",
    "exp/models/model_epoch_2.pth", "beso/.hydra/config.yaml", "beso/model_state_dict.pth", "notes.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    for name in FILES:
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, name).touch()
    for name, config in {"run": {"seed": 5}, "searched": {"report": {"seed": 200000, "episodes": 3}}}.items():
        Path(folder, name).mkdir()
        Path(folder, name, "manifest.json").write_text(json.dumps({"config": config}))
    commands = json.dumps([arguments for arguments, _ in ALL.values()])
    run = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER], input=commands, capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return dict(zip(ALL, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_an_error_needs_no_import(answers, name):
    code, text = answers[name]
    assert code == 2, text
    assert ALL[name][1] in text
