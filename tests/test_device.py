"""Where networks compute: names of devices, copies of policies there, errors."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from adapters import ADAPTERS, observe
from fake_card import run_on_fake_card
from torch import nn

from gpc.composition.average import AveragedChunks
from gpc.composition.composed import compose
from gpc.composition.steering import steer
from gpc.errors import InputError, RunError
from gpc.inference.actor import ChunkActor
from gpc.inference.batched import BoundNetwork
from gpc.inference.chunk import sample_actions
from gpc.inference.constants import Constants
from gpc.inference.device import Card, Device
from gpc.inference.modules import module_on
from gpc.inference.placement import Placer, batch_sizes, place
from gpc.inference.settings import Sampling
from gpc.policy.adapt import rename


def observation_of(policy, rows=16):
    rng = np.random.default_rng(0)
    return {
        k: rng.uniform(0, 512, (rows, 2, *shape)).astype(np.float32) for k, shape in policy.observations.shapes.items()
    }


def chunks(policy, device, rows=16):
    actor = ChunkActor(policy, Sampling(steps=4), 8, device)
    weights = np.tile(np.full(len(policy.policies), 1 / len(policy.policies)), (rows, 1))
    return actor(observation_of(policy, rows), weights, np.arange(rows), np.zeros(rows, int))


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu"])
def test_a_device_that_is_not_there_is_an_error_that_names_what_is(name):
    with pytest.raises(InputError, match=f"device={name}: torch .* finds cpu only here; choose one of these, or auto"):
        Device(name).check_here()
    assert Device(name).settings(["a"])["device"] == name.partition(":")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "gpu"}, "device=gpu: choose auto, cpu, cuda"),
        ({"name": {"a": "cpu", "b": "tpu"}}, "device=tpu"),
        ({"name": 0}, "device=0: choose auto"),
        ({"dtype": "float16"}, "dtype=float16: choose bfloat16"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Device(**settings)


def test_a_device_for_an_unknown_policy_is_an_error(parents):
    with pytest.raises(InputError, match=r"device goes by policy; there is no 'tiny-nois'.*did you mean 'tiny-noise'"):
        Device({"tiny-nois": "cpu"}).check(parents)


def test_without_a_card_auto_is_the_cpu_and_a_policy_is_placed_as_it_is(parents):
    composition = compose(parents)
    assert Device().of("any") == torch.device("cpu")
    assert Device().settings(["a", "b"]) == {"device": "cpu", "dtype": None, "tf32": False}
    assert Device().facts(["a"]) == {}
    placed = place(composition, Device())
    assert all(new is old for new, old in zip(placed.policies, composition.policies, strict=True))
    assert batch_sizes(placed) == []


def test_bfloat16_moves_a_chunk_a_little_and_leaves_the_policy_as_it_is(parents):
    composition = compose(parents)
    before = chunks(composition, Device("cpu"))
    halved = chunks(composition, Device("cpu", dtype="bfloat16"))
    span = np.ptp(before)
    assert 1e-5 < np.abs(halved - before).max() / span < 0.1
    assert np.array_equal(chunks(composition, Device("cpu")), before)
    assert {weight.dtype for policy in parents for weight in policy.module.parameters()} == {torch.float32}


def test_views_and_averages_are_placed_inside(parents):
    views = [steer(parents[0], "smoothness", 0.01), rename(parents[1], {"keypoints": "points"})]
    for whole in (compose(views), AveragedChunks(views), compose([compose(views), parents[1]])):
        placed = place(whole, Device("cpu", dtype="bfloat16"))
        assert type(placed) is type(whole)
        assert (placed.name, placed.fingerprint) == (whole.name, whole.fingerprint)
        assert placed.observations == whole.observations
        assert np.abs(chunks(whole, Device("cpu", dtype="bfloat16")) - chunks(whole, Device("cpu"))).max() > 0


def test_an_actor_is_sent_to_another_machine_without_its_placed_networks(parents):
    actor = ChunkActor(compose([parents[0]]), Sampling(steps=2), 8, Device("cpu", dtype="bfloat16"))
    _ = actor.placed
    assert "placed" in vars(actor)
    assert "placed" not in vars(pickle.loads(pickle.dumps(actor)))


def test_a_copy_of_a_module_shares_no_weight_and_keeps_what_is_shared():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    module.table = torch.ones(3)  # a tensor that is no buffer
    copied = module_on(module, torch.device("cpu"), "bfloat16")
    assert copied[2].weight is copied[0].weight
    assert copied[0].weight.dtype == torch.bfloat16
    assert copied[1].weight.dtype == torch.float32  # norms keep theirs
    pointers = {tensor.data_ptr() for tensor in [*module.parameters(), module.table]}
    assert not pointers & {tensor.data_ptr() for tensor in [*copied.parameters(), copied.table]}


def test_a_full_memory_names_the_policy_and_what_to_do():
    message = r"'wide' does not fit.*dtype=bfloat16.*'device={wide: cuda:1}'.*remote:ws"
    with pytest.raises(RunError, match=message), Card(torch.device("cpu")).entered("wide"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("name", [name for name in ADAPTERS if "VLA" not in name])  # see test_lerobot_families
def test_the_network_of_an_adapter_mixes_no_devices_and_can_be_recorded(name, tmp_path):
    policy = ADAPTERS[name](tmp_path)
    run_on_fake_card(policy, observe(policy, 3))


@pytest.mark.parametrize("fault", ["a tensor of the host", "a number read by the host", "a tensor from the host"])
def test_the_fake_card_finds_a_network_that_cannot_be_recorded(parents, fault):
    policy, host = parents[0], torch.zeros(2)
    spoil = {
        "a tensor of the host": lambda module, inputs, out: out + host,
        "a number read by the host": lambda module, inputs, out: out + float(out.sum()),
        "a tensor from the host": lambda module, inputs, out: out + torch.zeros(2).to(out.device),
    }
    spoilt = module_on(policy.module, torch.device("cpu"))
    spoilt.network.register_forward_hook(spoil[fault])
    with pytest.raises((RuntimeError, AssertionError)):
        run_on_fake_card(dataclasses.replace(policy, module=spoilt), observation_of(policy, 3))


def alone(policy, observation, seed=0):
    """One chunk of one observation."""
    return sample_actions(policy, Sampling(steps=3), observation, np.array([seed]), np.array([0]))


@pytest.mark.parametrize("name", ADAPTERS)
def test_on_the_cpu_the_network_of_an_adapter_is_recorded_for_one_row_with_equal_bits(name, tmp_path, capfd):
    policy = ADAPTERS[name](tmp_path)
    placed = place(policy, Device("cpu"), reproducible=False)
    rows = observe(policy, 4)
    for row in range(4):  # the first two are compared with the network itself
        observation = {key: value[row : row + 1] for key, value in rows.items()}
        assert np.array_equal(alone(placed, observation, row), alone(policy, observation, row))
    network = placed.condition_fn.network
    assert network.recorded
    assert [recording.observations for recording in network._recordings.values()] == [{1, 2}]
    assert "recording" not in capfd.readouterr().err


def test_on_the_cpu_a_network_is_recorded_for_one_row_alone_and_not_if_rows_must_be_reproducible(parents):
    policy = parents[0]
    assert place(policy, Device("cpu")) is policy
    placer = Placer(Device("cpu"), reproducible=False)
    placed = placer(policy)
    observation = policy.observations.read(observation_of(policy, 4))
    assert not isinstance(placed.condition(observation).network, BoundNetwork)
    one = {key: value[:1] for key, value in observation.items()}
    assert isinstance(placed.condition(one).network, BoundNetwork)
    assert placer(policy) is placed


def test_a_network_that_cannot_be_traced_runs_as_it_is(parents, capfd):
    def untraceable(module, inputs, out):
        if torch.jit.is_tracing():
            raise TypeError("no tracer here")
        return out

    module = module_on(parents[0].module, torch.device("cpu"))
    module.network.register_forward_hook(untraceable)
    policy = dataclasses.replace(parents[0], module=module)
    placed = place(policy, Device("cpu"), reproducible=False)
    observation = observation_of(policy, 1)
    assert np.array_equal(alone(placed, observation), alone(policy, observation))
    assert "a recording of its network fails (no tracer here); it runs without" in capfd.readouterr().err


def test_constants_of_a_recording_are_made_once_and_change_no_result():
    x, constants = torch.arange(12.0).reshape(3, 4), Constants()
    y = x.clone()

    def use(x):
        x[..., (1, 3)] = 0.0
        parts = [x[..., [0, 2]], x[[0, 1]], x[(0, 1)], x[1].clone(), x[x > 2], x * torch.tensor([1.0, 2.0, 3.0, 4.0])]
        x[0], x[:, 1:] = 5, torch.tensor([1.0, 2.0, 3.0])
        return parts

    with constants:
        ours = use(x)
        made = len(constants.made)
        use(x)
    assert len(constants.made) == made == 7
    assert all(map(torch.equal, ours, use(y)))
    use(y)
    assert torch.equal(x, y)
