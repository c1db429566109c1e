"""Which maps the networks give, and that they can be differentiated as training needs it."""

import copy
import math
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from l2t_fast.errors import L2TFastError
from l2t_fast.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    layer_names,
    list_models,
    published_checkpoint,
    with_feature_maps,
)

CIFAR_MAPS = [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def map_shapes(name, size, in_channels=3, **options):
    network = build_model(name, 5, in_channels=in_channels, **options).eval()
    logits, maps = network(torch.randn(2, in_channels, size, size))
    assert logits.shape == (2, 5)
    assert [m.shape[1] for m in maps] == network.feature_channels
    assert len(maps) == len(network.feature_names)
    return [tuple(m.shape[1:]) for m in maps]


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56", "l2tww_resnet32"])
def test_default_maps_of_the_cifar_resnets_are_the_last_of_each_stage(name):
    assert map_shapes(name, 32) == CIFAR_MAPS


def test_default_maps_of_the_authors_resnet_are_those_of_the_paper():
    network = build_model("l2tww_resnet32", 200)
    layers = list(network.layer_channels())
    assert [layers.index(name) for name in network.feature_names] == [4, 9, 14]


def test_convolutions_of_vgg9_start_as_torchvision_s_vgg_does():
    torch.manual_seed(0)
    network = build_model("vgg9bn", 10)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            wanted = math.sqrt(2 / (layer.out_channels * 9))
            assert layer.weight.std().item() == pytest.approx(wanted, rel=0.1)
            assert not layer.bias.any()


def test_colour_images_are_normalised_as_torchvision_s_weights_expect():
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert (list(IMAGENET_MEAN), list(IMAGENET_STD)) == (transform.mean, transform.std)


def test_default_maps_of_vgg9_are_those_before_each_max_pool():
    assert map_shapes("vgg9bn", 32) == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet8", [(16, 8, 8), (32, 4, 4), (64, 2, 2)]),
        ("vgg5bn", [(32, 8, 8), (64, 4, 4), (128, 2, 2)]),
        ("vgg9bn", [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1), (512, 1, 1)]),
    ],
)
def test_networks_take_8x8_grey_images(name, shapes):
    assert map_shapes(name, 8, in_channels=1) == shapes


def test_networks_take_images_that_are_not_square():
    logits, maps = build_model("resnet8", 5)(torch.randn(2, 3, 12, 7))
    assert logits.shape == (2, 5)
    assert [tuple(m.shape[2:]) for m in maps] == [(12, 7), (6, 4), (3, 2)]


def test_all_fifteen_maps_of_the_tinyimagenet_resnet_have_names():
    names = layer_names("l2tww_resnet32")
    assert len(names) == 15
    assert (names[4], names[9], names[14]) == ("blocks2.3", "blocks4.3", "blocks6.3")
    shapes = map_shapes("l2tww_resnet32", 32, layers=names)
    assert shapes == [CIFAR_MAPS[0]] * 5 + [CIFAR_MAPS[1]] * 5 + [CIFAR_MAPS[2]] * 5


def test_all_fifteen_maps_of_resnet32_have_names():
    assert layer_names("resnet32") == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(5)]


@pytest.mark.parametrize("name", ["resnet20", "l2tww_resnet32", "vgg5bn", "torchvision:resnet18"])
def test_maps_are_the_outputs_of_the_modules_they_are_named_after(name):
    layers = layer_names(name)[-3:]
    network = build_model(name, 5, layers=layers).eval()
    seen = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(lambda m, i, out, layer=layer: seen.update({layer: out}))
    _, maps = network(torch.randn(2, 3, 32, 32))
    for layer, feature_map in zip(layers, maps, strict=True):
        torch.testing.assert_close(feature_map, seen[layer], rtol=0, atol=0)


