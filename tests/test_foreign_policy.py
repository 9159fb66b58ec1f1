"""A flow policy of another codebase, wrapped as docs/your-own-policy.md has it: checked, evaluated, composed and searched.

The network (`foreign_flow`) was trained on PushT without gpc: reversed time, mean and standard deviation, chunks of 8.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from docs_blocks import run_python, write_files

from gpc.commands.cli import main

TESTS = Path(__file__).parent
PAGE, SOURCE = "your-own-policy.md", "my_policy:MyPolicy:weights.pt"
REVERSED = ("LinearFlow(reverse=True)", "LinearFlow()")


@pytest.fixture
def folder(user_folder):
    """The folder of a user who follows the page: training, weights, held-out demonstrations, my_policy.py."""
    shutil.copy(TESTS / "foreign_flow.py", "my_training.py")
    shutil.copy(TESTS / "data/foreign-flow.pt", "weights.pt")
    shutil.copy(TESTS / "data/pusht-held-out.zarr.zip", "held_out.zarr.zip")
    write_files(PAGE)
    return user_folder


class TrainingNetwork(torch.nn.Module):
    """The network of the page's DDPM as its training leaves it: its weights require gradients."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, step, state):
        return self.layer(x) * state.mean((1, 2))[:, None, None] / 256


def said(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert code == 0, text
    return text


def summary(run):
    return json.loads((Path(run) / "summary.json").read_text())


def test_the_blocks_of_the_page_run(folder):
    names = run_python(PAGE, {"network": TrainingNetwork()}, {"episodes=50": "episodes=1"})
    assert names["mixed"].name == "mine + pusht-flow"
    assert [row.seed for row in names["result"].rows] == [200_000]
    chunk = names["diffusion"].condition({"state": torch.ones(1, 2, 5)})(torch.zeros(1, 16, 2), torch.tensor(1.0))
    assert chunk.shape == (1, 16, 2)
    lines = [line for line in (folder / "my_policy.py").read_text().splitlines() if line.strip()]
    assert len(lines[1:]) <= 20, "beside the name of the file"


def test_it_is_evaluated_from_the_shell_and_its_success_is_of_the_right_order(folder, capsys):
    ask = ["evaluate", "env=pusht", "episodes=8", "video=0"]
    said(capsys, *ask, f"policies=[{SOURCE}]", "run_dir=right")
    text = (folder / "my_policy.py").read_text()
    assert REVERSED[0] in text
    (folder / "my_wrong.py").write_text(text.replace(*REVERSED))
    said(capsys, *ask, f"policies=[{SOURCE.replace('my_policy', 'my_wrong')}]", "run_dir=wrong")
    assert summary("right")["avg_max_reward"] > 0.7
    assert summary("right")["pc_success"] > 0
    assert summary("wrong")["avg_max_reward"] < 0.5


def test_it_is_diagnosed_and_searched_beside_a_bundled_policy(folder, capsys):
    both = [f"policies=[{SOURCE},pusht-flow]", "demonstrations=held_out.zarr.zip", "video=0"]
    text = said(capsys, "diagnose", both[0], both[1], "env.max_steps=16", "chunks=1", "sampler.steps=3")
    assert "least one-step denoising error" in text
    assert "note: mine: at sigma" not in text
    plan = ["search=grid", "search.step=0.5", "search.episodes=1", "report.episodes=1", "env.max_steps=16"]
    said(capsys, "search", *both, *plan, "sampler.steps=4", "run_dir=run")
    found = summary("run")
    assert {tuple(c["weights"]) for c in found["candidates"]} == {(1, 0), (0.5, 0.5), (0, 1)}
    assert set(found["denoising_error"]["rms"]) == {"mine", "pusht-flow"}
    assert "mine" in (folder / "run/report.html").read_text()


def test_a_wrong_time_is_a_note_of_the_diagnosis(folder, capsys):
    (folder / "my_wrong.py").write_text(
        (folder / "my_policy.py").read_text().replace(*REVERSED).replace("mine", "wrong")
    )
    both = f"policies=[my_wrong:MyPolicy:weights.pt,{SOURCE}]"
    ask = ["diagnose", both, "demonstrations=held_out.zarr.zip", "env.max_steps=8", "chunks=1", "sampler.steps=2"]
    text = said(capsys, *ask, "run_dir=out")
    assert "note: wrong: at sigma=5 demonstrated actions are denoised with an error of 1." in text
    assert "the error falls if the time is reversed, LinearFlow(reverse=True)" in text
    assert list(json.loads(Path("out/diagnosis.json").read_text())["faults"]) == ["wrong"]
