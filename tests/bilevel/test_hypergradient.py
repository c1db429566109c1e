"""Every hypergradient method against an unrolled loop of its own, in float64, and what must stay untouched."""

import copy
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import _named_member_accessor

from l2t_fast import FeatureMatching, MetaNetworks
from l2t_fast.bilevel import METHODS, hypergradient
from l2t_fast.distributed import synchronize_batch_norm
from tests.bilevel.naive import naive_hypergradient

SOURCE_CHANNELS = [3, 5]
PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]

#: Arguments of every way to the hypergradient, and how far from the unrolled loop it may be in float64.
WAYS = {
    "exact": ({"method": "exact"}, 1e-10),
    "exact, graphs kept": ({"method": "exact", "keep_graphs": True}, 1e-10),
    "double_backward": ({"method": "double_backward"}, 1e-10),
    # The rounding unit over the relative step is 1.5e-6 of the gradient, which is larger than its derivative.
    "finite_difference": ({"method": "finite_difference"}, 1e-4),
}
every_way = pytest.mark.parametrize("way", WAYS)


class PlainNet(nn.Module):
    """conv-BN-ReLU twice with max-pooling, dropout if asked for."""

    channels = (4, 6)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        a = self.first(x)
        b = self.second(self.dropout(F.max_pool2d(a, 2)))
        return self.fc(b.mean((2, 3))), [a, b]


class ResidualNet(nn.Module):
    """A stem and one residual block with a strided shortcut, no dropout."""

    channels = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.bn = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        a = F.relu(self.stem_bn(self.stem(x)))
        b = F.relu(self.bn(self.conv(a)) + self.shortcut(a))
        return self.fc(b.mean((2, 3))), [a, b]