def test_maps_come_in_the_order_asked_for():
    layers = ["layer3.0", "layer1.0"]
    network = build_model("resnet8", 5, layers=layers)
    _, maps = network(torch.randn(2, 3, 16, 16))
    assert network.feature_names == layers
    assert [m.shape[1] for m in maps] == network.feature_channels == [64, 16]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet18", [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]),
        ("mobilenet_v3_small", [(16, 112, 112), (16, 56, 56), (24, 28, 28), (48, 14, 14), (576, 7, 7)]),
        ("densenet121", [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (1024, 7, 7)]),
        ("googlenet", [(64, 112, 112), (192, 56, 56), (480, 28, 28), (832, 14, 14), (1024, 7, 7)]),
        ("regnet_y_400mf", [(32, 112, 112), (48, 56, 56), (104, 28, 28), (208, 14, 14), (440, 7, 7)]),
        ("convnext_tiny", [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]),
        ("swin_t", [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]),
        ("vit_b_32", [(768, 7, 7)] * 4),
    ],
)
def test_default_maps_of_torchvision_families(name, shapes):
    assert map_shapes(f"torchvision:{name}", 224) == shapes


def test_torchvision_vgg_gives_the_maps_before_each_max_pool():
    # Without its 500 MB of linear layers the network is quick to build, and its layers are the same.
    from torchvision.models.vgg import cfgs, make_layers

    features = nn.Sequential(*make_layers(cfgs["A"], batch_norm=True))
    network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))
    with_feature_maps(network, ["0.2", "0.6"], image_size=32)
    _, maps = network(torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16)]


def test_torchvision_networks_take_grey_images():
    assert map_shapes("torchvision:resnet18", 32, in_channels=1)[0] == (64, 8, 8)


def test_swin_maps_are_channels_first_wherever_they_come_from():
    layers = ["features.0.0", "features.0.1", "features.7.1", "permute"]
    shapes = [(96, 56, 56), (96, 56, 56), (768, 7, 7), (768, 7, 7)]
    assert map_shapes("torchvision:swin_t", 224, layers=layers) == shapes


def test_other_maps_can_be_chosen_afterwards():
    network = build_model("torchvision:resnet18", 5).eval()
    with_feature_maps(network, ["layer2"], image_size=32)
    logits, maps = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5) and [m.shape[1] for m in maps] == [128]


def test_a_map_that_the_network_overwrites_is_kept_as_it_was():
    # BasicBlock adds the shortcut into the output of its second BatchNorm.
    name = "layer1.0.bn2"
    network = build_model("torchvision:resnet18", 5, layers=[name]).eval()
    before = []
    network.get_submodule(name).register_forward_hook(lambda module, inputs, output: before.append(output.clone()))
    _, (feature_map,) = network(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(feature_map, before[0], rtol=0, atol=0)


class OverwritesInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x):
        a = self.first(x)
        F.dropout(a, 0.5, self.training, inplace=True)
        return self.fc(self.norm(a.mean((2, 3), keepdim=True)).flatten(1))


def test_a_map_that_is_overwritten_in_training_alone_is_kept_too():
    network, kept = OverwritesInTraining(), []
    with_feature_maps(network, ["first"], image_size=8)
    network.first.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
    _, (found,) = network(torch.randn(2, 3, 8, 8))
    assert torch.equal(found, kept[0])


