"""The rules of docs/security.md that can be read from the source.

`-m` and `-c` without `-P`: tests/test_process.py. HTML in Python strings, markup from data: tests/test_inert.py.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("gpc", "policies", "envs", "robots") for path in (ROOT / folder).rglob("*.py"))

IMPORTS = {
    "gpc/__init__.py:__getattr__": "a name of the package itself",
    "gpc/testing/__init__.py:__getattr__": "a name of the package itself",
    "robots/__init__.py:__getattr__": "a name of the package itself",
    "gpc/commands/cli.py:_bridge": "one of two constants",
    "gpc/registry.py:load_entry": "an entry point of an installed package",
    "gpc/registry.py:import_named": "a module that the user typed; from a run folder only with --trust",
    "policies/from_lerobot/__init__.py:_read_config": "a kind of families.FAMILIES",
    "robots/from_lerobot.py:_register": "LeRobot's own robots and cameras, and its installed plug-ins",
}
"""Where a module is imported by a name that is no constant, and why that name is not from a file or a server."""

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "system", "popen", "Unpickler"),
    *("unsafe_load", "full_load", "FullLoader", "UnsafeLoader", "run_path", "run_module"),
}


def calls(path):
    """Yield (function that contains it, name called, call) of a file."""

    def visit(node, where):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = node.name
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            yield where, name, node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    yield from visit(ast.parse(path.read_text()), "")


def constant(call):
    return bool(call.args) and all(
        isinstance(part, ast.Constant) for part in ast.walk(call.args[0]) if isinstance(part, ast.expr)
    )


def importing(path):
    """The functions that import a module, or load an entry point, by a name that is no constant."""
    for where, name, call in calls(path):
        entry = name == "load" and not call.args and not call.keywords
        if entry or (name in ("import_module", "resolve_name", "get_object", "get_class") and not constant(call)):
            yield f"{path.relative_to(ROOT)}:{where}"


def test_modules_are_imported_by_name_where_the_name_is_known_and_nowhere_else():
    assert {place for path in SOURCES for place in importing(path)} == set(IMPORTS)


@pytest.mark.parametrize(
    "line", ["import_module(name)", "resolve_name(card['kind'])", "points[name].load()", "import_module(f'a.{kind}')"]
)
def test_an_import_by_a_name_from_data_is_noticed(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "new.py").write_text(f"def read(card, kind, name, points):\n    return {line}\n")
    assert list(importing(tmp_path / "new.py")) == ["new.py:read"]


def executed(path):
    """What runs code from a file: Python's own ways, a shell, pickles."""
    for where, name, call in calls(path):
        options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        owner = ast.unparse(call.func).split(".")[0]
        pickles = owner in ("pickle", "dill", "cloudpickle", "joblib") and name != "dumps"
        pickled = pickles or (owner == "torch" and name == "load")
        builtin = not isinstance(call.func, ast.Attribute) or owner in ("os", "runpy", "yaml", "builtins")
        if (
            (name in FORBIDDEN and builtin)
            or (pickled and not options.get("weights_only"))
            or options.get("allow_pickle")
            or options.get("shell")
        ):
            yield f"{path.name}:{where} {name}"


def test_nothing_executes_or_unpickles():
    assert [found for path in SOURCES for found in executed(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.loads(text)",
        "torch.load(text)",
        "torch.load(text, weights_only=False)",
        "np.load(text, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "yaml.unsafe_load(text)",
    ],
)
def test_a_way_to_execute_is_noticed(line, tmp_path):
    (tmp_path / "new.py").write_text(f"def read(text):\n    return {line}\n")
    assert len(list(executed(tmp_path / "new.py"))) == 1


def paths_from_data(path):
    """Calls that make a path of a field of data: open(card["x"]), folder / manifest.get("y")."""

    def field(node):
        subscript = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
        got = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("get", "find") and constant(node)
        return got or (subscript and isinstance(node.slice.value, str))

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not isinstance(node.left, ast.BinOp):
            made = [node.right] if isinstance(node.left, ast.Name | ast.Attribute) else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "open",
            "Path",
            "joinpath",
            "with_name",
        ):
            made = node.args
        else:
            continue
        if any(field(part) for argument in made for part in ast.walk(argument)) and "new_tensor" not in ast.unparse(
            node
        ):
            yield f"{path.name}: {ast.unparse(node)}"


def test_no_path_is_made_of_a_field_of_data():
    assert [found for path in SOURCES for found in paths_from_data(path)] == []


@pytest.mark.parametrize(
    "line",
    ["open(card['weights'])", "Path(manifest['run'])", "folder / card['file']", "folder.joinpath(found.get('clip'))"],
)
def test_a_path_from_data_is_noticed(line, tmp_path):
    (tmp_path / "new.py").write_text(f"def read(card, manifest, found, folder):\n    return {line}\n")
    assert len(list(paths_from_data(tmp_path / "new.py"))) == 1
