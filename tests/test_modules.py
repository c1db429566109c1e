"""The drop-in modules: the authors' keys, calls, outputs and None cases."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from l2t_fast import FeatureMatching, LossWeightNetwork, MetaNetworks, WeightNetwork, feature_matching_loss

SOURCE, TARGET = [2, 3], [4, 5]
PAIRS = [(0, 0), (1, 0), (1, 1)]


def features():
    g = torch.Generator().manual_seed(0)
    sources = [torch.randn(3, 2, 8, 8, generator=g), torch.randn(3, 3, 4, 4, generator=g)]
    targets = [torch.randn(3, 4, 8, 8, generator=g), torch.randn(3, 5, 2, 2, generator=g)]
    return sources, targets


def written_out(matching, sources, targets, weight, beta, loss_weight):
    """The published method as its users know it: mean over pixels first, then one of four ways over the channels."""
    total = 0.0
    for i, (m, n) in enumerate(PAIRS):
        s = F.interpolate(sources[m], size=targets[n].shape[2:], mode="bilinear", align_corners=False)
        d = (s - matching[i](targets[n])).square().mean((2, 3))
        if weight is not None:
            d = (d * weight[i]).sum(1)
        elif loss_weight is not None:
            d = d.sum(1)
        else:
            d = d.mean(1)
        if loss_weight is not None:
            d = d * loss_weight[i].squeeze()
        total = total + d.mean() * beta[i]
    return total


@pytest.mark.parametrize("what", [True, False])
@pytest.mark.parametrize("where", [True, False])
def test_four_none_cases(what, where):
    torch.manual_seed(0)
    sources, targets = features()
    matching = FeatureMatching(SOURCE, TARGET, PAIRS)
    weight = [torch.rand(3, SOURCE[m]) for m, _ in PAIRS] if what else None
    loss_weight = [torch.rand(3, 1) for _ in PAIRS] if where else None
    beta = [0.5, 0.25, 2.0]
    found = matching(sources, targets, weight, beta, loss_weight)
    torch.testing.assert_close(found, written_out(matching, sources, targets, weight, beta, loss_weight))


def test_state_dict_keys_and_shapes():
    matching = FeatureMatching(SOURCE, TARGET, PAIRS)
    assert {k: tuple(v.shape) for k, v in matching.state_dict().items()} == {
        "0.weight": (2, 4, 1, 1),
        "0.bias": (2,),
        "1.weight": (3, 4, 1, 1),
        "1.bias": (3,),
        "2.weight": (3, 5, 1, 1),
        "2.bias": (3,),
    }
    what = {k: tuple(v.shape) for k, v in WeightNetwork(SOURCE, PAIRS).state_dict().items()}
    assert what["0.weight"] == (2, 2) and what["1.weight"] == (3, 3) and what["2.bias"] == (3,) and len(what) == 6
    where = {k: tuple(v.shape) for k, v in LossWeightNetwork(SOURCE, PAIRS).state_dict().items()}
    assert where["0.weight"] == (1, 2) and where["1.weight"] == (1, 3) and where["2.bias"] == (1,) and len(where) == 6
    assert list(LossWeightNetwork(SOURCE, PAIRS, "const").state_dict()) == ["weights"]


def test_weights_start_uniform_and_lambda_near_one():
    sources, _ = features()
    meta = MetaNetworks(SOURCE, PAIRS)
    weights, lambdas = meta(sources)
    for (m, _), w, lam in zip(PAIRS, weights, lambdas, strict=True):
        assert torch.equal(w, torch.full((3, SOURCE[m]), 1 / SOURCE[m]))
        assert lam.shape == (3, 1)
    assert all(layer.bias.item() == 1 for layer in meta.loss_weight_network)
    assert MetaNetworks(SOURCE, PAIRS, pair_weights=False)(sources)[1] is None


ACTIVATIONS = {
    "relu6": lambda g, c: F.relu6(g),
    "relu": lambda g, c: F.relu(g),
    "elu": lambda g, c: F.elu(g) + 1,
    "sigmoid": lambda g, c: torch.sigmoid(2 * g),
    "tanh": lambda g, c: torch.tanh(g) + 1,
    "softplus": lambda g, c: F.softplus(g),
}


@pytest.mark.parametrize("weight_type", [*ACTIVATIONS, "relu-avg"])
def test_pair_weight_types(weight_type):
    torch.manual_seed(0)
    sources, _ = features()
    network = LossWeightNetwork(SOURCE, PAIRS, weight_type, init=None)
    found = network(sources)
    for i, (m, _) in enumerate(PAIRS):
        mean = sources[m].mean((2, 3))
        if weight_type == "relu-avg":
            wanted = F.relu(network[i](mean / SOURCE[m]))
        else:
            wanted = ACTIVATIONS[weight_type](network[i](mean), SOURCE[m])
        torch.testing.assert_close(found[i], wanted)


def test_relu_avg_divides_by_the_channels_and_not_by_the_batch():
    torch.manual_seed(0)
    source, network = torch.randn(3, 7, 4, 4), LossWeightNetwork([7], [(0, 0)], "relu-avg")
    torch.testing.assert_close(network([source])[0], F.relu(network[0](source.mean((2, 3)) / 7)))


def test_pair_weights_begin_with_a_bias_of_one():
    assert all(torch.equal(layer.bias, torch.ones(1)) for layer in LossWeightNetwork(SOURCE, PAIRS))


def test_even_pair_weights_begin_alike_and_learn():
    torch.manual_seed(0)
    sources, _ = features()
    meta = MetaNetworks(SOURCE, PAIRS, even=True)
    lambdas = meta(sources)[1]
    assert all(torch.equal(found, torch.ones(len(sources[0]), 1)) for found in lambdas)
    sum(found.square().sum() for found in lambdas).backward()
    assert all(layer.weight.grad.abs().min() > 0 and layer.bias.grad > 0 for layer in meta.loss_weight_network)
    uneven = torch.cat(MetaNetworks(SOURCE, PAIRS)(sources)[1])
    assert uneven.std() > 0.1  # as the authors' begin


def test_constant_pair_weights():
    network = LossWeightNetwork(SOURCE, PAIRS, "const")
    nn.init.constant_(network.weights, 0.1)
    found = network([])
    assert [f.shape for f in found] == [(1, 1)] * 3
    torch.testing.assert_close(found[0], F.softplus(torch.ones(1, 1)))


def test_half_precision_features_give_float32_weights_also_under_autocast():
    sources, _ = features()
    meta = MetaNetworks(SOURCE, PAIRS)
    nn.init.normal_(meta.weight_network[0].weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights, lambdas = meta([s.bfloat16() for s in sources])
    assert weights[0].dtype == lambdas[0].dtype == torch.float32
    torch.testing.assert_close(weights[0], meta([s.bfloat16().float() for s in sources])[0][0])


@pytest.mark.parametrize("what", [True, False])
def test_devices_that_have_no_autocast(what):
    sources, targets = ([map.to("meta") for map in maps] for maps in features())
    meta, matching = MetaNetworks(SOURCE, PAIRS).to("meta"), FeatureMatching(SOURCE, TARGET, PAIRS).to("meta")
    weights, lambdas = meta(sources) if what else (None, None)
    loss = matching(sources, targets, weights, 0.5, lambdas)
    loss.backward()
    assert loss.shape == () and loss.is_meta and matching[0].weight.grad.shape == (2, 4, 1, 1)


def test_non_square_maps():
    sources = [torch.randn(2, 2, 3, 5), torch.randn(2, 3, 4, 1)]
    weights, _ = MetaNetworks(SOURCE, PAIRS)(sources)
    assert weights[1].shape == (2, 3)


def test_an_empty_batch_has_weights_for_no_image():
    weights, lambdas = MetaNetworks(SOURCE, PAIRS)([torch.zeros(0, 2, 8, 8), torch.zeros(0, 3, 4, 4)])
    assert [w.shape for w in weights] == [(0, 2), (0, 3), (0, 3)] and lambdas[0].shape == (0, 1)


def test_errors():
    with pytest.raises(ValueError, match=r"pairs\[0\] = \(2, 0\): source index 2 is out of range"):
        FeatureMatching(SOURCE, TARGET, [(2, 0)])
    with pytest.raises(ValueError, match="target index 5 is out of range"):
        FeatureMatching(SOURCE, TARGET, [(0, 5)])
    with pytest.raises(ValueError, match="weight_type='relu7' is not known, choose one of const, relu6"):
        LossWeightNetwork(SOURCE, PAIRS, "relu7")
    with pytest.raises(ValueError, match=r"need source_features\[1\], but that list holds 1"):
        WeightNetwork(SOURCE, PAIRS)([torch.zeros(1, 2, 3, 3)])
    with pytest.raises(ValueError, match="pairs is empty"):
        WeightNetwork(SOURCE, [])
    with pytest.raises(ValueError, match=r"weight_type=\['relu6'\] is not known, choose one of const, relu6"):
        LossWeightNetwork(SOURCE, PAIRS, ["relu6"])
    with pytest.raises(TypeError, match=r"pairs must be a list .*, not set"):
        MetaNetworks(SOURCE, set(PAIRS))


@pytest.mark.parametrize("weight_type", ["relu6", "const"])
def test_what_biases_start_at_is_a_number(weight_type):
    for init in ("a", "1", [1.0]):
        with pytest.raises(TypeError, match=rf"init must be a number, not {re.escape(repr(init))}"):
            LossWeightNetwork(SOURCE, PAIRS, weight_type, init)
    with pytest.raises(ValueError, match="init is too large for a float"):
        LossWeightNetwork(SOURCE, PAIRS, weight_type, 10**400)


@pytest.mark.parametrize(
    ("channels", "error", "message"),
    [
        (None, TypeError, "source_channels must be a list of numbers of channels, not NoneType"),
        (4, TypeError, "source_channels must be a list of numbers of channels, not int"),
        ("resnet32", TypeError, "source_channels must be a list .* not a network's name .*: 'resnet32'"),
        ([2, "a"], TypeError, r"source_channels\[1\] must be an integer, not 'a'"),
        ([2, 4.0], TypeError, r"source_channels\[1\] must be an integer, not 4\.0"),
        ([2, None], TypeError, r"source_channels\[1\] must be an integer, not None"),
        ([2, True], TypeError, r"source_channels\[1\] must be an integer, not True"),
        ({2, 3}, TypeError, "source_channels must be a list of numbers of channels, not set"),
        ({0: 2, 1: 3}, TypeError, "source_channels must be a list of numbers of channels, not dict"),
        ([2, 0], ValueError, r"source_channels\[1\] must be at least 1, not 0"),
        ([2, -1], ValueError, r"source_channels\[1\] must be at least 1, not -1"),
    ],
)
@pytest.mark.parametrize("module", [FeatureMatching, WeightNetwork, LossWeightNetwork])
def test_wrong_channels_are_named(module, channels, error, message):
    with pytest.raises(error, match=message):
        module(channels, *[TARGET][: module is FeatureMatching], PAIRS)
    if module is FeatureMatching:
        with pytest.raises(error, match=message.replace("source", "target")):
            module(SOURCE, channels, PAIRS)


def test_an_unknown_backend_is_told_at_construction():
    with pytest.raises(ValueError, match="backend='quick' is not a backend, choose one of auto, "):
        FeatureMatching(SOURCE, TARGET, PAIRS, backend="quick")


def test_pairs_may_be_a_generator():
    assert MetaNetworks(SOURCE, (pair for pair in PAIRS)).loss_weight_network.pairs == PAIRS


@pytest.mark.parametrize("pair", [("0", "1"), (0.5, 0), (0, 0, 1), 3])
def test_a_pair_is_two_integers(pair):
    with pytest.raises(TypeError, match=r"pairs\[1\] must be two integers"):
        FeatureMatching([3, 5], [2, 4], [(0, 0), pair])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda sources: sources[:1], ValueError, r"pairs\[1\] = \(1, 0\): source index 1 is out of range"),
        (lambda sources: None, TypeError, "source_features must be a list of tensors .*, not NoneType"),
        (lambda sources: [None, sources[1]], TypeError, r"source_features\[0\] must be a tensor .*, not NoneType"),
        (lambda sources: [sources[0], sources[1][0]], ValueError, r"source_features\[1\] has shape \(3, 4, 4\)"),
    ],
)
@pytest.mark.parametrize("what", [True, False])
def test_wrong_sources_are_told_in_every_none_case(change, error, message, what):
    (sources, targets), matching = features(), FeatureMatching(SOURCE, TARGET, PAIRS)
    weight = [torch.rand(3, SOURCE[m]) for m, _ in PAIRS] if what else None
    with pytest.raises(error, match=message):
        matching(change(sources), targets, weight, 1.0, [torch.rand(3, 1) for _ in PAIRS])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda s: s[::-1],
            ValueError,
            r"pair 0 \(source 0, target 0\): source_features\[0\] has shape \(3, 3, 4, 4\), ",
        ),
        (lambda s: s[::-1], ValueError, r"but the layer takes \(B, 2, H, W\)"),
        (
            lambda s: [s[0], s[1][0]],
            ValueError,
            r"pair 1 .*: source_features\[1\] has shape \(3, 4, 4\), but .*\(B, 3, ",
        ),
        (lambda s: [s[0], None], TypeError, r"pair 1 .*: source_features\[1\] must be a tensor .*, not NoneType"),
        (lambda s: [s[0].long(), s[1]], TypeError, r"pair 0 .*: source_features\[0\] is torch.int64, use float32"),
        (
            lambda s: [s[0][:, :, :0], s[1]],
            ValueError,
            r"pair 0 .*: source_features\[0\] has shape \(3, 2, 0, 8\): it has no pixels",
        ),
        (lambda s: [s[0].to_sparse(), s[1]], TypeError, r"\[0\] is torch.sparse_coo, use a dense tensor"),
        (lambda s: [s[0].to("meta"), s[1]], ValueError, r"\[0\] is on meta, but the layer is on cpu; put both on one"),
        (
            lambda s: [torch.nested.nested_tensor(list(s[0]), layout=torch.strided), s[1]],
            TypeError,
            r"source_features\[0\] must be a tensor \(B, 2, H, W\), not a nested one",
        ),
        (lambda s: None, TypeError, "source_features must be a list of tensors .*, not NoneType"),
        (lambda s: dict(enumerate(s)), TypeError, "source_features must be a list of tensors .*, not dict"),
    ],
)
@pytest.mark.parametrize("network", [WeightNetwork, LossWeightNetwork, MetaNetworks])
@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_weight_networks_name_wrong_sources(change, error, message, network):
    with pytest.raises(error, match=message):
        network(SOURCE, PAIRS)(change(features()[0]))


def test_source_features_may_be_a_dictionarys_values_in_every_none_case():
    (sources, targets), matching = features(), FeatureMatching(SOURCE, TARGET, PAIRS)
    loss_weight = [torch.rand(3, 1) for _ in PAIRS]
    by_name = dict(enumerate(sources))
    wanted = matching(sources, targets, None, 1.0, loss_weight)
    assert torch.equal(matching(by_name.values(), targets, None, 1.0, loss_weight), wanted)
    assert torch.equal(WeightNetwork(SOURCE, PAIRS)(by_name.values())[0], torch.full((3, 2), 1 / 2))


def test_projections_whose_weight_is_no_parameter():
    """A parametrisation's is a property of the layer, a pruned one a plain attribute."""

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    (sources, targets), matching = features(), FeatureMatching(SOURCE, TARGET, PAIRS)
    before = matching(sources, targets)
    parametrize.register_parametrization(matching[0], "weight", Double())
    prune.l1_unstructured(matching[1], "weight", amount=6)
    found = matching(sources, targets)
    torch.testing.assert_close(found, written_out(matching, sources, targets, None, [1, 1, 1], None))
    assert abs(found - before) > 1e-3
    found.backward()
    assert matching[0].parametrizations.weight.original.grad.any() and matching[1].weight_orig.grad.any()


