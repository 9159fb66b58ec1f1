"""The house: imports go one way, and every option of every group is valid."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from import_graph import FLOW, implied, importers, imports
from msgspec import Struct, inspect

import gpc
from gpc.commands.config import load_config

ROOT = Path(__file__).parents[1]
RUNTIME = sorted((ROOT / "gpc").rglob("*.py"))
ORDER = {name: place for place, (name, _) in enumerate(FLOW)}
CLIENT = ["gpc.serve.address", "gpc.serve.client", "gpc.serve.codec"]
HEAVY = ("gymnasium", "hydra", "jinja2", "matplotlib", "msgspec", "omegaconf", "rich", "safetensors", "scipy", "zarr")
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import importlib
for name in {modules}:
    importlib.import_module(name)
"""


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_without(blocked, modules):
    code = BLOCK.format(blocked=blocked, modules=modules)
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)


def test_every_folder_has_a_place_in_the_flow_and_there_are_at_most_twelve():
    assert {path.parent.name for path in (ROOT / "gpc").glob("*/__init__.py")} == set(ORDER)
    assert len(ORDER) <= 12


def test_no_folder_imports_against_the_flow():
    backward = {pair: files for pair, files in importers().items() if ORDER[pair[0]] < ORDER[pair[1]]}
    assert backward == {}


def test_an_import_for_type_checking_counts(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gpc.commands import cli\n")
    assert "gpc.commands.cli" in imports(path)


def test_the_picture_has_an_arrow_for_each_import():
    arrows = {"-".join(pair) for pair in importers()}
    drawn = re.findall(r'id="([a-z]+-[a-z]+)"', (ROOT / "docs/imports.svg").read_text())
    assert set(drawn) == arrows, "run: python scripts/import_graph.py --out docs/imports.svg"


def test_a_longer_way_makes_an_arrow_light():
    pairs = {("policy", "score"): 1, ("composition", "policy"): 1, ("composition", "score"): 1}
    assert implied(pairs) == {("composition", "score")}


@pytest.mark.parametrize("path", sorted((ROOT / "gpc").glob("*.py")), ids=lambda path: path.name)
def test_a_module_beside_the_folders_imports_none_of_them(path):
    if path.name not in ("__init__.py", "__main__.py"):  # resolves public names on first use; is the command
        assert [name for name in imports(path) if name.split(".")[1:2] and name.split(".")[1] in ORDER] == []


def test_no_folder_or_module_bears_the_name_of_a_public_object():
    names = {path.stem for path in (ROOT / "gpc").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & set(gpc.__all__) == set()


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runtime_imports_neither_policies_nor_simulators(path):
    wrong = [
        name
        for name in imports(path)
        if name.startswith(("gpc.policies", "gpc.envs", "gpc.robots", "gym_pusht", "lerobot"))
    ]
    assert wrong == []


def test_score_policy_and_composition_need_torch_and_numpy_alone():
    modules = [module_name(path) for path in RUNTIME if path.parent.name in ("score", "policy", "composition")]
    answer = import_without(HEAVY, modules)
    assert answer.returncode == 0, answer.stderr


def test_the_client_of_a_server_needs_no_torch():
    answer = import_without(("torch",), CLIENT)
    assert answer.returncode == 0, answer.stderr


def test_serve_and_bridge_need_no_configuration():
    answer = import_without(("hydra", "omegaconf"), ["gpc.bridge.run", "gpc.serve.server"])
    assert answer.returncode == 0, answer.stderr


def test_a_blocked_package_fails_an_import():
    assert "torch is blocked" in import_without(("torch",), ["gpc.score.noise"]).stderr


SIMULATORS = {path.stem for path in (ROOT / "envs").glob("*.py")} - {
    "from_lerobot"
}  # LeRobot's benchmarks import torch


@pytest.mark.parametrize("name", sorted(SIMULATORS))
def test_a_simulator_process_never_loads_torch(name):
    code = f"import sys, gpc.rollout.worker, gpc.envs.{name}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


GROUPS = sorted((ROOT / "configs").glob("*/*.yaml"))
COMMANDS = {"search": ("search", []), "robot": ("deploy", ["fps=10"]), "stitch": ("deploy", ["fps=10"])}
MUST_SET = {
    "robot=lerobot": ["robot.type=so101_follower"],
    "robot=ros2": ["robot.settings.joints=[a]"],
}


def structs(kind=Struct):
    """All types that data from a file or socket is read into."""
    for each in kind.__subclasses__():
        yield each
        yield from structs(each)


def unions(kind):
    """All unions inside a type of `msgspec.inspect`, each as its members; a struct inside is a struct of its own."""
    if isinstance(kind, inspect.UnionType):
        yield kind.types
    if isinstance(kind, inspect.Type) and not isinstance(kind, inspect.StructType):
        kind = [getattr(kind, name) for name in kind.__struct_fields__]
    for part in kind if isinstance(kind, list | tuple) else []:
        yield from unions(part)


def pattern_beside_container(kind):
    """Whether a type of `msgspec.inspect` makes msgspec 0.22 free memory that it does not own."""
    inside = inspect.CollectionType | inspect.DictType | inspect.TupleType
    return any(
        any(getattr(each, "pattern", None) for each in types) and any(isinstance(each, inside) for each in types)
        for types in unions(kind)
    )


def test_no_pattern_shares_a_union_with_a_container():
    for path in RUNTIME:
        if "Struct" in path.read_text():
            import_module(module_name(path))
    ours = [kind for kind in structs() if kind.__module__.startswith("gpc.")]
    assert len(ours) > 20
    fields = {f"{kind.__name__}.{field.name}": field.type for kind in ours for field in inspect.type_info(kind).fields}
    assert [name for name, kind in fields.items() if pattern_beside_container(kind)] == []


def test_a_pattern_beside_a_container_is_seen():  # no real type: msgspec would damage the memory of this process
    text, numbers = inspect.StrType(pattern="a"), inspect.ListType(inspect.IntType())
    assert pattern_beside_container(inspect.ListType(inspect.UnionType((text, numbers))))
    assert not pattern_beside_container(inspect.ListType(inspect.UnionType((text, inspect.IntType()))))


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_of_every_group_is_valid(path):
    kind, keys = COMMANDS.get(path.parent.name, ("evaluate", []))
    option = f"{path.parent.name}={path.stem}"
    own = [option, *MUST_SET.get(option, [])]
    assert path.parent.name in load_config(kind, ["policies=[a,b]", *keys, *own])
