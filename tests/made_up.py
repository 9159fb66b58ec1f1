"""Made-up run folders, written as experiments write them: outcomes in, a finished run out."""

import json
import sys
from pathlib import Path

import numpy as np

from gpc.results.run_folder import Row, RunFolder
from gpc.results.summary import summarize_evaluation, summarize_search
from gpc.weights.simplex import one_hot, simplex

ENV = {
    "type": "Push",
    "n_action_steps": 8,
    "max_steps": 4,
    "options": None,
}
SAMPLER = {"method": "euler", "steps": 8}


def write_rows(path, policies, rows, env=ENV, trajectory=None, **config):
    """A folder with these rows and no summary yet."""
    prints = {name: f"print of {name}" for name in policies}
    settings = {"policies": list(policies), "fingerprints": prints, "env": env, "sampler": SAMPLER, **config}
    with RunFolder(path, settings, env["max_steps"], {"env": env, "sampler": SAMPLER}) as folder:
        for row in rows:
            folder.extend([(row, trajectory or {})])
    return path


def write_summary(path, summary):
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def write_search(path, policies, search, report, winner, env=ENV):
    """`search` and `report` are {weights: {seed: success}}; `winner` is one of the weights."""
    numbers = {weights: i for i, weights in enumerate(dict.fromkeys([*search, *report]))}
    rows = [
        Row(phase, numbers[weights], seed, weights, bool(success), 0.25 + success / 2, 4)
        for phase, table in (("search", search), ("report", report))
        for weights, outcomes in table.items()
        for seed, success in outcomes.items()
    ]
    write_rows(path, policies, rows, env)
    parts = len(winner) // len(policies)
    parents = {name: numbers[one_hot(i, len(policies)) * parts] for i, name in enumerate(policies)}
    phases = ([row for row in rows if row.phase == phase] for phase in ("search", "report"))
    return write_summary(path, summarize_search(policies, *phases, numbers[winner], parents, 0))


def write_evaluation(path, policies, weights, outcomes, env=ENV):
    """`outcomes` is {seed: success}."""
    rows = [Row("evaluate", 0, seed, weights, bool(won), 0.25 + won / 2, 4) for seed, won in outcomes.items()]
    write_rows(path, policies, rows, env, weights=list(weights))
    return write_summary(path, summarize_evaluation(policies, rows, 0))


def random_search(path, policies, episodes, report, step=0.1, seed=0):
    """A search over the simplex whose best weights are in its middle; `episodes(i)` of the i-th candidate."""
    rng = np.random.default_rng(seed)

    def draw(weights, seeds):
        rate = 0.2 + 0.6 * len(policies) ** len(policies) * float(np.prod(weights))
        return {s: bool(rng.random() < rate) for s in seeds}

    candidates = simplex(len(policies), step)
    search = {w: draw(w, range(100_000, 100_000 + episodes(i))) for i, w in enumerate(candidates)}
    winner = max(search, key=lambda w: (np.mean(list(search[w].values())), len(search[w])))
    parents = [one_hot(i, len(policies)) for i in range(len(policies))]
    told = {w: draw(w, range(200_000, 200_000 + report)) for w in dict.fromkeys([*parents, winner])}
    return write_search(path, policies, search, told, winner)


if (
    __name__ == "__main__"
):  # python tests/made_up.py FOLDER EPISODES: a search over three policies of about so many episodes
    total = int(sys.argv[2])
    random_search(Path(sys.argv[1]), ["a", "b", "c"], lambda _: total * 9 // 10 // 66, total // 40)
