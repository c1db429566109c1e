"""Targets whose backward pass is not the plain derivative of their forward pass, and modules that keep state."""

import functools
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from l2t_fast import FeatureMatching
from l2t_fast.bilevel import exact, hypergradient
from l2t_fast.bilevel.gradients import pull_back
from tests.bilevel.naive import naive_hypergradient
from tests.bilevel.test_hypergradient import (
    PAIRS,
    SOURCE_CHANNELS,
    WAYS,
    PlainNet,
    assert_close,
    every_way,
    make_problem,
)


class Scaled(PlainNet):
    """Its first map is divided by its own size, which has no derivative: each class below has another way to say so."""

    def size(self, a):
        raise NotImplementedError

    def forward(self, x):
        a = self.first[0](x)
        a = torch.tanh(a / self.size(a))
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


class Detached(Scaled):
    def size(self, a):
        return a.std((0, 2, 3), keepdim=True).detach()


class Data(Scaled):
    def size(self, a):
        return a.std((0, 2, 3), keepdim=True).data


class NoGradBlock(Scaled):
    def size(self, a):
        with torch.no_grad():
            halves = a.split(3)  # several results of one call
            return torch.cat(halves).std((0, 2, 3), keepdim=True)


class NoGradFunction(Scaled):
    @torch.no_grad()
    def size(self, a):
        return F.relu(a).mean((0, 2, 3), keepdim=True)


class Number(Scaled):
    def size(self, a):
        return a.detach().std().item() + float(a.detach().max())


