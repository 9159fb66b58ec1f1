"""device, dtype and tf32 in the commands: what is refused before any network is loaded, what a run records, replay."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import gpc
from gpc.commands.cli import main
from gpc.commands.setup import device_under
from gpc.errors import InputError
from gpc.results.run_folder import RunFolder, read_json, read_rows
from gpc.rollout.executors import Local, Ray

HELD_OUT = Path(__file__).parent / "data" / "pusht-held-out.zarr.zip"
SHORT = ["env.max_steps=16", "video=0", "sampler.steps=2"]


def ask(command, policies, *keys):
    return [command, f"policies=[{','.join(policies)}]", *SHORT, *keys]


def actions(folder):
    rows = read_rows(folder / "episodes.jsonl")
    recorded = np.asarray(zarr.open_group(folder / "trajectories.zarr", mode="r")["action"])
    return {(row.candidate, row.seed): recorded[i] for i, row in enumerate(rows)}


@pytest.fixture
def said(capsys):
    def run(*arguments):
        code = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, " ".join((captured.out + captured.err).split())

    return run


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["device=cuda"], "device=cuda: torch .* finds cpu only here"),
        (["device={tiny-noise: cuda:1}"], "device=cuda:1: torch .* finds cpu only here"),
        (["device=gpu"], "device=gpu: choose auto, cpu, cuda"),
        (["device=1"], "device=1: choose auto"),
        (["dtype=half"], "dtype=half: choose bfloat16"),
        (["tf32=maybe"], "tf32=maybe: Expected `bool"),
        (["dtype=[null,bfloat16]"], "in a list are for gpc compare; give one"),
        (
            ["executor=ray", "device=cuda"],
            "device=cuda: each actor of a cluster has one device.*executor.gpus.*which is 0",
        ),
        (["executor=ray", "executor.gpus=1", "device={tiny-noise: cuda}"], "each actor of a cluster has one device"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_what_is_not_here_is_refused_before_networks_are_loaded(command, keys, message, tiny, said, monkeypatch):
    monkeypatch.setattr("gpc.commands.experiment.load_policies", lambda config: 1 / 0)
    weights = ["weights=[0.5,0.5]"] if command == "evaluate" else []
    code, text = said(*ask(command, tiny, *weights, *keys))
    assert code == 2
    assert re.search(message, text), text


@pytest.mark.parametrize("command", ["evaluate", "search", "compare", "diagnose"])
def test_a_device_for_an_unknown_policy_is_refused_before_a_rollout(command, tiny, said, tmp_path):
    keys = {"evaluate": ["weights=[0.5,0.5]"]}.get(command, [])
    keys += SHORT[:1] if command == "diagnose" else SHORT
    run = [command, f"policies=[{','.join(tiny)}]", *keys, "device={tiny-flo: cpu}", f"run_dir={tmp_path / 'run'}"]
    code, text = said(*run)
    assert code == 2
    assert "device goes by policy; there is no 'tiny-flo'; did you mean 'tiny-flow'?" in text
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory):
    """One policy in float32 against itself in bfloat16."""
    folder = tmp_path_factory.mktemp("compared")
    keys = ["dtype=[null,bfloat16]", "episodes=2", "block=2", f"run_dir={folder}"]
    assert main(ask("compare", tiny[1:], *keys)) == 0
    return folder


def test_one_policy_in_two_dtypes_is_a_paired_comparison(compared, tiny, parents, tmp_path):
    summary, played = read_json(compared / "summary.json"), actions(compared)
    assert [side["name"] for side in summary["sides"]] == ["tiny-flow on cpu", "tiny-flow on cpu, bfloat16"]
    assert main(ask("evaluate", tiny[1:], "episodes=2", "seed=300000", f"run_dir={tmp_path / 'alone'}")) == 0
    alone = actions(tmp_path / "alone")
    for seed in (300000, 300001):  # the same noise: the same chunk but for its rounding
        assert np.array_equal(played[0, seed], alone[0, seed])
        difference = np.abs(played[1, seed] - played[0, seed])[:8].max()
        print(played[1, seed] - played[0, seed])
        assert 0 < difference < 5.12  # 2 % of a normalised action
    found = gpc.compare(
        parents[1],
        parents[1],
        gpc.EnvSpec("pusht", max_steps=16),
        episodes=2,
        block=2,
        sampler=gpc.Sampling(steps=2),
        device=("cpu", gpc.Device("cpu", dtype="bfloat16")),
        run_dir=tmp_path / "python",
    )
    assert [row.score for row in found.rows] == [row.score for row in sorted(read_rows(compared / "episodes.jsonl"))]
    assert (
        read_json(tmp_path / "python/manifest.json")["config"]["sides"]
        == read_json(compared / "manifest.json")["config"]["sides"]
    )


def test_a_composition_on_two_devices_has_one_list_of_weights(tiny, said, tmp_path):
    keys = ["weights=[0.5,0.5]", "dtype=[null,bfloat16]", "episodes=1", "block=1", f"run_dir={tmp_path}"]
    assert said(*ask("compare", tiny, *keys))[0] == 0
    names = [side["name"] for side in read_json(tmp_path / "summary.json")["sides"]]
    assert names == [f"tiny-noise + tiny-flow [0.5, 0.5] on cpu{dtype}" for dtype in ("", ", bfloat16")]
    for wrong, words in (
        (["weights=[0.5,0.5]"], "compare takes two lists of weights"),
        (["weights=[0.5,0.5]", "tf32=[false,false]"], "both sides are"),
        (["weights=[0.5,0.5]", "dtype=[null]"], "dtype=[None]: compare takes one value, or a list of two"),
    ):
        code, text = said(*ask("compare", tiny, *wrong, "episodes=1", f"run_dir={tmp_path / 'wrong'}"))
        assert (code, words in text) == (2, True), text


def test_a_report_names_the_device_if_it_is_not_the_cpu(compared, said):
    assert "device: cpu, cpu, bfloat16" in said("report", compared)[1]
    assert "<dt>device<dd>cpu, cpu, bfloat16" in (compared / "report.html").read_text()


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    assert main(ask("evaluate", tiny[:1], "episodes=1", f"run_dir={folder}")) == 0
    return folder


def test_a_run_resumes_on_its_kind_of_device_alone(evaluated, tiny, said):
    again = ask("evaluate", tiny[:1], "episodes=1", f"run_dir={evaluated}")
    assert said(*again, "device={tiny-noise: cpu}")[0] == 0  # cards, and ways to name one, of one kind are equal
    code, text = said(*again, "dtype=bfloat16")
    assert (
        code,
        "started with dtype=None, now it is 'bfloat16'; choose dtype=null, or use another run_dir" in text,
    ) == (2, True)
    assert "choose tf32=false, or" in said(*again, "tf32=true")[1]


@pytest.fixture
def on_card(evaluated, tmp_path):
    """A run that says it was computed on a card."""
    folder = shutil.copytree(evaluated, tmp_path / "card")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["device"] = "cuda"
    manifest["versions"] |= {"card": "NVIDIA H100", "cuda": "13.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_run_of_a_card_is_named_on_a_machine_without(on_card, tiny, said):
    assert "device: cuda, NVIDIA H100" in said("report", on_card)[1]
    code, text = said(*ask("evaluate", tiny[:1], "episodes=1", f"run_dir={on_card}"))
    assert (code, "started with device='cuda', now it is 'cpu'; choose device=cuda, or use another" in text) == (
        2,
        True,
    )
    code, text = said("replay", on_card, "--episode", 0, "--trust")
    assert code == 2
    assert "device=cuda: torch" in text
    assert text.endswith("--device cpu runs the episode on the CPU, where its last digits may differ")


@pytest.mark.parametrize(("step", "change", "code"), [(0, 1e-3, 0), (3, 1e-2, 1), (12, 9.0, 0)])
def test_a_replay_on_another_device_compares_the_first_chunk_within_a_limit(on_card, said, step, change, code):
    array = zarr.open_group(on_card / "trajectories.zarr", mode="a")["action"]
    changed = np.asarray(array[0])
    changed[step, 1] += change  # of 256: a normalised action
    array[0] = changed
    found, text = said("replay", on_card, "--episode", 0, "--trust", "--device", "cpu")
    assert found == code, text
    assert "(cuda recorded, cpu now, another card)" in text or code
    assert ("the limit is 1e-05" in text) == (code == 0)
    assert ("card: NVIDIA H100 recorded, none installed" in text) == (code == 1)


def test_a_run_in_bfloat16_is_replayed_in_bfloat16(compared, said):
    rows = read_rows(compared / "episodes.jsonl")
    for candidate in (0, 1):
        episode = next(i for i, row in enumerate(rows) if row.candidate == candidate)
        code, text = said("replay", compared, "--episode", episode, "--trust")
        assert (code, "all 16 the same, bit for bit" in text) == (0, True), text


@pytest.mark.parametrize("device", ["../card", {"tiny-noise": "cuda:1"}, 1, ["cpu"]])
def test_a_manifest_names_kinds_of_devices_alone(on_card, device, said):
    manifest = json.loads((on_card / "manifest.json").read_text())
    manifest["config"]["device"] = device
    (on_card / "manifest.json").write_text(json.dumps(manifest))
    code, text = said("replay", on_card, "--episode", 0, "--trust", "--device", "cpu")
    assert code == 2
    assert "config.device" in text or "config: device" in text


def test_another_card_of_the_kind_continues_a_run_with_a_note(tmp_path, capsys):
    settings = {"policies": ["a"]} | gpc.Device("cpu").settings(["a"])
    with RunFolder(tmp_path, settings, 4, facts={"card": "NVIDIA H100", "driver": "570.1"}) as folder:
        folder.check_versions()
    assert not capsys.readouterr().err
    assert read_json(tmp_path / "manifest.json")["versions"]["card"] == "NVIDIA H100"
    with RunFolder(tmp_path, settings, 4, facts={"card": "NVIDIA A100", "driver": "570.1"}) as folder:
        folder.check_versions()
    text = " ".join(capsys.readouterr().err.split())
    assert (
        "was started with card NVIDIA H100, now it is NVIDIA A100: the new rows may differ in their last digits" in text
    )
    assert "570.1" not in text


def test_a_memory_that_is_full_names_the_member_and_keeps_the_run(tiny, said, monkeypatch, tmp_path):
    run = ask(
        "evaluate", tiny, "weights=[0.5,0.5]", "dtype=bfloat16", "episodes=2", "engine.lanes=1", f"run_dir={tmp_path}"
    )
    network, calls = gpc.load_policy(tiny[1]).module.network, []
    forward = type(network).forward

    def full(self, *arguments):
        calls.append(1)
        if len(calls) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, *arguments)

    monkeypatch.setattr(type(network), "forward", full)
    code, text = said(*run)
    assert code == 1
    assert "policy 'tiny-flow' does not fit into the memory of cpu: choose dtype=bfloat16, another card for it" in text
    assert len(read_rows(tmp_path / "episodes.jsonl")) == 1
    monkeypatch.undo()
    assert said(*run)[0] == 0


def test_a_diagnosis_and_its_errors_are_computed_where_the_policies_are(tiny, said, monkeypatch, tmp_path):
    placed = []
    monkeypatch.setattr("gpc.inference.placement.moved", lambda policy, *where: placed.append(policy.name) or policy)
    run = ["diagnose", f"policies=[{','.join(tiny)}]", "env.max_steps=16", "sampler.steps=2", f"run_dir={tmp_path}"]
    code, text = said(*run, "dtype=bfloat16", f"demonstrations={HELD_OUT}")
    assert code == 0, text
    assert placed == ["tiny-noise", "tiny-flow"]  # once each


def test_the_actors_of_a_cluster_have_the_device_of_their_gpus():
    assert device_under(Ray(gpus=0.5), gpc.Device(dtype="bfloat16")) == gpc.Device("cuda", dtype="bfloat16")
    assert device_under(Ray(gpus=1), gpc.Device("cuda")) == gpc.Device("cuda")  # this machine needs none
    assert device_under(Ray(), gpc.Device()) == gpc.Device("cpu")
    for executor, device in ((Ray(gpus=1), "cpu"), (Ray(), "cuda"), (Local(), "cuda")):
        with pytest.raises(InputError, match=f"device={device}"):
            device_under(executor, gpc.Device(device))


def test_serve_and_deploy_compute_on_the_device(tiny, said, monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr("gpc.commands.serve.serve_policy", lambda *_, device, **__: served.append(device))
    policies = f"policies=[{','.join(tiny)}]"
    assert said("serve", policies, "weights=[0.5,0.5]", "device={tiny-flow: cpu}", "tf32=true")[0] == 0
    assert served == [gpc.Device({"tiny-flow": "cpu"}, tf32=True)]
    still = [
        "fps=10",
        "robot=simulated",
        "seconds=1",
        "virtual_latency=0",
        "safety.actions=absolute",
        "sampler.steps=2",
    ]
    run = ["deploy", f"policies=[{tiny[1]}]", *still, f"run_dir={tmp_path / 'flight'}"]
    for command in (["serve", policies, "weights=[0.5,0.5]"], run):
        for keys, words in (
            ("device=cuda", "finds cpu only here"),
            ("device={tiny-flo: cpu}", "did you mean 'tiny-flow'"),
        ):
            code, text = said(*command, keys)
            assert (code, words in text) == (2, True), text
    assert len(served) == 1
    code, text = said(*run, "dtype=bfloat16")
    assert code == 0, text
    recorded = read_json(tmp_path / "flight/manifest.json")["config"]
    assert [recorded[key] for key in ("device", "dtype", "tf32")] == ["cpu", "bfloat16", False]
