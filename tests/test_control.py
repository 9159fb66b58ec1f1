from dataclasses import replace

import numpy as np
import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian

from gpc.composition.average import AveragedChunks
from gpc.composition.composed import compose
from gpc.errors import InputError
from gpc.inference.actor import ChunkActor
from gpc.inference.chunk import sample_chunk
from gpc.inference.settings import Sampling
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.score.keyed_noise import keyed_noise
from gpc.score.noise import NoiseLevels, VariancePreserving


def test_noise_depends_on_seed_and_chunk_alone():
    all_rows = keyed_noise(np.array([1, 1, 2]), np.array([0, 1, 0]), 2, ACTIONS.shape)
    assert all_rows.shape == (2, 3, 16, 2)
    assert torch.equal(keyed_noise(np.array([1]), np.array([1]), 2, ACTIONS.shape)[:, 0], all_rows[:, 1])
    assert len({row.numpy().tobytes() for row in all_rows.flatten(0, 1)}) == 6
    flat = keyed_noise(np.arange(500), np.zeros(500, np.int64), 1, ACTIONS.shape).flatten()
    assert abs(float(flat.mean())) < 4 / len(flat) ** 0.5
    assert float(flat.std()) == pytest.approx(1, rel=0.03)


def test_noise_is_that_of_a_generator_of_its_own_for_each_row():
    seeds, chunks = np.array([0, 7, 2**63]), np.array([0, 3, 1])
    shape = (5, ACTIONS.horizon, ACTIONS.dim)
    drawn = keyed_noise(seeds, chunks, 5, ACTIONS.shape)
    for row, key in enumerate(zip(seeds, chunks, strict=True)):
        own = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))).standard_normal(shape)
        assert np.array_equal(drawn[:, row].numpy(), own)