class SharedGradientNet(PlainNet):
    """A layer whose weight is a sum: autograd hands one tensor to both parameters as their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(0.3 * torch.randn(4, 2, 3, 3))
        self.right = nn.Parameter(0.3 * torch.randn(4, 2, 3, 3))

    def forward(self, x):
        a = F.relu(self.first[1](F.conv2d(x, self.left + self.right, padding=1)))
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


NETS = {
    "shared gradient": SharedGradientNet,
    "plain": PlainNet,
    "residual": ResidualNet,
    "dropout": lambda: PlainNet(0.3),
}
SGD = {
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.1, "weight_decay": 0.05},
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True},
    "dampening": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01, "dampening": 0.3},
}


def make_problem(net="plain", sgd="momentum", warm=True, pair_weights=True, dtype=torch.float64, seed=0):
    """A target with BatchNorm in training mode, its projections, meta networks away from their start, and one batch.

    ``net`` is one of NETS, or makes another.
    """
    torch.manual_seed(seed)
    target = NETS.get(net, net)().to(dtype)
    matching = FeatureMatching(SOURCE_CHANNELS, target.channels, PAIRS, backend="reference").to(dtype)
    meta = MetaNetworks(SOURCE_CHANNELS, PAIRS, pair_weights=pair_weights).to(dtype)
    for p in meta.parameters():
        nn.init.normal_(p, std=0.5)
    if pair_weights:  # inside ReLU6's linear part, or nothing is learned about lambda
        for layer in meta.loss_weight_network:
            nn.init.constant_(layer.bias, 2.0)
    x, y = torch.randn(5, 2, 6, 6, dtype=dtype), torch.randint(0, 3, (5,))
    source_features = [torch.randn(5, 3, 4, 4, dtype=dtype), torch.randn(5, 5, 3, 3, dtype=dtype)]
    optimizer = torch.optim.SGD([*target.parameters(), *matching.parameters()], **SGD[sgd])
    if warm:  # a real step leaves momentum buffers and running statistics behind
        logits, features = target(x)
        weights, lambdas = meta(source_features)
        (F.cross_entropy(logits, y) + matching(source_features, features, weights, 0.5, lambdas)).backward()
        optimizer.step()
        optimizer.zero_grad()
        meta.zero_grad()
    return target, matching, meta, optimizer, source_features, x, y


def test_every_method_is_tested():
    assert {arguments["method"] for arguments, _ in WAYS.values()} == set(METHODS)


def assert_close(found, wanted, tolerance=1e-10):
    scale = max(w.abs().max().item() for w in wanted)
    for f, w in zip(found, wanted, strict=True):
        assert f.shape == w.shape
        assert (f - w).abs().max().item() <= tolerance * max(scale, 1e-12)


@every_way
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("sgd", SGD)
def test_equals_the_unrolled_loop(way, steps, sgd):
    problem = make_problem(sgd=sgd)
    found = hypergradient(*problem, steps=steps, beta=0.7, **WAYS[way][0])
    wanted = naive_hypergradient(*problem, steps=steps, beta=0.7)
    if steps:
        assert max(w.abs().max().item() for w in wanted) > 1e-8
    assert_close(found, wanted, WAYS[way][1])


@every_way
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("warm", [True, False])
def test_networks_and_cold_momentum(way, net, warm):
    problem = make_problem(net=net, warm=warm, sgd="dampening")
    torch.manual_seed(7)
    found = hypergradient(*problem, steps=2, beta=0.5, **WAYS[way][0])
    after = torch.rand(3)
    wanted = naive_hypergradient(*problem, steps=2, beta=0.5, seed=7)
    assert_close(found, wanted, WAYS[way][1])
    assert torch.equal(after, torch.rand(3)), "the random generators must advance as by the look-ahead's forward passes"


@every_way
def test_eval_mode_and_what_only(way):
    problem = make_problem(pair_weights=False)
    problem[0].eval()
    found = hypergradient(*problem, steps=2, beta=0.5, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=2, beta=0.5), WAYS[way][1])


@every_way
def test_groups_and_frozen_parameters(way):
    target, matching, meta, _, source_features, x, y = make_problem()
    optimizer = torch.optim.SGD(
        [
            {"params": list(target.first.parameters()), "lr": 0.2, "momentum": 0.5},
            {"params": list(target.second.parameters()) + list(target.fc.parameters()), "weight_decay": 0.1},
            {"params": list(matching.parameters()), "momentum": 0.9, "nesterov": True},
        ],
        lr=0.05,
    )
    problem = (target, matching, meta, optimizer, source_features, x, y)
    found = hypergradient(*problem, steps=2, beta=0.5, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=2, beta=0.5), WAYS[way][1])

    target.first[0].weight.requires_grad_(False)
    with_frozen = hypergradient(*problem, steps=2, beta=0.5, **WAYS[way][0])
    assert not torch.allclose(with_frozen[0], found[0])


@every_way
def test_empty_groups_rates_in_tensors_and_momentum_of_some(way):
    target, matching, meta, _, *batch = make_problem()
    parameters = [*target.parameters(), *matching.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=torch.tensor(0.05, dtype=torch.float64), momentum=0.9, dampening=0.2)
    optimizer.add_param_group({"params": []})
    for p in parameters[::2]:
        optimizer.state[p]["momentum_buffer"] = 0.1 * torch.randn_like(p)
    problem = (target, matching, meta, optimizer, *batch)
    found = hypergradient(*problem, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=2, beta=0.5), WAYS[way][1])


@every_way
def test_leaves_everything_as_it_was(way):
    problem = make_problem(net="dropout")
    target, matching, meta, optimizer = problem[:4]
    target.fc.weight.grad = torch.ones_like(target.fc.weight)

    def snapshot():
        modules = [copy.deepcopy(m.state_dict()) for m in (target, matching, meta)]
        state = {i: s["momentum_buffer"].clone() for i, s in optimizer.state_dict()["state"].items()}
        grads = [p.grad for m in (target, matching, meta) for p in m.parameters()]
        return modules, state, copy.deepcopy(grads), target.training

    before = snapshot()
    hypergradient(*problem, steps=3, beta=0.5, **WAYS[way][0])
    after = snapshot()
    for old, new in zip(before[0], after[0], strict=True):
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    assert before[1].keys() == after[1].keys() and all(torch.equal(before[1][k], after[1][k]) for k in before[1])
    for old, new in zip(before[2], after[2], strict=True):
        assert (old is None) == (new is None) and (old is None or torch.equal(old, new))
    assert all(p.requires_grad for p in target.parameters())
    assert before[3] == after[3]


@every_way
@pytest.mark.parametrize("moment", [2, 9, 40])  # of the swaps
def test_ctrl_c_leaves_everything_as_it_was(way, moment, monkeypatch):
    """It comes while PyTorch is about to give a module another of its parameters, or back its own."""
    target, matching, meta, optimizer, *batch = make_problem()
    swap, swapped = _named_member_accessor.swap_tensor, []

    def press_then_swap(*arguments, **options):
        swapped.append(arguments)
        if len(swapped) == moment:
            signal.raise_signal(signal.SIGINT)
        return swap(*arguments, **options)

    monkeypatch.setattr(_named_member_accessor, "swap_tensor", press_then_swap)
    modules = [module for network in (target, matching, meta) for module in network.modules()]
    before = [(dict(module._parameters), dict(module._buffers)) for module in modules]
    with pytest.raises(KeyboardInterrupt):
        hypergradient(target, matching, meta, optimizer, *batch, **WAYS[way][0])
    for module, (parameters, buffers) in zip(modules, before, strict=True):
        assert list(map(id, module._parameters.values())) == list(map(id, parameters.values()))
        assert list(map(id, module._buffers.values())) == list(map(id, buffers.values()))
    assert not torch.overrides._get_current_function_mode_stack()
    assert moment <= len(swapped)


@every_way
def test_no_grad_outside_does_not_matter(way):
    problem = make_problem()
    with torch.no_grad():
        found = hypergradient(*problem, steps=1, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=1, beta=0.5), WAYS[way][1])


def test_float32_is_close_to_float64():
    double = hypergradient(*make_problem(), steps=2)
    target, matching, meta, optimizer, source_features, x, y = make_problem()
    for module in (target, matching, meta):
        module.float()
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].float()
    single = hypergradient(
        target, matching, meta, optimizer, [s.float() for s in source_features], x.float(), y, steps=2
    )
    assert_close([s.double() for s in single], double, tolerance=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision(dtype):
    true = torch.cat([t.flatten() for t in hypergradient(*make_problem(warm=False))])

    def error(**arguments):
        target, matching, meta, optimizer, maps, x, y = make_problem(warm=False)
        for module in (target, matching, meta):
            module.to(dtype)
        maps = [m.to(dtype) for m in maps]
        found = hypergradient(target, matching, meta, optimizer, maps, x.to(dtype), y, **arguments)
        assert all(f.dtype == dtype for f in found)
        return torch.dist(torch.cat([f.flatten() for f in found]).double(), true)

    # Most of it is what the passes lose, which is of one size (0.5 to 1.4 times, by seed and instruction set).
    assert error(method="exact") <= 2 * error(method="double_backward") < 0.5 * true.norm()


class LogitsInBfloat16(PlainNet):
    widened = False

    def forward(self, x):
        logits, maps = super().forward(x)
        logits = logits.bfloat16()
        return logits.float() if self.widened else logits, maps


def test_a_finite_difference_in_half_precision_is_refused():
    problem = make_problem(dtype=torch.bfloat16, warm=False)
    with pytest.raises(ValueError, match="needs parameters in float32 or float64, but most of target's are in torch"):
        hypergradient(*problem, method="finite_difference")


class ChannelsInnermost(PlainNet):
    """Convolves maps that lie with their channels innermost, and so do the gradients of its weights."""

    def forward(self, x):
        return super().forward(x.contiguous(memory_format=torch.channels_last))


@every_way
@pytest.mark.filterwarnings("error")
def test_gradients_that_lie_otherwise_than_parameters(way):
    found = hypergradient(*make_problem(net=ChannelsInnermost), **WAYS[way][0])
    assert_close(found, hypergradient(*make_problem(net=PlainNet), **WAYS[way][0]), tolerance=1e-6)


@pytest.mark.parametrize("method", ["exact", "double_backward"])
def test_the_cross_entropy_is_never_made_in_half_precision(method):
    problem = make_problem(net=LogitsInBfloat16, dtype=torch.float32, warm=False)
    found = hypergradient(*problem, method=method)
    problem[0].widened = True
    wanted = hypergradient(*problem, method=method)
    assert any(w.any() for w in wanted)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


class Scaled(PlainNet):
    """The logits times a parameter, of another type than all others once it is replaced."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.others = nn.ParameterList()

    def forward(self, x):
        logits, maps = super().forward(x)
        for factor in (self.temperature, *self.others):
            factor = factor.mean() if factor.dim() else factor
            logits = logits * (factor.real if factor.is_complex() else factor).to(logits.dtype)
        return logits, maps


