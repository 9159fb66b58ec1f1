import pytest
import torch
from models import Gaussian

from gpc.errors import InputError, RunError
from gpc.score.denoiser import CheckFinite, Clamp, NetworkDenoiser
from gpc.score.noise import Karras, LinearFlow, VariancePreserving

COSINE = VariancePreserving.squaredcos(100)
FLOW, REVERSE, EDM = LinearFlow(), LinearFlow(reverse=True), Karras(0.5)
IDEAL = {
    "noise": (COSINE, lambda t: COSINE.sigmas[t]),
    "sample": (COSINE, lambda t: COSINE.sigmas[t]),
    "v": (COSINE, lambda t: COSINE.sigmas[t]),
    "velocity": (FLOW, lambda t: t / (1 - t)),
    "reverse_velocity": (REVERSE, lambda t: (1 - t) / t),
    "edm": (EDM, lambda c: (4 * c).exp()),
}


def ideal(prediction):
    schedule, sigma_of = IDEAL[prediction]
    return Gaussian().network(schedule, prediction, sigma_of)


@pytest.mark.parametrize("prediction", IDEAL)
def test_every_prediction_type_denoises_the_same_gaussian(prediction):
    sigmas = COSINE.sigmas[::7]
    x = torch.randn(len(sigmas), 16, 2, dtype=torch.float64) * sigmas[:, None, None]
    found, wanted = ideal(prediction)(x, sigmas), Gaussian()(x, sigmas)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ideal(prediction)(x, sigmas[3]), Gaussian()(x, sigmas[3]), atol=1e-10, rtol=1e-10)


def test_the_network_runs_in_its_own_dtype_and_the_state_keeps_its():
    seen = []

    def network(x, label):
        seen.append((x.dtype, label.dtype))
        return x

    out = NetworkDenoiser(network, FLOW, "velocity")(
        torch.zeros(1, 4, 2, dtype=torch.float64), torch.tensor(1.0).double()
    )
    assert seen == [(torch.float32, torch.float32)]
    assert out.dtype == torch.float64


@pytest.mark.parametrize(
    ("schedule", "prediction", "message"), [(COSINE, "epsilon", "unknown"), (FLOW, "edm", "Karras")]
)
def test_a_prediction_that_does_not_fit_is_refused(schedule, prediction, message):
    with pytest.raises(InputError, match=message):
        NetworkDenoiser(lambda x, label: x, schedule, prediction)


def test_clamp_bounds_the_denoised_action():
    x = torch.tensor([[[-5.0, 0.2]]])
    assert Clamp(lambda x, sigma: x, 1.0)(x, torch.tensor(1.0)).tolist() == [[[-1.0, pytest.approx(0.2)]]]


def test_a_nan_names_the_policy_and_the_level():
    with pytest.raises(RunError, match=r"'broken' returned NaN .* sigma=2"):
        CheckFinite(lambda x, sigma: x / 0, "broken")(torch.zeros(1, 1, 1), torch.tensor(2.0))


def test_one_nan_among_many_numbers_is_enough():
    x = torch.zeros(2, 3, 1)
    x[1, 2, 0] = float("nan")
    with pytest.raises(RunError, match="'broken'"):
        CheckFinite(lambda x, sigma: x, "broken")(x, torch.tensor(2.0))
