"""Loss, gradients and Hessian-vector products in every dtype, layout and size, judged against float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from l2t_fast.ops import reference
from tests.ops.problems import (
    LAYOUTS,
    SIZES,
    Problem,
    assert_accurate,
    draw,
    draw_directions,
    draw_sizes,
    in_dtype,
    laid_out,
    solve,
    truth,
)

# (features, projections)
DTYPES = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "bfloat16 features": (torch.bfloat16, torch.float32),
    "float16 features": (torch.float16, torch.float32),
    "bfloat16 projections": (torch.float32, torch.bfloat16),
}

# Sizes on purpose: primes, one below and above powers of two, more pixels than channels and the other way round.
ODD = {
    "many pixels, few channels": ([(5, 29, 31)], [(3, 29, 31)], [(0, 0)]),
    "many pixels, smaller source": ([(17, 7, 5)], [(9, 33, 31)], [(0, 0)]),
    "many channels, few pixels": ([(65, 3, 3)], [(127, 3, 3)], [(0, 0)]),
    "many channels, one pixel": ([(33, 2, 2)], [(129, 1, 1)], [(0, 0)]),
    "several maps": (
        [(16, 17, 17), (31, 9, 9), (64, 4, 5)],
        [(63, 16, 16), (33, 9, 9), (8, 5, 4)],
        [(m, n) for m in range(3) for n in range(3)],
    ),
}


def on(backend, problem: Problem) -> Problem:
    return problem.map(lambda t: t.to(backend.device))


def dtypes_of(backend, name):
    features, parameters = DTYPES[name]
    if features not in backend.dtypes:
        pytest.skip(f"the {backend.name} backend has no {features}")
    return features, parameters


def check(backend, problem):
    problem = on(backend, problem)
    directions = draw_directions(problem)
    assert_accurate(solve(backend.matching_loss, problem, directions), problem, directions)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [*SIZES, *ODD])
def test_every_dtype_and_size(backend, sizes, dtype):
    problem = draw(*{**SIZES, **ODD}[sizes], batch=3)
    check(backend, in_dtype(problem, *dtypes_of(backend, dtype)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(backend, layout, dtype):
    """Of features, and of projections and coefficients that are views of something larger."""
    features, _ = dtypes_of(backend, dtype)
    problem = on(
        backend, draw(*ODD["several maps"], batch=2, dtype=features)
    )  # first: what is copied to a GPU is dense
    weights = [F.pad(w, (1, 2, 1, 0), value=torch.nan)[1:, 1:-2] for w in problem.weights]
    weights[1] = weights[1].t().contiguous().t()
    problem = replace(
        problem,
        sources=[laid_out(s, layout) for s in problem.sources],
        targets=[laid_out(t, layout) for t in problem.targets],
        weights=weights,
        biases=[torch.stack([b, b], dim=1)[:, 1] for b in problem.biases],
        alpha=problem.alpha.t().contiguous().t(),
    )
    check(backend, problem)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_come_in_their_input_s_dtype_and_memory_format(backend, layout, dtype):
    features, _ = dtypes_of(backend, dtype)
    problem = on(backend, draw(*ODD["several maps"], dtype=features))
    problem = replace(problem, targets=[laid_out(t, layout) for t in problem.targets]).requiring_grad()
    gradients = torch.autograd.grad(problem.loss(backend.matching_loss), problem.inputs)
    for tensor, gradient in zip(problem.inputs, gradients, strict=True):
        assert gradient.dtype == tensor.dtype and gradient.device == tensor.device
    wanted = torch.channels_last if "channels_last" in layout else torch.contiguous_format
    for gradient in gradients[: len(problem.targets)]:
        assert gradient.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize(
    ("features", "wanted"),
    [(torch.float64, torch.float64)] + [(d, torch.float32) for d in (torch.float32, torch.bfloat16, torch.float16)],
)
def test_the_loss_is_a_scalar_in_the_type_of_the_sums(backend, features, wanted):
    if features not in backend.dtypes:
        pytest.skip(f"the {backend.name} backend has no {features}")
    loss = on(backend, draw_sizes("all to all", dtype=features)).loss(backend.matching_loss)
    assert loss.shape == () and loss.dtype == wanted


def test_maps_of_different_dtypes(backend):
    problem = draw(*ODD["several maps"], dtype=torch.float32)
    mixed = [torch.float16, torch.float32, torch.bfloat16]
    check(
        backend,
        replace(
            problem,
            sources=[s.to(d) for s, d in zip(problem.sources, mixed, strict=True)],
            targets=[t.to(d) for t, d in zip(problem.targets, mixed[::-1], strict=True)],
            weights=[w.to(mixed[p % 3]) for p, w in enumerate(problem.weights)],
            biases=[b.to(mixed[(p + 1) % 3]) for p, b in enumerate(problem.biases)],
        ),
    )


@pytest.mark.parametrize("sizes", ["all to all", "source larger", "source of one pixel"])
def test_an_empty_batch(backend, sizes):
    problem = on(backend, draw_sizes(sizes, batch=0, dtype=torch.float32))
    answer = solve(backend.matching_loss, problem, draw_directions(problem))
    assert answer.loss == 0
    for tensor, gradient, product in zip(problem.inputs, answer.gradients, answer.products, strict=True):
        assert gradient.shape == product.shape == tensor.shape
        assert not gradient.any() and not product.any()


def test_a_target_without_pixels(backend):
    """Beside one that has some: its loss is a sum of nothing."""
    sizes = [(3, 2, 2), (2, 2, 2)], [(2, 0, 3), (2, 3, 3)], [(0, 0), (1, 1)]
    problem = on(backend, draw(*sizes, dtype=torch.float32))
    answer = solve(backend.matching_loss, problem, draw_directions(problem))
    for alpha_result in (answer.gradients[-1], answer.products[-1]):
        assert not alpha_result[:, :3].any() and alpha_result[:, 3:].all()
    assert all(value.isfinite().all() for value in answer.parts().values())


def test_no_pairs(backend):
    problem = on(backend, draw([(2, 3, 3)], [(3, 3, 3)], [], dtype=torch.float32)).requiring_grad()
    loss = problem.loss(backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs)
    assert loss == 0 and not any(g.any() for g in gradients)


def test_a_map_that_no_pair_uses_gets_a_zero_gradient(backend):
    problem = on(backend, draw_sizes("an unused map of each", dtype=torch.float32)).requiring_grad()
    gradients = torch.autograd.grad(problem.loss(backend.matching_loss), problem.inputs)
    assert not gradients[0].any() and gradients[1].any()


def test_one_tensor_in_several_roles(backend):
    """One map as two targets, one weight and one bias for all pairs: gradients add up."""
    base = on(backend, draw([(3, 4, 4)], [(2, 4, 4)], [(0, 0)], dtype=torch.float32)).requiring_grad()
    (target,), (weight,), (bias,) = base.targets, base.weights, base.biases
    pairs = [(0, 0), (0, 1), (0, 1)]
    alpha = base.alpha.detach().repeat(1, 3)
    shared = Problem(base.sources, [target, target], [weight] * 3, [bias] * 3, alpha, pairs)
    once = torch.autograd.grad(base.loss(backend.matching_loss), [target, weight, bias])
    thrice = torch.autograd.grad(shared.loss(backend.matching_loss), [target, weight, bias])
    for o, t in zip(once, thrice, strict=True):
        torch.testing.assert_close(t, 3 * o)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["sources", "targets"])
def test_what_is_not_finite_shows_in_the_loss(backend, where, value):
    problem = draw(*ODD["several maps"], dtype=torch.float32)
    getattr(problem, where)[1][1, 2, 3, 4] = value
    loss = on(backend, problem).loss(backend.matching_loss)
    assert not loss.isfinite()


def test_a_loss_beyond_float32_is_infinite(backend):
    problem = draw(*ODD["several maps"], dtype=torch.float32)
    problem.alpha.fill_(1e38)
    assert on(backend, problem).loss(backend.matching_loss) == torch.inf


def test_a_sample_with_coefficient_zero_has_no_gradient(backend):
    problem = draw(*ODD["several maps"], batch=3, dtype=torch.float32)
    problem.alpha[1] = 0
    problem = on(backend, problem).requiring_grad()
    gradients = torch.autograd.grad(problem.loss(backend.matching_loss), problem.inputs)
    for gradient in gradients[: len(problem.targets)]:
        assert not gradient[1].any() and gradient[0].any()
    assert gradients[-1][1].all()


# ---- no worse than plain PyTorch -------------------------------------------------------------------------------------

REALISTIC = {
    "equal sizes": ([(64, 28, 28)], [(64, 28, 28)], [(0, 0)]),
    "smaller source": ([(64, 14, 14)], [(32, 56, 56)], [(0, 0)]),
    "larger source": ([(32, 56, 56)], [(64, 14, 14)], [(0, 0)]),
    "many channels": ([(128, 8, 8)], [(256, 4, 4)], [(0, 0)]),
    "several": ([(16, 32, 32), (64, 8, 8)], [(64, 32, 32), (256, 8, 8)], [(0, 0), (1, 0), (0, 1), (1, 1)]),
}


def relative_errors(answer, exact):
    """Per output, in the 2-norm."""
    return {
        name: float((value.cpu().double() - exact.parts()[name]).norm() / exact.parts()[name].norm().clamp_min(1e-300))
        for name, value in answer.parts().items()
    }


def allowed_of(backend, plain):
    """Twice plain PyTorch's error; and twice that where tensor cores cut off what others round."""
    return (4 if cuts_off(backend) else 2) * plain