@pytest.mark.parametrize(
    ("dtype", "more"), [(torch.bfloat16, 0), (torch.float64, 0), (torch.complex64, 0), (torch.complex64, 20)], ids=str
)
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_parameter_of_another_type_may_come_first(method, dtype, more):
    """Precision is that of most parameters, and real, not of the one that the optimizer happens to begin with."""
    target, matching, meta, _, *batch = make_problem(net=Scaled, dtype=torch.float32, warm=False)
    target.temperature = nn.Parameter(torch.ones((), dtype=dtype))
    target.others.extend(nn.Parameter(torch.ones((), dtype=dtype)) for _ in range(more))
    rest = [p for p in (*target.parameters(), *matching.parameters()) if p is not target.temperature]
    optimizer = torch.optim.SGD([target.temperature, *rest], lr=0.05)
    wanted = hypergradient(target, matching, meta, optimizer, *batch, method="double_backward")
    found = hypergradient(target, matching, meta, optimizer, *batch, method=method)
    difference = torch.cat([(f - w).flatten() for f, w in zip(found, wanted, strict=True)])
    assert difference.norm() < (1e-4 if method == "exact" else 0.02) * torch.cat([w.flatten() for w in wanted]).norm()


def test_a_few_wide_layers_of_another_type_do_not_decide():
    target, matching, meta, _, *batch = make_problem(net=Scaled, dtype=torch.float32, warm=False)
    target.temperature = nn.Parameter(torch.ones(10**4, dtype=torch.float64))
    optimizer = torch.optim.SGD([*target.parameters(), *matching.parameters()], lr=0.05)
    assert all(f.isfinite().all() for f in hypergradient(target, matching, meta, optimizer, *batch))


