"""A package that is not gpc's: a search, a composer, a cost and an environment, from Python and from the command line."""

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace

import gymnasium
import pytest
from docs_blocks import run_python
from gymnasium.wrappers import TimeLimit, TransformReward

import gpc
import gpc.registry
from gpc.commands.cli import main
from gpc.commands.config import load_config
from gpc.commands.replay import replay
from gpc.commands.setup import spec_of
from gpc.commands.simulators import env_named
from gpc.errors import InputError
from gpc.inert import Console
from gpc.policy.load import load_policy
from gpc.registry import load_named
from gpc.results.run_folder import read_rows
from gpc.rollout.env import make_env
from gpc.rollout.process import search_path

MODULE = '''
from dataclasses import dataclass
import gymnasium
import numpy as np
import torch
from gpc.composition.composers import Convex
from gpc.weights.simplex import one_hot


@dataclass
class Halves:
    """A search: the parents and their even mixture, on a few seeds."""

    episodes: int = 1
    seed: int = 100_000

    def start(self, policies, prior=None):
        other = Halves(self.episodes, self.seed)
        other.candidates = [one_hot(i, policies) for i in range(policies)] + [(1 / policies,) * policies]
        other.results = {}
        return other

    @property
    def seeds(self):
        return range(self.seed, self.seed + self.episodes)

    def ask(self):
        pairs = [(c, s) for c in range(len(self.candidates)) for s in self.seeds]
        return [pair for pair in pairs if pair not in self.results]

    def tell(self, results):
        self.results.update(results)

    def best(self):
        scores = [sum(self.results[c, s].score for s in self.seeds) for c in range(len(self.candidates))]
        return scores.index(max(scores))


class Sharpened(Convex):
    """A composer: convex weights to a power, normalised."""

    def __init__(self, weights=(), power: float = 1.0):
        super().__init__(weights)
        object.__setattr__(self, "power", power)

    def __call__(self, x, sigma, denoised, mask):
        sharp = self.weights**self.power
        return Convex(sharp / sharp.sum(-1, keepdim=True))(x, sigma, denoised, mask)


def upwards(actions, observation):
    return actions[..., 1].square().sum(1) / 512**2


class Point(gymnasium.Env):
    """An environment that knows nothing of gpc: a point that moves towards the action."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-1e3, 1e3, (5,), np.float64)})
    action_space = gymnasium.spaces.Box(0, 512, (2,), np.float64)

    def __init__(self, size: float = 512.0):
        self.size = size

    def _frame(self):
        return {"state": np.concatenate([self.at, [self.size / 2, self.size / 2, 0.0]])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(0, self.size, 2)
        return self._frame(), {}

    def step(self, action):
        self.at = 0.8 * self.at + 0.2 * np.asarray(action, float)
        distance = float(np.linalg.norm(self.at - self.size / 2))
        return self._frame(), 1 / (1 + distance), False, False, {"is_success": distance < 5}


def make_point(size: float = 512.0):
    return gymnasium.wrappers.TimeLimit(Point(size), 9)


gymnasium.register("Registered-v0", Point, max_episode_steps=11)
'''
ENTRY_POINTS = """
[gpc.searches]
halves = outside_gpc:Halves
broken = no_such_package:Search

[gpc.composers]
sharpened = outside_gpc:Sharpened

[gpc.costs]
upwards = outside_gpc:upwards

[gpc.envs]
point = outside_gpc:Point
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as pip leaves it: a module, and the metadata with its entry points."""
    site = tmp_path_factory.mktemp("site")
    (site / "outside_gpc.py").write_text(MODULE)
    info = site / "outside_gpc-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-gpc\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