def test_a_projection_whose_bias_is_no_parameter():
    class Shifted(nn.Module):
        def forward(self, bias):
            return bias + 1

    torch.manual_seed(0)
    (sources, targets), matching = features(), FeatureMatching(SOURCE, TARGET, PAIRS)
    before = matching(sources, targets)
    parametrize.register_parametrization(matching[0], "bias", Shifted())
    found = matching(sources, targets)
    projections = [(layer.weight, layer.bias) for layer in matching]
    torch.testing.assert_close(found, feature_matching_loss(sources, targets, projections, PAIRS))
    assert abs(found - before) > 1e-3


class Rectified(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "layer",
    [
        Rectified(4, 3, 1),
        nn.Conv2d(4, 3, 1, padding=1),
        nn.Conv2d(4, 3, 1, stride=2),
        nn.Sequential(nn.Conv2d(4, 3, 1)),
    ],
)
def test_a_projection_that_does_more_than_its_weights_say_is_refused(layer):
    matching = FeatureMatching([3], [4], [(0, 0)])
    with pytest.raises(
        TypeError, match=f"projection 0 must be a torch.nn.Conv2d, 1x1 .*; a {type(layer).__name__} may"
    ):
        matching[0] = layer


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 3, 1, bias=False), nn.Linear(4, 3)])
def test_another_projection_may_take_the_place_of_one(layer):
    matching = FeatureMatching([3], [4], [(0, 0)])
    matching[0] = layer
    source, target = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    projected = F.conv2d(target, layer.weight.view(3, 4, 1, 1), layer.bias)
    torch.testing.assert_close(matching([source], [target]), (projected - source).square().mean())


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, prune.l1_unstructured])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_forward_pre_hooks_make_the_weights(norm):
    """The layers' parameters change from step to step, as if the layers were called."""
    sources, targets = features()

    def trained(loss_of):
        torch.manual_seed(0)
        matching = FeatureMatching(SOURCE, TARGET, PAIRS)
        norm(matching[1], "weight", **({"amount": 6} if norm is prune.l1_unstructured else {}))
        optimizer = torch.optim.SGD(matching.parameters(), 0.1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(loss_of(matching))
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses).detach()

    found = trained(lambda matching: matching(sources, targets))
    wanted = trained(lambda matching: written_out(matching, sources, targets, None, [1, 1, 1], None))
    torch.testing.assert_close(found, wanted)
    assert found[2] < found[0]