def test_to_be_given_maps_leaves_modes_buffers_and_generators():
    network = OverwritesInTraining()
    network.norm.eval()  # frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    with_feature_maps(network, ["first"], image_size=8)
    assert torch.equal(torch.rand(2), wanted)
    assert [m.training for m in (network, network.first, network.norm)] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class BeginsWithItsFirstImages(nn.Sequential):
    """Reads its scale off the first images that it is trained on, and keeps a buffer that it assigns anew."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3))
        self.scale, self.ready = nn.Parameter(torch.ones(())), False
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()).expand(2, 2))  # cannot be written to

    def forward(self, x):
        if self.training and not self.ready:
            self.scale.data, self.ready = 1 / (x.std() + 1e-6), True
        self.mean = self.mean if not self.training else self.mean + 1
        return (super().forward(x) * self.scale).mean((2, 3))


def test_to_be_given_maps_trains_nothing():
    network = with_feature_maps(BeginsWithItsFirstImages(), ["0"], image_size=8)
    assert not network.ready and network.scale == 1 and network.mean == 0


def test_each_thread_gets_the_maps_of_its_own_images():
    network = with_feature_maps(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), ["0"], in_channels=1, image_size=8)
    wrong, together = [], threading.Barrier(4)

    def run(number):
        x = torch.full((1, 1, 64, 64), float(number))
        wanted = network[0](x)
        together.wait()
        for _ in range(50):
            with torch.no_grad():
                wrong.extend([number] if not torch.equal(network(x)[1][0], wanted) else [])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_parameter_names_of_torchvision_networks_are_the_plain_ones():
    from torchvision.models import resnet18

    assert list(build_model("torchvision:resnet18", 5).state_dict()) == list(resnet18(num_classes=5).state_dict())


def test_a_copied_network_is_independent_of_the_first():
    network = build_model("torchvision:resnet18", 5).eval()
    twin = copy.deepcopy(network)
    x = torch.randn(2, 3, 32, 32)
    before = twin(x)[1][-1]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x)[1][-1], before, rtol=0, atol=0)


def test_colour_networks_say_how_their_input_is_normalised():
    assert build_model("l2tww_resnet32", 5).input_mean == IMAGENET_MEAN
    assert build_model("torchvision:resnet18", 5).input_std == IMAGENET_STD
    assert build_model("resnet8", 5, in_channels=1).input_mean is None


def test_vgg9_has_the_parameters_of_its_plan():
    convolutions = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    expected = sum(9 * i * o + o + 2 * o for i, o in convolutions) + 512 * 10 + 10
    assert sum(p.numel() for p in build_model("vgg9bn", 10).parameters()) == expected


# One of each family, at the smallest input that leaves it more than one value a channel.
FAMILIES = [
    ("resnet8", 8, None),
    ("l2tww_resnet32", 8, ["block1", "block3", "block5"]),
    ("vgg5bn", 8, None),
    ("torchvision:resnet18", 32, ["layer1", "layer2"]),
    ("torchvision:mobilenet_v3_small", 32, None),
    ("torchvision:efficientnet_b0", 32, None),
]


def family_loss(network, size):
    """A loss as a function of the parameters that all maps and the logits enter, BatchNorm in training mode."""
    torch.manual_seed(1)
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3])
    buffers = {name: b.clone() for name, b in network.named_buffers()}

    def loss(parameters):
        torch.manual_seed(2)  # the same dropout in every pass
        logits, maps = functional_call(network, (parameters, {k: b.clone() for k, b in buffers.items()}), (x,))
        return nn.functional.cross_entropy(logits, y) + sum((m**2).mean() for m in maps)

    return loss


@pytest.mark.parametrize(("name", "size", "layers"), FAMILIES)
def test_forward_over_reverse_equals_double_backward(name, size, layers):
    torch.manual_seed(0)
    network = build_model(name, 5, layers=layers).double().train()
    loss = family_loss(network, size)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    direction = {name: torch.randn_like(p) * 0.1 for name, p in parameters.items()}

    gradient = torch.autograd.grad(loss(parameters), list(parameters.values()), create_graph=True)
    slope = sum((g * v).sum() for g, v in zip(gradient, direction.values(), strict=True))
    expected = torch.autograd.grad(slope, list(parameters.values()))

    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(p, direction[name]) for name, p in parameters.items()}
        mixed = torch.autograd.grad(loss(dual), list(dual.values()))
        products = [forward_ad.unpack_dual(g).tangent for g in mixed]

    # Some products are zero but for rounding (a bias in front of a BatchNorm), so the scale is that of the largest.
    largest = max(truth.abs().max() for truth in expected)
    for name_of, product, truth in zip(parameters, products, expected, strict=True):
        assert (product - truth).abs().max() <= 1e-10 * largest, name_of


def test_any_network_can_be_given_feature_maps():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(5))
    network(torch.zeros(1, 3, 6, 6))
    with_feature_maps(network, ["0", "1"], image_size=6)
    logits, maps = network(torch.randn(2, 3, 6, 6))
    assert logits.shape == (2, 5)
    assert network.feature_channels == [4, 4]
    assert maps[0].min() < 0 <= maps[1].min()  # the first map is still from before the ReLU


class Tokens(nn.Module):
    """(B, 3, 8, 8) -> tokens (B, 4, 5), layer by layer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, stride=4)
        self.block = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_tokens_become_maps():
    network = Tokens()
    side_by_side = lambda module, output: output.transpose(1, 2).unflatten(2, (2, 2)) if output.ndim == 3 else None  # noqa: E731
    with_feature_maps(network, ["block"], image_size=8, to_map=side_by_side)
    x = torch.randn(2, 3, 8, 8)
    _, (feature_map,) = network(x)
    tokens = network.block(network.patches(x).flatten(2).transpose(1, 2))
    assert feature_map.shape == (2, 5, 2, 2)
    assert torch.equal(feature_map[:, :, 1, 0], tokens[:, 2])


class InTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return (self.layer(x),)  # as layers of Hugging Face's transformers do


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = InTuple()

    def forward(self, x):
        return self.block(x)[0].clamp_(min=0).mean((2, 3))


def test_an_output_that_is_no_tensor_becomes_a_map_and_is_kept_as_it_was():
    network = Overwriting()
    inside = lambda module, output: output[0] if isinstance(output, tuple) else None  # noqa: E731
    with_feature_maps(network, ["block"], image_size=8, to_map=inside)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(network(x)[1][0], network.block.layer(x))


def test_a_network_needs_no_parameters():
    network = with_feature_maps(nn.Sequential(nn.AvgPool2d(2)), ["0"])
    assert network.feature_channels == [3]


class OnlyInEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.sometimes = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x if self.training else self.sometimes(x)


def with_attribute(name):
    network = Tokens()
    setattr(network, name, nn.Identity())
    return network


@pytest.mark.parametrize(
    ("network", "options", "sentence"),
    [
        (Tokens(), {}, "the layer 'block' of Tokens gives no feature map (B, C, H, W): the names are patches"),
        (nn.Sequential(), {}, "Sequential has no layer 'block': there is none to choose"),
        (Tokens(), {"in_channels": 1}, "Tokens fails on zeros (1, 1, 8, 8), or its to_map does: Given groups=1"),
        (
            Tokens(),
            {"to_map": lambda module, output: output.unflatten(2, (2, 2))},
            "in_channels and image_size must be those of its images",
        ),
        (with_attribute("feature_names"), {}, "Tokens has an attribute 'feature_names' already"),
        (with_attribute("_to_map"), {}, "Tokens has an attribute '_to_map' already"),
        (build_model("resnet8", 5), {}, "choose the maps of a NamedMapsNetwork when it is built"),
        (torch.compile(Tokens()), {}, "OptimizedModule has a forward of its own beside its class's"),
    ],
)
def test_networks_that_cannot_be_given_maps_are_told_why(network, options, sentence):
    with pytest.raises(L2TFastError) as error:
        with_feature_maps(network, ["block"], image_size=8, **options)
    assert sentence in str(error.value)


