"""Names of observations that fit by convention: one each, or an error that names them."""

import pytest

from gpc.errors import InputError
from gpc.policy.names import describe_names, fitting_names
from gpc.policy.observation import TASK_BYTES, flatten
from gpc.policy.spec import ObservationSpec

LEROBOT = ObservationSpec(
    {"observation.images.front": (8, 8, 3), "observation.state": (2,), "observation.goal": (3,), "task": (TASK_BYTES,)},
    2,
)
OFFERS = {
    "gymnasium": {"pixels.front": (8, 8, 3), "agent_pos": (2,), "goal": (3,), "task": (TASK_BYTES,)},
    "plain": {"front": (8, 8, 3), "state": (2,), "goal": (3,), "prompt": ()},
    "channels first": {"front": (3, 8, 8), "state": (2,), "goal": (3,), "prompt": ()},
    "openpi": {"observation/front": (8, 8, 3), "observation/state": (2,), "observation/goal": (3,), "prompt": ()},
    "ALOHA": {"images.front": (3, 8, 8), "state": (2,), "goal": (3,), "prompt": ()},
    "with a history": {"images.front": (2, 3, 8, 8), "state": (2, 2), "goal": (2, 3), "prompt": ()},
    "two of one name": {"front": (8, 8, 3), "state": (5,), "agent_pos": (2,), "goal": (3,), "task": ()},
}


@pytest.mark.parametrize("offered", OFFERS.values(), ids=OFFERS)
def test_lerobots_names_fit_those_of_other_codebases(offered):
    found = fitting_names(LEROBOT, offered)
    if "agent_pos" in offered:
        assert found["observation.state"] == "agent_pos"
    exact = {key: key for key in LEROBOT.shapes if key in offered}
    assert sorted({**found, **exact}.values()) == sorted(name for name in offered if offered[name] != (5,))


def test_it_goes_both_ways_and_one_camera_is_the_image():
    spec = ObservationSpec({"pixels": (8, 8, 3), "agent_pos": (2,)}, 1)
    offered = {"observation.image": (3, 8, 8), "observation.state": (2,), "observation.environment_state": (4,)}
    assert fitting_names(spec, offered) == {"pixels": "observation.image", "agent_pos": "observation.state"}


def test_what_may_be_one_of_several_is_named_and_nothing_is_guessed():
    one = ObservationSpec({"observation.state": (2,)}, 1)
    with pytest.raises(
        InputError,
        match=r"'observation.state' may be 'state' or 'agent_pos'; name it, as in 'rename_map=\{observation.state: state\}'",
    ):
        fitting_names(one, {"state": (2,), "agent_pos": (2,)})
    two = ObservationSpec({"observation.images.front": (8, 8, 3), "pixels.front": (8, 8, 3)}, 1)
    with pytest.raises(InputError, match=r"'pixels.front' may be 'front', as 'observation.images.front'"):
        fitting_names(two, {"front": (8, 8, 3)})
    assert fitting_names(one, {"state": (3,), "velocity": (2,)}) == {}
    assert fitting_names(ObservationSpec({"observation.state": (2,), "state": (2,)}, 1), {"state": (2,)}) == {}


def test_an_exact_name_comes_first():
    assert fitting_names(LEROBOT, dict(LEROBOT.shapes) | {"state": (2,), "front": (8, 8, 3)}) == {}


def test_the_note_is_one_line():
    assert describe_names({"observation.state": "agent_pos", "pixels": "observation.image"}) == (
        "names of observations that fit by convention: observation.state is agent_pos, pixels is observation.image"
    )


def test_maps_in_maps_have_names_with_dots_of_bounded_length():
    nested = {"images": {"cam_high": 1, "left": {"wrist": 2}}, "state": 3}
    assert dict(flatten(nested)) == {"images.cam_high": 1, "images.left.wrist": 2, "state": 3}
    deep = {"a" * 150: {"b" * 60: 1}}
    with pytest.raises(InputError, match="a name of more than 200 characters"):
        dict(flatten(deep))
