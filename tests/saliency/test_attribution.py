"""captum's maps against the formulas of the papers."""

import pytest
import torch
from torch import nn

from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model, with_feature_maps
from l2t_fast.saliency.attribution import check_layers, grad_cam, saliency


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("vgg5bn", 4).double().eval()


def images(size=8):
    torch.manual_seed(1)
    return torch.randn(3, 3, size, size, dtype=torch.float64), torch.tensor([2, 0, 3])


def test_saliency_is_the_largest_derivative_of_the_true_class_s_logit(network):
    x, y = images()
    found = saliency(network, x, y)
    assert found.shape == (3, 8, 8) and not found.requires_grad
    step = 1e-6
    for image, row, column in ((0, 3, 4), (1, 0, 0), (2, 7, 2)):
        slopes = []
        for channel in range(3):
            moved = x[image : image + 1].repeat(2, 1, 1, 1)
            moved[0, channel, row, column] += step
            moved[1, channel, row, column] -= step
            high, low = network(moved)[0][:, y[image]].tolist()
            slopes.append(abs(high - low) / (2 * step))
        assert found[image, row, column].item() == pytest.approx(max(slopes), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("name", "size"), [("vgg5bn", 8), ("resnet8", 16), ("torchvision:squeezenet1_1", 64)])
def test_grad_cam_of_any_map(name, size):
    torch.manual_seed(0)
    network = build_model(name, 4).double().eval()
    x, y = images(size)
    logits, maps = network(x)
    gradients = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), maps)
    for layer, map, gradient in zip(network.feature_names, maps, gradients, strict=True):
        weights = gradient.mean((2, 3), keepdim=True)
        cam = (weights * map).sum(1, keepdim=True).clamp(min=0)
        wanted = nn.functional.interpolate(cam, (size, size), mode="bilinear")[:, 0]
        torch.testing.assert_close(grad_cam(network, layer, x, y), wanted.detach(), msg=layer)


def test_nothing_is_left_in_the_network(network):
    x, y = images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    saliency(network, x, y)
    grad_cam(network, network.feature_names[-1], x, y)
    assert not x.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_maps_that_are_not_what_a_module_puts_out_are_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 6, 4, stride=4)
            self.mix = nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.mix(self.embed(x).flatten(2).transpose(1, 2)).mean(1))

    def to_map(module, output):
        return output if output.ndim == 4 else output.transpose(1, 2).unflatten(2, (2, 2)) if output.ndim == 3 else None

    network = with_feature_maps(Tokens(), ["embed", "mix"], image_size=8, to_map=to_map)
    x = torch.zeros(1, 3, 8, 8)
    check_layers(network, ["embed"], x)
    with pytest.raises(L2TFastError, match=r"Grad-CAM cannot be made of mix: .*\(1, 4, 6\) instead of a map \(1, 6, 2"):
        check_layers(network, ["embed", "mix"], x)
