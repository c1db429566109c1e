"""Finite differences stay close to exact in float32, over training, and kinks are what makes that hard."""

import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_fast import FeatureMatching, MetaNetworks
from l2t_fast.bilevel import finite_difference, hypergradient
from l2t_fast.bilevel.holding import NoteHeld, ReplayHeld, _added
from l2t_fast.models import build_model
from tests.bilevel.test_drawn_networks import Drawn
from tests.bilevel.test_hypergradient import SGD, PlainNet, assert_close, make_problem


def flat(tensors):
    return torch.cat([t.double().flatten() for t in tensors])


def cosine(found, wanted):
    return F.cosine_similarity(flat(found), flat(wanted), dim=0).item()


def one_problem():
    torch.manual_seed(0)
    target = build_model("vgg5bn", 3)
    matching = FeatureMatching([4], target.feature_channels, [(0, 0), (0, 1)])
    meta = MetaNetworks([4], [(0, 0), (0, 1)])
    optimizer = torch.optim.SGD([*target.parameters(), *matching.parameters()], lr=0.05)
    maps, x, y = [torch.randn(8, 4, 6, 6)], torch.randn(8, 3, 8, 8), torch.randint(0, 3, (8,))
    return target, matching, meta, optimizer, maps, x, y


def test_where_rounding_shows_the_step_is_made_larger(monkeypatch):
    problem = one_problem()
    exact = hypergradient(*problem, steps=3)
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    problem[0].register_forward_hook(count)
    monkeypatch.setattr(finite_difference, "RELATIVE_STEP", 1e-5)
    found = hypergradient(*problem, steps=3, method="finite_difference")
    # Once each for the steps that hand H v on; what one of them needed, the steps before it begin with.
    assert cosine(found, exact) >= 0.999 and 9 < passes <= 9 + 3
    passes = 0
    monkeypatch.setattr(finite_difference, "LEAST_DIFFERENCE", 0.0)
    lost = hypergradient(*problem, steps=3, method="finite_difference")
    assert cosine(lost, exact) < 0.9 and passes == 9


def test_where_rounding_leaves_no_difference_the_step_is_made_larger(monkeypatch):
    """Here the weights' gradients are the same bits at both points, or nearly; that was taken for a gradient of 0."""
    problem = one_problem()
    monkeypatch.setattr(finite_difference, "RELATIVE_STEP", 3e-7)
    found = hypergradient(*problem, steps=1, method="finite_difference")
    # Rounding differs from processor to processor: 0.86 to 0.98, where the usual step leaves 0 to 0.13.
    assert cosine(found, hypergradient(*problem, steps=1)) > 0.6


def test_rounding_of_the_weights_difference_shows_too():
    """In the middle steps of this drawn network it is a twelfth of theta's, which alone seems large enough."""
    draw = random.Random(1146)
    sgd, steps, warm = draw.choice(list(SGD)), draw.choice([1, 2, 3]), draw.random() < 0.5
    problem = make_problem(lambda: Drawn(draw), sgd=sgd, warm=warm, seed=1146, dtype=torch.float32)
    assert steps == 3
    wanted = flat(hypergradient(*problem, steps=steps))
    found = flat(hypergradient(*problem, steps=steps, method="finite_difference"))
    # With inputs changed by 1e-5 of themselves 0.014 to 0.031 by theta's difference alone, 0.0014 to 0.0027 by both.
    assert torch.dist(found, wanted) < 0.006 * wanted.norm()


def test_without_a_direction_no_pass_is_made_again():
    problem, passes = one_problem(), []
    problem[3].param_groups[0]["lr"] = 0.0
    problem[0].register_forward_hook(lambda *_: passes.append(1))
    found = hypergradient(*problem, method="finite_difference")
    assert all(torch.equal(f, torch.zeros_like(f)) for f in found) and len(passes) == 3 + 1 + 3


