"""Images, instructions and numbers: what each entrance converts, and what it refuses."""

import warnings

import numpy as np
import pytest
import torch

import gpc
from gpc.composition.composed import join_observations
from gpc.errors import InputError
from gpc.policy.adapt import rename
from gpc.policy.observation import TASK_BYTES, conform, flatten, read_text, write_text
from gpc.policy.spec import ObservationSpec

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (2, 4, 6, 3), np.uint8)
IMAGE[0, 0, 0] = 0, 255, 7
SHAPE = (4, 6, 3)
FORMS = {
    "bytes": IMAGE,
    "float32": np.float32(IMAGE / 255),
    "float64": IMAGE / 255,
    "float16": np.float16(IMAGE / 255),
    "int64": IMAGE.astype(np.int64),
    "uint16": IMAGE.astype(np.uint16),
    "channels first": IMAGE.transpose(0, 3, 1, 2),
    "floats, channels first": (IMAGE / 255).transpose(0, 3, 1, 2),
    "beyond 1 by rounding": np.where(IMAGE == 255, np.float32(1 + 1e-6), np.float32(IMAGE / 255)),
}


@pytest.mark.parametrize("image", FORMS.values(), ids=FORMS)
def test_every_form_of_an_image_is_its_bytes(image):
    found = conform("front", image, SHAPE, True)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IMAGE)


REFUSED = {
    "0 to 255 in floats": (
        IMAGE.astype(np.float32),
        r"'front' holds floats from 0 to 255; send .*, or floats from 0 to 1",
    ),
    "-1 to 1": (IMAGE / 127.5 - 1, "floats from -1 to 1"),
    "NaN": (IMAGE * np.nan, "floats from nan to nan"),
    "negative": (IMAGE.astype(int) - 1, "int64 from -1 to 254"),
    "16 bits": (IMAGE.astype(np.uint16) * 257, "uint16 from 0 to 65535"),
    "a mask": (IMAGE > 9, "bool from 0 to 1"),
    "another size": (IMAGE[:, :2], r"has shape \(2, 2, 6, 3\), the policy reads \(4, 6, 3\)"),
    "grey": (IMAGE[..., 0], r"shape \(2, 4, 6\)"),
    "text": ("front.png", "without numbers"),
}


@pytest.mark.parametrize(("image", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused_with_its_range_and_the_fix(image, words):
    with pytest.raises(InputError, match=words):
        conform("front", image, SHAPE, True)


def test_channels_first_is_turned_only_if_nothing_else_fits():
    cube = RNG.integers(0, 256, (3, 3, 3), np.uint8)
    np.testing.assert_array_equal(conform("front", cube, (3, 3, 3), True), cube)
    with pytest.raises(InputError, match="has shape"):
        conform("cloud", np.zeros((3, 4, 6)), SHAPE)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_numbers_are_float32_whatever_their_type(dtype):
    values = np.array([[0, 1, 1]], dtype)
    found = conform("state", values, (3,))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0, 1, 1]])
    assert conform("map", np.zeros(SHAPE, np.uint8), SHAPE).dtype == np.float32


def test_the_spec_names_its_images_and_by_default_they_have_three_channels():
    shapes = {"front": SHAPE, "depth": (4, 6, 1), "state": (3,)}
    spec = ObservationSpec(shapes, 1)
    assert spec.images == {"front"}
    assert ObservationSpec(shapes, 1, ["depth"]).images == {"depth"}
    assert spec == ObservationSpec(shapes, 1, {"front"})
    for wrong in ("state", "wrist"):
        with pytest.raises(InputError, match=f"the image '{wrong}' must be one of the keys, of shape"):
            ObservationSpec(shapes, 1, [wrong])


def test_views_and_compositions_keep_what_is_an_image(parents_of_kinds):
    image, numbers = parents_of_kinds
    assert rename(image, {"depth": "wrist"}).observations.images == {"wrist"}
    assert join_observations([image]).images == {"depth"}
    with pytest.raises(InputError, match="read 'depth' as an image and as numbers"):
        join_observations([image, numbers])


@pytest.fixture
def parents_of_kinds():
    from models import FixedPolicy, Gaussian

    shapes = {"depth": (4, 6, 1)}
    return [FixedPolicy(Gaussian(), observations=ObservationSpec(shapes, 1, images)) for images in (["depth"], [])]


