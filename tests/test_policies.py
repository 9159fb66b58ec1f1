"""`gpc policies`: the bundled policies, and what a checkpoint of the user's reads and predicts."""

from gpc.commands.cli import main
from gpc.inference.modules import size_of
from gpc.policy.load import load_policy


def test_a_policy_of_the_user_is_described_before_it_is_run(tiny, capsys):
    policy = load_policy(tiny[0])
    assert main(["policies", *tiny]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0].strip() == policy.name
    for key, shape in policy.observations.shapes.items():
        assert any(f"{key} {shape}" in line for line in lines)
    assert any(f"{policy.actions.horizon} steps, -1 to" in line for line in lines)
    assert any(f"{size_of(policy).parameters:,} parameters, " in line for line in lines)
    assert sum("sigma from" in line for line in lines) == len(tiny)
    assert sum("not declared: give env=" in line for line in lines) == len(tiny)


def test_an_unknown_policy_is_named_with_its_neighbours(capsys):
    assert main(["policies", "pusht-flo"]) == 2
    assert (
        "no bundled policy and no folder is called 'pusht-flo'; did you mean 'pusht-flow'?" in capsys.readouterr().err
    )
