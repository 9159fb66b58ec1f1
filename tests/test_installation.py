"""The commands that add packages, and the wheel."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from zipfile import ZipFile

import pytest

import gpc.installation
from gpc.commands.cli import main
from gpc.commands.doctor import PACKAGES
from gpc.installation import install

ROOT = Path(__file__).parents[1]


class Installed:
    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///home/a%20b/gpc", "dir_info": {"editable": True}}, "pip install -e '/home/a b/gpc[report]'"),
        ({"url": "file:///home/gpc", "dir_info": {}}, "pip install 'gpc[report] @ file:///home/gpc'"),
        (
            {"url": "file:///gpc-0.1.0-py3-none-any.whl"},
            "pip install 'gpc[report] @ file:///gpc-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://host/gpc", "vcs_info": {"vcs": "git", "commit_id": "e1f9"}},
            "pip install 'gpc[report] @ git+https://host/gpc@e1f9'",
        ),
        (None, "pip install 'gpc[report]'"),
    ],
)
def test_the_command_is_that_of_this_installation(origin, command, monkeypatch):
    monkeypatch.setattr(gpc.installation, "distribution", lambda name: Installed(origin))
    monkeypatch.setattr(gpc.installation, "_pip", lambda: "pip install")
    assert install("report") == command


def test_the_pip_of_another_environment_is_not_named(monkeypatch, tmp_path):
    monkeypatch.setattr(gpc.installation, "find_spec", lambda name: name)
    monkeypatch.setattr(gpc.installation, "_target", str)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "bin/pip"))
    assert install("ray") == "pip install [ray]"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/pip")
    assert install("ray") == f"{tmp_path}/bin/python -m pip install [ray]"
    monkeypatch.setattr(gpc.installation, "find_spec", lambda name: None)
    assert install("ray") == f"uv pip install --python {tmp_path}/bin/python [ray]"


@pytest.mark.parametrize(("version", "rest"), [((3, 11), ""), ((3, 13), " && pip install --no-deps praxis-robomimic")])
def test_robomimic_comes_without_its_requirements_where_they_exclude_lerobot(version, rest, monkeypatch):
    monkeypatch.setattr(gpc.installation, "_pip", lambda: "pip install")
    monkeypatch.setattr(gpc.installation, "_target", str)
    monkeypatch.setattr(sys, "version_info", version)
    assert install("robomimic") == "pip install [robomimic]" + rest


def test_the_doctor_prints_the_whole_command(monkeypatch, capsys):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("gpc.commands.doctor.version", missing)
    monkeypatch.setattr("gpc.commands.doctor.install", lambda extra: f"add[{extra}]")
    monkeypatch.setattr("gpc.commands.doctor._pictures", list)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert [extra for *_, extra in PACKAGES if f"add[{extra}]" not in text] == []


def test_the_wheel_holds_all_that_a_policy_and_a_rollout_need(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        tmp_path,
    ]
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = tmp_path.glob("gpc-*.whl")
    with ZipFile(wheel) as file:
        file.extractall(site)
    assert {path.name for path in site.iterdir()} == {
        "gpc",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    shutil.rmtree(source)
    code = """
import sys, gpc.policies
from gpc.commands.cli import main
assert gpc.policies.__path__ == [sys.argv[1] + "/gpc/policies"], gpc.policies.__path__
assert main(["policies"]) == 0
assert main(["evaluate", "env=pusht", "policies=[pusht-flow]", "episodes=1", "env.max_steps=16", "sampler.steps=2",
             "engine.workers=1", "run_dir=run"]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, site], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "pusht-diffusion" in done.stdout
    assert {"summary.json", "report.html", "episodes.mp4"} <= {path.name for path in (tmp_path / "run").iterdir()}
