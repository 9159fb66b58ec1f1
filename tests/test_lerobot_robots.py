"""Robots of LeRobot by their type: its own, plug-ins that are installed, and what a wrong setting is told."""

import sys

import pytest

pytest.importorskip("lerobot")
from lerobot.robots import Robot, make_robot_from_config

from gpc.bridge.deploy import robot_from
from gpc.config import load_config
from gpc.errors import InputError
from gpc.robots.from_lerobot import make_robot
from gpc.robots.simulated import SimulatedRobot, SimulatedRobotConfig

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

    def connect(self, calibrate=True): ...
    def calibrate(self): ...
    def configure(self): ...
    def get_observation(self): ...
    def send_action(self, action): ...
    def disconnect(self): ...
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
    install(folder, "lerobot_robot_broken", "import a_driver_that_nobody_has")
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


@pytest.mark.parametrize(
    ("type", "settings", "told"),
    [
        ("pluged_arm", {}, "unknown robot.type 'pluged_arm'; did you mean 'plugged_arm'"),
        ("plugged_arm", {"prot": "x"}, "robot.type=plugged_arm has no setting 'prot'; did you mean 'port'"),
        ("plugged_arm", {"type": "x"}, "has no setting 'type'"),
        ("plugged_arm", {}, "Missing required field.s. `port`"),
        ("plugged_arm", {"port": "x", "gain": "much"}, "`gain`: Couldn't parse 'much' into a float"),
        ("plugged_arm", {"port": "x", "gain": -1}, "cannot be made: the gain is negative"),
        ("plugged_arm", {"port": "x", "cameras": {"front": {"type": "kodak"}}}, "kodak"),
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