@pytest.mark.parametrize("method", ["dpmpp_2m", "ancestral"])
def test_a_row_is_bitwise_the_same_in_batches_of_1_7_and_60(parents, method):
    policy = compose(parents, [0.5, 0.5])
    actor = ChunkActor(policy, Sampling(method, 5), 8)
    rng = np.random.default_rng(0)
    frames = {key: rng.uniform(0, 512, (60, 2, *shape)) for key, shape in policy.observations.shapes.items()}
    seeds, chunks = np.arange(60), np.arange(60) % 4
    weights = np.stack([np.linspace(0, 1, 60), 1 - np.linspace(0, 1, 60)], 1)

    def act(rows):
        return actor({k: v[rows] for k, v in frames.items()}, weights[rows], seeds[rows], chunks[rows])

    whole = act(slice(None))
    for size in (1, 7):
        parts = [act(slice(i, i + size)) for i in range(0, 60, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(act(slice(None, None, -1))[::-1], whole)


def test_actions_are_in_the_environments_units_from_the_newest_observation_on():
    """The denoised action is its own step's number, so the executed slice shows where it starts."""
    ramp = torch.arange(16, dtype=torch.float64)[None, :, None].expand(1, 16, 2) / 10
    spec = replace(ACTIONS, scale=(10.0, 10.0), offset=(100.0, 200.0), start=-3)
    policy = compose([FixedPolicy(lambda x, sigma: ramp.expand(len(x), -1, -1), spec)], [1.0])
    actor = ChunkActor(policy, Sampling(), 4)
    out = actor({"state": np.zeros((2, 2, 3))}, np.ones((2, 1)), np.array([0, 1]), np.array([0, 0]))
    assert out.shape == (2, 4, 2)
    np.testing.assert_allclose(out[1, :, 0], [103, 104, 105, 106])
    np.testing.assert_allclose(out[1, :, 1], [203, 204, 205, 206])


@pytest.mark.parametrize("steps", [0, 17])
def test_more_actions_than_the_chunk_has_are_refused(steps):
    with pytest.raises(InputError, match="choose 1 to 16"):
        ChunkActor(compose([FixedPolicy(Gaussian())], [1.0]), Sampling(), steps)


def test_a_chunk_that_begins_in_the_future_is_refused():
    late = FixedPolicy(Gaussian(), replace(ACTIONS, horizon=8, start=2))
    with pytest.raises(InputError, match="predicts steps 2 to 9 from now"):
        ChunkActor(compose([late], [1.0]), Sampling(), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ddpm"}, "unknown sampler"),
        ({"steps": 0}, "choose a number from 1"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min < sigma_max"),
    ],
)
def test_sampler_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_the_grid_stays_inside_what_the_policy_was_trained_for():
    grid = Sampling(steps=6).sigmas(NoiseLevels(0.5, 3.0))
    assert grid[0] == pytest.approx(3.0)
    assert grid[-2] == pytest.approx(0.5)
    assert len(grid) == 7


@pytest.mark.parametrize(("low", "high"), [(5.0, 40.0), (0.01, 0.05)])
def test_a_sampler_range_outside_the_trained_levels_is_refused(low, high):
    with pytest.raises(InputError):
        Sampling(steps=8, sigma_min=low, sigma_max=high).sigmas(NoiseLevels(0.1, 3.0))


def test_the_trained_grid_is_ddpms_own():
    levels = VariancePreserving.squaredcos(100).levels
    assert Sampling(steps=100, grid="trained").sigmas(levels).tolist() == [*reversed(levels.trained), 0.0]
    assert Sampling(steps=3, grid="trained").sigmas(levels).tolist() == [*(levels.trained[i] for i in (99, 50, 0)), 0.0]
    with pytest.raises(InputError, match="no trained levels"):
        Sampling(grid="trained").sigmas(NoiseLevels(0.01, 10))
    with pytest.raises(
        InputError,
        match=r"sampler\.grid='even': choose one of karras, .*, trained, leading",
    ):
        Sampling(grid="even")


LEFT, RIGHT = (
    FixedPolicy(Gaussian(mean, 0.4), replace(ACTIONS, names=(f"{side}.x", f"{side}.y"), start=start), name=side)
    for mean, side, start in ((-1.0, "left", -1), (2.0, "right", 0))
)


def act(actor, weights, rows=3):
    seen = {"state": np.zeros((rows, 2, 3))}
    return actor(seen, np.tile(np.array(weights, float), (rows, 1)), np.arange(rows), np.zeros(rows, np.int64))


def test_two_one_arm_policies_are_two_arms():
    """Each arm moves as if it were alone, from its own part of the noise, whatever the weights."""
    policy = compose([LEFT, RIGHT], [0.5, 0.5])
    assert policy.actions.names == ("left.x", "left.y", "right.x", "right.y")
    noise = keyed_noise(np.arange(3), np.zeros(3), 1, policy.actions.shape)
    for weights in ([0.5, 0.5], [0.9, 0.1]):
        found = act(ChunkActor(policy, Sampling(), 8), weights)
        assert found.shape == (3, 8, 4)
        for arm, steps, dims in ((LEFT, slice(0, 16), [0, 1]), (RIGHT, slice(1, 17), [2, 3])):
            alone = sample_chunk(arm, {"state": torch.zeros(3, 2, 3)}, noise[:, :, steps][..., dims], Sampling())
            first = -arm.actions.start
            np.testing.assert_allclose(found[..., dims], alone[:, first : first + 8], atol=1e-12)


def test_an_arm_without_the_other_is_refused_before_anything_runs():
    actor = ChunkActor(compose([LEFT, RIGHT], [0.5, 0.5]), Sampling(), 8)
    actor.check([0.5, 0.5])
    with pytest.raises(InputError, match=r"left cannot act alone: it has no right\.x, right\.y"):
        actor.check([1.0, 0.0])


def test_averaged_members_see_as_many_observations_as_each_reads():
    short = FixedPolicy(
        Gaussian(), observations=replace(FixedPolicy(Gaussian()).observations, n_obs_steps=1), name="short"
    )
    policy = AveragedChunks([FixedPolicy(Gaussian()), short])
    assert sample_chunk(
        policy, {"state": torch.zeros(3, 2, 3)}, torch.randn(2, 3, 16, 2).double(), Sampling()
    ).shape == (3, 16, 2)


def test_a_slower_policy_alone_is_interpolated_to_the_compositions_steps_and_named_in_its_order():
    ramp = torch.tensor([0.0, 2.0, 4.0, 6.0], dtype=torch.float64)
    values = torch.stack([ramp, -ramp], -1)
    slow = FixedPolicy(
        lambda x, sigma: values.expand(len(x), -1, -1),
        ActionSpec(4, (1.0, 1.0), (0.0, 0.0), ("y", "x"), start=-1, dt=2.0),
        name="slow",
    )
    found = act(ChunkActor(compose([FixedPolicy(Gaussian()), slow]), Sampling(), 5), [0.0, 1.0])
    np.testing.assert_allclose(found[0], [[-2, 2], [-3, 3], [-4, 4], [-5, 5], [-6, 6]])
    with pytest.raises(InputError, match="slow predicts steps -2 to 4 from now; choose 1 to 5"):
        ChunkActor(compose([FixedPolicy(Gaussian()), slow]), Sampling(), 6).check([0.0, 1.0])


def test_one_place_cuts_the_history_of_observations():
    spec = ObservationSpec({"state": (3,), "image": (4, 4, 3)}, 2)
    observation = {
        "state": np.arange(24).reshape(2, 4, 3),
        "image": np.zeros((2, 2, 4, 4, 3), np.uint8),
        "other": np.zeros((2, 1)),
    }
    chosen = spec.read(observation)
    assert list(chosen) == ["state", "image"]
    assert np.array_equal(chosen["state"].numpy(), observation["state"][:, 2:])
    assert chosen["image"].shape == (2, 2, 4, 4, 3)
    with pytest.raises(InputError, match="observation has no 'image'; it has state"):
        spec.read({"state": observation["state"]})
