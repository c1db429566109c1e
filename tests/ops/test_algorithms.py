"""The CPU's two algorithms, each forced on every layer: the same numbers, and the same care where D is small."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from l2t_fast import _native
from l2t_fast.ops import native, reference
from l2t_fast.ops.native import hessian_vector_product, loss_and_gradients
from tests.ops.problems import (
    assert_accurate,
    assert_no_negative_squares,
    draw,
    draw_directions,
    draw_matched,
    in_dtype,
    solve,
)

pytestmark = pytest.mark.skipif(_native.extension is None, reason="needs the native extension")

# per case: batch, source maps (C, H, W), target maps; sizes around panels and tiles, sources larger and smaller
CASES = [
    (2, [(3, 5, 7), (4, 9, 2)], [(5, 5, 7), (3, 4, 6), (2, 1, 1)]),
    (3, [(7, 13, 11)], [(33, 8, 9), (17, 20, 23)]),
    (5, [(16, 8, 8)], [(24, 2, 2), (40, 1, 1)]),
    (2, [(5, 3, 50)], [(9, 40, 4)]),
    (1, [(65, 30, 30), (8, 5, 5)], [(48, 30, 30)]),
    (2, [(5, 18, 17)], [(6, 25, 24)]),
]


@pytest.fixture(params=["direct", "gram"])
def algorithm(request):
    _native.extension.force_algorithm(request.param)
    yield request.param
    _native.extension.force_algorithm("auto")


def make_problem(batch, sources, targets, seed=0):
    """Slots and the rest of a problem in float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = [(m, n) for m in range(len(sources)) for n in range(len(targets))]
    weights = [randn(sources[m][0], targets[n][0]) / targets[n][0] ** 0.5 for m, n in pairs]
    biases = [randn(sources[m][0]) if p % 3 else None for p, (m, n) in enumerate(pairs)]
    alpha = randn(batch, sum(sources[m][0] for m, _ in pairs)).abs() / 100
    return [randn(batch, *s) for s in sources], [randn(batch, *t) for t in targets], weights, biases, alpha, pairs


def cast(problem, dtype):
    *tensors, pairs = problem
    return [
        [None if t is None else t.to(dtype) for t in part] if isinstance(part, list) else part.to(dtype)
        for part in tensors
    ] + [pairs]


def truth(problem, directions=None):
    """Loss and gradient by autograd of the reference, or with directions the Hessian times them; None for no bias."""
    sources, targets, weights, biases, alpha, pairs = problem
    slots = [None if t is None else t.detach().requires_grad_() for t in [*targets, *weights, *biases, alpha]]
    count, number = len(targets), len(weights)
    loss = reference.matching_loss(
        sources, slots[:count], slots[count : count + number], slots[count + number : -1], slots[-1], pairs
    )
    inputs = [slot for slot in slots if slot is not None]
    results = torch.autograd.grad(loss, inputs, create_graph=directions is not None)
    if directions is not None:
        results = torch.autograd.grad(results, inputs, [v for v in directions if v is not None])
    following = iter(results)
    return loss.detach(), [None if slot is None else next(following).detach() for slot in slots]


def needs_of(problem):
    return [True] * len(problem[1] + problem[2]) + [bias is not None for bias in problem[3]] + [True]


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_algorithms_give_loss_and_gradient(algorithm, case, dtype):
    problem = make_problem(*case)
    loss, gradients = truth(problem)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    value, results = loss_and_gradients(*cast(problem, dtype), needs_of(problem))
    assert relative_error(value, loss) < tolerance
    for result, expected in zip(results, gradients, strict=True):
        assert (result is None) == (expected is None)
        assert result is None or relative_error(result, expected) < tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("moving", ["all", "targets", "weights", "biases", "alpha"])
def test_both_algorithms_give_hessian_vector_products(algorithm, case, moving):
    problem = make_problem(*case)
    _, targets, weights, biases, alpha, _ = problem
    kinds = ["targets"] * len(targets) + ["weights"] * len(weights) + ["biases"] * len(biases) + ["alpha"]
    torch.manual_seed(1)
    directions = [None if t is None else torch.randn_like(t) for t in [*targets, *weights, *biases, alpha]]
    zeroed = [
        v if v is None or moving in ("all", kind) else torch.zeros_like(v)
        for v, kind in zip(directions, kinds, strict=True)
    ]
    _, products = truth(problem, zeroed)
    passed = [v if moving in ("all", kind) else None for v, kind in zip(directions, kinds, strict=True)]
    results = hessian_vector_product(*problem, passed, needs_of(problem))
    for result, expected in zip(results, products, strict=True):
        assert result is None or (result - expected).norm() <= 1e-12 * (1 + expected.norm())


