"""Bad input ends in one clear line and exit code 2 (1 where it shows only while running), before any work is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpc.commands.cli import COMMANDS as COMMANDS_OF_GPC
from gpc.commands.cli import main
from gpc.results.run_folder import read_rows

MIX = "policies=[{0},{1}]"
FIRST = "policies=[{0}]"

# name: (arguments with {0}, {1} for the tiny policies, words of the message)
COMMANDS = {
    "unknown command": (["serch"], "did you mean 'search'"),
    "no policies": (["search"], "policies is not set"),
    "empty policies": (["evaluate", "policies=[]"], "policies=[] is empty"),
    "policies that are no list": (["evaluate", "policies=pusht-flow"], "as in 'policies=[pusht-flow]'"),
    "unknown policy": (["evaluate", "policies=[pusht-difusion]"], "did you mean 'pusht-diffusion'"),
    "unknown loader": (["evaluate", "policies=[bundeld:x]"], "did you mean 'bundled'"),
    "one policy to search": (["search", FIRST], "at least two policies"),
    "unknown key": (["evaluate", FIRST, "epsiodes=3"], "did you mean 'episodes'"),
    "unknown nested key": (["evaluate", FIRST, "sampler.step=3"], "did you mean 'sampler.steps'"),
    "unknown environment": (["evaluate", FIRST, "env=pusth"], "did you mean 'pusht'"),
    "unknown search": (["search", MIX, "search=gird"], "did you mean 'grid'"),
    "malformed override": (["evaluate", "policies=[x"], "'policies=[x' has no closing bracket"),
    "no weights": (["evaluate", MIX], "2 policies need weights"),
    "weights that do not sum to one": (["evaluate", MIX, "weights=[0.5,0.6]"], "[0.5, 0.6] sum to 1.1"),
    "negative weight": (["evaluate", MIX, "weights=[1.5,-0.5]"], "or composer=guidance"),
    "guidance to nothing": (["evaluate", MIX, "weights=[0.5,-0.5]", "composer=guidance"], "sum to more than 0"),
    "unknown composer": (["evaluate", MIX, "composer=guidence"], "did you mean 'guidance'"),
    "a search of guidance": (["search", MIX, "composer=guidance"], "a search mixes with convex weights"),
    "too few weights": (["evaluate", MIX, "weights=[1.0]"], "1 weights for 2 policies"),
    "weights that are words": (["evaluate", MIX, "weights=[a,b]"], "weights=[a, b] must be numbers"),
    "weights that are a number": (["evaluate", MIX, "weights=0.5"], "weights=0.5: Expected `array"),
    "policies that are a number": (["evaluate", "policies=3"], "as in 'policies=[3]'"),
    "a policy that is none": (["evaluate", "policies=[null]"], "called 'null'"),
    "names that are a number": (["evaluate", FIRST, "rename_map=3"], "rename_map=3: Expected `object`"),
    "no environment": (["evaluate", FIRST, "env=null"], "Config group override must be a string"),
    "a report that is a number": (["search", MIX, "report=3"], "report=3: Expected `object`"),
    "no watchdog": (
        ["deploy", FIRST, "robot=simulated", "fps=10", "watchdog=null"],
        "watchdog=None: Expected `object`",
    ),
    "an option that gpc sets": (
        ["evaluate", FIRST, "+env.options.observation_keys=[pixels]"],
        "env.options.observation_keys is no option",
    ),
    "an endless first level": (["evaluate", FIRST, "sampler.sigma_max=inf"], "0 < sigma_min < sigma_max"),
    "no episodes": (["evaluate", FIRST, "episodes=0"], "episodes=0: Expected `int` >= 1"),
    "half an episode": (["evaluate", FIRST, "episodes=2.5"], "episodes=2.5: Expected `int`"),
    "negative seed": (["evaluate", FIRST, "seed=-1"], "seed=-1: Expected `int` >= 0"),
    "overlapping seeds": (["search", MIX, "report.seed=100010"], "overlap"),
    "chunks to choose from": (["evaluate", FIRST, "sampler.candidates=4"], "write sampler.best_of.n=4"),
    "a cost to choose by": (["evaluate", FIRST, "sampler.critic=smoothness"], "sampler.best_of.cost=smoothness"),
    "steps of Langevin": (
        ["evaluate", FIRST, "sampler.corrections=2"],
        "sampler=langevin sampler.method.corrections=2",
    ),
    "one chunk to choose from": (["evaluate", FIRST, "sampler.best_of.n=1"], "choose a number from 2 to 1024"),
    "a method without its type": (["evaluate", FIRST, "sampler.method={corrections: 2}"], "sampler.method"),
    "a budget too small": (
        ["search", MIX, "search.budget=10"],
        "less than 5 episodes for each of 11 candidates; give at least 55",
    ),
    "proposals without a budget": (["search", MIX, "search=random", "search.budget=19"], "give at least 20"),
    "half a budget": (["search", MIX, "search.budget=0.5"], "search.budget=0.5: Expected `int`"),
    "demos without demonstrations": (["search", MIX, "search=demos"], "as in demonstrations=FILE"),
    "demonstrations that are not there": (["search", MIX, "demonstrations=x.hdf5"], "x.hdf5 does not exist"),
    "episodes of a race": (["search", MIX, "search.episodes=20"], "unknown key 'search.episodes' in search"),
    "uneven grid": (["search", MIX, "search.step=0.3"], "does not divide 1"),
    "unknown sampler": (["evaluate", FIRST, "sampler.method=eular"], "unknown sampler 'eular'"),
    "no sampler steps": (["evaluate", FIRST, "sampler.steps=0"], "sampler.steps=0"),
    "too many action steps": (["evaluate", FIRST, "env.n_action_steps=16"], "choose 1 to 15"),
    "no workers": (["evaluate", FIRST, "engine.workers=0"], "must be positive"),
    "a path instead of a type": (["evaluate", FIRST, "env._target_=shutil.copy"], "unknown key 'env._target_'"),
    "a foreign argument": (["evaluate", FIRST, "+sampler.x._target_=os.system"], "sampler takes no 'x'"),
    "unknown type of environment": (["evaluate", FIRST, "env.type=pushd"], "unknown env 'pushd'"),
    "the old key of an environment": (["evaluate", FIRST, "env.target=policy"], "write env=policy"),
    "the old key of demonstrations": (["search", MIX, "search.demonstrations=x"], "write demonstrations=x"),
    "a schedule": (["evaluate", MIX, "composer=scheduled"], "write composer=convex"),
    "report of nothing": (["report", "/nowhere"], "not a finished gpc run"),
    "unwritable folder": (["evaluate", FIRST, "run_dir=/proc/here"], "cannot be written"),
}


@pytest.fixture
def said(capsys, tiny, tmp_path, monkeypatch):
    """Run a command; returns (exit code, what it said on standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(arguments):
        code = main([a.replace("{0}", tiny[0]).replace("{1}", tiny[1]) for a in arguments])
        return code, " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS)
def test_bad_commands_are_one_line_and_exit_two(said, tmp_path, arguments, words):
    code, text = said(arguments)
    assert code == 2, text
    assert words in text
    assert "Traceback" not in text
    assert text.startswith("gpc: ")
    assert not list(tmp_path.glob("runs/*/episodes.jsonl"))


def test_truncated_weights(said, spoiled):
    source = spoiled("tiny-noise")
    path = Path(source.removeprefix("bundled:")) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    code, text = said(["evaluate", f"policies=[{source}]"])
    assert (code, "it is cut short" in text) == (2, True)


def test_weights_of_another_network(said, spoiled):
    source = spoiled("tiny-noise", spoil=lambda weights: dict(list(weights.items())[:-2]))
    code, text = said(["evaluate", f"policies=[{source}]"])
    assert code == 2
    assert "card.json: it describes a network that its weights do not fit: 2 missing (network." in text


@pytest.mark.parametrize("missing", ["card.json", "weights.safetensors"])
def test_a_missing_file_is_named(said, spoiled, missing):
    source = spoiled("tiny-noise")
    (Path(source.removeprefix("bundled:")) / missing).unlink()
    code, text = said(["evaluate", f"policies=[{source}]"])
    assert (code, missing in text) == (2, True)


def test_a_damaged_card(said, spoiled):
    source = spoiled("tiny-noise")
    (Path(source.removeprefix("bundled:")) / "card.json").write_text("{")
    code, text = said(["evaluate", f"policies=[{source}]"])
    assert (code, "card.json: Input data was truncated" in text) == (2, True)


def test_a_card_with_an_unknown_field(said, spoiled):
    source = spoiled("tiny-noise")
    path = Path(source.removeprefix("bundled:")) / "card.json"
    card = json.loads(path.read_text())
    card["actions"]["horizn"] = 3
    path.write_text(json.dumps(card))
    code, text = said(["evaluate", f"policies=[{source}]"])
    assert (code, "horizn" in text) == (2, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": [256.0, 1.28]}, "x = 256 x + 256, y = 1.28 x + 256"),
        ({"names": ["x", "y", "z"], "scale": [256.0] * 3, "offset": [256.0] * 3}, "acts in 3 dimensions"),
        ({"names": None, "scale": [1.0] * 3, "offset": [0.0] * 3}, "acts in 3 dimensions without names"),
        ({"dt": 2.5}, "every 2.5"),
        ({"start": 20}, "share no step"),
    ],
)
def test_actions_that_do_not_fit_say_both_sides(said, spoiled, changes, words):
    source = spoiled("tiny-flow", **changes)
    code, text = said(["search", f"policies=[{{0}},{source}]"])
    assert code == 2
    assert words in text


