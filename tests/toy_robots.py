"""Robots and planners for the control loop's tests: quick, and as broken as a test asks for."""

import subprocess
import sys
import threading
import time

import numpy as np

from gpc.policy.spec import ActionSpec, ObservationSpec


class Arm:
    """Two joints that are where they were sent, and a camera. `trouble(arm)` is called before each read and may do anything."""

    name = "toy"
    waits_for_driver = True

    def __init__(self, trouble=None, calibrated=True, camera=False, reports_position=True):
        self.trouble, self.is_calibrated, self.camera, self.reports_position = (
            trouble,
            calibrated,
            camera,
            reports_position,
        )
        self.is_connected, self.frozen = False, False
        self.position, self.sent, self.threads, self.reads = [0.0, 0.0], [], set(), 0
        self.disconnected_at = None

    @property
    def observation_features(self):
        scalars = {"x.pos": float, "y.pos": float, "state.0": float, "state.1": float}
        own = scalars if self.reports_position else {"state.0": float, "state.1": float}
        return own | ({"front": (4, 4, 3)} if self.camera else {})

    @property
    def action_features(self):
        return {"x.pos": float, "y.pos": float}

    def connect(self, calibrate=True):
        assert not calibrate
        self._called()
        self.is_connected = True

    def get_observation(self):
        self._called()
        self.reads += 1
        if self.trouble:
            self.trouble(self)
        reading = {"state.0": self.position[0], "state.1": self.position[1]}
        if self.reports_position:
            reading |= {"x.pos": self.position[0], "y.pos": self.position[1]}
        if self.camera:
            reading["front"] = np.full((4, 4, 3), 0 if self.frozen else self.reads % 256, np.uint8)
        return reading

    def send_action(self, action):
        self._called()
        assert self.is_connected
        self.position = [action["x.pos"], action["y.pos"]]
        self.sent.append((time.monotonic(), *self.position))
        return dict(action)

    def disconnect(self):
        self._called()
        self.is_connected, self.disconnected_at = False, time.monotonic()

    def _called(self):
        self.threads.add(threading.get_ident())


class FarArm(Arm):
    """An arm behind another process, as one with a driver of its own."""

    def connect(self, calibrate=True):
        code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        super().connect(calibrate)

    def get_observation(self):
        self._ask()
        return super().get_observation()

    def send_action(self, action):
        self._ask()
        return super().send_action(action)

    def disconnect(self):
        self.process.kill()
        self.process.communicate()
        super().disconnect()

    def _ask(self):
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise ConnectionError("the driver's process is gone")


class Line:
    """Plans to go on along a line, `speed` a step, from where the arm is. `trouble(ask)` may hang, raise or replace the chunk."""

    name = "line"
    actions = ActionSpec(16, (1.0, 1.0), (0.0, 0.0), start=-1, bound=1.0, relative=False)

    def __init__(self, speed=0.001, trouble=None, camera=False):
        self.speed, self.trouble, self.closed = speed, trouble, False
        shapes = {"state": (2,)} | ({"front": (4, 4, 3)} if camera else {})
        self.observations = ObservationSpec(shapes, 2)

    def sample(self, request):
        if self.trouble and (chunk := self.trouble(request)) is not None:
            return chunk
        ahead = np.arange(self.actions.horizon) + self.actions.start + 1
        return request.observation["state"][-1] + self.speed * ahead[:, None]

    def close(self):
        self.closed = True