def cuts_off(backend):
    return "cuda" in (backend.name, backend.device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "bfloat16 features"])
@pytest.mark.parametrize("sizes", REALISTIC)
def test_error_is_at_most_twice_that_of_plain_pytorch(backend, sizes, dtype):
    """In the root mean square over several draws: some outputs are a few numbers, whose error is a matter of luck."""
    found, plain = [], []
    for seed in range(4):
        problem = on(backend, in_dtype(draw(*REALISTIC[sizes], batch=2, seed=seed), *dtypes_of(backend, dtype)))
        directions = draw_directions(problem, seed=seed + 10)
        exact = truth(problem, directions)
        found.append(relative_errors(solve(backend.matching_loss, problem, directions), exact))
        plain.append(relative_errors(solve(reference.matching_loss, problem, directions), exact))
    for name in found[0]:
        error, of_plain = (sum(errors[name] ** 2 for errors in answers) ** 0.5 / 2 for answers in (found, plain))
        # the loss is a single number, whose error may happen to be 0: it gets a rounding
        floor = torch.finfo(torch.float32).eps if name == "loss" else 0
        assert error <= max(allowed_of(backend, of_plain), floor), f"{name}: {error:.2g}, plain PyTorch {of_plain:.2g}"


def nearly_matched(source, target, share, batch=3, seed=0):
    """One pair whose D is `share` of S: T = W^T (S~ + noise - b), with orthonormal rows in W."""
    generator = torch.Generator().manual_seed(seed)
    problem = draw([source], [target], [(0, 0)], batch=batch, seed=seed)
    assert source[0] <= target[0]
    weight = torch.linalg.qr(torch.randn(target[0], source[0], generator=generator, dtype=torch.float64))[0].t()
    resized = problem.sources[0]
    if source[1:] != target[1:]:
        resized = F.interpolate(resized, size=target[1:], mode="bilinear", align_corners=False)
    noise = share * resized.std() * torch.randn(resized.shape, generator=generator, dtype=torch.float64)
    aim = resized + noise - problem.biases[0][:, None, None]
    return replace(problem, targets=[torch.einsum("mn,bmhw->bnhw", weight, aim)], weights=[weight.contiguous()])


