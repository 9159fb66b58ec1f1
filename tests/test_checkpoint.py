"""Hostile and damaged files: each is refused in one line, nothing of it runs, and no load falls back to a less safe one."""

import ast
import collections
import functools
import io
import operator
import os
import pickle
import subprocess
import tarfile
import types
import zipfile
from pathlib import Path

import dill
import numpy as np
import pytest
import torch
from numpy._core.multiarray import _reconstruct as reconstruct
from numpy._core.multiarray import scalar
from torch._tensor import _rebuild_from_type_v2
from torch._utils import _rebuild_tensor_v2 as rebuild

import gpc
from gpc.errors import InputError
from gpc.policies.checkpoint import Inert, read

ROOT = Path(__file__).parents[1]
TOUCH = "touch pwned"


class Call:
    """A payload: unpickling calls the function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class State:
    """A payload in the state of an object that is allowed."""

    def __reduce__(self):
        return torch.nn.Parameter, (torch.zeros(1),), {"x": Call(os.system, TOUCH)}


def number(code, data, *state):
    """A number of numpy with a type and bytes of the file's choice."""
    return Call(scalar, Dtype(code, state), data)


class Dtype:
    """A type of numpy with a state of the file's choice."""

    def __init__(self, code, state):
        self.code, self.state = code, state or (3, "<", None, None, None, -1, -1, 0)

    def __reduce__(self):
        return np.dtype, (self.code, False, True), self.state


class Array:
    """An array of numpy with a shape and bytes of the file's choice."""

    def __init__(self, shape, code, data):
        self.state = 1, shape, Dtype(code, ()), False, data

    def __reduce__(self):
        return reconstruct, (np.ndarray, (0,), b"b"), self.state


QUANTISED = torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.quint8)


def beyond(offset, size, tensor=torch.zeros(2), build=rebuild, more=()):  # noqa: B008
    """A tensor that reaches beyond the two numbers that the file gives it."""
    return Call(build, tensor._typed_storage(), offset, (size,), (1,), *more, False, collections.OrderedDict())


def zipped(content, path):
    torch.save(content, path)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def modern(content, path):
    path.write_bytes(pickle.dumps(content, protocol=5))


def dilled(content, path):
    torch.save(content, path, pickle_module=dill)


