"""The settings with which MuJoCo draws without a screen: found if there are any, and named if they do not work."""

import os

import pytest

from gpc.commands.doctor import findings
from gpc.errors import InputError
from gpc.rollout import gl
from gpc.rollout.gl import Probe

DRAWS, NO_LIBRARY = Probe("", 1), Probe("AttributeError: 'NoneType' object has no attribute 'eglQueryString'")


@pytest.fixture
def machine(monkeypatch):
    """Make a machine of which `works(settings)` returns the probes, with these variables."""

    def make(works, libraries=("EGL", "OSMesa"), **variables):
        for key in (gl.BACKEND, gl.DEVICE, gl.PLATFORM, "DISPLAY", "WAYLAND_DISPLAY", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.setenv(key, "")  # so that it is restored
            monkeypatch.delenv(key)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(gl, "probe", works)
        monkeypatch.setattr(gl, "find_library", lambda name: f"lib{name}.so" if name in libraries else None)
        return gl.choose_gl.__wrapped__

    return make


def cluster(settings):
    """Four devices of EGL, of which this job may open the last one only; OSMesa; no screen."""
    backend, device = settings["MUJOCO_GL"], settings.get("MUJOCO_EGL_DEVICE_ID")
    if "PYOPENGL_PLATFORM" in settings and settings["PYOPENGL_PLATFORM"] != backend:
        return Probe("AttributeError: module 'mujoco' has no attribute 'GLContext'")
    if backend == "egl":
        return Probe("", 4) if device == "3" else Probe("ImportError: Cannot initialize a EGL device display", 4)
    return DRAWS if backend == "osmesa" else Probe("FatalError: gladLoadGL error")


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "3"}),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "3"}),
        ({"CUDA_VISIBLE_DEVICES": "7"}, {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "3"}),
        (
            {"CUDA_VISIBLE_DEVICES": "0", "MUJOCO_EGL_DEVICE_ID": "3"},
            {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "3"},
        ),
        ({"MUJOCO_GL": "osmesa"}, {"MUJOCO_GL": "osmesa"}),
    ],
)
def test_the_device_that_works_is_found_and_set(variables, found, machine):
    assert machine(cluster, **variables)() == found["MUJOCO_GL"]
    assert gl.given_settings() == found


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"MUJOCO_GL": "glfw"},
            "MUJOCO_GL=glfw needs a screen, and DISPLAY is not set; this works here: export MUJOCO_GL=egl",
        ),
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":9"}, "MUJOCO_GL=glfw cannot open the screen :9; .*export MUJOCO_GL=egl"),
        (
            {"MUJOCO_EGL_DEVICE_ID": "7"},
            "MUJOCO_EGL_DEVICE_ID=7 is no device of EGL, which has 4, counted from 0; .* MUJOCO_EGL_DEVICE_ID=3",
        ),
        ({"MUJOCO_EGL_DEVICE_ID": "1"}, "MUJOCO_EGL_DEVICE_ID=1 is a device that cannot be opened .*DEVICE_ID=3"),
        ({"MUJOCO_GL": "opengl"}, "MUJOCO_GL=opengl is none of egl, osmesa and glfw; .*export MUJOCO_GL=egl"),
        (
            {"PYOPENGL_PLATFORM": "glx"},
            "PYOPENGL_PLATFORM=glx excludes MUJOCO_GL=egl; .*: export MUJOCO_GL=egl; unset PYOPENGL_PLATFORM",
        ),
    ],
)
def test_a_setting_that_does_not_work_is_named_with_the_command_that_does(variables, line, machine):
    with pytest.raises(InputError, match=line):
        machine(cluster, **variables)()


@pytest.mark.parametrize(
    ("visible", "cards", "found"),
    [
        (None, 3, ["0,1,2", "1,2,0", "2,0,1", "0,1,2"]),
        ("5,2", 8, ["5,2", "2,5", "5,2", "2,5"]),
        ("1", 8, [None] * 4),
        (None, 1, [None] * 4),
        ("", 8, [None] * 4),
        ("GPU-8f2,GPU-77a", 8, [None] * 4),
        ("MIG-1", 8, [None] * 4),
    ],
)
def test_workers_are_spread_over_the_visible_cards(visible, cards, found, machine, tmp_path, monkeypatch):
    machine(cluster, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    for number in range(cards):
        (tmp_path / f"0000:{number}0:00.0").mkdir()
    monkeypatch.setattr(gl, "CARDS", tmp_path)
    assert [gl.visible_to(worker).get("CUDA_VISIBLE_DEVICES") for worker in range(4)] == found


def test_a_worker_draws_on_its_own_card_first_and_on_another_if_it_must(machine):
    tried = []

    def works(settings):
        tried.append(settings.get("MUJOCO_EGL_DEVICE_ID"))
        return cluster(settings)

    machine(works, CUDA_VISIBLE_DEVICES="1,3")
    choose = machine(works, **gl.visible_to(1))
    assert choose() == "egl"
    assert tried == ["3"]
    tried.clear()
    choose = machine(works, **gl.visible_to(1))
    assert choose() == "egl"
    assert tried == ["1", "0", "2", "3"]


def test_a_package_is_named_only_if_its_library_is_missing(machine):
    choose = machine(lambda settings: NO_LIBRARY, libraries=())
    with pytest.raises(
        InputError, match=r"libEGL: apt-get install libegl1, or .* libOSMesa: apt-get install libosmesa6"
    ):
        choose()
    choose = machine(lambda settings: NO_LIBRARY, libraries=("EGL", "OSMesa"))
    with pytest.raises(
        InputError, match=r"no device \(a container needs NVIDIA_DRIVER.* does not work \(Attr"
    ) as caught:
        choose()
    assert "apt-get" not in str(caught.value)


def test_the_doctor_prints_the_line_to_export(machine):
    machine(cluster, MUJOCO_GL="glfw")
    rows = {row.what: row for row in findings()}
    assert rows["MUJOCO_GL=egl"].state == rows["MUJOCO_GL=osmesa"].state == "works"
    assert rows["pictures"].fix.startswith("MUJOCO_GL=glfw needs a screen, and DISPLAY is not set; this works")
    machine(lambda settings: DRAWS if settings["MUJOCO_GL"] == "osmesa" else NO_LIBRARY, libraries=("OSMesa",))
    rows = {row.what: row for row in findings()}
    assert rows["MUJOCO_GL=egl"].state == "MUJOCO_GL=egl needs the library libEGL: apt-get install libegl1; not needed"
    assert rows["pictures"].state == "export MUJOCO_GL=osmesa"
    assert [rows[what].fix for what in ("MUJOCO_GL=egl", "pictures")] == ["", ""]


def test_on_this_machine_what_is_found_draws_and_a_missing_screen_or_device_does_not(monkeypatch):
    for key in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(gl, "environment", lambda: {k: v for k, v in os.environ.items() if k != "DISPLAY"})
    works = gl.first_that_works({}).settings
    assert works is not None
    assert gl.probe(works).error == ""
    assert gl.probe({"MUJOCO_GL": "glfw"}).error
    if works["MUJOCO_GL"] == "egl":
        failed = gl.probe({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "77"})
        assert failed.error
        assert failed.devices == gl.probe(works).devices > 0
