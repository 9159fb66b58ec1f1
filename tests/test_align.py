from dataclasses import replace

import pytest
import torch
from models import ACTIONS, WIDE, FixedPolicy, Gaussian, guide, state

from gpc.composition.composed import compose
from gpc.errors import InputError
from gpc.inference.chunk import sample_chunk
from gpc.inference.methods import Langevin
from gpc.inference.settings import Sampling
from gpc.policy.adapt import rename, to_absolute, with_action_names
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.score.noise import NoiseLevels

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
    assert [m.warning for m in policy.members] == [
        "",
        "bent gets noise levels that are up to 2.0% off: its normaliser " + "differs per dimension",
    ]
    out = policy.condition(state(5))(torch.randn_like(point), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(out, point)
    assert told == [pytest.approx(0.5 / (0.98 * 1.02) ** 0.5)]


def test_a_ratio_that_can_only_be_a_mistake_is_refused_with_both_normalisers():
    bent = replace(ACTIONS, scale=(1.0, 200.0), offset=(0.0, 0.5))
    with pytest.raises(InputError, match=r"x = 1 x \+ 0, y = 1 x \+ 0 against x = 1 x \+ 0, y = 200 x \+ 0.5"):
        compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), bent)], [0.5, 0.5])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ActionSpec(16, (1.0,), (0.0,)), "acts in 1 dimensions without names, the named ones are x, y; say which"),
        (replace(ACTIONS, dt=2.5), "every 2.5 control steps, another policy every 1: no multiple"),
        (replace(ACTIONS, start=20), "share no step"),
    ],
)
def test_actions_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), spec)], [0.5, 0.5])


def plan_of(value, **spec):
    """A policy whose denoised action does not depend on x: `value` (horizon, action), in its own normalised units."""
    value = torch.as_tensor(value, dtype=torch.float64)
    actions = ActionSpec(len(value), (1.0,) * value.shape[1], (0.0,) * value.shape[1], **spec)
    return FixedPolicy(
        lambda x, sigma: value.expand(len(x), -1, -1), actions, name="+".join(spec.get("names") or ["plan"])
    )


def test_dimensions_are_composed_by_name_in_order_of_appearance():
    """x and y are the first policy's, y is shared, z the second's alone: its own there, although the weights favour the first."""
    first = plan_of([[1.0, 2.0]] * 4, names=("x", "y"))
    second = plan_of([[5.0, 6.0]] * 4, names=("z", "y"))
    policy = compose([first, second], [0.75, 0.25])
    assert policy.actions.names == ("x", "y", "z")
    found = policy.condition(state())(torch.zeros(1, 4, 3, dtype=torch.float64), torch.tensor(1.0).double())
    assert found[0, 0].tolist() == [1.0, 3.0, 5.0]
    assert policy.members[1].warning == "z+y acts in z, y of x, y, z"


def test_each_member_sees_its_own_dimensions_in_its_own_order_and_units():
    seen = []

    def listen(x, sigma):
        seen.append((x, float(sigma)))
        return x

    other = FixedPolicy(listen, ActionSpec(16, (4.0, 4.0), (1.0, -1.0), ("z", "x")))
    policy = compose([FixedPolicy(Gaussian()), other], [0.5, 0.5])
    assert (policy.actions.scale, policy.actions.offset) == ((1.0, 1.0, 4.0), (0.0, 0.0, 1.0))
    assert policy.members[1].ratios == (1.0, 0.25)
    x = torch.randn(1, 16, 3, dtype=torch.float64)
    same = FixedPolicy(listen, ActionSpec(16, (1.0, 1.0), (1.0, -1.0), ("z", "x")))
    out = compose([FixedPolicy(Gaussian()), same], [0.0, 1.0]).condition(state())(x, torch.tensor(0.5).double())
    (own, sigma), *_ = seen
    torch.testing.assert_close(own, torch.stack([x[..., 2], x[..., 0] + 1], -1))
    assert sigma == 0.5
    torch.testing.assert_close(out[..., [0, 2]], x[..., [0, 2]])