@pytest.mark.parametrize("form", ["float32", "floats, channels first", "int64"])
def test_a_policy_conditioned_from_python_sees_the_same_image_in_every_form(form):
    policy = gpc.load_policy("pusht-image")
    rng = np.random.default_rng(0)
    key, shape = next((key, policy.observations.shapes[key]) for key in policy.observations.images)
    image = rng.integers(0, 256, (1, 2, *shape), np.uint8)
    other = {
        "float32": np.float32(image / 255),
        "floats, channels first": np.moveaxis(image / 255, -1, -3),
        "int64": image.astype(np.int64),
    }[form]
    rest = {k: torch.rand(1, 2, *s) for k, s in policy.observations.shapes.items() if k != key}
    x, sigma = torch.randn(1, *policy.actions.shape, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    ours, theirs = (
        policy.condition({**rest, key: torch.from_numpy(np.ascontiguousarray(value))})(x, sigma)
        for value in (image, other)
    )
    assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match=f"image '{key}' holds floats from 0 to 255"):
        policy.condition({**rest, key: torch.from_numpy(image).float()})


def test_arrays_that_cannot_be_written_or_run_backwards_are_read_without_a_warning():
    spec = ObservationSpec({"front": SHAPE, "state": (3,)}, 1)
    numbers = np.ones((2, 1, 3), np.float32)
    numbers.flags.writeable = False
    flipped = np.broadcast_to(IMAGE[None], (2, 2, *SHAPE))[..., ::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = spec.read({"front": flipped, "state": numbers})
    np.testing.assert_array_equal(found["front"][0, 0], IMAGE[1, ..., ::-1])
    assert found["state"].shape == (2, 1, 3)


def test_a_batch_is_a_batch_with_a_history():
    spec = ObservationSpec({"state": (3,)}, 2)
    for shape in ((3,), (2, 3), (1, 1, 3), (1, 1, 2, 3)):
        with pytest.raises(InputError, match=r"the policy wants \(batch, 2, \*\(3,\)\)"):
            spec.read({"state": np.zeros(shape)})
    assert spec.read({"state": np.arange(9.0).reshape(1, 3, 3)})["state"].tolist() == [[[3, 4, 5], [6, 7, 8]]]


LONG = "pick up the red block and put it into the box beside the green plate " * 5
SIDES = [f"{LONG}with the {side} arm" for side in ("left", "right")]


def test_long_instructions_differ_in_their_last_word_and_longer_ones_are_refused():
    left, right = (conform("task", text, (TASK_BYTES,)) for text in SIDES)
    assert [read_text(left), read_text(right)] == SIDES
    assert len(SIDES[0]) > 256
    with pytest.raises(InputError, match=f"has {TASK_BYTES + 1} bytes of UTF-8, the limit is {TASK_BYTES}; shorten it"):
        write_text("a" * (TASK_BYTES + 1))
    with pytest.raises(InputError, match=f"has {TASK_BYTES + 2} bytes"):
        write_text("ä" * (TASK_BYTES // 2 + 1))
    assert read_text(write_text("ä" * (TASK_BYTES // 2))) == "ä" * (TASK_BYTES // 2)
    with pytest.raises(InputError, match="holds the character 0"):
        write_text("left\0right")


def test_texts_of_earlier_versions_have_256_bytes_and_are_read():
    """A server of an earlier version reads 256 bytes, a client of one sends 256, perhaps cut."""
    new = np.stack([write_text("push"), write_text("pull")])
    old = conform("task", new, (256,))
    assert old.shape == (2, 256)
    np.testing.assert_array_equal(conform("task", old, (TASK_BYTES,)), new)
    np.testing.assert_array_equal(conform("task", ["push", "pull"], (TASK_BYTES,)), new)
    with pytest.raises(InputError, match="bytes of UTF-8, the limit is 256"):
        conform("task", SIDES[0], (256,))
    cut = np.frombuffer(("a" + "ä" * 200).encode()[:256], np.uint8)
    with pytest.raises(InputError, match="was cut inside a character"):
        conform("task", cut, (TASK_BYTES,))
    with pytest.raises(InputError, match="send it as text, not as float64"):
        conform("task", np.zeros(256), (TASK_BYTES,))


@pytest.mark.parametrize("key", ["", "a", 0])
def test_maps_that_are_nested_without_end_are_refused(key):
    node = np.zeros(2)
    for _ in range(1000):
        node = {key: node}
    with pytest.raises(InputError, match="has a name of more than 200 characters"):
        dict(flatten(node))
    assert list(flatten({"images": {"front": 1}, "state": 2})) == [("images.front", 1), ("state", 2)]
