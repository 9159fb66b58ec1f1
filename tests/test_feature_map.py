"""A policy's arrays and a robot's features: what does not fit exactly is a failed read, never reshaped."""

import numpy as np
import pytest
from running import flown
from toy_robots import Arm, Line

from gpc.bridge.controller import HOLD, STOPPED
from gpc.bridge.robot import map_features
from gpc.errors import InputError, RunError
from gpc.policy.spec import ObservationSpec

SPEC = ObservationSpec({"state": (2,), "front": (4, 6, 3), "grid": (1, 2), "gain": (1,), "level": ()}, 1)
SCALARS = ("x.pos", "y.pos", "state.0", "state.1", "grid.0", "grid.1", "gain", "level.0")
PICTURE = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)


class Camera(Arm):
    observation_features = dict.fromkeys(SCALARS, float) | {"front": (4, 6, 3)}


def reading(**changes):
    return dict.fromkeys(SCALARS, 0.5) | {"state.1": 0.7, "front": PICTURE} | changes


@pytest.fixture
def feature_map():
    return map_features(Camera(), SPEC, 2)


def test_numbers_and_pictures_that_fit_keep_their_values_and_order(feature_map):
    frame = feature_map.frame(reading(gain=np.float32(0.25)))
    assert {key: value.shape for key, value in frame.items()} == SPEC.shapes
    np.testing.assert_array_equal(frame["state"], [0.5, 0.7])
    np.testing.assert_array_equal(frame["front"], PICTURE)
    assert (frame["front"].dtype, frame["gain"].dtype) == (np.uint8, np.float64)
    mapped = map_features(Camera(), ObservationSpec({"state": (2,)}, 1), 2, {"state": ["state.1", "x.pos"]})
    np.testing.assert_array_equal(mapped.frame(reading())["state"], [0.7, 0.5])


@pytest.mark.parametrize("picture", [PICTURE.transpose(2, 0, 1), PICTURE / 255, PICTURE.astype(np.int64)])
def test_a_picture_of_a_driver_in_floats_or_channels_first_is_that_of_its_bytes(feature_map, picture):
    front = feature_map.frame(reading(front=picture))["front"]
    np.testing.assert_array_equal(front, PICTURE)
    assert front.dtype == np.uint8


@pytest.mark.parametrize("picture", [PICTURE.astype(np.float32), PICTURE - 1.5, PICTURE.astype(np.int16) * 4])
def test_a_picture_beyond_its_range_is_a_failed_read_that_names_it(feature_map, picture):
    with pytest.raises(
        RunError, match=r"the robot's 'front': image 'front' holds .* to .*; send integers from 0 to 255"
    ):
        feature_map.frame(reading(front=picture))


OTHERS = {
    "transposed": PICTURE.transpose(1, 0, 2),
    "flat": PICTURE.ravel(),
    "more dimensions": PICTURE[None],
    "smaller": PICTURE[:2],
    "grey": PICTURE[:, :, 0],
    "of the same size": PICTURE.reshape(6, 4, 3),
    "a number": 3.0,
}


@pytest.mark.parametrize("picture", OTHERS.values(), ids=OTHERS)
def test_a_picture_of_another_layout_is_a_failed_read_that_names_both_shapes(feature_map, picture):
    shape = str(np.shape(picture)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(RunError, match=rf"'front' has the shape {shape}; 'front' takes \(4, 6, 3\)"):
        feature_map.frame(reading(front=picture))


@pytest.mark.parametrize("value", [np.array([0.1]), np.zeros((1, 1)), [0.1, 0.2]])
def test_a_number_that_is_an_array_is_a_failed_read(feature_map, value):
    with pytest.raises(RunError, match=r"'state.1' has the shape .*; 'state' takes a number"):
        feature_map.frame(reading(**{"state.1": value}))


@pytest.mark.parametrize("value", [None, "0.5", [[1], [2, 3]], np.array([object()])])
def test_what_is_no_number_is_a_failed_read(feature_map, value):
    with pytest.raises(RunError, match=r"the robot's 'state.0' is \w+, not numbers"):
        feature_map.frame(reading(**{"state.0": value}))
    missing = reading()
    del missing["state.0"]
    with pytest.raises(RunError, match=r"lacks the feature 'state.0' of 'state'"):
        feature_map.frame(missing)


@pytest.mark.parametrize(("value", "why"), [("0.3", "is str, not numbers"), (np.zeros(1), "takes a number")])
def test_a_position_is_checked_as_what_the_policy_reads(feature_map, value, why):
    np.testing.assert_array_equal(feature_map.position(reading(**{"y.pos": 0.3})), [0.5, 0.3])
    with pytest.raises(RunError, match=rf"'y.pos' .*{why}"):
        feature_map.position(reading(**{"y.pos": value}))


@pytest.mark.parametrize("changes", [{"state.1": np.nan}, {"front": PICTURE.astype(float) * np.inf}])
def test_a_frame_of_a_reading_is_finite(feature_map, changes):
    with pytest.raises(RunError, match=f"{next(iter(changes))} is (nan|inf): not a finite number"):
        feature_map.frame(reading(**changes))


def test_a_feature_serves_one_dimension_only():
    with pytest.raises(InputError, match=r"robot.actions names the feature 'x.pos' twice"):
        map_features(Camera(), SPEC, 2, actions=["x.pos", "x.pos"])
    with pytest.raises(InputError, match=r"'state' names the feature 'y.pos' twice"):
        map_features(Camera(), SPEC, 2, {"state": ["y.pos", "y.pos"]})
    map_features(Camera(), SPEC, 2, {"state": ["x.pos", "y.pos"], "grid": ["x.pos", "y.pos"]})  # two keys may share


def test_a_camera_that_changes_its_size_in_flight_ends_in_hold_and_stop():
    class Cropped(Arm):
        def get_observation(self):
            found = super().get_observation()
            return found | ({"front": found["front"][:2]} if self.reads > 20 else {})

    arm = Cropped(camera=True)
    _, kept, _, _ = flown(arm, Line(camera=True))
    assert "'front' has the shape (2, 4, 3); 'front' takes (4, 4, 3)" in kept.first("unread").text
    assert kept.first(HOLD).at < kept.first(STOPPED).at
    assert not arm.is_connected