def test_policies_without_names_have_all_dimensions():
    unnamed = FixedPolicy(Gaussian(1.0), replace(ACTIONS, names=None))
    assert compose([unnamed, FixedPolicy(Gaussian())]).actions.names == ("x", "y")
    with pytest.raises(
        InputError,
        match=r"fixed-2 acts in 2 dimensions without names, the named ones are x, y, z; say .*action_names={fixed-2",
    ):
        compose([FixedPolicy(Gaussian()), unnamed, plan_of([[0.0]] * 16, names=("z",))])


def test_two_dimensions_of_one_name_are_refused():
    with pytest.raises(InputError, match="two dimensions have the same name: x, x"):
        replace(ACTIONS, names=("x", "x"))


def test_a_slower_policy_sees_its_own_steps_and_is_interpolated_between_them():
    """dt 1 and 3, starts -1 and -1 in each one's dt: common steps -3 to 8, the slower one's steps are -3, 0, 3, 6."""
    seen = []

    def ramp(x, sigma):
        seen.append(x)
        return torch.tensor([[[0.0], [3.0], [9.0], [0.0]]], dtype=torch.float64)

    slow = FixedPolicy(ramp, ActionSpec(4, (1.0,), (0.0,), ("x",), start=-1, dt=3.0), name="slow")
    fast = plan_of([[100.0]] * 10, names=("x",), start=-1)
    policy = compose([fast, slow], [0.5, 0.5])
    assert (policy.actions.dt, policy.actions.start, policy.actions.horizon) == (1.0, -3, 12)
    x = torch.randn(1, 12, 1, dtype=torch.float64)
    found = policy.condition(state())(x, torch.tensor(1.0).double())
    assert torch.equal(seen[0], x[:, 0:10:3])
    own = torch.tensor([0.0, 1, 2, 3, 5, 7, 9, 6, 3, 0])
    wanted = torch.cat([own[:2], (own[2:] + 100) / 2, torch.tensor([100.0, 100.0])])
    torch.testing.assert_close(found[0, :, 0], wanted.double(), atol=1e-12, rtol=0)
    assert policy.members[1].warning == "slow plans every 3 steps, between which its actions are interpolated"
    assert compose([slow]).actions == slow.actions


def test_moves_are_neither_interpolated_nor_held():
    slow = plan_of([[1.0]] * 4, names=("x",), dt=2.0, relative=True)
    with pytest.raises(InputError, match="x-2 predicts moves, which are neither interpolated nor held"):
        compose([plan_of([[1.0]] * 7, names=("x",), relative=True), slow])
    with pytest.raises(InputError, match="x predicts moves, which are neither interpolated nor held"):
        compose([plan_of([[1.0]] * 4, names=("x",), relative=True), plan_of([[1.0]] * 7, names=("grip",))])


def test_targets_are_held_where_no_policy_plans_the_dimension():
    policy = compose(
        [plan_of([[1.0]] * 2 + [[2.0]] * 2, names=("x",)), plan_of([[7.0]] * 6, names=("grip",), start=-1)]
    )
    found = policy.condition(state())(torch.randn(1, 6, 2, dtype=torch.float64), torch.tensor(1.0).double())
    assert found[0, :, policy.actions.names.index("x")].tolist() == [1, 1, 1, 2, 2, 2]
    assert found[0, :, policy.actions.names.index("grip")].tolist() == [7] * 6


def test_the_bound_and_the_kind_of_action_are_those_of_the_policies_that_have_the_dimensions():
    def arm(name, **spec):
        return plan_of([[0.0]] * 4, names=(name,), **spec)

    assert compose([arm("x", bound=1.0), arm("y", bound=1.0)]).actions.bound == 1.0
    assert compose([arm("x", bound=1.0, relative=False), arm("y", bound=2.0, relative=False)]).actions.bound is None
    assert compose([arm("x", bound=1.0), arm("y")]).actions.bound is None
    assert compose([arm("x", relative=False), arm("y", relative=True)]).actions.relative is None
    assert compose([arm("x", bound=1.0, relative=False), arm("x")]).actions.bound == 1.0