@pytest.mark.parametrize("with_kwargs", [False, True])
def test_forward_pre_hooks_see_the_target_map_and_may_not_replace_it(with_kwargs):
    (sources, targets), matching = features(), FeatureMatching(SOURCE, TARGET, PAIRS)
    seen = []
    handle = matching[2].register_forward_pre_hook(lambda *given: seen.append(given), with_kwargs=with_kwargs)
    matching(sources, targets)
    assert seen == [(matching[2], (targets[1],), {})[: 3 if with_kwargs else 2]]
    with pytest.raises(ValueError, match=r"pairs\[2\] = \(1, 1\): target index 1 is out of range"):
        matching(sources, targets[:1])
    handle.remove()
    given_back = (targets[1],), {}
    matching[2].register_forward_pre_hook(lambda *given: given_back, with_kwargs=with_kwargs)
    with pytest.raises(TypeError, match="forward-pre-hook of projection 2 must return None, not tuple: a projection"):
        matching(sources, targets)


def test_a_forward_pre_hook_may_remove_itself():
    (sources, targets), matching, ran = features(), FeatureMatching(SOURCE, TARGET, PAIRS), []

    def once(*_):
        ran.append("once")
        handle.remove()

    handle = matching[0].register_forward_pre_hook(once)
    matching[0].register_forward_pre_hook(lambda *_: ran.append("always"))
    for _ in range(2):
        matching(sources, targets)
    assert ran == ["once", "always", "always"]


