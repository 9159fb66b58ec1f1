"""Robots of LeRobot by their type: its own, plug-ins that are installed, and what a wrong setting is told."""

import sys
from unittest.mock import MagicMock

import pytest

pytest.importorskip("lerobot")
from lerobot.robots import Robot, make_robot_from_config

from gpc.commands.config import load_config
from gpc.commands.deploy import robot_from
from gpc.errors import InputError
from gpc.robots.from_lerobot import make_robot
from gpc.robots.simulated import SimulatedRobot, SimulatedRobotConfig
from gpc.testing.robot import check_robot

PLUGIN = """
from dataclasses import dataclass, field
from lerobot.cameras import CameraConfig
from lerobot.robots import Robot, RobotConfig

@RobotConfig.register_subclass("TYPE")
@dataclass(kw_only=True)
class PluggedConfig(RobotConfig):
    port: str
    gain: float = 1.0
    cameras: dict[str, CameraConfig] = field(default_factory=dict)

class Plugged(Robot):
    config_class, name = PluggedConfig, "TYPE"
    observation_features = action_features = {"x.pos": float}
    is_connected, is_calibrated = False, True

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        if config.gain < 0:
            raise RuntimeError("the gain\\nis negative")

        self.x = 0.5

    def connect(self, calibrate=True):
        self.is_connected = True

    def calibrate(self): ...
    def configure(self): ...

    def get_observation(self):
        self._needs_connection()
        return {"x.pos": self.x}

    def send_action(self, action):
        self._needs_connection()
        self.x = action["x.pos"]
        return dict(action)

    def disconnect(self):
        self.is_connected = False

    def _needs_connection(self):
        if not self.is_connected:
            raise ConnectionError("not connected")
"""


def install(folder, name, source):
    """A package as pip leaves it behind."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}-1.0.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


@pytest.fixture(scope="module")
def plugged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install(folder, "lerobot_robot_plugged", PLUGIN.replace("TYPE", "plugged_arm"))
    install(folder, "lerobot_robot_broken", "import a_driver_that_nobody_has\n" + PLUGIN.replace("TYPE", "broken_arm"))
    (folder / "half_removed-1.0.dist-info").mkdir()
    sys.path.insert(0, str(folder))
    yield "plugged_arm"
    sys.path.remove(str(folder))


def test_a_plug_in_is_found_beside_a_broken_one(plugged):
    camera = {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}
    keys = [f"robot.settings.cameras.front={camera}".replace("'", ""), "robot.settings.port=/dev/null", "fps=10"]
    made = robot_from(load_config("deploy", ["robot=lerobot", f"robot.type={plugged}", *keys]))
    assert isinstance(made, Robot)
    assert (made.name, made.config.port, made.config.gain) == ("plugged_arm", "/dev/null", 1.0)
    assert made.config.cameras["front"].type == "opencv"
    check_robot(made)


def test_an_arm_of_lerobots_own_without_hardware(monkeypatch):
    monkeypatch.setitem(sys.modules, "scservo_sdk", MagicMock(__spec__=MagicMock()))  # its driver
    camera = {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}
    made = make_robot("so101_follower", {"port": "/dev/null", "id": "left", "cameras": {"front": camera}})
    assert (made.config.port, made.id, made.is_connected) == ("/dev/null", "left", False)
    assert made.observation_features["front"] == (48, 64, 3)
    assert list(made.action_features)[::5] == ["shoulder_pan.pos", "gripper.pos"]


@pytest.mark.parametrize(
    ("type", "settings", "told"),
    [
        ("pluged_arm", {}, "unknown robot.type 'pluged_arm'; did you mean 'plugged_arm'"),
        ("broken_arm", {}, "lerobot_robot_broken was not imported: No module named 'a_driver_that_nobody_has'"),
        ("plugged_arm", {"prot": "x"}, "robot.type=plugged_arm has no setting 'prot'; did you mean 'port'"),
        ("plugged_arm", {"type": "x"}, "has no setting 'type'"),
        ("plugged_arm", {}, "Missing required field.s. `port`"),
        ("plugged_arm", {"port": "x", "gain": "much"}, "`gain`: Couldn't parse 'much' into a float"),
        ("plugged_arm", {"port": "x", "gain": -1}, "cannot be made: the gain is negative"),
        ("plugged_arm", {"port": "x", "cameras": {"front": {"type": "kodak"}}}, "kodak"),
        (
            "plugged_arm",
            {"port": "x", "cameras": {"front": {"type": "opencv", "index_or_path": 0}}},
            "'width' is required",
        ),
        ("plugged_arm", {"port": "x", "cameras": {"front": {"type": "opencv", "indx": 0}}}, "cameras.front.*`indx`"),
        ("plugged_arm", 3, "robot.settings=3: give keys and values"),
        ("so101_follower", {"prot": "x"}, "did you mean 'port'"),
        ("gpc_simulated", {"env": "push"}, "^unknown env 'push'; did you mean 'pusht'"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(plugged, type, settings, told):
    with pytest.raises(InputError, match=told) as caught:
        make_robot(type, settings)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named(plugged, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = PLUGIN.replace("TYPE", "bare_arm").replace("self.config = config", "import a_driver_that_nobody_has")
    install(tmp_path, "lerobot_robot_bare", source)
    with pytest.raises(InputError, match="No module named 'a_driver_that_nobody_has'; install its driver"):
        make_robot("bare_arm", {"port": "x"})


def test_lerobots_own_factory_makes_ours():
    """What lerobot-record and the others do with --robot.type=gpc_simulated."""
    assert isinstance(make_robot_from_config(SimulatedRobotConfig()), SimulatedRobot)