@pytest.fixture
def outside(tmp_path_factory, monkeypatch):
    """The module alone, which no package registers."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "outside_gpc.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    import outside_gpc

    return outside_gpc


def gpc_command(site, *args):
    env = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-m", "gpc.commands.cli", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True)


SHORT = ["env.max_steps=8", "sampler.steps=2", "video=0"]


def test_objects_from_outside_are_used_as_gpcs_own(outside, parents, tmp_path):
    env = gpc.EnvSpec("pusht", max_steps=8)
    found = gpc.search(
        gpc.compose(parents, outside.Sharpened([0.5, 0.5], power=2.0)), env, search=outside.Halves(episodes=2),
        report_episodes=1, sampler=gpc.Sampling(steps=2, best_of=gpc.BestOf(2, outside.upwards)), run_dir=tmp_path, video=0,
    )  # fmt: skip
    assert {row.weights for row in found.rows} == {(1, 0), (0, 1), (0.5, 0.5)}
    config = json.loads((tmp_path / "manifest.json").read_text())["config"]
    assert config["search"] == {"class": "outside_gpc.Halves", "episodes": 2, "seed": 100_000}
    assert config["composer"] == {"class": "outside_gpc.Sharpened", "power": 2.0}
    assert config["sampler"]["best_of"] == {"n": 2, "cost": "outside_gpc.upwards"}
    with pytest.raises(InputError, match=r"outside_gpc.Sharpened is no registered type; the run was begun in Python"):
        replay(tmp_path, 0, [], Console(quiet=True), trust=True)


def test_an_environment_of_the_user_runs_and_resumes_with_an_equal_object(outside, parents, tmp_path):
    short = {"episodes": 2, "sampler": gpc.Sampling(steps=2), "run_dir": tmp_path, "video": 0}
    first = gpc.evaluate(parents[0], gpc.EnvSpec(outside.Point, max_steps=8, options={"size": 256.0}), **short)
    before = (tmp_path / "episodes.jsonl").read_bytes()
    again = gpc.evaluate(parents[0], gpc.EnvSpec(outside.Point, max_steps=8, options={"size": 256.0}), **short)
    assert again.rows == first.rows
    assert (tmp_path / "episodes.jsonl").read_bytes() == before
    assert main(["report", str(tmp_path)]) == 0
    assert "outside_gpc.Point" in (tmp_path / "report.html").read_text()
    assert all(row.steps == 8 for row in first.rows)
    with pytest.raises(InputError, match=r"was started with env.options.size=256.0, now it is 512.0"):
        gpc.evaluate(parents[0], gpc.EnvSpec(outside.Point, max_steps=8, options={"size": 512.0}), **short)
    with pytest.raises(InputError, match=r"Point has no registered limit .* as in env.max_steps=300"):
        gpc.evaluate(parents[0], outside.Point, episodes=1)


ONCE = {"video": 0, "seed": 100_000, "episodes": 1, "sampler": gpc.Sampling(steps=2), "engine": gpc.Engine(workers=1)}


@pytest.fixture(scope="module")
def registered():
    """The id of an environment with a limit of 9 steps, whose class is in no module, as in a notebook."""
    namespace = {"__name__": "__main__"}
    exec(MODULE, namespace)
    gymnasium.register("Point9-v0", namespace["Point"], max_episode_steps=9)
    return "Point9-v0"


@pytest.mark.parametrize("given", ["made", "wrapped", "copied", "function", "any", "lambda", "name", "id"])
def test_every_way_to_give_an_environment_runs_the_same_episode(given, outside, parents, registered):
    ways = {
        "made": lambda: gymnasium.make(registered, size=256.0),
        "wrapped": lambda: TransformReward(gymnasium.make(registered, size=256.0), lambda reward: 2 * reward),
        "copied": lambda: TimeLimit(outside.Point(256.0), 9),
        "function": lambda: gpc.EnvSpec(outside.make_point, options={"size": 256.0}),
        "any": lambda: gpc.EnvSpec(lambda **settings: TimeLimit(outside.Point(**settings), 9), options={"size": 256.0}),
        "lambda": lambda: lambda: TimeLimit(outside.Point(256.0), 9),
        "name": lambda: gpc.EnvSpec("outside_gpc:Point", max_steps=9, options={"size": 256.0}),
        "id": lambda: gpc.EnvSpec("outside_gpc:Registered-v0", max_steps=9, options={"settings": {"size": 256.0}}),
    }
    (row,) = gpc.evaluate(parents[0], ways[given](), **ONCE).rows
    assert row.steps == 9
    assert row.score == pytest.approx((2 if given == "wrapped" else 1) * 0.038141, rel=1e-3)


def test_an_id_that_only_this_program_has_registered_is_that_of_a_made_environment(parents, registered, tmp_path):
    by_id = gpc.evaluate(parents[0], registered, run_dir=tmp_path, **ONCE)
    assert gpc.evaluate(parents[0], gymnasium.make(registered), run_dir=tmp_path, **ONCE).rows == by_id.rows
    assert spec_of(gpc.EnvSpec(registered, max_steps=5)).name == registered


def test_a_spec_has_every_name_of_env():
    lift = spec_of(gpc.EnvSpec("lift", max_steps=7, options={"points": 9}))
    assert lift == env_named("lift", ["env.max_steps=7", "env.options.points=9"])
    assert spec_of(gpc.EnvSpec("pusht", max_steps=7)) == gpc.EnvSpec("pusht", max_steps=7), "a registered type stays"


def test_search_and_compare_take_an_environment_that_exists(outside, parents, registered):
    env, short = gymnasium.make(registered), {"sampler": gpc.Sampling(steps=2), "engine": gpc.Engine(workers=1)}
    parents = [parents[0], replace(parents[0], name="other")]
    found = gpc.search(parents, env, search=outside.Halves(), report_episodes=1, **short)
    compared = gpc.compare(*parents, env, episodes=1, **short)
    assert {row.steps for row in (*found.rows, *compared.rows)} == {9}


def test_the_record_of_an_environment_that_exists_tells_it_from_others(outside, parents, registered, tmp_path):
    gpc.evaluate(parents[0], gymnasium.make(registered, size=256.0), run_dir=tmp_path, **ONCE)
    env = json.loads((tmp_path / "manifest.json").read_text())["config"]["env"]
    settings = {"settings": {"size": 256.0}, "wrappers": []}
    assert env == {"class": "Point9-v0", "n_action_steps": 8, "max_steps": 9, "options": settings}
    with pytest.raises(InputError, match=r"env.options.settings.size=256.0, now it is 128.0"):
        gpc.evaluate(parents[0], gymnasium.make(registered, size=128.0), run_dir=tmp_path, **ONCE)
    with pytest.raises(InputError, match="Point9-v0 is no registered type; the run was begun in Python"):
        replay(tmp_path, 0, [], Console(quiet=True), trust=True)


def test_what_cannot_be_sent_or_is_no_environment_is_one_line(outside, parents):
    lock, holder = threading.Lock(), outside.Point()
    holder.lock = lock
    opened = outside.Point()
    with (
        open(os.devnull) as opened.file,
        pytest.raises(InputError, match=r"Point cannot be copied .*; give a function"),
    ):
        gpc.evaluate(parents[0], TimeLimit(opened, 9), episodes=1)
    with pytest.raises(
        InputError, match=r"<lambda> cannot be sent to a simulator process .*lock.*; give a function that"
    ):
        gpc.evaluate(parents[0], lambda: (lock, outside.Point())[1], episodes=1)
    with pytest.raises(InputError, match=r"Point cannot be sent to a simulator process .*lock.*; give a function that"):
        gpc.evaluate(parents[0], TimeLimit(holder, 9), episodes=1)
    with pytest.raises(
        InputError, match=r"env=<lambda> makes a builtins.dict, no gymnasium.Env; derive it from gymnasium.Env"
    ):
        gpc.evaluate(parents[0], lambda: {}, episodes=1)
    with pytest.raises(
        InputError, match=r"SyncVectorEnv is no gymnasium.Env.*; give one environment, not a vector of them"
    ):
        gpc.evaluate(parents[0], gymnasium.make_vec("Pendulum-v1"), episodes=1)


FAULTY = """
import outside_gpc