NO_WARNING = """
import torch
from l2t_fast.bilevel import hypergradient
from tests.bilevel.test_hypergradient import make_problem
hypergradient(*make_problem())
"""


def test_it_warns_of_nothing():
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", NO_WARNING], check=True)


@every_way
def test_a_phi_that_makes_no_weights_gets_zeros(way):
    problem = make_problem()
    problem[2].forward = lambda maps: (None, None)
    found = hypergradient(*problem, **WAYS[way][0])
    assert all(torch.equal(f, torch.zeros_like(p)) for f, p in zip(found, problem[2].parameters(), strict=True))


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_generators_go_on_after_an_error(method):
    problem = make_problem(net="dropout")
    target, passes = problem[0], []

    def count(*_):
        passes.append(1)
        if len(passes) == 6:  # the second one that is made again
            raise KeyError

    hook = target.register_forward_pre_hook(count)
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        hypergradient(*problem, method=method)
    after = torch.get_rng_state()
    hook.remove()
    torch.set_rng_state(before)
    for _ in range(4):
        target(problem[5])
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("value", [None, "2", 2.0])
@pytest.mark.parametrize("name", ["steps", "accumulation"])
def test_numbers_that_are_no_whole_ones(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, not {value!r}"):
        hypergradient(*make_problem(), **{name: value})


def test_source_features_that_are_no_list():
    problem = make_problem()
    maps = problem[4]
    for wrong in (None, maps[0], dict(enumerate(maps)), set(maps), iter(maps)):
        given = type(wrong).__name__
        with pytest.raises(TypeError, match=rf"source_features must be a list of tensors \(B, C, H, W\), not {given}"):
            hypergradient(*problem[:4], wrong, *problem[5:])


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, lambda target: None, r"target must be a torch\.nn\.Module, not NoneType"),
        (0, lambda target: target.forward, r"target must be a torch\.nn\.Module, not method"),
        (1, lambda matching: None, r"matching must be a torch\.nn\.Module, not NoneType"),
        (1, lambda matching: lambda *given: matching(*given), r"matching must be a torch\.nn\.Module, not function"),
        (2, lambda meta: None, r"meta must be a torch\.nn\.Module, not NoneType"),
        (2, lambda meta: lambda maps: meta(maps), r"meta must be a torch\.nn\.Module, not function"),
        (0, nn.DataParallel, r"target must be the module itself, not a DataParallel: give target\.module"),
        (4, lambda maps: [maps[0], maps[1].numpy()], r"source_features\[1\] must be a tensor .*, not ndarray"),
        (5, lambda x: x.numpy(), r"x must be a tensor of images \(B, \.\.\.\), not ndarray"),
        (5, lambda x: None, r"x must be a tensor of images \(B, \.\.\.\), not NoneType"),
        (6, lambda y: y.tolist(), r"y must be a tensor of labels \(B,\), not list"),
    ],
)
def test_arguments_of_another_type(place, wrong, message):
    problem = list(make_problem())
    problem[place] = wrong(problem[place])
    with pytest.raises(TypeError, match=message):
        hypergradient(*problem)


