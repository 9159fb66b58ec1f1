"""The house: imports go one way, and configurations build only what is ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gpc.commands.config import ALLOWED, build, load_config
from gpc.errors import InputError

ROOT = Path(__file__).parents[1]
RUNTIME = sorted((ROOT / "gpc").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: path.name)
def test_the_runtime_imports_neither_policies_nor_simulators(path):
    wrong = [
        name
        for name in imports(path)
        if name.startswith(("gpc.policies", "gpc.envs", "gpc.robots", "gym_pusht", "lerobot"))
    ]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "envs").glob("*.py")))
def test_a_simulator_process_never_loads_torch(name):
    code = f"import sys, gpc.rollout.worker, gpc.envs.{name}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    "target", ["shutil.copy", "os.system", "gpc.results.run_folder.write_atomically", "builtins.eval"]
)
def test_a_target_that_is_not_ours_is_refused(target):
    with pytest.raises(InputError, match=r"_target_"):
        build(OmegaConf.create({"_target_": target}))


@pytest.mark.parametrize(
    "part",
    [
        "composer._target_=gpc.robots.from_lerobot.make_robot",
        "sampler._target_=gpc.rollout.executors.Ray",
        "+composer.policies={_target_:gpc.rollout.executors.Ray}",
        "+rename_map.a={_target_:gpc.rollout.executors.Ray}",
        "+seed2={_target_:gpc.rollout.executors.Ray}",
        "+composer._args_=[1]",
    ],
)
def test_a_target_is_built_in_its_own_part_of_a_configuration_alone(part):
    with pytest.raises(InputError, match="is not allowed"):
        load_config("evaluate", ["policies=[a]", part])


GROUPS = sorted((ROOT / "configs").glob("*/*.yaml"))
COMMANDS = {"search": ("search", []), "robot": ("deploy", ["fps=10"]), "stitch": ("deploy", ["fps=10"])}
MUST_SET = {
    "per_dimension": ["composer.groups=[[0],[1]]"],
    "lerobot": ["robot.type=so101_follower"],
    "ros2": ["robot.settings.joints=[a]"],
}


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_of_every_group_names_an_allowed_target(path):
    kind, keys = COMMANDS.get(path.parent.name, ("evaluate", []))
    own = [f"{path.parent.name}={path.stem}", *MUST_SET.get(path.stem, [])]
    config = load_config(kind, ["policies=[a,b]", *keys, *own])
    assert config[path.parent.name]["_target_"] in ALLOWED[path.parent.name]
