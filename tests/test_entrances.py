"""An image, a state in bytes and an instruction reach a policy in one form, through every entrance."""

import numpy as np
import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from serving import SAMPLING, served
from toy_envs import FORMS, Window
from toy_robots import Arm

import gpc
from gpc.bridge.robot import map_features
from gpc.commands.rollout_setup import prepare
from gpc.composition.composed import compose
from gpc.demonstrations import Demonstrations
from gpc.errors import InputError, RunError
from gpc.inference.chunk import sample_actions
from gpc.policies.as_lerobot import GpcConfig, GpcPolicy
from gpc.policies.remote import load
from gpc.policy.env_spec import EnvSpec
from gpc.policy.observation import TASK_BYTES, read_text
from gpc.policy.spec import ObservationSpec
from gpc.rollout.engine import Engine, Job, rollout
from gpc.serve.metadata import check_metadata, policy_metadata
from gpc.testing import check_policy
from gpc.weights.denoising_error import demonstrated

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (4, 6, 3), np.uint8)
SHAPES = {"front": (4, 6, 3), "gripper": (2,)}
LEROBOT = {"observation.images.front": (4, 6, 3), "observation.state": (2,)}
GRIPPER = np.array([3, 200], np.uint8)
ACCEPTED = [form for form in FORMS if form != "0 to 255 in floats"]


class Looking(FixedPolicy):
    """Moves by what it sees, and sees bytes with channels last, and numbers."""

    def condition(self, observation):
        image, state = (observation[key] for key in self.observations.shapes)
        assert (image.dtype, tuple(image.shape[1:])) == (torch.uint8, (2, 4, 6, 3))
        assert state.dtype == torch.float32
        weights = torch.arange(image[0].numel()).reshape(image.shape[1:]) % 7
        seen = (image.double() * weights).mean((1, 2, 3, 4)) / 255 + state.double().mean((1, 2)) / 1000
        return lambda x, sigma: self.denoiser(x - seen[:, None, None], sigma) + seen[:, None, None]


def looking(shapes=SHAPES):
    return Looking(Gaussian(0.5, 0.01), observations=ObservationSpec(shapes, 2))


def chunk_of(policy, image, state=GRIPPER):
    seen = {key: np.stack([[value] * 2]) for key, value in zip(policy.observations.shapes, (image, state), strict=True)}
    return sample_actions(policy, SAMPLING, seen, np.array([7]), np.array([0]))[0]


def episode(form, policy=None, **names):
    env = EnvSpec(Window, 8, 24, {"form": form, **names})
    setup = prepare(compose([policy or looking()]), env, SAMPLING)
    (found,) = rollout([Job(0, (1.0,), 3)], setup.actor, setup.lane, Engine(lanes=1, workers=1))
    return found, setup


@pytest.fixture(scope="module")
def bytes_episode():
    return episode("bytes")[0]


@pytest.mark.parametrize("form", ACCEPTED[1:])
def test_an_environment_shows_the_same_in_every_form(form, bytes_episode):
    found, _ = episode(form)
    np.testing.assert_array_equal(found.trajectory["action"], bytes_episode.trajectory["action"])
    assert np.ptp(found.trajectory["action"], axis=0).min() > 0.01  # the policy sees it
    assert sorted(found.trajectory) == ["action", "gripper", "reward"]
    np.testing.assert_array_equal(found.trajectory["gripper"], [[3, 200]] * 3)


def test_an_environment_whose_image_is_out_of_range_is_named():
    with pytest.raises(
        RunError, match=r"^Window: image 'front' holds floats from .* to 2.*; send integers from 0 to 255"
    ):
        episode("0 to 255 in floats")


@pytest.fixture(scope="module")
def server():
    with served(looking()) as address:
        yield address


@pytest.mark.parametrize("form", ACCEPTED)
def test_openpis_client_sends_an_image_in_every_form(form, server):
    message = {"front": FORMS[form](IMAGE), "gripper": GRIPPER, "gpc.seed": 7, "gpc.chunk": 0}
    actions = WebsocketClientPolicy(server).infer(message)["actions"]
    np.testing.assert_allclose(actions, chunk_of(looking(), IMAGE), atol=1e-12)
    history = message | {"front": np.stack([message["front"]] * 2), "gripper": GRIPPER.astype(np.int64)}
    np.testing.assert_array_equal(WebsocketClientPolicy(server).infer(history)["actions"], actions)