def test_some_pairs_are_the_same_layers():
    """The loss over all pairs is the sum of those over some, each called with the source maps that it needs."""
    pairs = [(0, 0), (1, 0), (1, 1), (2, 1)]
    matching, meta = FeatureMatching([3, 4, 2], [5, 6], pairs).double(), MetaNetworks([3, 4, 2], pairs).double()
    source = [torch.randn(2, c, 3, 3, dtype=torch.float64) for c in (3, 4, 2)]
    target = [torch.randn(2, c, 4, 4, dtype=torch.float64) for c in (5, 6)]
    whole = matching(source, target, *meta(source)[:1], 0.5, meta(source)[1])
    total = 0.0
    for chosen, maps in ([[1, 2], [1]], [[3, 0], [0, 2]]):
        some, some_meta = matching.some_pairs(chosen, maps), meta.some_pairs(chosen, maps)
        own = [source[m] for m in maps]
        weights, lambdas = some_meta(own)
        total += some(own, target, weights, 0.5, lambdas)
        assert [layer is matching[p] for layer, p in zip(some, chosen, strict=True)] == [True] * 2
    torch.testing.assert_close(total, whole)
    assert len(matching) == 4 and some_meta.weight_network[1] is meta.weight_network[0]
    with pytest.raises(ValueError, match="one parameter, which cannot be divided"):
        MetaNetworks([3], [(0, 0)], weight_type="const").some_pairs([0], [0])