@pytest.mark.parametrize("other", [None, 2.0])
def test_an_arm_keeps_to_its_own_bound_beside_another(other):
    """2.5 everywhere: the left arm ends at its bound of 1.5, and the right one at its own or nowhere."""
    left, right = (plan_of([[2.5]] * 16, names=(name,), bound=bound) for name, bound in (("l", 1.5), ("r", other)))
    found = sample_chunk(compose([left, right]), state(3), noise(), Sampling())
    torch.testing.assert_close(found[0, 0].tolist(), [1.5, other or 2.5])


def test_moves_from_an_observation_become_targets_exactly():
    """N(m, s) of moves is N(m + state, s) of targets, in the environment's units: scale 2, so a state of 3 is 1.5 further."""
    moves = FixedPolicy(
        Gaussian(0.3, 0.5), ActionSpec(16, (2.0,) * 3, (1.0,) * 3, relative=True, bound=5.0), name="moves"
    )
    policy = to_absolute(moves, "state")
    assert (policy.actions.relative, policy.actions.bound) == (False, None)
    x, sigma = torch.randn(2, 16, 3, dtype=torch.float64), torch.tensor(0.7).double()
    observation = {"state": torch.tensor([[[9.0] * 3, [3.0] * 3], [[9.0] * 3, [-1.0] * 3]])}
    found = policy.condition(observation)(x, sigma)
    for row, shift in ((0, 1.5), (1, -0.5)):
        torch.testing.assert_close(found[row], Gaussian(0.3 + shift, 0.5)(x, sigma)[row], atol=1e-12, rtol=0)
    targets = FixedPolicy(Gaussian(), replace(moves.actions, relative=False), name="targets")
    assert compose([targets, policy])
    with pytest.raises(
        InputError, match=r"moves predicts moves .* 'origin={moves: OBSERVATION}'; moves from step to step do not"
    ):
        compose([targets, moves])


@pytest.mark.parametrize("far", [1.0, 10.0, 300.0])
@pytest.mark.parametrize("method", ["dpmpp_2m", "ancestral", "renoise", Langevin(0)])
def test_a_chunk_of_targets_is_that_of_the_moves_further_on(far, method):
    """Also where that is far from 0, around which samplers start; b = far / scale."""
    spec = ActionSpec(16, (2.0,) * 3, (1.0,) * 3, relative=True)
    moves, sampling = FixedPolicy(Gaussian(0.3, 0.5), spec, name="moves"), Sampling(method, steps=4)
    drawn = torch.randn(5, 4, 16, 3, dtype=torch.float64)
    observation = {"state": torch.full((4, 2, 3), far)}
    plain = sample_chunk(moves, state(4), drawn, sampling)
    for policy in (
        to_absolute(moves, "state"),
        with_action_names(to_absolute(rename(moves, {"state": "p"}), "p"), ["a", "b", "c"]),
    ):
        seen = {key: observation["state"] for key in policy.observations.shapes}
        found = sample_chunk(policy, seen, drawn, sampling)
        torch.testing.assert_close(found, plain + far / 2, atol=1e-9, rtol=0)


@pytest.mark.parametrize("first", ["moves", "targets"])
def test_moves_from_far_away_compose_with_targets_there(first):
    """N(100 + 0.3, 0.5) from both: the targets' own normaliser has 100 in its middle, the moves' origin is there."""
    moves = FixedPolicy(Gaussian(0.3, 0.5), ActionSpec(16, (1.0,) * 3, (0.0,) * 3, relative=True), name="moves")
    targets = FixedPolicy(
        Gaussian(0.03, 0.05), ActionSpec(16, (10.0,) * 3, (100.0,) * 3, relative=False), name="targets"
    )
    both = [to_absolute(moves, "state"), targets]
    policy = compose(both if first == "moves" else both[::-1], [0.5, 0.5])
    drawn, observation = torch.randn(1, 200, 16, 3, dtype=torch.float64), {"state": torch.full((200, 2, 3), 100.0)}
    found = policy.actions.decode(sample_chunk(policy, observation, drawn, Sampling(steps=30, sigma_max=80.0)))
    assert float(found.mean()) == pytest.approx(100.3, abs=0.03)
    assert float(found.std()) == pytest.approx(0.5, rel=0.03)
    assert policy.prior_mean(observation).mean() == pytest.approx(100.0 if first == "moves" else 0.0)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.5, -0.5]])
