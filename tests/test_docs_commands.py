"""Every command that README and docs print in a block: it runs with a small budget, or its configuration resolves."""

import re
import shlex
import tomllib
from glob import glob
from pathlib import Path

import pytest

from gpc.bridge.controller import Watchdog
from gpc.bridge.safety import SafetyLimits
from gpc.commands import setup
from gpc.commands.checks import check_config
from gpc.commands.cli import COMMANDS, main
from gpc.commands.config import load_config, plain
from gpc.commands.serve import access_of
from gpc.objects import build
from gpc.policy.sources import FORMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYED = ("search", "evaluate", "compare", "diagnose", "serve", "deploy")
SMALL = {
    "evaluate": ["episodes=2"],
    "search": ["search=grid", "search.episodes=1", "search.step=0.5", "report.episodes=2"],
    "compare": ["episodes=2"],
    "diagnose": ["chunks=1"],
    "deploy": ["seconds=0.5", "sampler.steps=2"],
}
"""Overrides behind those of the page."""
ROLLOUT = ["sampler.steps=2", "engine.workers=1", "engine.lanes=2", "video=0"]
NOT_RUN = {
    "gpc serve": "serves until a signal: tests/test_serve.py",
    "lerobot/diffusion_pusht": "refused, as the page prints: tests/test_checks.py",
    "remote:": "needs the server of the line above: tests/test_remote.py",
    "server=": "needs a server: tests/test_deploy_remote.py",
    "env=lerobot": "a checkpoint and a benchmark: tests/test_lerobot_envs.py",
    "env=remote": "needs the server of the line above: tests/test_remote_env.py",
    "...": "a pattern, not a command",
    "env=my_env": "a class of the reader's: tests/test_from_gymnasium.py",
    "my_policy:": "a module of the page: tests/test_own_policy.py",
    "lerobot:": "a checkpoint: tests/test_from_lerobot.py",
    "robomimic:": "a checkpoint: tests/test_from_robomimic.py",
    "diffusion_policy:": "a checkpoint: tests/test_from_diffusion_policy.py",
    "beso:": "a checkpoint: tests/test_from_beso.py",
    "demonstrations=": "denoises held-out episodes for minutes: tests/test_denoising_error.py",
    "lift-flow": "robosuite for minutes: tests/test_simulated.py",
    "--episode 900": "an episode of 300 steps: tests/test_evidence.py",
    "search=halves": "the search that the page has the reader register: tests/test_outside.py",
}
"""What a command holds that does not run here in a second or two, and the test that runs it."""
HARDWARE = "<!-- needs hardware: "
"""Begins the line before a block, with what its commands that need a card or a robot hold."""
UNRESOLVED = ("...", "search=halves", "env=my_env", "mine:", "lerobot/diffusion_pusht")
"""What a command holds that is the reader's own, or that the page has refused."""
OUTSIDE = (
    "lerobot-eval",
    "lerobot-train",
    "python eval.py",
    "python -m robomimic.scripts",
    "pip install",
    "git ",
    "ssh ",
    "hf ",
    "apt-get",
    "cd ",
    "source ",
)


def commands(page):
    """Yield each command in the blocks of a page without language, and whether it needs hardware.

    Prompts, comments and continuations are left out; blocks of `console` are what test_first_hour.py runs.
    """
    for marked, language, block in re.findall(
        rf"(?:^{HARDWARE}([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S
    ):
        for line in (
            () if language in ("python", "yaml", "toml", "json", "console") else block.replace("\\\n", " ").splitlines()
        ):
            command = re.sub(r"^\s*(\$|there:|here:)?\s*", "", line).partition("   #")[0].partition("  #")[0].strip()
            if re.match(r"(gpc|python|make) ", command) and not command.startswith("gpc/"):
                yield command, any(part in command for part in marked.split(", ") if part)


EVERY = [(page.relative_to(ROOT), *found) for page in PAGES for found in commands(page)]
FOUND = [(page, command) for page, command, _ in EVERY]
GPC = [(page, command) for page, command in FOUND if command.startswith("gpc ")]
RUN = list(
    dict.fromkeys(
        command
        for _, command, hardware in EVERY
        if command.startswith("gpc ") and not hardware and not any(part in command for part in NOT_RUN)
    )
)


def words(command):
    return shlex.split(command)[1:]