def test_a_layer_that_stops_to_run_is_named():
    network = with_feature_maps(OnlyInEvaluation(), ["sometimes"], image_size=8)
    with pytest.raises(L2TFastError, match=r"'sometimes' gave no feature map for images \(2, 3, 8, 8\)"):
        network.train()(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: build_model("resnet33", 5), "there is no network 'resnet33': the closest names are resnet3"),
        (lambda: build_model("torchvision:resnet19", 5), "closest names are torchvision:resnet18"),
        (lambda: build_model("resnet18", 5), "no network 'resnet18': torchvision's is called torchvision:resnet18"),
        (
            lambda: published_checkpoint("torchvision:resnet19"),
            "no network 'torchvision:resnet19': the closest names are",
        ),
        (lambda: published_checkpoint("resnet33"), "there is no network 'resnet33': the closest names are resnet3"),
        (lambda: published_checkpoint("resnet32"), "resnet32 has no published weights"),
        (lambda: build_model("", 5), "there is no network ''"),
        (lambda: layer_names("vgg99"), "there is no network 'vgg99'"),
        (
            lambda: build_model("resnet20", 5, layers=["layer1.7"]),
            "no layer 'layer1.7': the closest names are layer1.2",
        ),
        (lambda: build_model("resnet20", 5, layers=[]), "must be a list of at least one name"),
        (lambda: build_model("resnet20", 5, layers="layer1.0"), "must be a list of at least one name, not 'layer1.0'"),
        (lambda: build_model("resnet20", 5, layers=["layer1.0", "layer1.0"]), "'layer1.0' of resnet20 is named twice"),
        (lambda: build_model("torchvision:resnet18", 5, layers=["layer5"]), "the closest names are layer4"),
        (
            lambda: build_model("torchvision:resnet18", 5, layers=["fc"]),
            "the layer 'fc' of torchvision:resnet18 gives no feature map (B, C, H, W): the names are conv1",
        ),
        (lambda: build_model("resnet20", 0), "cannot have 0 classes"),
        (lambda: build_model("resnet20", 5, in_channels=0), "cannot have 0 input channels"),
    ],
)
def test_mistakes_are_named(call, sentence):
    with pytest.raises(L2TFastError) as error:
        call()
    assert sentence in str(error.value)


def test_list_models_names_every_family():
    names = list_models()
    assert {"resnet20", "resnet32", "resnet44", "resnet56", "l2tww_resnet32", "vgg9bn", "resnet8", "vgg5bn"} < set(
        names
    )
    assert "torchvision:resnet34" in names
    assert not any("deeplab" in name or "rcnn" in name for name in names)


class SaysHowItIsMade(nn.Sequential):
    def __reduce__(self):
        return SaysHowItIsMade, (*self,)


class MadeWithASize(nn.Sequential):
    def __new__(cls, channels):
        made = super().__new__(cls)
        made.channels = channels
        return made

    def __init__(self, channels):
        super().__init__(nn.Conv2d(3, channels, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def __getnewargs__(self):
        return (self.channels,)


def test_a_network_that_was_given_maps_can_be_pickled():
    """Whole networks go to processes, and into files of torch.save."""
    network = with_feature_maps(
        torchvision.models.get_model("squeezenet1_1", num_classes=3), ["features.5"], image_size=64
    ).eval()
    x = torch.rand(2, 3, 64, 64)
    logits, (feature_map,) = network(x)
    for protocol in (0, pickle.DEFAULT_PROTOCOL):
        twin = pickle.loads(pickle.dumps(network, protocol))
        assert type(twin) is type(network) and twin.feature_names == ["features.5"]
        assert torch.equal(twin(x)[0], logits) and torch.equal(twin(x)[1][0], feature_map)
    derived = copy.deepcopy(network)
    derived.__class__ = type("Derived", (type(network),), {})  # as batch normalisation over ranks does
    assert torch.equal(copy.deepcopy(derived)(x)[0], logits)
    sized = with_feature_maps(MadeWithASize(4), ["0"], image_size=8)
    assert torch.equal(pickle.loads(pickle.dumps(sized))(x)[0], sized(x)[0])
    assert torch.equal(copy.deepcopy(sized)(x)[0], sized(x)[0])
    own = with_feature_maps(SaysHowItIsMade(nn.Conv2d(3, 4, 1), nn.Flatten()), ["0"], image_size=8)
    assert type(pickle.loads(pickle.dumps(own))) is SaysHowItIsMade
