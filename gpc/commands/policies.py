"""`gpc policies`: the bundled policies, and what any policy reads and predicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from gpc.inert import Console
from gpc.inference.modules import size_of
from gpc.inference.native import HasSampling, as_arguments, declared_action_steps
from gpc.policy.load import bundled_cards, load_policy
from gpc.policy.spec import HasSimulator, Policy
from gpc.results.summary import with_interval


def print_policies(sources: Sequence[str], console: Console) -> None:
    """Print the table of bundled policies, or what is known of each named one.

    Args:
        sources: bundled names, for which the card is printed, or others that `load_policy` takes.
        console: where to print.

    Raises:
        InputError: If a name is unknown, or a policy does not load.
    """
    cards = bundled_cards()
    if not sources:
        console.print(_bundled(cards))
    for source in sources:
        if source in cards:
            console.print_json(json.dumps(cards[source]))
        else:
            console.print(_facts(source, load_policy(source)))


def _bundled(cards: dict[str, dict[str, Any]]) -> Table:
    head = ("policy", "task", "success % (95 %)", "sampler")
    table = Table(*(Column(name, no_wrap=True) for name in head), caption="gpc policies NAME shows the card of one")
    for name, card in cards.items():
        if measured := card.get("measured"):
            success = with_interval(measured["pc_success"], measured["pc_success_ci95"], measured["n_episodes"])
            table.add_row(name, measured["env"], success, measured["sampler"])
        else:
            table.add_row(name, "", "not measured", "")
    return table


def _facts(source: str, policy: Policy) -> Table:
    """Return what a policy reads, predicts and was trained for, a line each."""
    actions, observations, levels = policy.actions, policy.observations, policy.levels
    kind = {None: "not declared: targets or moves", False: "absolute targets", True: "moves (delta actions)"}
    names = f" ({', '.join(actions.names)})" if actions.names else ""
    first, last = actions.start * actions.dt, (actions.start + actions.horizon - 1) * actions.dt
    trained = "every level" if levels.trained is None else f"{len(levels.trained)} levels"
    counts = declared_action_steps([policy])
    sampling = policy.sampling if isinstance(policy, HasSampling) else None
    simulator = policy.simulator if isinstance(policy, HasSimulator) else None
    size = size_of(policy)
    facts = {
        "source": source,
        "task": "not declared: give env=" if simulator is None else simulator.name,
        "reads": "\n".join(f"{key} {shape}" for key, shape in observations.shapes.items()),
        "history": f"{observations.n_obs_steps} observations",
        "actions": f"{actions.dim} numbers{names}, {kind[actions.relative]}",
        "chunk": f"{actions.horizon} steps, {first:g} to {last:g} control steps from now",
        "noise": f"{trained} of sigma from {levels.sigma_min:.3g} to {levels.sigma_max:.4g}",
        "executes": "not declared" if not counts else f"{counts[0][1]} actions of a chunk",
        "sampler": "not declared" if sampling is None else as_arguments(sampling),
        "weights": f"{size.parameters:,} parameters, {size.bytes / 2**20:,.0f} MiB" if size.parameters else "elsewhere",
        "hash": policy.fingerprint[:16],
    }
    table = Table(Column(no_wrap=True), Column(), title=Text(policy.name), show_header=False)
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    return table