def test_guided_moves_are_sampled_around_where_they_begin_whatever_the_weights_sum_to(weights):
    moves = [FixedPolicy(Gaussian(), ActionSpec(16, (1.0,) * 3, (0.0,) * 3), name=name) for name in "ab"]
    policy = guide([to_absolute(one, "state") for one in moves], weights)
    assert (policy.prior_mean({"state": torch.full((2, 2, 3), 50.0)}) == 50).all()


def test_moves_keep_their_bound_when_they_become_targets():
    far = FixedPolicy(lambda x, sigma: torch.full_like(x, 4.0), ActionSpec(2, (1.0,) * 3, (0.0,) * 3, bound=1.0))
    observation = {"state": torch.full((1, 2, 3), 10.0)}
    found = to_absolute(far, "state").condition(observation)(
        torch.zeros(1, 2, 3, dtype=torch.float64), torch.tensor(1.0)
    )
    assert (found == 11).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: to_absolute(FixedPolicy(Gaussian(), replace(ACTIONS, relative=False)), "p"),
            "absolute targets already",
        ),
        (
            lambda: to_absolute(FixedPolicy(Gaussian()), "state"),
            r"reads 'state' as \(3,\), its moves have 2 dimensions",
        ),
        (
            lambda: with_action_names(FixedPolicy(Gaussian()), ["x"]),
            "action_names gives fixed 1 names, it acts in 2 dimensions",
        ),
        (
            lambda: with_action_names(FixedPolicy(Gaussian()), "xy"),
            "action_names gives fixed xy, which is no list of names",
        ),
        (
            lambda: with_action_names(FixedPolicy(Gaussian()), 3),
            "action_names gives fixed 3, which is no list of names",
        ),
        (
            lambda: to_absolute(FixedPolicy(Gaussian()), ["state"]),
            r"origin gives fixed \['state'\], which is no observation",
        ),
    ],
)
def test_what_cannot_be_said_of_a_policy_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_an_adapted_policy_is_the_same_but_for_what_changed():
    policy = with_action_names(FixedPolicy(Gaussian()), ["left.x", "left.y"])
    assert policy.actions == replace(ACTIONS, names=("left.x", "left.y"))
    assert (policy.name, policy.levels, policy.fingerprint) == ("fixed", WIDE, 'none ["left.x", "left.y"]')
    assert to_absolute(FixedPolicy(Gaussian()), "agent").observations.shapes == {"state": (3,), "agent": (2,)}


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
        lambda: ActionSpec(16, (-1.0,), (0.0,), ("x",)),
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


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_every_two_chunks_share_a_step_in_whatever_order_they_come(order):
    """Two that share none would have nothing to compose when the third has no weight."""
    short, long, late = (
        FixedPolicy(Gaussian(), replace(ACTIONS, horizon=horizon, start=start), name=name)
        for name, horizon, start in (("short", 4, 0), ("long", 20, 0), ("late", 4, 10))
    )
    with pytest.raises(InputError, match=r"the chunks of (short and late|late and short) share no step"):
        compose([(short, long, late)[i] for i in order])


def test_chunks_that_only_touch_share_no_step():
    with pytest.raises(InputError, match="share no step"):
        compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), replace(ACTIONS, start=16))], [0.5, 0.5])
    assert compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), replace(ACTIONS, start=15))], [0.5, 0.5])


def test_moves_and_targets_are_not_composed_where_both_policies_say_which_they_predict():
    moves, targets = (FixedPolicy(Gaussian(), replace(ACTIONS, relative=r), name=f"r{r:d}") for r in (True, False))
    with pytest.raises(InputError, match=r"r1 predicts moves .* r0 absolute targets"):
        compose([targets, moves], [0.5, 0.5])
    compose([moves, FixedPolicy(Gaussian())], [0.5, 0.5])
