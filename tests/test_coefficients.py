"""alpha computed at once, natively or not: the definition's bits, its derivatives, and how many operators it takes."""

import collections
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from l2t_fast import coefficients, feature_matching_loss
from l2t_fast.coefficients import Sizes, at_once, by_pair, native, native_serves
from l2t_fast.ops import why_unavailable

CPU = torch.device("cpu")
# Numbers of channels without a common divisor, with one, all equal.
CHANNELS = [(2, 3, 4), (4, 8, 12), (6, 6)]
WHERE = {
    "none": None,
    "(B,)": lambda batch, p: (batch,),
    "(B, 1)": lambda batch, p: (batch, 1),
    "(1, 1)": lambda batch, p: (1, 1),
    "mixed": lambda batch, p: [(batch,), (batch, 1), (1, 1)][p % 3],
}
DTYPES = {
    "float64": [torch.float64],
    "float32": [torch.float32],
    "bfloat16": [torch.bfloat16],
    "mixed": [torch.float32, torch.bfloat16, torch.float16],
}


def draw(channels, what, where, dtypes, batch):
    """(sizes, channel weights or None, pair weights or None), weights that require grad."""
    generator = torch.Generator().manual_seed(0)
    pairs = tuple((m, n) for m in range(len(channels)) for n in range(2))

    def weight(shape, p):
        number = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
        return number.to(dtypes[p % len(dtypes)]).requires_grad_()

    channel_weights = [weight((batch, channels[m]), p) for p, (m, _) in enumerate(pairs)] if what else None
    shape = WHERE[where]
    pair_weights = [weight(shape(batch, p), p + 1) for p in range(len(pairs))] if shape else None
    betas = tuple(0.5 + p for p in range(len(pairs)))
    return Sizes(pairs, channels, (6, 35), betas, batch, not what), channel_weights, pair_weights


@pytest.fixture(params=["native", "at once"])
def way(request, monkeypatch):
    """How alpha is computed, here and inside the loss: (sizes, channel weights, pair weights, dtype) -> alpha."""
    if request.param == "native":
        if not native_serves(CPU):
            pytest.skip("there is no native extension")
        return native
    monkeypatch.setattr("l2t_fast.functional.native_serves", lambda _: False)
    return lambda *arguments: at_once(*arguments, CPU)


def derivatives(alpha, inputs):
    """The gradients along fixed numbers, and the gradients of these."""
    generator = torch.Generator().manual_seed(1)

    def numbers(like):
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)

    outer = numbers(alpha).requires_grad_()
    first = torch.autograd.grad(alpha, inputs, outer, create_graph=True)
    second = torch.autograd.grad(first, [*inputs, outer], [numbers(g) for g in first], materialize_grads=True)
    return [*first, *second]