class Crashing(outside_gpc.Point):
    def step(self, action):
        raise KeyError("arm")

class Narrow(outside_gpc.Point):
    def _frame(self):
        return {"state": super()._frame()["state"][:4]}

class Keyless(outside_gpc.Point):
    def _frame(self):
        return {"stat": super()._frame()["state"]}

class Silent(outside_gpc.Point):
    def step(self, action):
        return *super().step(action)[:4], {}

class Dark(outside_gpc.Point):
    metadata = {"render_modes": ["rgb_array"]}

    def render(self):
        raise OSError("cannot open the screen")
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Crashing", r"Crashing: step\(\) raises KeyError: 'arm'"),
        ("Keyless", r"Keyless observes no 'state', which its observation_space has"),
        ("Narrow", r"Narrow observes 'state' as \(4,\), its observation_space is \(5,\)"),
    ],
)
def test_a_fault_of_an_environment_shows_before_the_episodes(name, line, outside, parents, tmp_path, monkeypatch):
    (tmp_path / "faulty_gpc.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=line):
        gpc.evaluate(
            parents[0], gpc.EnvSpec(f"faulty_gpc:{name}", max_steps=9), episodes=1, run_dir=tmp_path / "run", video=0
        )
    assert not (tmp_path / "run").exists()


def test_a_picture_that_cannot_be_drawn_is_one_line_before_the_episodes(outside, tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "faulty_gpc.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    ask = ["env=faulty_gpc:Dark", "env.max_steps=8", "sampler.steps=2", "episodes=1", "video=1"]
    assert main(["evaluate", f"policies=[{tiny[0]}]", *ask, f"run_dir={tmp_path / 'run'}"]) == 2
    line = "gpc: video=1: cannot open the screen; or choose video=0"
    assert " ".join(capsys.readouterr().err.split()) == line
    assert not (tmp_path / "run").exists()


def test_registered_types_work_from_the_command_line(installed, tiny, tmp_path):
    both = [f"policies=[{','.join(tiny)}]", *SHORT, f"run_dir={tmp_path / 'run'}"]
    keys = ["search=halves", "search.episodes=2", "composer=sharpened", "composer.power=3", "report.episodes=1"]
    done = gpc_command(installed, "search", *both, *keys, "sampler.best_of={n: 2, cost: upwards}")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/manifest.json").read_text())["config"]
    assert config["search"] == {"type": "halves", "episodes": 2, "seed": 100_000}
    assert config["composer"] == {"type": "sharpened", "power": 3.0}
    rows = read_rows(tmp_path / "run/episodes.jsonl")
    assert {row.weights for row in rows} == {(1, 0), (0, 1), (0.5, 0.5)}
    replayed = ["replay", str(tmp_path / "run"), "--episode", "4", "--policies", *tiny]
    refused = gpc_command(installed, *replayed)
    assert (refused.returncode, "composer.type='sharpened'" in " ".join(refused.stderr.split())) == (2, True)
    same = gpc_command(installed, *replayed, "--trust")
    assert same.returncode == 0, same.stderr + same.stdout


def test_a_registered_environment_works_from_the_command_line(installed, tiny, tmp_path):
    ask = [f"policies=[{tiny[0]}]", *SHORT, "env=point", "env.options.size=256", "episodes=2", f"run_dir={tmp_path}"]
    done = gpc_command(installed, "evaluate", *ask)
    assert done.returncode == 0, done.stderr
    env = json.loads((tmp_path / "manifest.json").read_text())["config"]["env"]
    assert env == {"type": "point", "n_action_steps": 8, "max_steps": 8, "options": {"size": 256.0}}
    wrong = gpc_command(installed, "evaluate", *ask[:-3], "env.options.size=wide", "episodes=1")
    assert (wrong.returncode, "env.options.size=wide: Expected `float`" in " ".join(wrong.stderr.split())) == (2, True)
    shown = gpc_command(installed, "search", "-h").stdout
    assert "# search 'broken' needs a package that is missing" in shown
    assert "# search=halves: keys search.*\nepisodes: 1\nseed: 100000" in shown


def test_a_class_of_the_working_directory_is_an_environment_of_the_command_line(beside, tiny, capfd):
    (beside / "beside_env.py").write_text(MODULE)
    ask = [f"policies=[{tiny[0]}]", "sampler.steps=2", "episodes=1", "engine.workers=1"]
    given = [*ask, "env=beside_env:Point", "env.max_steps=8", "env.options.size=256"]
    assert main(["evaluate", *given, "run_dir=run"]) == 0, capfd.readouterr().err
    assert "no video: Point draws no picture" in " ".join(capfd.readouterr().out.split())
    env = json.loads((beside / "run/manifest.json").read_text())["config"]["env"]
    assert env == {"type": "beside_env:Point", "n_action_steps": 8, "max_steps": 8, "options": {"size": 256.0}}
    replayed = ["replay", "run", "--episode", "0", "--policies", tiny[0]]
    assert main(replayed) == 2
    assert "env.type='beside_env:Point', which is not loaded because a folder" in " ".join(
        capfd.readouterr().err.split()
    )
    assert main([*replayed, "--trust"]) == 0
    (beside / "beside_any.py").write_text("import beside_env\ndef make(**all):\n    return beside_env.Point(**all)\n")
    anything = [*ask, "env=beside_any:make", "env.max_steps=8", "env.options.size=256", "run_dir=any", "video=0"]
    assert main(["evaluate", *anything]) == 0, capfd.readouterr().err
    assert read_rows(beside / "any/episodes.jsonl") == read_rows(beside / "run/episodes.jsonl")
    assert main(["evaluate", *given, "env.options.sise=2"]) == 2
    assert "env.options takes no 'sise'; did you mean 'size'?" in " ".join(capfd.readouterr().err.split())
    assert main(["evaluate", *given, "run_dir=other", "env.options.size=wide"]) == 2
    assert "env.options.size=wide: Expected `float`" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "task", "steps"),
    [
        ("outside_gpc:make_point", "outside_gpc:make_point", 9),
        ("outside_gpc:Registered-v0", "outside_gpc:Registered-v0", 11),
        ("FetchReach-v4", "FetchReach-v4", 50),
    ],
)
def test_a_function_or_an_id_is_an_environment_whose_length_is_its_own(name, task, steps, outside):
    for spec in (env_named(name), spec_of(name)):
        assert (spec.name, spec.max_steps) == (task, None)
        assert make_env(spec).max_steps == steps
    assert env_named(name, ["env.max_steps=7"]).max_steps == 7