class RunningSize(Scaled):
    """The size is a buffer that each pass updates: where a pass begins is part of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.ones(()))

    def size(self, a):
        with torch.no_grad():
            self.running.lerp_(a.std(), 0.3)
        return self.running.clone()


class Masked(Scaled):
    """A rectifier written with a comparison, and values rounded straight through."""

    def size(self, a):
        return 1.0

    def forward(self, x):
        a = self.first[1](self.first[0](x))
        a = a * (a > 0)
        a = a + ((4 * a).round() / 4 - a).detach()
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


class ReadStatistics(PlainNet):
    """What normalisation has just written into its buffers goes into the maps."""

    def forward(self, x):
        a = self.first(x)
        a = torch.tanh(a / self.first[1].running_var.sqrt().view(-1, 1, 1))
        b = self.second(F.max_pool2d(a, 2))
        norm = self.second[1]
        b = b + F.batch_norm(b, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.fc(b.mean((2, 3))), [a, b]


class Middle(PlainNet):
    """What `between` makes of its first map."""

    def __init__(self, between) -> None:
        super().__init__()
        self.between = between

    def forward(self, x):
        a = self.between(self.first[0](x))
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


def filled_zeros(a):
    made = torch.zeros_like(a)
    for k in (1, 2):
        made += torch.tanh(a * k)
    return made


def noise(a):
    made = torch.randn_like(a)
    made.mul_(0.3)
    return torch.tanh(a + made)


def counted_index(a):
    index = a.mean((2, 3)).argmax(1)
    index += 1
    index %= a.shape[1]
    return torch.tanh(a * (1 + 0.1 * index.view(-1, 1, 1, 1)))


def inverted_mask(a):
    mask = a > 0
    mask.logical_not_()
    return a * mask


def variance_in_place(a):
    with torch.no_grad():
        v = a.var((0, 2, 3), keepdim=True)
        v.add_(1e-3).sqrt_()
    return torch.tanh(a / v)


def size_before_rectifier(a):
    size = a.detach().abs().mean((0, 2, 3), keepdim=True)
    F.relu(a, inplace=True)
    return a / size


def local_gradient(a):
    with torch.enable_grad():
        (h,) = torch.autograd.grad((a**3).sum(), a, retain_graph=True)
    h.mul_(0.1)
    return torch.tanh(a + h)


def local_gradient_with_graph(a):
    (h,) = torch.autograd.grad((a**3).sum(), a, create_graph=True)
    return torch.tanh(a + 0.1 * h)


def local_gradient_of_its_own(a):
    h = a.detach().requires_grad_()
    (g,) = torch.autograd.grad((h**3).sum(), h)
    return torch.tanh(a + 0.1 * g)


def retained(a):
    a.retain_grad()
    return torch.tanh(a)


def logged(a):
    if a.requires_grad:
        a.detach().mean()
    return torch.tanh(a / a.std((0, 2, 3), keepdim=True).detach())


def with_graphs(a):
    return torch.tanh(a * 0.5 if torch.is_grad_enabled() else a)


def inference(a):
    with torch.inference_mode():
        size = a.std((0, 2, 3), keepdim=True)
    return torch.tanh(a / size.clone())


def listed(a):
    return torch.tanh(a / a.new_tensor(a.std((0, 2, 3)).tolist()).view(-1, 1, 1))


def forward_derivative(a):
    return torch.tanh(a + 0.1 * torch.func.jvp(torch.sin, (a,), (torch.ones_like(a),))[1])


class EnablingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.enable_grad():
            y = torch.tanh(x)
        with torch.no_grad():
            return 1.5 * y.detach()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 1.5 * g * (1 - torch.tanh(x) ** 2)


@torch.library.custom_op("l2t_fast_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


def cube_backward(ctx, g):
    return 3 * g * ctx.x**2


def cube_context(ctx, inputs, output):
    (ctx.x,) = inputs


cube.register_autograd(cube_backward, setup_context=cube_context)


def mapped(a):
    def of_one(z):
        z = F.relu(F.conv2d(z[None], z.mean((1, 2)).expand(4, 4)[:, :, None, None]))
        return F.max_pool2d(F.batch_norm(z, None, None, training=True), 3, 1, 1)[0]

    return torch.vmap(of_one)(a)


def at_the_kink(a):
    # hardtanh has slope 0 at its upper end
    return torch.tanh(a * (1 + F.hardtanh(a.new_ones(()) + 0 * a.mean())))


MIDDLES = {
    "filled zeros": filled_zeros,
    "noise": noise,
    "counted index": counted_index,
    "inverted mask": inverted_mask,
    "variance in place": variance_in_place,
    "size before rectifier": size_before_rectifier,
    "local gradient": local_gradient,
    "local gradient with graph": local_gradient_with_graph,
    "local gradient of its own": local_gradient_of_its_own,
    "detached, of its own type": lambda a: torch.tanh(a / a.detach().to(a.dtype).std()),
    "detached in place": lambda a: torch.tanh(a + (a * 2).detach_().mean()),
    "retained": retained,
    "logged": logged,
    "with graphs": with_graphs,
    "inference": inference,
    "listed": listed,
    "forward derivative": forward_derivative,
    "enabling function": EnablingFunction.apply,
    "custom operator": lambda a: torch.tanh(a + 0.1 * cube(a)),
    "mapped": mapped,
    "at the kink": at_the_kink,
    "hardswish": F.hardswish,
    "pooled, then in place": lambda a: F.relu(F.max_pool2d(a, 3, 1, 1).add_(0.2), inplace=True),
    "gate": lambda a: a * F.relu6(a + 3) / 6,
    "with a gradient": lambda a: torch.tanh(a * 0.5 if a.requires_grad else a),
    "of an operation": lambda a: torch.tanh(a if a.is_leaf else a * 0.5),
}


class InPlace(PlainNet):
    """Rectifiers that are statements: the map goes on by its old name."""

    def forward(self, x):
        a = self.first[1](self.first[0](x))
        a.relu_()
        b = self.second[1](self.second[0](F.adaptive_max_pool2d(a, 3)))
        F.leaky_relu(b, 0.2, inplace=True)
        return self.fc(b.mean((2, 3))), [a, b]


class OwnFunction(torch.autograd.Function):
    """Without a forward derivative, and with torch functions that a graph does not see."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x * 1.0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class OwnFunctionNet(PlainNet):
    def forward(self, x):
        a = OwnFunction.apply(self.first[0](x))
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


def weight_norm():
    net = PlainNet()
    nn.utils.parametrizations.weight_norm(net.first[0])
    return net


def spectral_norm():
    net = PlainNet()
    nn.utils.parametrizations.spectral_norm(net.first[0])
    return net


class Attending(PlainNet):
    """Attention between the pixels of its first map, as transformers have it."""

    def __init__(self, dropout=0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout, batch_first=True)

    def forward(self, x):
        a = self.first[0](x)
        pixels = a.flatten(2).transpose(1, 2)
        pixels = pixels + self.attention(pixels, pixels, pixels, need_weights=False)[0]
        a = pixels.transpose(1, 2).reshape(a.shape)
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


class Hooked(PlainNet):
    def forward(self, x):
        logits, (a, b) = super().forward(x)
        if b.requires_grad:
            b.register_hook(lambda g: 0.3 * g)
        return logits, [a, b]