def in_a_tar(content, path):
    with tarfile.open(path, "w") as archive:
        data = pickle.dumps(content, protocol=2)
        for name in ("pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


WAYS = [zipped, legacy, plain, modern, dilled, in_a_tar]
PAYLOADS = {
    "os.system": Call(os.system, TOUCH),
    "eval": Call(eval, f"__import__('os').system('{TOUCH}')"),
    "exec": Call(exec, f"import os; os.system('{TOUCH}')"),
    "subprocess": Call(subprocess.Popen, ["touch", "pwned"]),
    "methodcaller": Call(operator.methodcaller, "system", TOUCH),
    "partial": Call(functools.partial, os.system, TOUCH),
    "import": Call(__import__, "os"),
    "open": Call(open, "pwned", "w"),
    "torch.load": Call(torch.load, "other.pth"),
    "torch.hub.load": Call(torch.hub.load, "someone/repository", "model"),
    "torch.jit.load": Call(torch.jit.load, "other.pt"),
    "state of an allowed class": State(),
    "a namespace": Call(types.SimpleNamespace),
    "a nested pickle": Call(pickle.loads, pickle.dumps(Call(os.system, TOUCH))),
    # Aimed at torch's weights-only unpickler: functions that it calls or has called, and tensors that it builds.
    "a pickle in a storage": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, TOUCH))),
    "a function for a subclass": Call(_rebuild_from_type_v2, os.system, torch.Tensor, (TOUCH,), {}),
    "backward hooks": Call(rebuild, torch.zeros(2)._typed_storage(), 0, (2,), (1,), False, Call(os.system, TOUCH)),
    "a tensor beyond its memory": beyond(0, 10**6),
    "a tensor before its memory": beyond(-5, 2),
    "a quantised tensor beyond its memory": beyond(
        0, 10**6, QUANTISED, torch._utils._rebuild_qtensor, [(torch.per_tensor_affine, 1.0, 0)]
    ),
    "a sparse tensor beyond its memory": Call(
        torch._utils._rebuild_sparse_tensor,
        torch.sparse_coo,
        (torch.tensor([[10**9]]), torch.ones(1), (2,), False),
    ),
    "a nested tensor beyond its memory": Call(
        torch._utils._rebuild_nested_tensor,
        torch.ones(4),
        torch.tensor([[10**9]]),
        torch.tensor([[1]]),
        torch.tensor([0]),
    ),
    # numpy's own functions would follow these numbers as addresses, or allocate as many
    "a number with a huge buffer": number("f8", b"x" * 8000),
    "a number with too short a buffer": number("f8", b"x"),
    "a number with no buffer": number("f8", 3),
    "an object of numpy": number("O8", b"x" * 8),
    "a record of numpy": number("V8", b"x" * 8, 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0),
    "a number that is a record": number("f8", b"x" * 8, 3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0),
    "a number of many": number("f8", b"x" * 8, 3, "<", (np.dtype("f8"), (10**9,)), None, None, 8, 1, 0),
    "a number of an unknown order": number("f8", b"x" * 8, 3, "?", None, None, None, -1, -1, 0),
    "a number of 10^9 bytes": number("U250000000", b"x" * 8),
    "an array beyond its memory": Array((10**9,), "f8", b"x" * 16),
    "an array of nothing": Array((0, 2**62), "f8", b"x" * 16),
    "an array before its memory": Array((-1,), "f8", b""),
    "an array of objects": Array((1,), "O8", b"x" * 8),
    "an array without a state": Call(scalar, Call(reconstruct, np.ndarray, (10**9,), b"d"), b""),
    "an empty array of any size": Call(np.ndarray, (10**9,)),
    "a view of memory": Call(np.frombuffer, b"x" * 8, "O"),
    "a type of a text": Call(scalar, "f8", b"x" * 8),
}
LOADERS = {
    "robomimic": lambda payload: {"model": {"nets": torch.zeros(2)}, "config": "{}", "algo_name": payload},
    "diffusion_policy": lambda payload: {"cfg": {"policy": {}}, "state_dicts": {"model": {"weight": payload}}},
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_hostile_pickle_is_refused_and_never_runs(tmp_path, monkeypatch, payload, write, loader):
    """Nor does anything fall back to pickle itself, the unpickler that would run it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    write(LOADERS[loader](payload), path)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    with pytest.raises(InputError, match=r"hostile\.pth (is not loaded|holds a sparse, nested or quantised)") as caught:
        gpc.load_policy(f"{loader}:{path}")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["hostile.pth"]


def test_the_payloads_do_run_where_nobody_is_careful(tmp_path, monkeypatch):
    """The test above would be empty if they did not."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(PAYLOADS["os.system"]))
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["os.system", "subprocess", "torch.hub.load"])
def test_the_class_is_named(tmp_path, name):
    torch.save({"x": PAYLOADS[name]}, tmp_path / "x.pth")
    named = {"os.system": "posix.system", "subprocess": "commands.Popen", "torch.hub.load": "torch.hub.load"}[name]
    with pytest.raises(InputError, match=f"needs {named}, which is neither a tensor nor a plain container"):
        read(tmp_path / "x.pth")


NUMBERS = {
    "float": np.float64(0.1), "half": np.float16(0.5), "int": np.int64(-3), "byte": np.uint8(200), "truth": np.bool_(True),
}  # fmt: skip
ARRAYS = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(600.0).reshape(20, 30)),
    "of another machine": np.arange(3, dtype=">i4"),
    "one": np.array(2.5),
    "none": np.zeros((0, 5), np.float32),
}