def test_what_openpis_client_sends_out_of_range_is_answered_in_one_line(server):
    client = WebsocketClientPolicy(server)
    message = {"front": IMAGE.astype(np.float32), "gripper": GRIPPER}
    for front, words in (
        (message["front"], "floats from 1 to 248"),
        (IMAGE / 127.5 - 1, "floats from -0.99"),
        (IMAGE[1:], "shape"),
    ):
        with pytest.raises(RuntimeError, match=f"'front' .*{words}"):
            client.infer(message | {"front": front})
    assert client.infer(message | {"front": IMAGE})["actions"].shape == (16, 2)


@pytest.mark.parametrize("form", ACCEPTED)
def test_a_remote_member_sends_an_image_in_every_form(form, server):
    np.testing.assert_allclose(chunk_of(load(server), FORMS[form](IMAGE)), chunk_of(looking(), IMAGE), atol=1e-12)


def test_a_server_of_an_earlier_version_names_no_images():
    metadata = policy_metadata(looking())
    assert metadata.pop("images") == ["front"]
    assert check_metadata(metadata, "ws://old").spec == looking().observations
    grey = policy_metadata(FixedPolicy(Gaussian(), observations=ObservationSpec({"depth": (4, 6, 1)}, 1, ["depth"])))
    assert check_metadata(grey, "ws://new").spec.images == {"depth"}


@pytest.mark.parametrize("form", ACCEPTED)
def test_a_robots_camera_shows_an_image_in_every_form(form):
    image = FORMS[form](IMAGE)

    class Camera(Arm):
        observation_features = {"front": image.shape, "gripper.0": float, "gripper.1": float}  # noqa: RUF012

    frame = map_features(Camera(), looking().observations, 2).frame(
        {"front": image, "gripper.0": 3.0, "gripper.1": 200.0}
    )
    np.testing.assert_array_equal(chunk_of(looking(), frame["front"], frame["gripper"]), chunk_of(looking(), IMAGE))


@pytest.fixture
def plug_in(monkeypatch):
    monkeypatch.setattr("gpc.policies.as_lerobot.load_registered", lambda source: looking(LEROBOT))
    return GpcPolicy(GpcConfig(policies=["looking"], weights=[1.0], sampling=SAMPLING))


@pytest.mark.parametrize("form", ACCEPTED)
def test_lerobots_batch_has_an_image_in_every_form(form, plug_in):
    noise = torch.randn(1, 1, *ACTIONS.shape, generator=torch.Generator().manual_seed(1))

    def chunk(image):
        plug_in.reset()
        batch = {"front": torch.from_numpy(np.ascontiguousarray(image)[None]), "agent_pos": torch.tensor([[3, 200]])}
        return plug_in.predict_action_chunk(batch, noise)

    assert torch.equal(chunk(FORMS[form](IMAGE)), chunk(IMAGE))
    with pytest.raises(InputError, match=r"image 'observation.images.front' holds floats from 1 to 248"):
        chunk(IMAGE.astype(np.float32))


def test_check_policy_gives_a_policy_what_every_entrance_gives_it():
    check_policy(looking())
    listening = FixedPolicy(Gaussian(), observations=ObservationSpec({"task": (TASK_BYTES,)}, 1))
    check_policy(listening)


def test_names_that_fit_are_the_same_episode_with_a_note_and_recorded(bytes_episode):
    found, setup = episode("bytes", looking(LEROBOT), image="pixels.front", state="agent_pos")
    np.testing.assert_array_equal(found.trajectory["action"], bytes_episode.trajectory["action"])
    note = "observation.images.front is pixels.front, observation.state is agent_pos"
    assert [line for line in setup.notes if note in line]
    names = {"observation.images.front": "pixels.front", "observation.state": "agent_pos"}
    assert setup.env.rename_map == names
    by_hand = prepare(compose([gpc.policy.adapt.rename(looking(LEROBOT), names)]), setup.env, SAMPLING)
    assert by_hand.settings == setup.settings


ALOHA = {"observation.images.cam_high": (4, 6, 3), "observation.state": (2,)}