def test_the_blocks_hold_commands_and_each_exception_is_of_one():
    assert len(FOUND) > 40
    assert {shlex.split(command)[1] for _, command in GPC} <= set(COMMANDS)
    text = "\n".join(command for _, command in FOUND)
    assert [part for part in (*NOT_RUN, *UNRESOLVED) if part not in text] == []
    tests = [re.search(r"tests/test_\w+\.py$", why) for why in NOT_RUN.values()]
    assert [
        why for why, test in zip(NOT_RUN.values(), tests, strict=True) if test and not (ROOT / test[0]).is_file()
    ] == []
    assert [why for why, test in zip(NOT_RUN.values(), tests, strict=True) if not test] == ["a pattern, not a command"]


def test_what_needs_hardware_is_marked_in_the_page():
    marked = [
        part
        for page in PAGES
        for parts in re.findall(rf"{HARDWARE}(.*) -->", page.read_text())
        for part in parts.split(", ")
    ]
    assert {"cuda", "robot=lerobot", "robot=ros2"} >= set(marked)
    held = [command for _, command, hardware in EVERY if command.startswith("gpc ") and hardware]
    assert held == [c for _, c in GPC if any(part in c for part in ("cuda", "robot=lerobot", "robot=ros2"))]


@pytest.mark.parametrize(("page", "command"), [case for case in GPC if words(case[1])[0] in KEYED])
def test_keys_names_and_values_are_valid(page, command, tmp_path, monkeypatch):
    if any(part in command for part in UNRESOLVED):
        pytest.skip("the reader's own names")
    name, *overrides = words(command)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    config = load_config(name, overrides)
    for source in config.policies:
        loader, colon, path = source.partition(":")
        if colon and loader not in (*FORMS, "remote"):  # a module of the reader's
            (tmp_path / f"{loader}.py").touch()
        elif colon and loader != "remote":  # a file of the reader's
            place = tmp_path / path.removeprefix("~/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(exist_ok=True) if "FOLDER" in FORMS[loader] else place.touch()
    if (demonstrations := config.get("demonstrations")) and not demonstrations.startswith("tests/"):
        (tmp_path / demonstrations).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    check_config(name, config)
    setup.sampling_of(config)
    if name in ("evaluate", "search", "compare"):
        assert setup.engine_of(config)
        assert setup.executor_of(config)
    if "env" in config:
        assert setup.env_of(config)
    if name == "search":
        assert setup.search_of(config)
    if name == "serve":
        assert access_of(config).port
    if name == "deploy":
        assert build(Watchdog, plain(config.watchdog), "watchdog")
        assert build(SafetyLimits, plain(config.safety), "safety")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder as that in which README's first commands were run."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("docs", "tests", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("command", RUN)
def test_a_command_runs(command, reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    name, *arguments = words(re.sub(r"--episode \d+", "--episode 1", command))
    if name in KEYED:
        arguments += [*SMALL.get(name, []), *([] if name in ("diagnose", "deploy") else ROLLOUT)]
    if name not in ("deploy", "report", "replay", "policies", "doctor"):
        arguments += ["env.max_steps=16"]
    if "search=racing" in command or "search.budget" in command:
        arguments = [argument for argument in arguments if not argument.startswith("search.budget")]
    arguments = [path for argument in arguments for path in (sorted(glob(argument)) if "*" in argument else [argument])]
    code = main([name, *arguments])
    assert code == 0, capsys.readouterr().err


def test_scripts_have_the_flags_and_make_has_the_targets_that_are_printed():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for page, command in FOUND:
        program, *arguments = shlex.split(command)
        if program == "make":
            assert arguments[0] in targets, f"{page}: {command}"
        elif program == "python" and arguments[0].startswith("scripts/"):
            source = (ROOT / arguments[0]).read_text()
            assert {flag for flag in arguments if flag.startswith("--")} <= set(re.findall(r'"(--[\w-]+)"', source)), (
                command
            )
        else:
            assert program == "gpc" or command.startswith(OUTSIDE), f"{page}: {command}"


def test_every_script_and_extra_that_a_page_names_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        text = page.read_text()
        scripts = re.findall(r"(?<!its )\b(scripts/\w+\.(?:py|sh))\b", text)
        assert [script for script in scripts if not (ROOT / script).is_file()] == [], page
        named = [extra for group in re.findall(r"\bgpc\[([\w,]+)\]", text) for extra in group.split(",")]
        assert [extra for extra in named if extra not in extras] == [], page
