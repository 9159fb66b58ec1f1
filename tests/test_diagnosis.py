"""What `gpc diagnose` says, against closed forms, and its command on bundled policies."""

import json

import numpy as np
import pytest
import torch
from hostile import NAMES, harmful
from models import FixedPolicy, Gaussian

from gpc.commands.cli import main
from gpc.commands.diagnosis import RecordingComposer, alignment, disagreement, seconds, show
from gpc.composition.composed import compose
from gpc.envs.pusht import PushT
from gpc.inert import Console
from gpc.inference.settings import Sampling
from gpc.rollout.env import Pointing

SAMPLING = Sampling("dpmpp_2m", 12, 20.0, 0.01)
SEEN = {"state": np.zeros((5, 2, 3))}


def test_two_gaussians_differ_by_what_their_means_do():
    """Of equal spread s: |denoised_i - denoised_j| = sigma^2 |m_i - m_j| / (s^2 + sigma^2), whatever x."""
    policy = compose([FixedPolicy(Gaussian(-1.0, 0.4)), FixedPolicy(Gaussian(2.0, 0.4))])
    sigmas, apart = disagreement(policy, SAMPLING, SEEN, 0)
    assert apart.shape == (len(sigmas), 1, 5)
    wanted = 3 * sigmas**2 / (0.4**2 + sigmas**2)
    np.testing.assert_allclose(apart, np.broadcast_to(wanted[:, None, None], apart.shape), rtol=1e-9)
    assert (np.diff(apart[:, 0, 0]) <= 1e-12).sum() > len(sigmas) / 2  # towards the data they agree


def test_three_policies_make_three_pairs_and_one_makes_none():
    three = compose([FixedPolicy(Gaussian(float(m), 0.4)) for m in (0, 1, 3)])
    _, apart = disagreement(three, SAMPLING, SEEN, 0)
    np.testing.assert_allclose(apart[0, :, 0] / apart[0, 0, 0], [1, 3, 2], rtol=1e-9)
    assert disagreement(compose([FixedPolicy(Gaussian())]), SAMPLING, SEEN, 0)[1].size == 0


def test_listening_changes_nothing():
    parents = [FixedPolicy(Gaussian(-1.0, 0.4)), FixedPolicy(Gaussian(2.0, 0.7))]
    policy = compose(parents, [0.3, 0.7])
    x, sigma = torch.randn(2, 16, 2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    members, mask = [m.denoiser(x, sigma) for m in parents], torch.ones(2, 16, 2)
    recorder = RecordingComposer(policy.composer)
    assert torch.equal(recorder(x, sigma, members, mask), policy.composer(x, sigma, members, mask))
    assert recorder.active_members(mask, 0.7) == policy.composer.active_members(mask, 0.7)
    assert [level for level, _ in recorder.calls] == [0.7]
    recorder(x, sigma, [members[0], None], mask)  # not everyone was asked: there is nothing to compare
    assert len(recorder.calls) == 1


def test_alignment_says_what_each_member_brings():
    first, second = alignment(compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), name="other")]))
    assert (first["name"], second["name"]) == ("fixed", "other")
    assert (first["steps"], first["noise_ratio"], first["note"]) == ([0, 15], 1.0, "")


def test_the_time_of_a_call_is_a_median_after_a_warm_up():
    calls = []
    assert seconds(lambda: calls.append(1)) >= 0
    assert len(calls) == 6


def test_pushts_actions_lie_in_its_picture():
    env = PushT(max_steps=10)
    assert isinstance(env, Pointing)
    env.reset(seed=0)
    env.advance(np.array([100.0, 400.0]))
    picture = env.render()
    x, y = env.pixels(np.array([100.0, 400.0])).round().astype(int)
    red = picture[y, x].astype(int)
    assert red[0] > 200  # the cross at the last action
    assert red[1:].max() < 100
    env.close()


def test_the_command_writes_a_diagnosis_and_its_pictures(tmp_path, capsys):
    folder = tmp_path / "out"
    ask = ["diagnose", "policies=[pusht-beso,pusht-flow]", "env.max_steps=16", "chunks=2", "sampler.steps=3"]
    assert main([*ask, f"run_dir={folder}"]) == 0
    found = json.loads((folder / "diagnosis.json").read_text())
    assert list(found["disagreement_by_sigma"]) == ["pusht-beso and pusht-flow"]
    assert len(found["disagreement_by_decision"]["pusht-beso and pusht-flow"]) == 2
    assert all(apart > 0 for apart in found["disagreement_by_sigma"]["pusht-beso and pusht-flow"])
    assert set(found["seconds_per_chunk"]) == {"pusht-beso", "pusht-flow", "composition"}
    for name in ("chunks.png", "disagreement.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    page = (folder / "report.html").read_text()
    assert page.count("data-item=") == 2
    assert page.count('src="data:image/png;base64') == 1
    assert "gpc diagnose &#39;policies=[pusht-beso,pusht-flow]&#39;" in page
    said = capsys.readouterr().out
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    again = (folder / "report.html").read_text()
    assert again.partition("data-item=")[0] == page.partition("data-item=")[0]
    assert again.count("data-item=") == 2
    (folder / "diagnosis.json").write_text('{"members": [{}]}')
    assert main(["report", str(folder)]) == 2
    assert "diagnosis.json" in capsys.readouterr().err
    assert "furthest apart at sigma" in said
    assert "demonstrations=FILE" in said


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (["policies=[pusht-beso]"], "a diagnosis needs at least two policies"),
        (["policies=[pusht-beso,pusht-flow]", "demonstrations=nowhere.zarr"], "nowhere.zarr"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(ask, error, capsys):
    assert main(["diagnose", *ask]) == 2
    assert error in capsys.readouterr().err


def test_a_composer_that_follows_densities_can_be_diagnosed(tmp_path):
    keys = ["composer=or", "sampler=ancestral", "sampler.steps=3"]
    ask = ["diagnose", "policies=[pusht-beso,pusht-flow]", "env.max_steps=8", "chunks=1", *keys]
    assert main([*ask, f"run_dir={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out/diagnosis.json").exists()


def test_hostile_names_are_printed_as_they_are(capsys):
    name = " ".join(name for name in NAMES if len(name) < 300)
    policy = compose([FixedPolicy(Gaussian(), name=name), FixedPolicy(Gaussian(), name="other")])
    pair = f"{name} and other"
    found = {
        "members": [member | {"note": name} for member in alignment(policy)],
        "sigmas": [1.0, 0.1],
        "disagreement_by_sigma": {pair: [0.2, 0.1]},
        "seconds_per_chunk": {name: 0.1, "other": 0.1, "composition": 0.2},
        "denoising_error": {"verdict": name},
    }
    show(found, Console(width=2000))
    printed = capsys.readouterr().out
    assert harmful(printed) == set()
    assert printed.count("model[best] x[/bold] [link=http://e.example]x[/link] :skull: $a$") == 5


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpc.commands.diagnosis.disagreement_plot", lambda _: 1 / 0)
    ask = ["diagnose", "policies=[pusht-beso,pusht-flow]", "env.max_steps=8", "chunks=1", "sampler.steps=3"]
    assert main([*ask, f"run_dir={tmp_path / 'out'}"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"diagnosis.json", "chunks.png", "report.html"}
    assert capsys.readouterr().err == "gpc: disagreement.png is missing: ZeroDivisionError: division by zero\n"
