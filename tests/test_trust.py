"""A run folder is data: whatever stands in it, nothing is imported, opened, asked or connected to because of it."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gpc.commands.cli import main
from gpc.commands.replay import replay
from gpc.errors import GpcError, InputError, RunError
from gpc.inert import Console
from gpc.policy.load import load_policy
from gpc.results.run_folder import RunFolder, read_rows
from gpc.results.upgrade import upgraded_config
from gpc.results.video import write_video

SHORT = ["env.max_steps=8", "video=0", "sampler.steps=2"]
POISONED = "poisoned_by_a_folder"
POISONS = [
    f"{POISONED}:Env-v0",
    f"lerobot:{POISONED}/policy",
    f"remote:ws://{POISONED}.invalid:1",
    f"/{POISONED}/file",
    "${oc.env:POISONED}",
    "???",
    {"_target_": f"{POISONED}.call"},
    {"_target_": "gpc.cluster.Ray", "address": f"{POISONED}:1"},
    {"type": POISONED},
    {"class": f"{POISONED}.Env", "type": "mine"},
    ["x", 1e300],
    10**12,
    -1,
    None,
    {},
]


@pytest.fixture
def watched():
    """The events of this process, during a test, that name what a poisoned folder names."""
    events, on = [], [True]

    def hook(event, args):
        if on[0] and event in (
            "import",
            "open",
            "socket.connect",
            "socket.getaddrinfo",
            "subprocess.Popen",
            "os.system",
        ):
            text = repr(args)
            if POISONED in text or event.startswith("socket.get"):
                events.append((event, text))

    sys.addaudithook(hook)
    yield events
    on[0] = False


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory):
    """A run with every key by policy and, being a comparison, with sides."""
    folder = tmp_path_factory.mktemp("compared")
    keys = ["steer={tiny-noise: {cost: smoothness, scale: 0.01}}", "action_names={tiny-flow: [x, y]}"]
    ask = [
        "compare",
        f"policies=[{','.join(tiny)}]",
        *SHORT,
        *keys,
        "sampler.best_of={n: 2, cost: smoothness}",
    ]
    assert main([*ask, "episodes=1", f"run_dir={folder}"]) == 0
    return folder


def places(node, path=()):
    """Where something stands in plain data, the whole first."""
    if path:
        yield path
    for key, item in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(item, (*path, key))


def spoiled(manifest, path, value):
    changed = node = copy.deepcopy(manifest)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def test_whatever_a_manifest_names_is_loaded_by_no_replay(compared, tiny, tmp_path, watched, monkeypatch):
    """Each place of the manifest with each poison, and the policies given: an episode would run, or one line is raised."""
    loaded = {source: load_policy(source) for source in tiny}
    monkeypatch.setattr("gpc.commands.replay.load_policy", loaded.__getitem__)
    monkeypatch.setattr("gpc.commands.replay.read_trajectory", lambda *_: {})  # has its own test

    def rollout(*_):
        raise RunError("an episode would run")

    monkeypatch.setattr("gpc.commands.replay.rollout", rollout)
    monkeypatch.setenv("POISONED", POISONED)
    folder = shutil.copytree(compared, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    found, lines = list(places(manifest)), []
    assert len(found) > 80
    for path in found:
        for poison in POISONS:
            (folder / "manifest.json").write_text(json.dumps(spoiled(manifest, path, poison)))
            episode = len(lines) % 2  # its policy is the other side's
            with pytest.raises(GpcError) as caught:
                replay(folder, episode, [tiny[episode]], Console(quiet=True))
            lines.append(str(caught.value))
    assert watched == []
    assert not [line for line in lines if "\n" in line]
    assert 100 < lines.count("an episode would run") < len(lines) - 100


SOURCES = [
    f"lerobot:{POISONED}/policy@{40 * 'a'}",
    f"remote:ws://{POISONED}.invalid:1",
    f"beso:/{POISONED}",
    "bundled:./tiny",
]


@pytest.mark.parametrize("source", [*SOURCES, "tiny"])
def test_policies_that_are_not_gpcs_own_are_loaded_from_where_the_reader_says(
    compared, tmp_path, watched, source, capsys
):
    folder = shutil.copytree(compared, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["resolved"]["policies"][0] = source
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["replay", str(folder), "--episode", "0"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"policies={source!r}"[:60] in text
    assert "--policies loader:path" in text
    assert text.endswith(f"gpc replay {folder} --episode 0 --trust")
    assert watched == []


GYMNASIUM = {"type": "gymnasium", "n_action_steps": 1, "max_steps": 8}
REQUESTS = {
    "a module of an environment": ("env", GYMNASIUM | {"options": {"task": f"{POISONED}:Env-v0"}}, "env.options.task"),
    "a file of an environment": (
        "env", GYMNASIUM | {"options": {"task": "Ant-v5", "settings": {"xml_file": f"/{POISONED}"}}}, "settings.xml_file",
    ),
    "a type of environment of a package": ("env", {"type": POISONED, "n_action_steps": 8, "max_steps": 8}, "env.type"),
    "a cost of a package": ("steer", {"tiny-noise": {"cost": POISONED}}, "steer.tiny-noise.cost"),
    "a cost to choose by, of a package": ("sampler", {"best_of": {"n": 2, "cost": POISONED}}, "sampler.best_of.cost"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "named"), REQUESTS.values(), ids=REQUESTS)
def test_what_belongs_to_a_package_or_a_path_waits_for_trust(
    compared, tiny, tmp_path, watched, monkeypatch, key, value, named, capsys
):
    folder = shutil.copytree(compared, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["resolved"][key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    ask = ["replay", str(folder), "--episode", "0", "--policies", tiny[0]]
    assert main(ask) == 2
    assert f"{named}='" in " ".join(capsys.readouterr().err.split())
    assert watched == []
    assert main([*ask, "--trust"]) == 2
    assert POISONED in capsys.readouterr().err  # there is none


@pytest.mark.parametrize("key", ["env", "composer"])
def test_a_recorded_object_without_a_registered_type_is_built_under_no_circumstances(
    tiny, tmp_path, key, watched, capsys
):
    ask = ["evaluate", f"policies=[{tiny[0]}]", *SHORT, "episodes=1", f"run_dir={tmp_path}"]
    assert main(ask) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["resolved"][key]["type"]
    manifest["resolved"][key]["class"] = f"{POISONED}.Mine"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["replay", str(tmp_path), "--episode", "0", "--policies", tiny[0], "--trust"]) == 2
    assert f"{POISONED}.Mine is no registered type; the run was begun in Python" in capsys.readouterr().err
    assert watched == []


def test_a_folder_that_is_resumed_is_compared_and_not_built(tiny, tmp_path, watched, capsys):
    ask = ["evaluate", f"policies=[{tiny[0]}]", *SHORT, "episodes=1", f"run_dir={tmp_path}"]
    assert main(ask) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    before = "gpc.robots.from_lerobot" in sys.modules
    for target in (f"{POISONED}.call", POISONED, "gpc.robots.from_lerobot.make_robot", ["gpc.cluster.Ray"], {}):
        kept = {"_target_": target, "type": target}
        assert upgraded_config({"composer": kept})["composer"].get("type") in (target, None)
        manifest["config"]["composer"] = {"type": target, "_target_": target, "inside": [{"_target_": target}]}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert main(ask) == 2
        assert "was started with composer" in capsys.readouterr().err
    assert ("gpc.robots.from_lerobot" in sys.modules) == before
    assert watched == []


def test_a_report_reads_and_writes_in_its_folder_alone(compared, tmp_path, watched):
    folder = shutil.copytree(compared, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    resolved = manifest["resolved"]
    resolved["policies"] = [f"remote:ws://{POISONED}.invalid:1", f"lerobot:{POISONED}/x"]
    resolved["env"] |= {"type": f"{POISONED}:Env", "options": {"task": f"{POISONED}:Env-v0"}}
    resolved["executor"] = {"type": "ray", "address": f"{POISONED}:1"}
    resolved["composer"] = {"type": POISONED}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    others = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["report", str(folder)]) == 0
    assert watched == []
    changed = {path.name for path in tmp_path.rglob("*") if others.get(path) != path.stat().st_mtime_ns}
    assert changed <= {"run", "report.html"}


def test_a_link_in_a_folder_is_written_through_by_no_command(compared, tiny, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("the user's own")
    folder = shutil.copytree(compared, tmp_path / "run")
    for name in ("report.html", "summary.json", "manifest.json"):
        (folder / f"{name}.tmp").symlink_to(victim)
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to(victim)
    assert main(["report", str(folder)]) == 0
    assert victim.read_text() == "the user's own"
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(victim)
    ask = ["evaluate", f"policies=[{tiny[0]}]", *SHORT, "seed=300000", "episodes=1", f"run_dir={folder}"]
    assert main(ask) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert victim.read_text() == "the user's own"
    (folder / "lock").unlink()
    victim.write_text("the user's own, without an end of line")  # what a kill leaves torn is cut off
    (folder / "episodes.jsonl").unlink()
    (folder / "episodes.jsonl").symlink_to(victim)
    settings = json.loads((folder / "manifest.json").read_text())["config"]
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(folder, settings, 8)
    assert victim.read_text() == "the user's own, without an end of line"
    (folder / "episodes.jsonl").unlink()
    shutil.copy(compared / "episodes.jsonl", folder)
    others = shutil.copytree(compared / "trajectories.zarr", tmp_path / "others")
    before = {path: path.stat().st_mtime_ns for path in others.rglob("*")}
    for name in ("trajectories.zarr/action", "trajectories.zarr"):
        shutil.rmtree(folder / name)
        (folder / name).symlink_to(others / name.removeprefix("trajectories.zarr").lstrip("/"))
        with pytest.raises(InputError, match="is a link, through which gpc does not write"):
            RunFolder(folder, settings, 8)
    assert {path: path.stat().st_mtime_ns for path in others.rglob("*")} == before
    (folder / "unfinished-clip.mp4").symlink_to(victim)
    write_video(folder / "clip.mp4", [("now", np.zeros((2, 96, 96, 3), np.uint8))])
    assert victim.read_text() == "the user's own, without an end of line"
    assert not (folder / "clip.mp4").is_symlink()


def test_the_module_of_an_environment_that_the_user_types_is_imported(tmp_path, monkeypatch):
    (tmp_path / "typed_by_the_user.py").write_text("raise ImportError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    from gpc.envs.from_gymnasium import Gymnasium

    with pytest.raises(InputError, match="it was imported"):
        Gymnasium(task="typed_by_the_user:Env-v0")


def test_a_trajectory_is_unpickled_by_no_codec(compared, tmp_path):
    import pickle

    folder = shutil.copytree(compared, tmp_path / "run")
    array = folder / "trajectories.zarr/action"
    shutil.rmtree(folder / "trajectories.zarr")
    array.mkdir(parents=True)
    mark = tmp_path / "mark"
    metadata = {
        "zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "|O", "compressor": {"id": "pickle"}, "fill_value": None,
        "order": "C", "filters": [{"id": "vlen-utf8"}],
    }  # fmt: skip
    (array.parent / ".zgroup").write_text('{"zarr_format": 2}')
    (array / ".zarray").write_text(json.dumps(metadata))
    (array / "0").write_bytes(pickle.dumps(_Touch(mark)))
    with pytest.raises(InputError):
        replay(folder, 0, [], Console(quiet=True))
    assert not mark.exists()
    assert len(read_rows(folder / "episodes.jsonl")) == 2


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