@pytest.mark.parametrize("share", [0.1, 0.01, 0.001])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((8, 28, 28), (16, 28, 28)),
        ((64, 14, 14), (64, 56, 56)),
        ((16, 28, 28), (24, 14, 14)),
        ((64, 4, 4), (128, 4, 4)),
        ((16, 32, 32), (64, 32, 32)),
    ],
)
def test_a_small_difference_is_not_lost(backend, source, target, share):
    """Where the projection nearly matches the source, D is a difference of nearly equal numbers.

    What tensor cores cut off of W T is cut off towards zero, whatever the pixel, and adds up over pixels: there a
    rounding of W T is allowed in all of them, which is a rounding of what these sums are without source and bias.
    """
    problem = on(backend, in_dtype(nearly_matched(source, target, share), torch.float32))
    directions = draw_directions(problem)
    exact = truth(problem, directions)
    found_answer = solve(backend.matching_loss, problem, directions)
    found = relative_errors(found_answer, exact)
    plain = relative_errors(solve(reference.matching_loss, problem, directions), exact)
    if cuts_off(backend):
        without = replace(
            problem,
            sources=[torch.zeros_like(source) for source in problem.sources],
            biases=[None if bias is None else torch.zeros_like(bias) for bias in problem.biases],
        )
        alone = truth(without, directions).parts()
    for name, error in found.items():
        if name.startswith("gradient") and name != f"gradient {len(problem.inputs) - 1}":
            allowed = allowed_of(backend, plain[name])
            if cuts_off(backend):
                allowed += torch.finfo(torch.float32).eps * float(alone[name].norm() / exact.parts()[name].norm())
            assert error <= allowed, f"{name}: {error:.2g}, plain PyTorch {plain[name]:.2g}, allowed {allowed:.2g}"
    assert found["loss"] <= 1e-3
    squares, wanted = found_answer.gradients[-1].cpu().double(), exact.gradients[-1]
    assert ((squares - wanted).abs() <= 1e-3 * wanted).all()
