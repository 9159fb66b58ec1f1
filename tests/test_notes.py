"""Notes on a composition: what is approximate, and what cannot be checked, of the policies that have weight."""

from dataclasses import replace

import pytest
from models import ACTIONS, FixedPolicy, Gaussian

import gpc
from gpc.commands.setup import print_warnings, warnings_of
from gpc.inert import Console

UNDECLARED = "without a declaration whether actions are moves (delta) or absolute targets"


def policy(name, relative):
    return FixedPolicy(Gaussian(), replace(ACTIONS, relative=relative), name=name)


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ((None,), ""),
        ((None, False), "p0"),
        ((None, True), "p0"),
        ((None, None), ""),
        ((None, True, None), "p0, p2"),
        ((False, False), ""),
    ],
)
def test_undeclared_moves_are_noted_in_a_composition_only(kinds, named):
    notes = warnings_of(gpc.compose([policy(f"p{i}", kind) for i, kind in enumerate(kinds)]))
    assert [note.split(":")[0] for note in notes] == ([f"{named} {UNDECLARED}"] if named else [])


@pytest.mark.parametrize(
    ("weightings", "noted"),
    [([(1.0, 0.0)], False), ([(0.0, 1.0), (1.0, 0.0)], False), ([(0.5, 0.5), (1.0, 0.0)], True), ([], True)],
)
def test_a_policy_without_weight_is_in_no_note(capsys, weightings, noted):
    both = gpc.compose([policy("first", None), policy("second", False)])
    print_warnings(both, Console(), *weightings)
    assert capsys.readouterr().out.count(f"note: first {UNDECLARED}") == noted