def test_what_is_hung_on_a_slice_is_not_on_the_whole():
    matching, ran = FeatureMatching(SOURCE, TARGET, PAIRS), []
    names = list(matching.state_dict())
    part = matching[0:1]
    part.register_forward_hook(lambda *_: ran.append(1))
    part.scale = nn.Parameter(torch.ones(1))
    part.register_buffer("count", torch.zeros(1))
    matching(*features())
    assert not ran and list(matching.state_dict()) == names


def test_a_slice_is_the_loss_over_some_of_the_pairs():
    pairs = [(0, 0), (1, 0), (1, 1)]
    matching, what = FeatureMatching([3, 4], [5, 6], pairs), WeightNetwork([3, 4], pairs)
    where = LossWeightNetwork([3, 4], pairs)
    source, target = (
        [torch.randn(2, c, size, size) for c in channels] for channels, size in (((3, 4), 3), ((5, 6), 4))
    )
    parts = [
        matching[part](source, target, what[part](source), 0.5, where[part](source)) for part in (slice(2), slice(2, 3))
    ]
    torch.testing.assert_close(sum(parts), matching(source, target, what(source), 0.5, where(source)))
    assert matching[::-1][0] is matching[2] and matching[::-1].pairs == pairs[::-1] and isinstance(what[1], nn.Linear)
    with pytest.raises(ValueError, match=r"no pair is in slice\(3, None, None\), there are 3"):
        matching[3:]
    with pytest.raises(ValueError, match="one parameter, which cannot be divided"):
        LossWeightNetwork([3, 4], pairs, "const")[:2]


def test_a_slice_takes_maps_whose_index_is_beyond_the_number_of_pairs():
    network, maps = WeightNetwork([3] * 6, [(5, 0), (0, 0)]), [torch.randn(2, 3, 4, 4) for _ in range(6)]
    nn.init.normal_(network[0].weight)
    assert torch.equal(network[:1](maps)[0], network(maps)[0])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            {"weight": 0.5},
            TypeError,
            r"channel_weights \(weight of FeatureMatching\) must be a list with one entry a pair",
        ),
        ({"weight": [0.5]}, TypeError, r"channel_weights\[0\] \(weight\[0\] of FeatureMatching\) must be a tensor"),
        ({"loss_weight": []}, ValueError, r"pair_weights \(loss_weight of FeatureMatching\) has 0 entries for 1 pairs"),
        ({"loss_weight": [2]}, TypeError, r"pair_weights\[0\] \(loss_weight\[0\] of FeatureMatching\) must be a tens"),
    ],
)
def test_wrong_weights_are_named_as_the_module_names_them(weights, error, message):
    matching = FeatureMatching([3], [5], [(0, 0)])
    with pytest.raises(error, match=message):
        matching([torch.randn(2, 3, 4, 4)], [torch.randn(2, 5, 4, 4)], **weights)