@every_way
@pytest.mark.parametrize("accumulation", [1, 2])
def test_lists_may_be_other_ordered_things(way, accumulation):
    """A dictionary's values as source features, and generators as what phi returns."""
    problem = make_problem()
    arguments = {"accumulation": accumulation, **WAYS[way][0]}
    wanted = hypergradient(*problem, **arguments)
    weights_of = problem[2].forward
    problem[2].forward = lambda maps: tuple((weight for weight in weights) for weights in weights_of(maps))
    found = hypergradient(*problem[:4], dict(enumerate(problem[4])).values(), *problem[5:], **arguments)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@every_way
def test_batches_of_a_library_s_own_class(way):
    class Image(torch.Tensor):
        """As fastai's: what is made of it is of its class."""

    problem = make_problem()
    wanted = hypergradient(*problem, **WAYS[way][0])
    maps, x, y = problem[4:]
    images = [m.as_subclass(Image) for m in maps], x.as_subclass(Image), y.as_subclass(Image)
    found = hypergradient(*problem[:4], *images, **WAYS[way][0])
    assert all(type(f) is torch.Tensor and torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@every_way
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda logits, maps: logits, r"return \(logits, features\), not a Tensor"),
        (lambda logits, maps: (logits, maps, 1), r"return \(logits, features\), not a tuple of 3"),
        (lambda logits, maps: (maps, logits), r"a tensor and a list of maps, not \(list, Tensor\)"),
        (lambda logits, maps: (None, maps), r"a tensor and a list of maps, not \(NoneType, list\)"),
        (lambda logits, maps: (logits, dict(enumerate(maps))), r"a tensor and a list of maps, not \(Tensor, dict\)"),
    ],
)
def test_what_a_target_must_return(way, returned, message):
    class Wrong(PlainNet):
        def forward(self, x):
            return returned(*super().forward(x))

    problem = make_problem()
    problem[0].__class__ = Wrong
    with pytest.raises(TypeError, match=f"target must .*{message}"):
        hypergradient(*problem, **WAYS[way][0])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda weights: weights, r"return \(channel_weights, pair_weights\), not a list of 4"),
        (lambda weights: weights[:2], r"each a list or None, not \(Tensor, Tensor\)"),
        (lambda weights: weights[0], r"return \(channel_weights, pair_weights\), not a Tensor"),
        (lambda weights: (set(weights), None), r"each a list or None, not \(set, NoneType\)"),
        (lambda weights: (weights, [None] * 4), r"return lists of tensors, but its pair_weights\[0\] is a NoneType"),
    ],
)
def test_what_phi_must_return(returned, message):
    problem = make_problem()
    weights = problem[2](problem[4])[0]
    problem[2].forward = lambda maps: returned(weights)
    with pytest.raises(TypeError, match=f"meta must .*{message}"):
        hypergradient(*problem)


@every_way
def test_what_matching_must_return(way):
    problem = make_problem()
    problem[1].forward = lambda *given: None
    with pytest.raises(TypeError, match="matching must return the loss, a tensor, not a NoneType"):
        hypergradient(*problem, **WAYS[way][0])


def test_errors_name_what_is_wrong():
    problem = make_problem()
    with pytest.raises(ValueError, match="beta is too large for a float"):
        hypergradient(*problem, beta=10**400)
    with pytest.raises(ValueError, match="method='fast' is not known, choose one of"):
        hypergradient(*problem, method="fast")
    with pytest.raises(ValueError, match="steps=-1 look-ahead steps"):
        hypergradient(*problem, steps=-1)
    target, matching, meta, _, *rest = problem
    with pytest.raises(TypeError, match=r"must be torch\.optim\.SGD, not Adam"):
        hypergradient(target, matching, meta, torch.optim.Adam(target.parameters()), *rest)
    with pytest.raises(ValueError, match="no trainable parameter of the target"):
        hypergradient(target, matching, meta, torch.optim.SGD(matching.parameters()), *rest)
    with pytest.raises(ValueError, match="maximize=True"):
        hypergradient(target, matching, meta, torch.optim.SGD(target.parameters(), maximize=True), *rest)