def test_openpis_aloha_runner_is_served_as_it_is():
    """Its observation has maps in maps, and images with channels first."""
    with served(looking(ALOHA)) as address:
        client = WebsocketClientPolicy(address)
        noise = {"gpc.seed": 7, "gpc.chunk": 0}
        message = {
            "state": GRIPPER.astype(np.float64),
            "images": {"cam_high": IMAGE.transpose(2, 0, 1)},
            "prompt": "push",
        }
        actions = client.infer(message | noise)["actions"]
        np.testing.assert_allclose(actions, chunk_of(looking(ALOHA), IMAGE), atol=1e-12)
        droid = {"observation/cam_high": IMAGE, "observation/state": GRIPPER, "prompt": "push"}
        np.testing.assert_array_equal(client.infer(droid | noise)["actions"], actions)
        with pytest.raises(RuntimeError, match=r"'observation.state' may be 'state' or 'agent_pos'; name it"):
            client.infer(message | {"agent_pos": GRIPPER})


LONG = "pick up the red block and put it into the box beside the green plate " * 5


def test_long_instructions_reach_a_served_policy_whole_and_a_missing_one_is_named():
    heard = []

    class Listening(FixedPolicy):
        def condition(self, observation):
            heard[:] = [read_text(row.numpy()) for row in observation["task"][:, -1]]
            return self.denoiser

    policy = Listening(Gaussian(), observations=ObservationSpec({"task": (TASK_BYTES,)}, 1))
    with served(policy) as address:
        client = WebsocketClientPolicy(address)
        for side in ("left", "right"):
            client.infer({"prompt": f"{LONG}with the {side} arm"})
            assert heard == [f"{LONG}with the {side} arm"]
        with pytest.raises(RuntimeError, match=f"has {TASK_BYTES + 1} bytes of UTF-8, the limit is {TASK_BYTES}"):
            client.infer({"prompt": "a" * (TASK_BYTES + 1)})
        with pytest.raises(RuntimeError, match="send the instruction as text under 'prompt' or 'task'"):
            client.infer({"text": "push"})
        client.infer({"task": np.frombuffer(b"push".ljust(256, b"\0"), np.uint8)})  # of an earlier version
        assert heard == ["push"]


def test_an_environment_without_the_instruction_that_a_policy_reads_is_named():
    reader = FixedPolicy(Gaussian(), observations=ObservationSpec({"gripper": (2,), "task": (TASK_BYTES,)}, 1))
    with pytest.raises(InputError, match=r"reads 'task' .*, an instruction; Window offers none"):
        episode("bytes", reader)


@pytest.mark.parametrize("form", FORMS)
def test_demonstrations_hold_an_image_in_every_form_also_in_floats_up_to_255(form):
    """Diffusion Policy's replay buffers have floats from 0 to 255; a file is whole, so that its range is known."""
    images = RNG.integers(0, 256, (20, 4, 6, 3), np.uint8)
    stored = np.stack([FORMS[form](image) for image in images])
    frames = {"front": stored, "gripper": np.tile(GRIPPER, (20, 1))}
    demonstrations = Demonstrations(frames, np.zeros((20, 2), np.float32), np.array([20]))
    (part,) = demonstrated(looking(), demonstrations, 1)
    np.testing.assert_array_equal(part.observation["front"][:, -1], images[part.windows])
    assert part.observation["gripper"].dtype == torch.float32


def test_a_lerobot_robot_needs_no_names_for_its_state_and_cameras(capsys):
    class SO101(Arm):
        joints = ("shoulder_pan.pos", "shoulder_lift.pos")
        observation_features = dict.fromkeys(joints, float) | {"front": (3, 4, 6)}
        action_features = dict.fromkeys(joints, float)

    spec = looking(LEROBOT).observations
    features = map_features(SO101(), spec, 2)
    assert dict(features.observations) == {"observation.images.front": ("front",), "observation.state": SO101.joints}
    assert "observation.images.front is front, observation.state is shoulder_pan.pos" in capsys.readouterr().err
    chosen = map_features(SO101(), spec, 2, {"observation.state": SO101.joints[::-1]})
    assert chosen.observations["observation.state"] == SO101.joints[::-1]
    three = ObservationSpec({"observation.state": (3,)}, 1)
    with pytest.raises(InputError, match=r"has no feature 'observation.state.0'"):
        map_features(SO101(), three, 2)
