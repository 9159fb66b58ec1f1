"""`gpc compare`: it stops when the answer is known, at the same episode whatever happens on the way."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

import gpc
from gpc.commands.cli import main
from gpc.commands.comparison import Side, run_comparison
from gpc.commands.config import load_config
from gpc.errors import InputError
from gpc.inference.device import Device
from gpc.policy.adapt import rename
from gpc.results.run_folder import Row, RunFolder, read_json, read_rows
from gpc.results.sequential import anytime_p
from gpc.results.stats import pairs_needed
from gpc.rollout.engine import RolloutStats

SHORT = ["env.max_steps=48", "block=3", "episodes=7", "video=0"]


@dataclass(eq=False)
class Scripted:
    """An experiment whose episodes are drawn: a side succeeds on a seed with the probability that is its weight.

    `dies_after` rows it stops, as if killed.
    """

    name: str
    most: int
    dies_after: int = 10**9
    rolled: list[tuple[int, int]] = field(default_factory=list)
    stats: RolloutStats = field(default_factory=RolloutStats)
    episodes: int = 0
    seconds: float = 0.0

    @property
    def setup(self):
        return self

    @property
    def names(self):
        return [self.name]

    def check(self, weights):
        assert len(weights) == 1

    def warn_reused_seeds(self, runs, seeds):
        assert len(seeds) == self.most

    @property
    def settings(self):
        named = {"policies": self.names, "fingerprints": {self.name: "none"}, "composer": "convex"}
        return named | Device("cpu").settings(self.names)

    def open(self, path, settings):
        return RunFolder(path, settings, 4)

    def roll(self, folder, phase, jobs, title):
        todo = [job for job in jobs if (phase, job.candidate, job.seed) not in folder.rows]
        random.shuffle(todo)  # episodes finish in any order
        for candidate, weights, seed in todo:
            if len(folder.rows) >= self.dies_after:
                raise KeyboardInterrupt
            won = bool(np.random.default_rng([seed, candidate]).random() < weights[0])
            folder.extend([(Row(phase, candidate, seed, weights, won, float(won), 4), {"action": np.zeros((4, 1))})])
            self.rolled.append((candidate, seed))


def scripted(path, a, b, most=400, **settings):
    """Run two arms with these rates; returns (summary, episodes that ran)."""
    first, second = Scripted("a", most, **settings), Scripted("b", most, **settings)
    summary = run_comparison([Side(first, (a,)), Side(second, (b,))], range(1000, 1000 + most), 16, path)
    return summary, first.rolled + second.rolled


def test_it_stops_after_the_first_block_that_tells(tmp_path):
    summary, rolled = scripted(tmp_path, 0.9, 0.6)
    n = summary["n_episodes"]
    assert n % 16 == 0
    assert 16 < n < 200
    assert len(rolled) == 2 * n
    assert (summary["better"], summary["p_value"] < 0.05, summary["pc_success_gain_ci95"][0] > 0) == ("a", True, True)
    assert f"a succeeds more often than b: {summary['sides'][0]['pc_success']:.1f} % against" in summary["verdict"]
    assert f"shown after {n} pairs" in summary["verdict"]
    assert str(summary["fixed_episodes"]) in summary["verdict"]
    rows = {(row.candidate, row.seed): row.success for row in read_rows(tmp_path / "episodes.jsonl")}

    def p_value(count):
        pairs = [(rows[0, seed], rows[1, seed]) for seed in range(1000, 1000 + count)]
        return anytime_p(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))

    assert p_value(n) == summary["p_value"] < 0.05
    assert all(p_value(count) >= 0.05 for count in range(16, n, 16))


def test_the_worse_side_is_named_as_such(tmp_path):
    summary, _ = scripted(tmp_path, 0.3, 0.8)
    assert summary["better"] == "b"
    assert summary["pc_success_gain_ci95"][1] < 0
    assert "a succeeds less often than b" in summary["verdict"]


def test_equal_arms_run_to_the_end_and_are_not_told_apart(tmp_path):
    summary, rolled = scripted(tmp_path, 0.5, 0.5, most=100)
    assert (summary["n_episodes"], summary["max_episodes"], len(rolled)) == (100, 100, 200)
    assert summary["better"] is None
    assert "100 pairs of episodes do not distinguish a and b" in summary["verdict"]
    price = pairs_needed(0.05, sum(summary["n_only_success"]) / 100)
    assert f"5 points would take a test of a fixed size about {price}. With more episodes" in summary["verdict"]


@pytest.mark.parametrize("dies_after", [1, 20, 33, 60])
def test_a_comparison_that_was_killed_stops_at_the_same_episode(tmp_path, dies_after):
    whole, rolled = scripted(tmp_path / "whole", 0.9, 0.6)
    with pytest.raises(KeyboardInterrupt):
        scripted(tmp_path / "killed", 0.9, 0.6, dies_after=dies_after)
    again, rest = scripted(tmp_path / "killed", 0.9, 0.6)
    assert again == whole
    assert len(rest) == len(rolled) - dies_after


def test_a_comparison_without_an_answer_goes_on_with_more_episodes(tmp_path):
    first, _ = scripted(tmp_path / "grown", 0.9, 0.6, most=20)
    assert first["better"] is None
    grown, rest = scripted(tmp_path / "grown", 0.9, 0.6)
    whole, rolled = scripted(tmp_path / "whole", 0.9, 0.6)
    assert grown == whole
    assert len(rest) == len(rolled) - 40


def test_two_equal_sides_are_refused(tmp_path):
    experiment = Scripted("a", 10)
    with pytest.raises(InputError, match="both sides are a"):
        run_comparison([Side(experiment, (0.5,)), Side(experiment, (0.5,))], range(10), 16, tmp_path)


def arguments(tiny, folder, *more):
    return ["compare", f"policies=[{','.join(tiny)}]", *SHORT, f"run_dir={folder}", *more]


def untimed(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("timing")["seconds_per_episode"] > 0
    return summary


def table(folder):
    return sorted(read_rows(folder / "episodes.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(arguments(tiny, folder)) == 0
    return folder


def test_the_command_runs_pairs_and_writes_what_it_promises(undisturbed, capsys):
    rows, summary = table(undisturbed), read_json(undisturbed / "summary.json")
    assert [(row.candidate, row.seed) for row in rows] == [
        (k, seed) for k in (0, 1) for seed in range(300_000, 300_007)
    ]
    assert [side["name"] for side in summary["sides"]] == summary["policies"] == ["tiny-noise", "tiny-flow"]
    assert {side["n_episodes"] for side in summary["sides"]} == {7}
    gain = np.mean([a.score - b.score for a, b in zip(rows[:7], rows[7:], strict=True)])
    assert summary["avg_max_reward_gain"] == pytest.approx(gain)
    page = (undisturbed / "report.html").read_text()
    assert "tiny-noise against tiny-flow" in page
    assert summary["verdict"] in page
    assert main(["report", str(undisturbed)]) == 0
    assert "7 pairs of episodes do not distinguish" in " ".join(capsys.readouterr().out.split())


def test_a_killed_command_goes_on_to_the_same_files(undisturbed, tiny, tmp_path):
    command = [sys.executable, "-P", "-m", "gpc.commands.cli", *arguments(tiny, tmp_path, "engine.lanes=1")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None and len(read_rows(tmp_path / "episodes.jsonl")) < 4:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 4 <= len(table(tmp_path)) < 14
    assert main(arguments(tiny, tmp_path)) == 0
    assert table(tmp_path) == table(undisturbed)
    assert untimed(tmp_path) == untimed(undisturbed)


def test_weightings_share_seeds_and_noise_with_the_policies_alone(undisturbed, tiny, parents, tmp_path):
    assert main(arguments(tiny, tmp_path, "weights=[[0.4,0.6],[0,1]]", "video=1", "episodes=3")) == 0
    summary = read_json(tmp_path / "summary.json")
    assert [side["name"] for side in summary["sides"]] == ["tiny-noise + tiny-flow [0.4, 0.6]", "tiny-flow"]
    scores = [(row.seed, row.score) for row in table(tmp_path) if row.candidate == 1]
    assert scores == [(row.seed, row.score) for row in table(undisturbed) if row.candidate == 1][:3]
    assert (tmp_path / "episodes.mp4").stat().st_size > 1000
    found = gpc.compare(
        gpc.compose(parents, [0.4, 0.6]), parents[1], gpc.EnvSpec("pusht", max_steps=48), block=3, episodes=3
    )
    assert [(row.seed, row.score) for row in found.rows] == [(row.seed, row.score) for row in table(tmp_path)]
    assert (found.better, found.success) == (None, (0, 0))
    assert found.difference_ci95[0] < found.difference == 0 < found.difference_ci95[1]


def test_a_policy_with_other_names_is_on_both_sides(parents):
    keys = sorted({key for parent in parents for key in parent.observations.shapes})
    members = [rename(parent, {key: f"my.{key}" for key in keys}) for parent in parents]
    env = gpc.EnvSpec("pusht", max_steps=8, rename_map={f"my.{key}": key for key in keys})
    short = {"block": 1, "episodes": 1, "sampler": gpc.Sampling(steps=2)}
    renamed = gpc.compare(gpc.compose(members, [0.4, 0.6]), members[1], env, **short)
    plain = gpc.compare(gpc.compose(parents, [0.4, 0.6]), parents[1], gpc.EnvSpec("pusht", max_steps=8), **short)
    assert [row.score for row in renamed.rows] == [row.score for row in plain.rows]


def test_policies_that_do_not_compose_are_compared(tiny, spoiled, tmp_path):
    other = spoiled("tiny-flow", scale=[256.0, 128.0])
    assert main(["compare", f"policies=[{tiny[0]},{other}]", *SHORT, "episodes=1", f"run_dir={tmp_path / 'run'}"]) == 0
    assert len(table(tmp_path / "run")) == 2


def test_seeds_that_have_chosen_weights_are_named(tiny, tmp_path, capsys):
    run = ["evaluate", f"policies=[{','.join(tiny)}]", "weights=[0.5,0.5]", "episodes=2", "video=0", "env.max_steps=16"]
    assert main([*run, f"run_dir={tmp_path / 'first'}"]) == 0
    search = tmp_path / "search"
    search.mkdir()
    (search / "manifest.json").write_text((tmp_path / "first" / "manifest.json").read_text())
    (search / "episodes.jsonl").write_text(
        (tmp_path / "first" / "episodes.jsonl").read_text().replace("evaluate", "search")
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("[1, 2")  # not ours: passed over
    assert "chose weights" not in capsys.readouterr().out
    assert main([*run, "seed=200001", f"run_dir={tmp_path / 'second'}"]) == 0
    assert f"note: {search} chose weights of these policies on seeds 200000 to 200001" in capsys.readouterr().out
    assert main([*run, "seed=200002", f"run_dir={tmp_path / 'third'}"]) == 0
    assert "chose weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["policies=[{0}]"], "compare takes two policies, not 1, or two lists of weights"),
        (["policies=[{0},{0}]"], "names 'bundled:"),
        (["policies=[{0},{1}]", "weights=[0.5,0.5]"], "compare takes two lists of weights, as in"),
        (["policies=[{0},{1}]", "weights=[[0.5,0.5]]"], "compare takes two lists of weights, as in"),
        (["policies=[{0},{1}]", "weights=[[0.5,0.5],[0.5,0.5]]"], "both sides are tiny-noise + tiny-flow [0.5, 0.5]"),
        (["policies=[{0},{1}]", "weights=[[0.5,0.5],[0.9,0.5]]"], "[0.9, 0.5] sum to 1.4"),
        (["policies=[{0},{1}]", "weights=[[0.5,0.5],[1]]"], "1 weights for 2 policies"),
        (["policies=[{0},{1}]", "weights=[[a,0.5],[0,1]]"], "weights=[a, 0.5] must be numbers"),
        (["policies=[{0},{1}]", "block=0"], "block=0: Expected `int` >= 1"),
        (["policies=[{0},{1}]", "episodes=null"], "episodes=None: Expected `int`"),
        (["policies=[{0},{1}]", "episodes=100000000"], "episodes=100000000: Expected `int` <= 1000000"),
        (["policies=[{0},{1}]", "seed=-4"], "seed=-4: Expected `int` >= 0"),
    ],
)
def test_bad_comparisons_are_one_line_and_exit_two(tiny, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *(key.replace("{0}", tiny[0]).replace("{1}", tiny[1]) for key in more)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/*/episodes.jsonl"))


def test_the_examples_of_the_help_are_valid(capsys):
    main(["-h"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("gpc compare ")]
    assert sum(bool(load_config("compare", keys).policies) for keys in examples if "KEY=VALUE" not in keys) == 2
    main(["compare", "-h"])
    assert "episodes of each side between two looks" in capsys.readouterr().out