def test_float32_over_training():
    torch.manual_seed(0)
    source = build_model("resnet8", 10, in_channels=1).eval().requires_grad_(False)
    target = build_model("vgg5bn", 10, in_channels=1)
    pairs = [(m, n) for m in range(len(source.feature_channels)) for n in range(len(target.feature_channels))]
    matching = FeatureMatching(source.feature_channels, target.feature_channels, pairs)
    meta = MetaNetworks(source.feature_channels, pairs)
    optimizer = torch.optim.SGD([*target.parameters(), *matching.parameters()], lr=0.05, momentum=0.9)
    prototypes = torch.randn(10, 1, 8, 8)
    for step in range(13):
        y = torch.randint(0, 10, (16,))
        x = prototypes[y] + 0.3 * torch.randn(16, 1, 8, 8)
        with torch.no_grad():
            maps = source(x)[1]
            weights, lambdas = meta(maps)
        logits, features = target(x)
        loss = F.cross_entropy(logits, y) + matching(maps, features, weights, 0.5, lambdas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 0:
            problem = (target, matching, meta, optimizer, maps, x, y)
            exact = hypergradient(*problem)
            found = hypergradient(*problem, method="finite_difference")
            assert cosine(found, exact) >= 0.999, f"after {step + 1} steps"
            assert torch.dist(flat(found), flat(exact)) < 0.02 * flat(exact).norm(), f"after {step + 1} steps"


def test_autocast_does_not_spoil_it():
    problem = one_problem()
    exact = hypergradient(*problem)
    with torch.autocast("cpu", torch.bfloat16):
        found = hypergradient(*problem, method="finite_difference")
    assert cosine(found, exact) >= 0.999


def test_meta_networks_in_half_precision_do_not_spoil_it():
    problem = one_problem()
    problem[2].bfloat16()
    exact = hypergradient(*problem)
    found = hypergradient(*problem, method="finite_difference")
    assert all(f.dtype == torch.bfloat16 for f in found) and cosine(found, exact) >= 0.999
    assert cosine(exact, hypergradient(*problem, method="double_backward")) >= 0.999


class InBfloat16(PlainNet):
    """A pass of the target's own autocast, which is on whatever is outside."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class InFloat32(PlainNet):
    def forward(self, x):
        return super().forward(x + self.first(x).float().mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("net", "dtype", "lower"),
    [(InBfloat16, torch.float32, "bfloat16"), (InFloat32, torch.float64, "float32")],
)
def test_lower_precision_in_the_target_is_refused(net, dtype, lower):
    problem = make_problem(net, warm=False, dtype=dtype)
    with pytest.raises(ValueError, match=f"computes in torch.{lower} with parameters in {dtype}.*'exact'"):
        hypergradient(*problem, method="finite_difference")
    assert all(f.isfinite().all() for f in hypergradient(*problem))


class Kinked(nn.Module):
    """Every way to write a ReLU, and both kinds of pooling call."""

    def forward(self, x):
        a = F.relu(x) + torch.relu(x - 0.5) + (x + 0.2).relu() + nn.ReLU(inplace=True)(x * 1.5)
        return F.max_pool2d(a, 3, stride=2, padding=1, ceil_mode=True) + nn.MaxPool2d(3, 2, 1, ceil_mode=True)(-a)


def test_replay_is_the_same_function_where_it_was_noted():
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    net = Kinked()
    plain = net(x)
    with NoteHeld(torch.float64) as noted:
        watched = net(x)
    with ReplayHeld(noted.notes):
        replayed = net(x)
    assert len(noted.notes) == 6
    assert torch.equal(plain, watched)
    torch.testing.assert_close(replayed, plain)
    torch.testing.assert_close(torch.autograd.grad(replayed.sum(), x), torch.autograd.grad(plain.sum(), x))


def test_replay_is_linear_across_kinks():
    x = torch.tensor([[[[-0.1, 0.2], [0.3, -0.4]]]], dtype=torch.float64, requires_grad=True)
    with NoteHeld(torch.float64) as noted:
        F.max_pool2d(F.relu(x), 2)
    with ReplayHeld(noted.notes):
        moved = F.max_pool2d(F.relu(x - 1.0), 2)
    assert moved.item() == 0.3 - 1.0


RECTIFIERS = {
    "relu": F.relu,
    "relu_": torch.relu_,
    "relu in place": lambda x: F.relu(x, True),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "leaky in place": nn.LeakyReLU(0.2, inplace=True),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.3], dtype=x.dtype)),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "hardtanh in place": nn.Hardtanh(inplace=True),
    "relu6": nn.ReLU6(),
    "F.relu6": F.relu6,
    "relu6 in place": nn.ReLU6(inplace=True),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "hardswish in place": nn.Hardswish(inplace=True),
    "elu": lambda x: F.elu(x, 2.0),
    "selu": nn.SELU(),
    "rrelu": nn.RReLU().eval(),
    "leaky_relu_": lambda x: F.leaky_relu_(x, 0.2),
    "abs": abs,
    "torch.abs": torch.abs,
    "abs in place": torch.Tensor.abs_,
    "clamp": lambda x: x.clamp(-0.5, 2.0),
    "clamp from below": lambda x: torch.clamp(x, min=-1.0),
    "clamp from above": lambda x: x.clip(max=2.0),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-1.0).to(x), torch.full_like(x, 2.0)),
    "clamp where the bounds have crossed": lambda x: x.clamp(3.0, 2.0),
    "clamp in place": lambda x: x.clamp_(-3, 3),
    "clamp_min": lambda x: x.clamp_min(1.0),
    "clamp_max": lambda x: torch.clamp_max(x, max=1.0),
    "threshold": nn.Threshold(1.0, 2.0),
    "threshold in place": nn.Threshold(1.0, -2.0, inplace=True),
    "hardshrink": nn.Hardshrink(),
    "softshrink": nn.Softshrink(1.0),
    "maximum": lambda x: torch.maximum(x, -0.5 * x),
    "larger of two": lambda x: x.max(torch.full_like(x, 2.0)),
    "minimum": lambda x: torch.minimum(x, other=torch.zeros_like(x)),
    "smaller of two": lambda x: torch.min(3 * x, x),
    "l1_loss": lambda x: F.l1_loss(x, torch.full_like(x, -1.0), reduction="none"),
    "margin_ranking_loss": lambda x: F.margin_ranking_loss(x, -x, x.detach().sign(), 1.0, reduction="none"),
    "hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x, x.detach().sign(), 2.0, reduction="none"),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_rectifiers_are_held_to_their_pieces(name):
    rectify = RECTIFIERS[name]
    x = torch.linspace(-9.3, 9.7, 40, dtype=torch.float64).view(2, 2, 10).requires_grad_()
    plain = rectify(x.clone())
    slope = torch.autograd.grad(plain.sum(), x)[0]
    with NoteHeld(torch.float64) as noted:
        rectify(x.clone())
    with ReplayHeld(noted.notes):
        copy = x.clone()
        replayed = rectify(copy)
    torch.testing.assert_close(replayed, plain)
    torch.testing.assert_close(torch.autograd.grad(replayed.sum(), x)[0], slope)
    if "in place" in name or name.endswith("relu_"):
        assert torch.equal(copy, replayed)
    with ReplayHeld(noted.notes), torch.no_grad():
        moved = rectify(x + 20)  # beyond every kink of most units
    if "elu" in name and "relu" not in name:
        torch.testing.assert_close(moved[x > 0], (plain + 20 * slope)[x > 0])  # the others bend
        return
    curved = slope.new_zeros(()) if "swish" not in name else 400 / 6 * ((x > -3) & (x < 3))
    torch.testing.assert_close(moved, plain + 20 * slope + curved)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [nn.L1Loss, nn.MarginRankingLoss, nn.HingeEmbeddingLoss])
def test_losses_that_are_written_out_are_pytorchs(loss, reduction):
    a, b = torch.randn(2, 50, dtype=torch.float64).requires_grad_()
    y = torch.randn(50).sign().double()
    given = {"L1Loss": (a, b), "MarginRankingLoss": (a, b, y), "HingeEmbeddingLoss": (a, y)}[loss.__name__]
    wanted = loss(reduction=reduction)(*given)
    with NoteHeld(torch.float64) as noted:
        found = loss(reduction=reduction)(*given)
    assert noted.notes and noted.refusal is None
    torch.testing.assert_close(found, wanted)
    with ReplayHeld(noted.notes):
        replayed = loss(reduction=reduction)(*given)
    inputs = [t for t in given if t.requires_grad]
    slopes = [torch.autograd.grad(value.sum(), inputs, retain_graph=True) for value in (wanted, found, replayed)]
    torch.testing.assert_close(slopes[1:], [slopes[0]] * 2)


def test_steps_stay_where_they_were():
    x = torch.linspace(-2.3, 2.3, 10, dtype=torch.float64).requires_grad_()

    def steps(x):
        return x.sign() + x.round() * x.floor() + torch.ceil(x) - x.trunc()

    with NoteHeld(torch.float64) as noted:
        plain = steps(x)
    with ReplayHeld(noted.notes):
        assert torch.equal(steps(x + 5), plain) and steps(x + 5).requires_grad
    with NoteHeld(torch.float64) as noted:
        plain = x.clone().round_()
    with ReplayHeld(noted.notes):
        assert torch.equal((x + 5).round_(), plain)


class Quantised(PlainNet):
    """Between learned bounds, in steps: units lie on a bound, and stay there."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        def stepped(x):
            return x + (x.round() - x).detach()

        a = stepped(4 * self.first[0](x)).clamp(min=stepped(self.low), max=stepped(self.high))
        b = self.second(F.max_pool2d(a, 2))
        return self.fc(b.mean((2, 3))), [a, b]


def test_units_on_a_learned_bound():
    problem = make_problem(Quantised, warm=False)
    wanted = hypergradient(*problem)
    assert_close(hypergradient(*problem, method="finite_difference"), wanted, 1e-4)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_constants_are_left_alone(layout):
    matrix = torch.eye(3, dtype=torch.float64).to_sparse(layout=layout)
    x = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    with NoteHeld(torch.float64) as noted:
        assert (torch.abs(matrix) @ x).sum().item() == 3
    assert not any(function is torch.abs for function, _ in noted.notes)


def test_arguments_that_are_no_kink_s_are_left_alone():
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    with NoteHeld(torch.float64) as noted:
        assert x.max(1).values.item() == 1.0 and x.max().item() == 1.0 and torch.max(x, dim=1).indices.item() == 0
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            assert F.l1_loss(x, torch.zeros_like(x), size_average=False).item() == 3.0
        with torch.no_grad():
            torch.clamp(x, 0, 1, out=torch.empty_like(x))
            assert abs(torch.tensor([-3])).item() == 3
    assert noted.refusal is None


@pytest.mark.parametrize("name", RECTIFIERS)
def test_rectifiers_on_a_kink_are_as_autograd_has_them(name):
    rectify = RECTIFIERS[name]
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0, 6.0], dtype=torch.float64).expand(2, 2, 8).clone()
    x.requires_grad_()
    plain = rectify(x.clone())
    with NoteHeld(torch.float64) as noted:
        rectify(x.clone())
    with ReplayHeld(noted.notes):
        replayed = rectify(x.clone())
    torch.testing.assert_close(replayed, plain)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (replayed, plain)))