def module_hook():
    net = PlainNet()
    net.second[0].register_full_backward_hook(lambda module, inputs, outputs: (0.3 * inputs[0],))
    return net


class Checkpointed(PlainNet):
    def __init__(self, use_reentrant=False) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x):
        a = self.first(x)
        b = checkpoint(self.second, a, use_reentrant=self.use_reentrant)
        return self.fc(b.mean((2, 3))), [a, b]


NETS = {
    "detach": Detached,
    "data": Data,
    "no_grad block": NoGradBlock,
    "no_grad function": NoGradFunction,
    "number": Number,
    "running size": RunningSize,
    "read statistics": ReadStatistics,
    "mask": Masked,
    "in place": InPlace,
    "own function": OwnFunctionNet,
    "attention": Attending,
    "attention with dropout": lambda: Attending(0.3),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}
NETS |= {name: functools.partial(Middle, function) for name, function in MIDDLES.items()}
HOOKED = {"hook of a tensor": Hooked, "hook of a module": module_hook}


@every_way
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("steps", [1, 2])
def test_equals_the_unrolled_loop(way, net, steps):
    problem = make_problem(NETS[net])
    torch.manual_seed(5)
    found = hypergradient(*problem, steps=steps, **WAYS[way][0])
    wanted = naive_hypergradient(*problem, steps=steps, beta=0.5, seed=5)
    assert max(w.abs().max().item() for w in wanted) > 1e-8
    assert_close(found, wanted, WAYS[way][1])


def drawn_by_python(a):
    return a * random.random()


def drawn_by_numpy(a):
    return a * np.random.rand()


@every_way
@pytest.mark.parametrize("between", [drawn_by_python, drawn_by_numpy])
def test_what_other_generators_draw(way, between):
    def seed():
        random.seed(5)
        np.random.seed(5)

    problem = make_problem(lambda: Middle(between))
    seed()
    found = hypergradient(*problem, **WAYS[way][0])
    after = random.random(), np.random.rand()
    seed()
    wanted = naive_hypergradient(*problem, steps=2, beta=0.5)
    assert_close(found, wanted, WAYS[way][1])
    assert after == (random.random(), np.random.rand())


@every_way
@pytest.mark.parametrize("net", HOOKED)
def test_hooks_count_or_are_refused(way, net):
    problem = make_problem(HOOKED[net])
    if way == "finite_difference":
        with pytest.raises(ValueError, match=r"target .* hangs hooks into its backward pass.*use method='exact'"):
            hypergradient(*problem, **WAYS[way][0])
        return
    found = hypergradient(*problem, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=2, beta=0.5), WAYS[way][1])
    without = hypergradient(*make_problem(PlainNet), **WAYS[way][0])
    assert not torch.allclose(found[0], without[0], rtol=1e-3)


def half_data(a):
    a.data.mul_(0.5)
    return torch.tanh(a)


def half_without_graph(a):
    with torch.no_grad():
        a.mul_(0.5)
    return torch.tanh(a)


def other_data(a):
    a.data = 0.5 * a.data
    return torch.tanh(a)


def half_of_a_slice(a):
    a.detach()[:, 0].mul_(0.5)
    return torch.tanh(a)


def half_of_a_slice_without_graph(a):
    with torch.no_grad():
        a[:, 0].mul_(0.5)
    return torch.tanh(a)


def half_in_a_list(a):
    torch._foreach_mul_([a.detach()], 0.5)
    return torch.tanh(a)


def half_as_an_output(a):
    torch.mul(a.detach(), 0.5, out=a.detach())
    return torch.tanh(a)


@pytest.mark.parametrize(
    "between",
    [
        half_data,
        half_without_graph,
        other_data,
        half_of_a_slice,
        half_of_a_slice_without_graph,
        half_in_a_list,
        half_as_an_output,
    ],
)
def test_what_differences_cannot_hold_is_refused(between):
    problem = make_problem(lambda: Middle(between))
    with pytest.raises(ValueError, match="writes in place, without a derivative, into what has one"):
        hypergradient(*problem, method="finite_difference")
    assert_close(hypergradient(*problem), naive_hypergradient(*problem, steps=2, beta=0.5))


