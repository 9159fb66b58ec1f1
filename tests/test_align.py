from dataclasses import replace

import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian, state

from gpc.composition import compose
from gpc.control import Sampling, sample_chunk
from gpc.errors import InputError
from gpc.noise import NoiseLevels
from gpc.policy import ActionSpec, ObservationSpec

FINE = Sampling(steps=12, sigma_max=20.0, sigma_min=0.02)
OTHER = replace(ACTIONS, scale=(4.0, 4.0), offset=(1.0, -2.0))


def noise(batch=3):
    return torch.randn(1, batch, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def seen_from(spec, gaussian):
    """The Gaussian of actions, N(mean, std) in the environment's units, as a policy normalised by `spec`."""

    def denoise(x, sigma):
        scale, offset = x.new_tensor(spec.scale), x.new_tensor(spec.offset)
        return (gaussian(x * scale + offset, sigma * spec.scale[0]) - offset) / scale

    return FixedPolicy(denoise, spec)


def test_a_policy_with_another_scale_and_offset_is_aligned_exactly():
    a, b = Gaussian(1.0, 0.5), Gaussian(-2.0, 1.5)
    same = compose([seen_from(ACTIONS, a), seen_from(ACTIONS, b)], [0.3, 0.7])
    mixed = compose([seen_from(ACTIONS, a), seen_from(OTHER, b)], [0.3, 0.7])
    found = [sample_chunk(p, state(3), noise(), FINE) for p in (same, mixed)]
    torch.testing.assert_close(*found, atol=1e-12, rtol=0)


def test_the_coordinate_is_the_first_policys():
    a, b = Gaussian(1.0, 0.5), Gaussian(-2.0, 1.5)
    turned = compose([seen_from(OTHER, b), seen_from(ACTIONS, a)], [0.7, 0.3])
    assert (turned.actions.scale, turned.actions.offset) == (OTHER.scale, OTHER.offset)
    straight = compose([seen_from(ACTIONS, a), seen_from(OTHER, b)], [0.3, 0.7])
    x, sigma = noise()[0], torch.tensor(2.0, dtype=torch.float64)
    wanted = straight.condition(state(3))(straight.actions.encode(OTHER.decode(x)), sigma * 4)
    found = turned.condition(state(3))(x, sigma)
    torch.testing.assert_close(OTHER.decode(found), straight.actions.decode(wanted), atol=1e-12, rtol=0)


def test_a_ratio_that_hardly_differs_per_dimension_is_served_with_exact_points_and_said():
    bent = replace(ACTIONS, scale=(0.98, 1.02), offset=(0.1, -0.2))
    point = torch.randn(5, 16, 2, dtype=torch.float64)
    told = []

    def same_point(x, sigma):  # an action in the environment's units, seen in bent's coordinate
        told.append(float(sigma))
        return bent.encode(ACTIONS.decode(point))

    policy = compose([FixedPolicy(Gaussian()), FixedPolicy(same_point, bent, name="bent")], [0.0, 1.0])
    assert [m.note for m in policy.members] == [
        "",
        "bent is told noise levels that are up to 2.0% off: its normaliser " + "differs per dimension",
    ]
    out = policy.condition(state(5))(torch.randn_like(point), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(out, point)
    assert told == [pytest.approx(0.5 / (0.98 * 1.02) ** 0.5)]


def test_a_ratio_that_differs_per_dimension_is_refused_with_both_normalisers():
    bent = replace(ACTIONS, scale=(1.0, 2.0), offset=(0.0, 0.5))
    with pytest.raises(InputError, match=r"x = 1 x \+ 0, y = 1 x \+ 0 against x = 1 x \+ 0, y = 2 x \+ 0.5"):
        compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), bent)], [0.5, 0.5])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ActionSpec(16, (1.0,), (0.0,), ("x",)), "acts in 2 dimensions"),
        (replace(ACTIONS, names=("x", "z")), "name their actions differently"),
        (replace(ACTIONS, dt=2.0), "every 1 control steps, fixed every 2"),
        (replace(ACTIONS, start=20), "share no step"),
    ],
)
def test_actions_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), spec)], [0.5, 0.5])


def test_one_key_of_two_shapes_is_refused():
    other = FixedPolicy(Gaussian(), observations=ObservationSpec({"state": (5,)}, 2))
    with pytest.raises(InputError, match="reads 'state' as"):
        compose([FixedPolicy(Gaussian()), other], [0.5, 0.5])


def test_every_member_reads_its_own_keys_and_its_own_history():
    reader = FixedPolicy(Gaussian(), observations=ObservationSpec({"pixels": (8, 8, 3)}, 1))
    policy = compose([FixedPolicy(Gaussian()), reader], [0.5, 0.5])
    assert policy.observations == ObservationSpec({"state": (3,), "pixels": (8, 8, 3)}, 2)
    policy.condition(state() | {"pixels": torch.zeros(1, 2, 8, 8, 3)})
    with pytest.raises(InputError, match="no 'pixels'"):
        policy.condition(state())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ActionSpec(16, (1.0, 1.0), (0.0,), ("x",)),
        lambda: ActionSpec(0, (1.0,), (0.0,), ("x",)),
        lambda: ActionSpec(16, (0.0,), (0.0,), ("x",)),
    ],
)
def test_an_action_spec_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match="action spec"):
        wrong()


def test_decode_undoes_encode():
    action = torch.randn(3, 16, 2, dtype=torch.float64)
    torch.testing.assert_close(OTHER.decode(OTHER.encode(action)), action)


def test_noise_levels_are_seen_in_the_first_policys_units():
    """One unit of `wide` is four of `ACTIONS`: sigma 2 there is sigma 8 here, trained levels included."""
    here = FixedPolicy(Gaussian(), levels=NoiseLevels(0.1, 100.0))
    wide = FixedPolicy(Gaussian(), OTHER, NoiseLevels(0.5, 2.0, (0.5, 1.0, 2.0)))
    assert compose([here, wide], [0.5, 0.5]).levels == NoiseLevels(2.0, 8.0, (2.0, 4.0, 8.0))
    assert compose([wide, here], [0.5, 0.5]).levels == NoiseLevels(0.5, 2.0, (0.5, 1.0, 2.0))


def test_a_shorter_history_is_the_newest_frames():
    seen = []

    class Reader(FixedPolicy):
        def condition(self, observation):
            seen.append(observation["state"])
            return super().condition(observation)

    frames = torch.arange(6.0).reshape(1, 2, 3)
    reader = Reader(Gaussian(), observations=ObservationSpec({"state": (3,)}, 1))
    compose([FixedPolicy(Gaussian()), reader], [0.5, 0.5]).condition({"state": frames})
    assert torch.equal(seen[0], frames[:, 1:])


def test_chunks_that_only_touch_share_no_step():
    with pytest.raises(InputError, match="share no step"):
        compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), replace(ACTIONS, start=16))], [0.5, 0.5])
    assert compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), replace(ACTIONS, start=15))], [0.5, 0.5])


def test_moves_and_targets_are_not_composed_where_both_policies_say_which_they_predict():
    moves, targets = (FixedPolicy(Gaussian(), replace(ACTIONS, relative=r), name=f"r{r:d}") for r in (True, False))
    with pytest.raises(InputError, match=r"r1 predicts moves .* r0 absolute targets"):
        compose([targets, moves], [0.5, 0.5])
    compose([moves, FixedPolicy(Gaussian())], [0.5, 0.5])
