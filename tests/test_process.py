"""The current folder is never executed: what lies there is data, whatever it is called."""

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from gpc.rollout.process import environment, python, search_path

ROOT = Path(__file__).parents[1]
FOLDERS = ("gpc", "policies", "envs", "robots", "scripts", "tests")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
INSTALLED = sorted(name for name in packages_distributions() if name.isidentifier())
SHORT = ["env=pusht", "episodes=1", "env.max_steps=8", "sampler.steps=2", "video=1"]


@pytest.fixture
def downloaded(tmp_path):
    """A folder with a module of every name that could be imported, each of which leaves a mark of its process."""
    folder, mark = tmp_path / "downloaded", tmp_path / "mark"
    folder.mkdir()
    code = f"import os\nwith open({str(mark)!r}, 'a') as file: file.write(f'{{os.getpid()}} {{__name__}}\\n')\n"
    for name in {*INSTALLED, *sys.stdlib_module_names, "gpc", "sitecustomize", "usercustomize"}:
        (folder / f"{name}.py").write_text(code)
    return folder, mark


def test_a_command_runs_nothing_of_the_folder_in_which_it_is_typed(downloaded, tiny, tmp_path):
    folder, mark = downloaded
    gpc = Path(sys.executable).with_name("gpc")
    ask = [gpc, "evaluate", f"policies=[{tiny[0]}]", *SHORT, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(ask, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not mark.exists(), mark.read_text()
    assert (tmp_path / "run/episodes.mp4").exists()


ROLLOUT = """
import os, sys
sys.path.insert(0, "")  # as Python does at a prompt; this process has what it needs already
import gpc.rollout.gl, numpy
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.engine import Job, LaneSpec, rollout
gpc.rollout.gl.probe({"MUJOCO_GL": "egl"})
spec = LaneSpec(EnvSpec("pusht", 4, 8), ("state",))
(episode,) = rollout([Job(0, (1.0,), 0)], lambda o, w, s, c: numpy.full((len(w), 4, 2), 256.0), spec)
print(os.getpid(), episode.steps)
"""


def test_the_simulators_of_a_prompt_import_nothing_of_its_folder(downloaded):
    folder, mark = downloaded
    (folder / "subprocess.py").unlink()
    loaded = "import gpc.rollout.engine, gpc.rollout.gl, gpc.schema, encodings.idna, multiprocessing.connection\n"
    done = subprocess.run(python("-c", loaded + ROLLOUT), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, steps = done.stdout.split()
    assert steps == "8"
    marks = [line for line in (mark.read_text().splitlines() if mark.exists() else []) if line.split()[0] != own]
    assert marks == []


CLUSTER = """
import numpy
from gpc.rollout.executors import Ray
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.engine import Engine, Job, LaneSpec, RolloutStats
act = lambda observation, weights, seeds, chunks: numpy.full((len(weights), 4, 2), 256.0)
spec = LaneSpec(EnvSpec("pusht", 4, 8), ("state",))
(episode,) = Ray(cpus=1, actors=1)([Job(0, (1.0,), 0)], act, spec, Engine(workers=1), RolloutStats())
print(episode.steps)
"""


def test_the_workers_of_a_cluster_import_nothing_of_the_folder(downloaded):
    pytest.importorskip("ray")
    folder, mark = downloaded
    done = subprocess.run(python("-c", CLUSTER), cwd=folder, capture_output=True, text=True)
    assert not mark.exists(), mark.read_text()
    assert done.stdout.splitlines()[-1:] == ["8"], done.stderr


ASK = "import json, os; from gpc.rollout.process import search_path as p; print(json.dumps([os.getcwd() in p(), '' in p()]))"


def paths(folder, *command, **env):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.splitlines()[0])


def test_a_folder_stays_importable_where_the_users_own_program_lies_in_it(tmp_path):
    (tmp_path / "program.py").write_text(ASK)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__main__.py").write_text(ASK)
    assert paths(tmp_path, "-c", ASK) == [False, False]
    assert paths(tmp_path, "program.py") == [True, False]
    assert paths(tmp_path, "-m", "program") == [True, False]
    assert paths(tmp_path, "-m", "package") == [True, False]
    assert paths(tmp_path, "-m", "timeit", "-n1", "-r1", ASK) == [False, False]
    assert paths(tmp_path, "-c", ASK, PYTHONPATH=".") == [True, False]


def commands(tree):
    """The words of every call, list and tuple that could be a command line."""
    for node in ast.walk(tree):
        words = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
        safe = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "python"
        yield (
            ["-P" if safe else None, *(word.value if isinstance(word, ast.Constant) else None for word in words)],
            words,
        )


def started(words, nodes):
    """Whether it is a command line of Python's."""
    return words[0] == "-P" or any(name in ast.unparse(node) for node in nodes[:2] for name in ("python", "executable"))


def test_every_python_process_is_started_without_the_current_folder():
    for path in SOURCES:
        for words, nodes in commands(ast.parse(path.read_text())):
            if {"-m", "-c"} & set(words) and started(words, nodes):
                assert "-P" in words, f"{path}: {words}"
        if path.is_relative_to(ROOT / "gpc") and path.name not in ("process.py", "installation.py"):  # which prints it
            assert "sys.executable" not in path.read_text()


@pytest.mark.parametrize(("given", "expected"), [(":", None), ("", None), (":/x::/y", "/x:/y"), ("/x", "/x")])
def test_an_empty_entry_of_pythonpath_is_no_folder(given, expected, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", given)
    assert environment().get("PYTHONPATH") == expected


def test_a_current_folder_that_is_gone_is_not_searched(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "path", ["", "/x"])
    assert search_path() == ["/x"]