def test_nan_from_a_network_names_the_policy_and_keeps_what_was_finished(said, spoiled, tmp_path):
    def spoil(weights):
        return {key: torch.full_like(value, torch.nan) for key, value in weights.items()}

    source = spoiled("tiny-flow", spoil=spoil)
    code, text = said(["evaluate", f"policies=[{source}]", "episodes=2", f"run_dir={tmp_path / 'run'}"])
    assert code == 1
    assert "policy 'tiny-flow' returned NaN or infinity" in text
    assert read_rows(tmp_path / "run" / "episodes.jsonl") == []


def test_a_run_folder_of_another_configuration(said, tmp_path):
    base = ["evaluate", FIRST, "env.max_steps=16", "episodes=1", "video=0", f"run_dir={tmp_path / 'run'}"]
    assert said(base)[0] == 0
    code, text = said([*base, "sampler.steps=3"])
    assert (code, "sampler.steps=8, now it is 3" in text) == (2, True)


HABITS = {
    "the option of lerobot-eval": (["evaluate", FIRST, "--n_episodes", "5"], "as in episodes=5; gpc evaluate -h lists"),
    "with its group": (["evaluate", "--eval.n_episodes=5", FIRST], "as in episodes=5;"),
    "a dash in its name": (["search", MIX, "--run-dir", "a b"], "as in 'run_dir=a b';"),
    "an output folder": (["evaluate", FIRST, "-o", "out"], "as in run_dir=out;"),
    "without a value": (["evaluate", FIRST, "-o"], "as in run_dir=VALUE;"),
    "a negative one": (["evaluate", "--seed", "-1"], "as in seed=VALUE;"),
    "Hydra's configuration": (["evaluate", "--cfg", "job", FIRST], "--cfg: gpc evaluate -h shows keys and defaults;"),
    "Hydra's sweep": (["evaluate", "-m", FIRST], "-m: one command is one run"),
    "an option of report": (
        ["report", "--all", "runs"],
        "gpc report: unrecognized arguments: --all; gpc report -h lists",
    ),
    "a key that is near nothing": (["evaluate", FIRST, "xyz=3"], "unknown key 'xyz' in evaluate; the nearest is "),
}