def test_what_overlapping_windows_share_is_added_in_either_way():
    """One of them is for GPUs, where the other has no order."""
    indices, g = torch.randint(0, 12, (2, 3, 20)), torch.randn(2, 3, 20, dtype=torch.float64)
    size = torch.Size([2, 3, 3, 4])
    sorts, scatters = (_added(size, indices, g, in_any_order) for in_any_order in (False, True))
    assert sorts.shape == size
    torch.testing.assert_close(sorts, scatters)


PRECISION = """
import os
import torch
from torch.backends import cuda, cudnn, mkldnn
from l2t_fast.bilevel.hypergradient import _full_float32

def answer(ask):
    try:
        return ask()
    except RuntimeError:
        return "refused"

def state():
    asked = (
        lambda: cudnn.allow_tf32, lambda: cuda.matmul.allow_tf32, torch.get_float32_matmul_precision,
        lambda: cudnn.conv.fp32_precision, lambda: cudnn.rnn.fp32_precision, lambda: cuda.matmul.fp32_precision,
        lambda: mkldnn.conv.fp32_precision, lambda: mkldnn.rnn.fp32_precision, lambda: mkldnn.matmul.fp32_precision,
    )
    return ["ieee" if found == "none" else found for found in map(answer, asked)]  # two names of one thing

def check(setting):
    exec(setting)
    before = state()
    with _full_float32():
        assert not {"tf32", "bf16"} & set(state()[3:]) and True not in state()[:2], (setting, state())
    assert state() == before, (setting, before, state())

for setting in (
    "pass",
    "cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('medium')",
    "cuda.matmul.fp32_precision = 'tf32'",
    "cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'bf16'",
    "mkldnn.conv.fp32_precision = 'bf16'",
    "mkldnn.matmul.fp32_precision = 'bf16'",
):
    if not os.fork():  # PyTorch's names get in each other's way
        check(setting)
        break
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def test_no_lower_precision_however_it_was_asked_for():
    """And what was asked for is there again."""
    subprocess.run([sys.executable, "-c", PRECISION], check=True)


def test_its_passes_run_without_tf32():
    problem, allowed = one_problem(), []
    problem[0].register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32  # PyTorch's default
    hypergradient(*problem, method="finite_difference")
    assert allowed and not any(allowed) and torch.backends.cudnn.allow_tf32
    allowed.clear()
    hypergradient(*problem)
    assert allowed and all(allowed)