@pytest.mark.parametrize("algorithm", ["direct"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("first", [8, 1000])
def test_more_rows_than_are_stacked(algorithm, first, dtype):
    """Up to 1024 are: the second pair's are a stack of their own."""
    problem = draw([(first, 3, 3), (1020, 2, 2)], [(3, 3, 3)], [(0, 0), (1, 0)], dtype=dtype)
    directions = draw_directions(problem)
    assert_accurate(solve(native.matching_loss, problem, directions), problem, directions)


def nearly_matched(channels, share):
    """A float32 problem whose D is `share` of S~."""
    sources, targets, weights, biases, alpha, pairs = make_problem(2, [(channels, 24, 24)], [(48, 24, 24)])
    targets = [t.relu() for t in targets]
    projected = F.conv2d(targets[0], weights[0][:, :, None, None])
    sources = [projected + share * projected.std() * sources[0]]
    return cast((sources, targets, weights, biases, alpha, pairs), torch.float32)


@pytest.mark.parametrize("share", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("channels", [48, 160])
def test_small_differences_keep_their_accuracy(algorithm, share, channels):
    """Where D is a small share of S: gradients within twice the error of plain PyTorch, Q and the loss within 1e-3."""
    single = nearly_matched(channels, share)
    # the float32 problem is the given one: both are judged by its own exact answer
    loss, gradients = truth(cast(single, torch.float64))
    _, plain = truth(single)
    value, results = loss_and_gradients(*single, needs_of(single))
    assert relative_error(value, loss) < 1e-3
    assert relative_error(results[-1], gradients[-1]) < 1e-3
    for result, expected, baseline in zip(results, gradients, plain, strict=True):
        if result is not None:
            assert relative_error(result, expected) < max(2 * relative_error(baseline, expected), 3e-7)


def test_no_sum_of_squares_is_negative(algorithm):
    assert_no_negative_squares(draw_matched(), native.matching_loss)


@pytest.mark.parametrize("scale", [1e-5, 1e-8])
def test_small_differences_of_float64_keep_their_accuracy(scale):
    """Of sizes for which float32 takes the Gram form: in float64 its sums would cancel."""
    problem = make_problem(4, [(16, 14, 14)], [(16, 28, 28)])
    sources, (target,), (weight,), _, alpha, pairs = problem
    resized = F.interpolate(sources[0], target.shape[2:], mode="bilinear", align_corners=False)
    weight = torch.linalg.qr(weight)[0]
    difference = scale * torch.randn(target.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.einsum("mn,bmhw->bnhw", weight, resized + difference)
    problem = sources, [target], [weight], [None], alpha, pairs
    loss, gradients = truth(problem)
    value, results = loss_and_gradients(*problem, needs_of(problem))
    assert relative_error(value, loss) < 1e-14 / scale
    for result, expected in zip(results, gradients, strict=True):
        assert result is None or relative_error(result, expected) < 1e-14 / scale


@pytest.mark.parametrize("share", [0.1, 0.001])
@pytest.mark.parametrize("channels", [48, 160])
@pytest.mark.parametrize("moving", ["all", "targets", "weights", "alpha"])
def test_small_differences_keep_the_accuracy_of_products(algorithm, share, channels, moving):
    single = nearly_matched(channels, share)
    _, targets, weights, biases, alpha, _ = single
    kinds = ["targets"] * len(targets) + ["weights"] * len(weights) + ["biases"] * len(biases) + ["alpha"]
    torch.manual_seed(1)
    # alpha's direction is a hundred times alpha, so that D counts beside V
    directions = [
        None if t is None else torch.randn_like(t) if moving in ("all", kind) else torch.zeros_like(t)
        for t, kind in zip([*targets, *weights, *biases, alpha], kinds, strict=True)
    ]
    _, exact = truth(cast(single, torch.float64), [None if v is None else v.double() for v in directions])
    _, plain = truth(single, directions)
    passed = [v if moving in ("all", kind) else None for v, kind in zip(directions, kinds, strict=True)]
    results = hessian_vector_product(*single, passed, needs_of(single))
    for result, expected, baseline in zip(results, exact, plain, strict=True):
        if result is not None and expected.any():
            assert relative_error(result, expected) < max(2 * relative_error(baseline, expected), 3e-7)


@pytest.mark.parametrize("algorithm", ["gram"], indirect=True)
def test_products_of_coefficients_alone_have_one_rounding(algorithm):
    """hT is D times what moves, and D cancels: the Gram form may have no part of it in float."""
    single = nearly_matched(48, 0.001)
    torch.manual_seed(1)
    none, direction = [None] * (len(needs_of(single)) - 1), torch.randn_like(single[4])
    found, *_ = hessian_vector_product(*single, [*none, direction], needs_of(single))
    exact_problem = cast(single, torch.float64)
    zeros = [torch.zeros_like(t) for t in (*exact_problem[1], *exact_problem[2])]
    _, (exact, *_) = truth(exact_problem, [*zeros, None, direction.double()])
    allowed = torch.finfo(torch.float32).eps / 2 * exact.abs() + 1e-12 * exact.abs().max()
    assert bool(((found.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("algorithm", ["direct"], indirect=True)
def test_subnormal_halves_count_where_subnormal_floats_are_flushed(algorithm):
    """`torch.set_flush_denormal` is of float: the least halves are ordinary numbers there."""
    problem = draw([(3, 4, 4)], [(5, 4, 4)], [(0, 0)])
    problem = in_dtype(problem.map(lambda t: t * 2e-5), torch.float16)
    problem = replace(problem, weights=[torch.ones(3, 5)], biases=[None], alpha=torch.ones(2, 3))
    directions = [torch.ones_like(t) for t in problem.inputs]
    kept = solve(native.matching_loss, problem, directions)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        flushed = solve(native.matching_loss, problem, directions)
    finally:
        torch.set_flush_denormal(False)
    for name, value in kept.parts().items():
        assert torch.equal(flushed.parts()[name], value), name


def test_same_bits_from_run_to_run(algorithm):
    problem = cast(make_problem(7, [(20, 40, 40), (6, 9, 9)], [(24, 30, 30)]), torch.float32)
    first, second = (loss_and_gradients(*problem, needs_of(problem)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