def test_projections_that_the_optimizer_does_not_have_are_told():
    target, matching, meta, _, *rest = make_problem(warm=False)
    optimizer = torch.optim.SGD([*target.parameters(), *matching[0].parameters()], lr=0.1)
    with pytest.warns(
        UserWarning, match=r"does not hold matching's \['1\.weight', '1\.bias', '2\.weight', .*requires_grad_"
    ) as told:
        hypergradient(target, matching, meta, optimizer, *rest)
    assert told[0].filename == __file__  # of who called it
    for projection in matching[1:]:
        projection.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypergradient(target, matching, meta, optimizer, *rest)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_that_rounds_is_told(method):
    """A framework calls a training step in its own."""
    problem = make_problem(dtype=torch.float32, warm=False)
    with warnings.catch_warnings(record=True) as told, torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("always")
        hypergradient(*problem, method=method)
    if method == "finite_difference":
        assert not told
    else:
        assert len(told) == 1 and told[0].filename == __file__
        assert "call it in torch.autocast('cpu', enabled=False)" in str(told[0].message)


def test_what_frameworks_wrap():
    target, matching, meta, optimizer, *batch = make_problem()

    class LightningSGD(torch.optim.SGD):
        def __init__(self, optimizer):
            super().__init__(optimizer.param_groups)
            self.optimizer = optimizer

        def step(self, closure=None):
            return self.optimizer.step(closure)

    with pytest.raises(TypeError, match=r"not a LightningSGD of one: give optimizer\.optimizer"):
        hypergradient(target, matching, meta, LightningSGD(optimizer), *batch)

    class _FabricModule(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(TypeError, match=r"target must be the module itself, not a _FabricModule: give target\.module"):
        hypergradient(_FabricModule(target), matching, meta, optimizer, *batch)


class Divided(nn.Parameter):
    """A parameter of which each rank holds a part says so by this method."""

    def full_tensor(self):
        return self


def test_parameters_divided_among_ranks_are_refused():
    target, *rest = make_problem()
    target.fc.weight = Divided(target.fc.weight.detach())
    with pytest.raises(TypeError, match="target has its parameters divided among ranks"):
        hypergradient(target, *rest)


def test_a_part_that_was_forgotten_is_told():
    """Statistics of two ranks' images, and losses of one's: numbers of nothing."""
    target, *rest = make_problem()
    synchronize_batch_norm(target, SimpleNamespace(size=2))
    with pytest.raises(ValueError, match=r"takes the statistics of 2 ranks' images, .*: give part=group\.part"):
        hypergradient(target, *rest)


def test_transforms_are_an_error_in_a_sentence():
    problem = make_problem()
    with pytest.raises(RuntimeError, match=r"which torch\.func's transforms forbid"):
        torch.func.grad(lambda x: hypergradient(*problem)[0].sum() * x)(torch.tensor(1.0))


@every_way
def test_a_step_that_is_compiled_runs_it_as_it_is(way):
    problem = make_problem()
    wanted = hypergradient(*problem, **WAYS[way][0])

    def step(scale):
        return [g * scale for g in hypergradient(*problem, **WAYS[way][0])]

    found = torch.compile(step, backend="aot_eager")(torch.tensor(2.0, dtype=torch.float64))
    assert_close(found, [2 * w for w in wanted])


@pytest.mark.parametrize("method", METHODS)
def test_float64_beside_float32_weights_is_refused_alike(method):
    problem = make_problem()
    problem[2].float()
    with pytest.raises(TypeError, match=r"the channel weight is torch\.float32.*float64 does not mix"):
        hypergradient(*problem, method=method)


class Rendezvous(PlainNet):
    """Waits within its forward pass, so that two threads meet there if they can."""

    barrier: threading.Barrier

    def forward(self, x):
        try:
            self.barrier.wait(0.2)
            self.met = True
        except threading.BrokenBarrierError:
            pass
        return super().forward(x)


def test_threads_wait_for_each_other_in_a_module():
    """Each gives the modules other parameters for a while, which the other would take for the modules' own."""
    problem = make_problem(Rendezvous, warm=False)
    problem[0].barrier = threading.Barrier(2)
    wanted = hypergradient(*problem, steps=1)
    problem[0].barrier, problem[0].met = threading.Barrier(2), False
    before = [*problem[0].parameters()]
    with ThreadPoolExecutor(2) as threads:
        found = [*threads.map(lambda _: hypergradient(*problem, steps=1), range(2))]
    assert not problem[0].met
    for one in found:
        assert all(map(torch.equal, one, wanted))
    assert all(a is b for a, b in zip(before, problem[0].parameters(), strict=True))


@every_way
def test_inference_mode_is_an_error_and_no_silent_zero(way):
    problem = make_problem()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        hypergradient(*problem, steps=1, **WAYS[way][0])