@pytest.mark.parametrize(("arguments", "words"), HABITS.values(), ids=HABITS)
def test_habits_of_other_tools_get_the_line_to_type(said, arguments, words):
    code, text = said(arguments)
    assert (code, text.count("Traceback")) == (2, 0)
    assert words in text


def test_an_unknown_key_has_the_five_nearest_those_of_a_group_together(said):
    text = said(["evaluate", FIRST, "n_action_step=3"])[1]
    assert "unknown key 'n_action_step' in evaluate; " in text
    near = text.partition("evaluate; ")[2].partition("; gpc evaluate -h lists all")[0]
    assert "'env.n_action_steps'" in near.partition(" also ")[0]
    assert len(near.partition(" also ")[2].replace(";", ",").split(",")) == 4


@pytest.mark.parametrize("command", [*COMMANDS_OF_GPC])
def test_every_command_answers_h(command, capsys):
    try:
        code = main([command, "-h"])
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    if command in ("evaluate", "search", "compare"):
        assert "values below are the defaults" in shown.out
        assert "# sampler=dpmpp_2m: keys sampler.*, the default\n" in shown.out
        assert "# sampler=euler: keys sampler.*\n" in shown.out


def test_python_m_gpc_is_the_command():
    done = subprocess.run([sys.executable, "-P", "-m", "gpc", "serch"], capture_output=True, text=True)
    assert (done.returncode, "did you mean 'search'" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("line", "given", "found"),
    [
        ("gpc ev", "ev", ["evaluate"]),
        ("gpc search epi", "epi", []),
        ("gpc evaluate epi", "epi", ["episodes="]),
        ("gpc evaluate env=pu", "pu", ["pusht", "pusht_diffusion_policy"]),  # bash
        ("gpc evaluate env=pu", "env=pu", ["env=pusht", "env=pusht_diffusion_policy"]),  # zsh
        (
            "gpc evaluate 'policies=[pusht-flow,pusht-d",
            "policies=[pusht-flow,pusht-d",
            ["policies=[pusht-flow,pusht-diffusion"],
        ),
        ("gpc policies lift-", "lift-", ["lift-diffusion", "lift-flow"]),
        ("gpc report r", "r", []),
    ],
)
def test_tab_completes_commands_keys_and_names(line, given, found, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line + " behind the cursor")
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["--complete", "gpc", given, ""]) == 0
    assert capsys.readouterr().out.split() == found