def test_the_length_that_is_used_is_printed_and_recorded(outside, tiny, tmp_path, capsys):
    ask = [f"policies=[{tiny[0]}]", "sampler.steps=2", "episodes=1", "engine.workers=1", "video=0"]
    assert main(["evaluate", *ask, "env=outside_gpc:Registered-v0", f"run_dir={tmp_path}"]) == 0
    assert "max_steps=11, the longest episode of outside_gpc:Registered-v0" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "manifest.json").read_text())["config"]["env"]["max_steps"] == 11
    assert [row.steps for row in read_rows(tmp_path / "episodes.jsonl")] == [11]


def test_an_environment_that_reports_no_success_measures_scores(outside, tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "faulty_gpc.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    ask = ["sampler.steps=2", "engine.workers=1", "video=0", "env=faulty_gpc:Silent", "env.max_steps=8"]
    assert main(["evaluate", *ask, f"policies=[{tiny[0]}]", "episodes=2", f"run_dir={tmp_path / 'one'}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no success is reported (is_success, success or tasks_to_complete" in shown
    assert "not reported" in shown
    assert "0.0 (0.0" not in shown
    assert [row.reported for row in read_rows(tmp_path / "one/episodes.jsonl")] == [False, False]
    assert "not reported" in (tmp_path / "one/report.html").read_text()
    twins = [load_policy(tiny[0]), replace(load_policy(tiny[0]), name="twin")]
    compared = gpc.compare(*twins, gpc.EnvSpec("faulty_gpc:Silent", max_steps=8), **ONCE)
    assert "no success is reported" in compared.summary["verdict"]
    assert math.isnan(gpc.evaluate(twins[0], gpc.EnvSpec("faulty_gpc:Silent", max_steps=8), **ONCE).success)


def test_a_name_that_no_package_registers_is_answered_with_those_that_are(capsys):
    assert main(["search", "policies=[a,b]", "search=halfs"]) == 2
    assert "unknown search 'halfs'; choose one of demos, gp, grid" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", "policies=[a]", "env="]) == 2
    assert "unknown env ''; choose one of can, " in " ".join(capsys.readouterr().err.split())


def test_an_environment_of_a_module_that_it_lacks_is_named(outside):
    with pytest.raises(InputError, match=r"outside_gpc holds no 'Pint'; did you mean 'Point'\?"):
        env_named("outside_gpc:Pint")
    with pytest.raises(InputError, match=r"env=outside_gpc:__name__ is a str; name a class, or a function that makes"):
        env_named("outside_gpc:__name__")


def test_a_place_in_a_tuple_is_the_name_of_an_observation():
    assert load_config("evaluate", ["policies=[a]", "rename_map={state: 0, 1: arm}"])["rename_map"] == {
        "state": "0",
        "1": "arm",
    }


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A module in the working directory, which is on no path."""
    (tmp_path / "beside_gpc.py").write_text("import beside_part\nclass Thing:\n    part = beside_part.PART\n")
    (tmp_path / "beside_part.py").write_text("PART = 3\n")
    (tmp_path / "beside_broken.py").write_text("\nraise ValueError('no arm')\n")
    (tmp_path / "beside_lacking.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("gpc.registry.USER_FOLDERS", set())
    monkeypatch.setattr("gpc.rollout.process.USER_FOLDERS", gpc.registry.USER_FOLDERS)
    return tmp_path


def test_a_module_that_the_user_names_is_found_in_the_working_directory(beside):
    assert str(beside) not in search_path()
    assert load_named("json:dumps", "env") is json.dumps
    assert str(beside) not in sys.path, "a folder without a module of this name is no place to import from"
    assert load_named("beside_gpc:Thing", "env").part == 3
    assert sys.path[0] == str(beside)
    assert str(beside) in search_path(), "simulator processes import it too"
    assert load_named("beside_gpc:Thing.part", "env") == 3


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no_such_module:Arm", r"env: there is no module 'no_such_module', neither in .* nor installed"),
        ("beside_gpc.py:Thing", r"env: there is no module 'beside_gpc.py', .*; write beside_gpc:NAME"),
        ("beside_gpc:Thin", r"env: beside_gpc holds no 'Thin'; did you mean 'Thing'\?"),
        ("beside_broken:Arm", r"env: the module beside_broken does not import \(ValueError: no arm, .*broken.py:2\)"),
        ("beside_lacking:Arm", r"env: beside_lacking needs a package that is missing \(No module named 'no_such"),
    ],
)
def test_a_named_object_that_cannot_be_imported_is_one_line(beside, name, line):
    with pytest.raises(InputError, match=line):
        load_named(name, "env")


def test_the_page_of_ones_own_environment_runs(user_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(user_folder))  # as the folder of a script, which pytest is not
    names = run_python(
        "your-own-environment.md", shorter={'{"episodes": 2}': '{**ONCE, "episodes": 1}'}, names={"ONCE": ONCE}
    )
    scores = {name: names[name].score for name in ("made", "named", "spec", "inline")}
    assert scores["made"] == scores["spec"] == scores["inline"] != scores["named"]
    assert {names[name].rows[0].steps for name in scores} == {60}