class Twice(PlainNet):
    """One module under two names, one weight in two modules, one buffer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.again = self.middle
        self.tied = nn.Conv2d(6, 6, 3, padding=1)
        self.tied.weight = self.middle.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.register_buffer("also", self.calls)

    def forward(self, x):
        self.calls += 0.1
        a = self.first(x)
        b = self.second(F.max_pool2d(a, 2))
        b = self.tied(torch.tanh(self.again(torch.tanh(self.middle(b))))) * self.also
        return self.fc(b.mean((2, 3))), [a, b]


@every_way
def test_what_has_two_names_stays_one(way):
    problem = make_problem(Twice)
    target, optimizer = problem[0], problem[3]
    first = hypergradient(*problem, **WAYS[way][0])
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    for module in (target.middle, target.again, target.tied):
        assert isinstance(module.weight, nn.Parameter) and id(module.weight) in held
    assert target.calls is target.also and target.calls.item() == pytest.approx(0.1)  # make_problem's own step
    assert_close(hypergradient(*problem, **WAYS[way][0]), first, 1e-12)
    target.zero_grad()
    F.cross_entropy(target(problem[5])[0], problem[6]).backward()
    assert all(p.grad is not None for p in target.middle.parameters())


class SizeOfTheFirstPass(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first_size", None)

    def size(self, a):
        if self.first_size is None:
            self.first_size = a.std().detach()
        return self.first_size


@every_way
def test_a_buffer_that_the_first_pass_makes_is_not_left_behind(way):
    problem = make_problem(SizeOfTheFirstPass, warm=False)
    found = hypergradient(*problem, **WAYS[way][0])
    assert problem[0].first_size is None
    assert_close(found, naive_hypergradient(*problem, steps=2, beta=0.5), WAYS[way][1])


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("net", ["plain", "residual", "dropout"])
def test_ordinary_targets_take_the_cheap_first_step(net, backend, monkeypatch):
    passes = []
    plain = exact._mixed_gradients
    monkeypatch.setattr(exact, "_mixed_gradients", lambda *args: passes.append(1) or plain(*args))
    graphs = []
    with_graph = exact.Exact._with_graph
    monkeypatch.setattr(exact.Exact, "_with_graph", staticmethod(lambda *args: graphs.append(1) or with_graph(*args)))
    problem = list(make_problem(net=net))
    problem[1].backend = backend
    hypergradient(*problem, steps=2)
    assert len(passes) == 1 and len(graphs) == 2


@every_way
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_are_refused(way, use_reentrant):
    with pytest.raises(RuntimeError, match=r"cannot go through torch\.utils\.checkpoint, switch it off"):
        hypergradient(*make_problem(lambda: Checkpointed(use_reentrant)), **WAYS[way][0])
    net = Checkpointed(use_reentrant)
    net(torch.randn(2, 2, 6, 6))[0].sum().backward()  # elsewhere it works as before
    assert net.first[0].weight.grad is not None


class CheckpointedToTheEnd(Checkpointed):
    """Every parameter that the loss sees is inside a checkpoint, so that autograd finds none of them."""

    def forward(self, x):
        a = checkpoint(self.first, x.clone().requires_grad_(), use_reentrant=True)
        b = checkpoint(self.second, a, use_reentrant=True)
        return b.mean((2, 3)), [a, b]


@every_way
def test_nothing_is_left_out_in_checkpoints_that_autograd_does_not_enter(way):
    with pytest.raises(RuntimeError, match=r"cannot go through torch\.utils\.checkpoint, switch it off"):
        hypergradient(*make_problem(CheckpointedToTheEnd), **WAYS[way][0])


def test_checkpoints_of_other_threads_are_not_refused():
    in_a_pass, go_on, pieces = threading.Event(), threading.Event(), []

    class First(PlainNet):
        """Its pass lasts until that of the second net has begun."""

        def forward(self, x):
            in_a_pass.set()
            assert go_on.wait(60)
            return super().forward(x)

    class Second(PlainNet):
        def forward(self, x):
            go_on.set()
            thread.join()
            return super().forward(x)

    first, second = make_problem(), make_problem()  # whose own step takes no part
    first[0].__class__, second[0].__class__ = First, Second
    thread = threading.Thread(target=lambda: pieces.extend(hypergradient(*first, steps=1)))
    plain = saved_tensors_hooks.__enter__
    thread.start()
    try:
        assert in_a_pass.wait(60)
        net = Checkpointed()
        net(torch.randn(2, 2, 6, 6))[0].sum().backward()
        assert net.first[0].weight.grad is not None
        found = hypergradient(*second, steps=1)
    finally:
        go_on.set()
        thread.join()
    assert saved_tensors_hooks.__enter__ is plain
    assert_close(found, pieces)


def test_two_threads_at_once_change_no_bit():
    begun, other_asks = threading.Event(), threading.Event()
    found = []

    class Slow(PlainNet):
        """On dual numbers it waits for the other thread to have had its turn, if it could."""

        def forward(self, x):
            if forward_ad._current_level >= 0:
                begun.set()
                assert other_asks.wait(60)
            return super().forward(x)

    first, second = make_problem(), make_problem()
    wanted = hypergradient(*second)
    first[0].__class__ = Slow
    thread = threading.Thread(target=lambda: hypergradient(*first))
    other = threading.Thread(target=lambda: found.extend(hypergradient(*second)))
    thread.start()
    assert begun.wait(60)
    other.start()
    other.join(1)  # by now it has met the first one's level
    other_asks.set()
    thread.join()
    other.join()
    assert all(map(torch.equal, found, wanted)) and len(found) == len(wanted)


@every_way
def test_parametrizations_that_are_not_made_anew_are_refused(way):
    problem = make_problem(weight_norm)
    with parametrize.cached(), pytest.raises(RuntimeError, match=r"parametrize\.cached\(\) .*call it outside of that"):
        hypergradient(*problem, **WAYS[way][0])


class CachingNet(PlainNet):
    """One cache a pass."""

    def forward(self, x):
        with parametrize.cached():
            return super().forward(x)


@every_way
def test_a_pass_may_cache_its_parametrizations(way):
    def net():
        made = CachingNet()
        nn.utils.parametrizations.weight_norm(made.first[0])
        return made

    problem = make_problem(net)
    found = hypergradient(*problem, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=2, beta=0.5), WAYS[way][1])


def whole_compiled(problem, backend):
    return [*(torch.compile(module, backend=backend) for module in problem[:3]), *problem[3:]]


def compiled_in_place(problem, backend):
    for module in problem[:3]:
        module.compile(backend=backend)
    return problem


def compiled_in_parts(problem, backend):
    problem[0].second[1].compile(backend=backend)
    problem[0].fc = torch.compile(problem[0].fc, backend=backend)
    return problem


@every_way
@pytest.mark.parametrize("compiled", [whole_compiled, compiled_in_place, compiled_in_parts])
def test_compiled_modules_run_as_what_they_were_made_of(way, compiled):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    wanted = hypergradient(*make_problem(), **WAYS[way][0])
    problem = compiled(make_problem(), backend)
    found = hypergradient(*problem, **WAYS[way][0])
    assert not graphs and all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    problem[0](problem[5])
    assert graphs  # elsewhere they are compiled as before


@every_way
@pytest.mark.parametrize("steps", [1, 2])
def test_compiled_functions_are_right_or_refused(way, steps):
    def normalized(a):
        with torch.no_grad():
            size = a.std((0, 2, 3), keepdim=True)
        return F.batch_norm(torch.tanh(a / size), None, None, training=True)

    torch._dynamo.reset()
    problem = make_problem(lambda: Middle(torch.compile(normalized, backend="eager")))
    if way == "finite_difference":
        with pytest.raises(ValueError, match=r"function that torch\.compile has made.*call what it was made of"):
            hypergradient(*problem, steps=steps, **WAYS[way][0])
        return
    found = hypergradient(*problem, steps=steps, **WAYS[way][0])
    problem[0].between = normalized
    assert_close(found, naive_hypergradient(*problem, steps=steps, beta=0.5), WAYS[way][1])


@every_way
def test_buffers_of_matching_and_meta_stay(way):
    class CountingMatching(FeatureMatching):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, *args):
            self.calls += 1
            return super().forward(*args)

    class NormalizedMeta(nn.Module):
        def __init__(self, meta):
            super().__init__()
            self.meta, self.norm = meta, nn.BatchNorm2d(SOURCE_CHANNELS[0], dtype=torch.float64)

        def forward(self, maps):
            return self.meta([self.norm(maps[0]), *maps[1:]])

    target, _, meta, _, *batch = make_problem()
    matching = CountingMatching(SOURCE_CHANNELS, target.channels, PAIRS, backend="reference").double()
    meta = NormalizedMeta(meta)
    optimizer = torch.optim.SGD([*target.parameters(), *matching.parameters()], lr=0.05)
    before = {n: b.clone() for module in (matching, meta) for n, b in module.named_buffers()}
    found = hypergradient(target, matching, meta, optimizer, *batch, **WAYS[way][0])
    after = {n: b for module in (matching, meta) for n, b in module.named_buffers()}
    assert len(before) == 4 and all(torch.equal(before[n], after[n]) for n in before)
    wanted = naive_hypergradient(target, matching, meta, optimizer, *batch, steps=2, beta=0.5)
    assert_close(found, wanted, WAYS[way][1])


@every_way
@pytest.mark.parametrize("steps", [1, 2])
def test_a_matching_that_stops_gradients(way, steps):
    class Scaling(FeatureMatching):
        def forward(self, source_features, features, *args):
            return super().forward(source_features, [f / f.detach().std() for f in features], *args)

    target, _, meta, _, *batch = make_problem()
    matching = Scaling(SOURCE_CHANNELS, target.channels, PAIRS, backend="reference").double()
    optimizer = torch.optim.SGD([*target.parameters(), *matching.parameters()], lr=0.05)
    problem = (target, matching, meta, optimizer, *batch)
    found = hypergradient(*problem, steps=steps, **WAYS[way][0])
    assert_close(found, naive_hypergradient(*problem, steps=steps, beta=0.5), WAYS[way][1])


@every_way
def test_each_parameter_of_phi_gets_memory_of_its_own(way):
    class Shifted(nn.Module):
        """Autograd has one gradient for both terms of a sum, and one number for all entries of what is summed up."""

        def __init__(self, meta):
            super().__init__()
            self.meta = meta
            self.left, self.right, self.summed = (nn.Parameter(torch.zeros(5, 1).double()) for _ in range(3))

        def forward(self, maps):
            weights, lambdas = self.meta(maps)
            shift = self.left + self.right + self.summed.sum()
            return weights, [w + shift for w in lambdas]

    problem = list(make_problem())
    problem[2] = Shifted(problem[2])
    found = hypergradient(*problem, **WAYS[way][0])
    wanted = [2 * gradient for gradient in found]
    for gradient in found:  # as clipping does it
        gradient.mul_(2)
    assert all(map(torch.equal, found, wanted))


def test_what_is_pulled_back_shares_no_memory_under_another_shape():
    left, right = torch.zeros(5, 1, requires_grad=True), torch.zeros(5, requires_grad=True)
    found = pull_back([left + right.view(5, 1)], [torch.ones(5, 1)], [left, right])
    assert len({gradient.untyped_storage().data_ptr() for gradient in found}) == 2


@every_way
def test_frozen_parameters_of_phi_get_zeros(way):
    problem = make_problem()
    meta = problem[2]
    whole = hypergradient(*problem, **WAYS[way][0])
    first = next(meta.parameters()).requires_grad_(False)
    found = hypergradient(*problem, **WAYS[way][0])
    assert torch.equal(found[0], torch.zeros_like(first)) and whole[0].abs().max() > 0
    assert_close(found[1:], whole[1:], 1e-12)
    meta.requires_grad_(False)
    assert all(torch.equal(f, torch.zeros_like(f)) for f in hypergradient(*problem, **WAYS[way][0]))


@every_way
def test_float64_stays_float64_under_autocast(way):
    class Convolutional(PlainNet):
        """Autocast casts what a linear layer takes as well: without one, all is float64."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(6, 3, 1)

        def forward(self, x):
            a = self.first(x)
            b = self.second(a)
            return self.fc(b).mean((2, 3)), [a, b]

    problem = make_problem(Convolutional)
    wanted = hypergradient(*problem, **WAYS[way][0])
    with torch.autocast("cpu", torch.bfloat16):
        found = hypergradient(*problem, **WAYS[way][0])
    assert_close(found, wanted, 1e-10)


def test_beta_and_optimizers_that_do_not_fit():
    problem = make_problem()
    with pytest.raises(TypeError, match="beta must be one number, the weight of the matching loss, not list"):
        hypergradient(*problem, beta=[0.5, 0.5, 0.5, 0.5])

    class Other(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    class Named(torch.optim.SGD):
        """Its step is SGD's."""

    parameters = [*problem[0].parameters(), *problem[1].parameters()]
    with pytest.raises(TypeError, match=r"must step as torch\.optim\.SGD does, but Other has a step of its own"):
        hypergradient(*problem[:3], Other(parameters, lr=0.1), *problem[4:])
    found = hypergradient(*problem[:3], Named(parameters, lr=0.1), *problem[4:])
    assert_close(found, hypergradient(*problem[:3], torch.optim.SGD(parameters, lr=0.1), *problem[4:]))