@pytest.mark.parametrize("numpy", [1, 2])
@pytest.mark.parametrize("new", [True, False])
def test_numbers_and_arrays_of_numpy_are_read_and_numpy_unpickles_none(tmp_path, monkeypatch, numpy, new):
    """As robomimic's trainer saves them after a rollout, with numpy 1 and 2."""
    path = tmp_path / "x.pth"
    torch.save({**NUMBERS, **ARRAYS}, path, _use_new_zipfile_serialization=new)
    renamed(path, f"numpy.{'core' if numpy == 1 else '_core'}.multiarray", new)
    for name in ("scalar", "_reconstruct"):
        monkeypatch.setattr(np._core.multiarray, name, None)
    found = read(path)
    for key, value in NUMBERS.items():
        assert type(found[key]) is type(value.item())
        assert found[key] == value
    for key, value in ARRAYS.items():
        assert found[key].dtype == value.dtype.newbyteorder("=")
        assert np.array_equal(found[key], value)


def renamed(path, module, new):
    """Name numpy's module in a file as another version does."""
    old = b"numpy._core.multiarray"
    if not new:
        path.write_bytes(path.read_bytes().replace(old, module.encode()))
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(old, module.encode()) if name.endswith("data.pkl") else content)


def test_numbers_of_numpy_that_dill_saves_are_read(tmp_path):
    torch.save({**NUMBERS, "matrix": ARRAYS["matrix"]}, tmp_path / "x.ckpt", pickle_module=dill)
    found = read(tmp_path / "x.ckpt")
    assert {key: found[key] for key in NUMBERS} == NUMBERS
    assert np.array_equal(found["matrix"], ARRAYS["matrix"])


def truncated(path):
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-800])


def cut_in_the_middle(path):
    torch.save({"x": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:400] + whole[1200:])


def old_and_truncated(path):
    """Cut at each of its first thousand bytes: whatever is raised is one line."""
    torch.save({"x": torch.zeros(10)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(1, min(len(whole), 1000) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            read(path)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


DAMAGED = {
    "a list": (lambda path: torch.save([1], path), "holds a list, not the dictionary"),
    "truncated": (truncated, "is damaged or holds more"),
    "cut in the middle": (cut_in_the_middle, "is damaged or holds more"),
    "old and truncated": (old_and_truncated, "is damaged or holds more"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged or holds more"),
    "text": (lambda path: path.write_text("hello"), "is damaged or holds more"),
    "a zip bomb": (bomb, "compressed parts .* zip bomb"),
    "nothing": (lambda path: None, "no file"),
}


@pytest.mark.parametrize(("write", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, write, message):
    write(tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_an_older_torch_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(InputError, match=r"install torch>=2\.10"):
        read(tmp_path / "x.pth")


class Settings:
    """A class of an outside package, as far as the file goes."""

    def __init__(self):
        self.value = 3


def test_a_listed_class_comes_back_as_an_inert_stand_in(tmp_path):
    torch.save({"x": Settings()}, tmp_path / "x.pth")
    name = f"{Settings.__module__}.Settings"
    with pytest.raises(InputError, match=f"needs {name}"):
        read(tmp_path / "x.pth")
    found = read(tmp_path / "x.pth", [name])["x"]
    assert isinstance(found, Inert)
    assert not isinstance(found, Settings)
    assert found.state == {"value": 3}


SOURCES = [path for folder in ("gpc", "policies", "envs", "scripts") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_in_the_source_unpickles_or_evaluates(path):
    unsafe = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    builtin = {"eval", "exec", "compile", "__import__"}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name != "cloudpickle" or alias.asname]
            found |= {alias.name.partition(".")[0] for alias in names} & unsafe
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cloudpickle":
            found |= {node.attr} - {"dumps"}  # only what the engine itself sends is written, nothing is read
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in unsafe:
            found |= {alias.name for alias in node.names} - {"UnpicklingError"}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {node.func.id} & builtin
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            allowed = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            found |= {ast.unparse(node)} if allowed or (not safe and "torch" in ast.unparse(node.func)) else set()
    assert found == set()
