import pytest
import torch

from gpc.errors import InputError
from gpc.policies.networks import Encoder, ImageEncoder, Transformer, UNet

NETWORKS = {
    "unet": lambda: UNet(2, 6, widths=(16, 32)),
    "transformer": lambda: Transformer(2, 6, 16, width=32, depth=1, heads=2),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    network = NETWORKS[request.param]().eval().requires_grad_(False)
    for parameter in network.parameters():  # some start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_a_network_depends_on_x_label_and_condition_row_by_row(network):
    x, label, condition = torch.randn(5, 16, 2), torch.arange(5.0), torch.randn(5, 6)
    out = network(x, label, condition)
    assert out.shape == x.shape
    for other in (
        network(x + 1, label, condition),
        network(x, label + 10, condition),
        network(x, label, condition + 1),
    ):
        assert (other - out).abs().amax((1, 2)).min() > 1e-4
    torch.testing.assert_close(network(x[2:3], label[2:3], condition[2:3]), out[2:3], atol=1e-4, rtol=1e-4)


def test_a_unet_takes_any_horizon_that_its_levels_divide():
    unet = UNet(2, 6, widths=(16, 32))
    assert unet(torch.zeros(1, 8, 2), torch.zeros(1), torch.zeros(1, 6)).shape == (1, 8, 2)


def test_the_image_encoder_sees_where_a_bright_spot_is():
    torch.manual_seed(0)
    encoder = ImageEncoder().eval().requires_grad_(False)
    images = torch.zeros(3, 96, 96, 3, dtype=torch.uint8)
    for i, column in enumerate((10, 48, 86)):
        images[i, 40:56, max(0, column - 8) : column + 8] = 255
    features = encoder(images)
    assert features.shape == (3, 96)
    assert float(features.abs().max()) <= 1
    horizontal = features[:, :32].diff(dim=0)
    assert bool((horizontal[0] * horizontal[1] > 0).any())  # some keypoint follows the spot from left to right


def test_the_encoder_scales_numbers_and_turns_angles_into_cosine_and_sine():
    encoder = Encoder({"state": {"shape": [2], "offset": 4.0, "scale": 2.0, "angles": [1]}}, 1)
    out = encoder({"state": torch.tensor([[[6.0, 0.0]]])})
    assert encoder.condition_dim == 3
    torch.testing.assert_close(out, torch.tensor([[1.0, 1.0, 0.0]]))


def test_the_encoder_scales_each_number_by_its_own_where_it_is_given_a_list():
    encoder = Encoder({"state": {"shape": [2], "offset": [1.0, 2.0], "scale": [2.0, 4.0]}}, 1)
    torch.testing.assert_close(encoder({"state": torch.tensor([[[5.0, 10.0]]])}), torch.tensor([[2.0, 2.0]]))


def test_a_point_cloud_is_a_set_and_each_of_its_steps_is_seen():
    torch.manual_seed(0)
    encoder = Encoder({"points": {"shape": [16, 3], "points": True, "offset": 0.0, "scale": 1.0}}, 2)
    cloud = torch.randn(4, 2, 16, 3)
    out = encoder({"points": cloud})
    assert out.shape == (4, encoder.condition_dim)
    torch.testing.assert_close(encoder({"points": cloud[:, :, torch.randperm(16)]}), out)
    older = encoder({"points": torch.cat([cloud[:, :1] + 1, cloud[:, 1:]], 1)})
    assert not torch.allclose(older[:, : encoder.condition_dim // 2], out[:, : encoder.condition_dim // 2])
    torch.testing.assert_close(older[:, encoder.condition_dim // 2 :], out[:, encoder.condition_dim // 2 :])


@pytest.mark.parametrize("horizon", [1, 15])
def test_a_unet_refuses_a_horizon_that_its_levels_do_not_divide(horizon):
    with pytest.raises(InputError, match="horizon divisible by 2"):
        UNet(2, 6, widths=(16, 32))(torch.zeros(1, horizon, 2), torch.zeros(1), torch.zeros(1, 6))


def test_the_soft_argmax_is_the_place_of_a_single_peak():
    """The heat map is the image itself, so the place of its peak is known."""
    encoder = ImageEncoder(keypoints=1).eval().requires_grad_(False)
    encoder.layers = torch.nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
    torch.nn.init.constant_(encoder.layers.weight, 50.0)
    image = torch.zeros(1, 9, 5, 3, dtype=torch.uint8)
    image[0, 2, 4] = 255  # row 2 of 9 and column 4 of 5, on axes from -1 to 1
    torch.testing.assert_close(encoder(image)[:, :2], torch.tensor([[1.0, -0.5]]))


def test_a_transformer_tells_the_steps_of_a_chunk_apart():
    torch.manual_seed(0)
    network = NETWORKS["transformer"]().eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    out = network(torch.ones(1, 16, 2), torch.zeros(1), torch.zeros(1, 6))
    assert float(out.std(1).max()) > 1e-3