@pytest.mark.parametrize("batch", [3, 1, 0])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("what", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_it_has_the_bits_and_the_derivatives_of_the_definition(way, channels, what, where, dtypes, batch):
    sizes, *weights = draw(channels, what, where, DTYPES[dtypes], batch)
    inputs = [weight for given in weights if given for weight in given]
    if not inputs and way is native:
        pytest.skip("a constant is made at once")
    dtype = torch.float64 if dtypes == "float64" else torch.float32
    found, wanted = way(sizes, *weights, dtype), by_pair(sizes, *weights, dtype, CPU)
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    if not inputs:
        return
    for f, w in zip(derivatives(found, inputs), derivatives(wanted, inputs), strict=True):
        assert f.dtype == w.dtype
        torch.testing.assert_close(f, w)


def test_pair_weights_that_some_pairs_have_for_all_samples(way):
    sizes = Sizes(((0, 0), (1, 0)), (2, 3), (4,), (1.0, 0.5), 3, True)
    where = [torch.rand(3, 1), torch.rand(1, 1)]
    found = way(sizes, None, where, torch.float32)
    assert torch.equal(found, by_pair(sizes, None, where, torch.float32, CPU))


def test_derivatives_of_every_order(way):
    """Of numbers for which every term counts: third and fourth derivatives are those of the definition too."""
    sizes, *weights = draw((2, 3), True, "(B, 1)", DTYPES["float64"], 2)
    inputs = [weight for given in weights for weight in given]

    def orders(alpha):
        numbers, found = torch.rand(alpha.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), []
        value = ((alpha * numbers).sum() + 1) ** 4
        for _ in range(4):
            gradients = torch.autograd.grad(value, inputs, create_graph=True)
            found += gradients
            value = sum((gradient * (1 + p)).sin().sum() for p, gradient in enumerate(gradients))
        return found

    for f, w in zip(
        orders(way(sizes, *weights, torch.float64)), orders(by_pair(sizes, *weights, torch.float64, CPU)), strict=True
    ):
        torch.testing.assert_close(f, w)


def test_only_what_is_asked_for_gets_a_gradient(way):
    sizes, what, where = draw((2, 3), True, "(B, 1)", DTYPES["float64"], 2)
    for learning in (what[0], where[1]):
        others = [weight for weight in (*what, *where) if weight is not learning]
        for weight in others:
            weight.requires_grad_(False)
        found, wanted = (
            torch.autograd.grad(alpha.square().sum(), learning, create_graph=True)[0]
            for alpha in (way(sizes, what, where, torch.float64), by_pair(sizes, what, where, torch.float64, CPU))
        )
        torch.testing.assert_close(found, wanted)
        for f, w in zip(*(torch.autograd.grad(g.sum(), learning) for g in (found, wanted)), strict=True):
            torch.testing.assert_close(f, w)
        for weight in others:
            weight.requires_grad_()


def test_lower_types_than_autocasts(way):
    """Which autocast refuses to join with others."""
    sizes, what, where = draw((2, 3), True, "(B, 1)", [torch.float16, torch.bfloat16], 2)
    wanted = by_pair(sizes, what, where, torch.float32, CPU)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(way(sizes, what, where, torch.float32), wanted)


@pytest.mark.parametrize("where", [None, "(1, 1)", "(B, 1)"])
def test_nothing_is_saved_that_no_derivative_reads(way, where):
    """The channel weights are as large as alpha, and constant pair weights leave no derivative that reads them."""
    sizes, what, pair_weights = draw((6, 6), True, where or "none", DTYPES["float32"], 40)
    pair_weights = pair_weights and [weight.detach() for weight in pair_weights]
    saved = []

    def keep(tensor):
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alpha = way(sizes, what, pair_weights, torch.float32)
    assert sum(saved) < alpha.untyped_storage().nbytes()


@pytest.mark.parametrize("given", ["both", "what", "where", "where, one for all samples"])
def test_opcheck(given):
    if not native_serves(CPU):
        pytest.skip("there is no native extension")
    ops, (channels, scales, batch) = torch.ops.l2t_fast, ([3, 2], [1.0, 0.5], 2)
    what = torch.rand(batch, 5, requires_grad=True) if given in ("both", "what") else None
    where = None if given == "what" else torch.rand(1 if "all" in given else batch, 2, requires_grad=True)
    torch.library.opcheck(ops.coefficients.default, (what, where, None, None, channels, scales, batch))
    if given == "both":
        torch.library.opcheck(ops.coefficients.default, (what, where, what, where, channels, scales, batch))
    adjoint = torch.rand(batch, 5, requires_grad=True)
    wants = what is not None, where is not None
    torch.library.opcheck(ops.coefficients_backward.default, (adjoint, what, where, channels, scales, *wants))
    for shape in ((2, 3), (2,)):
        torch.library.opcheck(ops.joined.default, ([torch.rand(shape, requires_grad=True) for _ in range(3)],))


def test_the_native_operators_name_what_does_not_fit():
    if not native_serves(CPU):
        pytest.skip("there is no native extension")
    ops, what, where = torch.ops.l2t_fast, torch.rand(2, 5), torch.rand(2, 2)
    with pytest.raises(ValueError, match=r"channel weights have shape \[2, 5\]; \(2, 6\) is needed"):
        ops.coefficients(what, where, None, None, [3, 3], [1.0, 1.0], 2)
    with pytest.raises(ValueError, match=r"pair weights have shape \[2, 2\]; \(2, 3\) is needed"):
        ops.coefficients(what, where, None, None, [1, 2, 2], [1.0] * 3, 2)
    with pytest.raises(TypeError, match="pair weights are Double, others Float"):
        ops.coefficients(what, where.double(), None, None, [3, 2], [1.0, 1.0], 2)
    with pytest.raises(ValueError, match="neither channel weights nor pair weights"):
        ops.coefficients(None, None, what, None, [3, 2], [1.0, 1.0], 2)
    with pytest.raises(ValueError, match="a pair has -3 channels"):
        ops.coefficients(what, where, None, None, [-3, 8], [1.0, 1.0], 2)
    with pytest.raises(TypeError, match="channel weights are BFloat16, use float32 or float64"):
        ops.coefficients(what.bfloat16(), None, None, None, [3, 2], [1.0, 1.0], 2)
    with pytest.raises(ValueError, match="tensors to join have 2 and 1 dimensions"):
        ops.joined([what, what[0]])
    with pytest.raises(ValueError, match=r"the adjoint has shape \[2, 4\]"):
        ops.coefficients_backward(torch.rand(2, 4), what, where, [3, 2], [1.0, 1.0], True, True)


# ---- through the loss -----------------------------------------------------------------------------------------------


def fused():
    problem = why_unavailable("cpu")
    if problem is not None:
        pytest.skip(f"the cpu backend is not available: {problem}")


def problem(count, *, what=True, where="(B, 1)", convolutions=False, dtype=torch.float32, batch=2):
    """A call of the loss with so many pairs: (function of no argument, its inputs that learn)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    sources = [normal(batch, channels, 3, 2) for channels in (2, 5, 3)]
    targets = [normal(batch, channels, 2, 2).requires_grad_() for channels in (4, 3)]
    pairs = [(p % 3, p % 2) for p in range(count)]
    ones = (1, 1) if convolutions else ()
    projections = [
        (normal(sources[m].shape[1], targets[n].shape[1], *ones).requires_grad_(), normal(sources[m].shape[1]))
        for m, n in pairs
    ]
    channel_weights = [normal(batch, sources[m].shape[1]).abs().requires_grad_() for m, _ in pairs] if what else None
    shape = WHERE[where]
    pair_weights = [normal(*shape(batch, p)).abs().requires_grad_() for p in range(count)] if shape else None
    inputs = [*targets, *(weight for weight, _ in projections), *(channel_weights or ()), *(pair_weights or ())]

    def loss():
        return feature_matching_loss(
            sources, targets, projections, pairs, channel_weights, pair_weights, 0.5, backend="cpu"
        )

    return loss, inputs


class Operators(TorchDispatchMode):
    """Counts of the operators that ran, but for ``detach``, by which autograd keeps a tensor: no device sees that."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.detach.default:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def first_order(loss, inputs):
    return torch.autograd.grad(loss(), inputs)


def second_order(loss, inputs):
    gradients = torch.autograd.grad(loss(), inputs, create_graph=True)
    return torch.autograd.grad(gradients, inputs, [tensor.detach() for tensor in inputs])


@pytest.mark.parametrize("derivative", [first_order, second_order])
@pytest.mark.parametrize("where", ["none", "(B,)", "(B, 1)", "(1, 1)"])
@pytest.mark.parametrize("what", [True, False])
def test_the_number_of_operators_does_not_grow_with_the_pairs(way, derivative, what, where):
    fused()
    counts = []
    for pairs in (6, 60):
        loss, inputs = problem(pairs, what=what, where=where, convolutions=True)
        derivative(loss, inputs)  # the constants of the sizes are made once
        with Operators() as operators:
            derivative(loss, inputs)
        counts.append(operators.counts)
    assert counts[0] == counts[1]
    most = {first_order: 30, second_order: 80} if way is not native else {first_order: 10, second_order: 25}
    assert counts[0].total() < most[derivative]


@pytest.mark.parametrize("where", ["(B,)", "(B, 1)", "(1, 1)", "mixed"])
def test_second_derivatives_through_weights_of_unequally_many_channels(way, where):
    fused()
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    pairs = [(0, 0), (1, 0), (2, 1), (1, 1)]
    channels = [2, 5, 3]
    sources, targets = [normal(2, c, 3, 2) for c in channels], [normal(2, c, 2, 2) for c in (4, 3)]
    projections = [(normal(channels[m], (4, 3)[n]), None) for m, n in pairs]
    what = [normal(2, channels[m]) for m, _ in pairs]
    inputs = [*what, *(normal(*WHERE[where](2, p)) for p in range(len(pairs)))]

    def loss(*weights):
        return feature_matching_loss(
            sources, targets, projections, pairs, weights[:4], weights[4:], [0.5, 1, 2, 3], backend="cpu"
        )

    inputs = [weight.requires_grad_() for weight in inputs]
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


def test_the_same_bits_from_run_to_run(way):
    fused()
    loss, inputs = problem(20)
    for derivative in (first_order, second_order):
        wanted = derivative(loss, inputs)
        for _ in range(3):
            assert all(map(torch.equal, derivative(loss, inputs), wanted))


def test_constants_first_made_in_inference_mode_serve_a_training_step(way, monkeypatch):
    fused()
    monkeypatch.setattr(coefficients, "_layouts", {})
    loss, inputs = problem(4)
    with torch.inference_mode():
        loss()
    assert all(gradient.isfinite().all() for gradient in first_order(loss, inputs))


def test_tensors_without_data_leave_no_constants_behind(monkeypatch):
    fused()
    layouts = {}
    monkeypatch.setattr(coefficients, "_layouts", layouts)
    with FakeTensorMode():
        loss, inputs = problem_without_data()
        first_order(loss, inputs)
    assert not layouts


def problem_without_data():
    sources, targets = [torch.empty(2, 3, 2, 2)], [torch.empty(2, 4, 2, 2, requires_grad=True)]
    weights = [torch.empty(2, 3, requires_grad=True)]
    projections = [(torch.empty(3, 4), None)]
    return lambda: feature_matching_loss(sources, targets, projections, [(0, 0)], weights, backend="cpu"), targets


def test_a_tangent_still_raises_where_a_fused_backend_is_named():
    fused()
    sources, target = [torch.randn(2, 3, 2, 2)], torch.randn(2, 4, 2, 2)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode tangent"):
        where = [forward_ad.make_dual(torch.rand(2, 1), torch.ones(2, 1))]
        feature_matching_loss(sources, [target], [(torch.randn(3, 4), None)], [(0, 0)], None, where, backend="cpu")


# ---- the constants that are kept ------------------------------------------------------------------------------------


def sizes_of(beta):
    return Sizes(((0, 0), (1, 0)), (2, 3), (4,), (beta, beta), 2, True)


def test_no_more_constants_are_kept_than_a_few(monkeypatch):
    layouts = {}
    monkeypatch.setattr(coefficients, "_layouts", layouts)
    for beta in range(2 * coefficients._KEPT):
        coefficients._layout(sizes_of(float(beta)), torch.float32, CPU)
    assert len(layouts) == coefficients._KEPT
    last = coefficients._layout(sizes_of(float(beta)), torch.float32, CPU)
    assert last is coefficients._layout(sizes_of(float(beta)), torch.float32, CPU)


def test_a_capture_copies_nothing_and_what_it_reads_stays(monkeypatch):
    layouts, captured = {}, {}
    monkeypatch.setattr(coefficients, "_layouts", layouts)
    monkeypatch.setattr(coefficients, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    gpu = torch.device("cuda")
    assert coefficients._layout(sizes_of(1.0), torch.float32, gpu) is None
    warm = coefficients._layout(sizes_of(1.0), torch.float32, CPU)
    layouts[sizes_of(1.0), torch.float32, gpu] = warm
    assert coefficients._layout(sizes_of(1.0), torch.float32, gpu) is warm
    layouts.clear()
    assert coefficients._layout(sizes_of(1.0), torch.float32, gpu) is warm


# ---- the checks at once ---------------------------------------------------------------------------------------------


def test_usual_arguments_are_checked_at_once(monkeypatch):
    fused()
    monkeypatch.setattr("l2t_fast.functional.checked_one_by_one", lambda *_: pytest.fail("asked one by one"))
    for what, where, convolutions in itertools.product([True, False], WHERE, [True, False]):
        loss, _ = problem(5, what=what, where=where, convolutions=convolutions)
        assert loss().isfinite()


def test_errors_that_cancel_in_the_sums_are_found():
    """Two channel weights in each other's place have as many columns together."""
    sources, targets = [torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)], [torch.randn(2, 4, 2, 2)]
    projections = [(torch.randn(3, 4), None), (torch.randn(5, 4), None)]
    swapped = [torch.rand(2, 5), torch.rand(2, 3)]
    with pytest.raises(ValueError, match=r"pair 0 .*: channel weights have shape \(2, 5\)"):
        feature_matching_loss(sources, targets, projections, [(0, 0), (1, 0)], swapped)
