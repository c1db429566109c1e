"""The Gram form of the CUDA kernels, emulated on the CPU, against float64: where it serves, and what it loses."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from l2t_fast import _native
from l2t_fast.ops import native
from tests.ops import test_values as values
from tests.ops.cuda.conftest import same_bits
from tests.ops.cuda.test_emulated import arguments_of
from tests.ops.problems import (
    LAYOUTS,
    Answer,
    assert_accurate,
    assert_no_negative_squares,
    draw,
    draw_directions,
    draw_directions_laid_out,
    draw_matched,
    draw_some,
    in_dtype,
    laid_out,
    solve,
    truth,
)

# Sources of the target's size, smaller ones of several sizes and of one, larger ones that stay in the direct form;
# several tiles of rows, channels and pixels, and tails; maps that can be copied 16 bytes at a time, and such that
# cannot.
SHAPES = {
    "of one size": ([(40, 9, 8), (130, 9, 8)], [(12, 9, 8)], [(0, 0), (1, 0)]),
    "smaller": ([(40, 5, 4), (33, 5, 4)], [(12, 9, 8)], [(0, 0), (1, 0)]),
    "flat": ([(9, 1, 4), (6, 1, 1)], [(5, 1, 11)], [(0, 0), (1, 0)]),
    "several sizes and targets": (
        [(7, 5, 4), (40, 9, 8), (33, 5, 4), (3, 2, 2), (6, 12, 10)],
        [(70, 9, 8), (12, 16, 12)],
        [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (1, 1)],
    ),
    "wide": ([(9, 5, 40), (6, 40, 33), (3, 41, 20)], [(5, 41, 70)], [(0, 0), (1, 0), (2, 0)]),
    "half vectors": (
        [(40, 14, 14), (33, 10, 10), (9, 7, 14)],
        [(12, 14, 14), (5, 7, 14)],
        [(0, 0), (1, 0), (2, 0), (2, 1)],
    ),
    "several tiles": ([(130, 14, 12), (40, 7, 6), (140, 3, 3)], [(150, 14, 12)], [(0, 0), (1, 0), (2, 0)]),
}
Algorithm = Callable[[str], None]
DTYPES = ["float32", "bfloat16", "bfloat16 features"]


@pytest.fixture
def algorithm(emulate) -> Iterator[Algorithm]:
    """Emulate a chip, with tf32 allowed, by the algorithm that is named."""
    emulate()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        yield _native.extension.force_algorithm
    _native.extension.force_algorithm("auto")


def answers_of(problem, directions, algorithm: Algorithm, *names: str) -> list[Answer]:
    answers = []
    for name in names:
        algorithm(name)
        answers.append(solve(native.matching_loss, problem, directions))
    return answers


def long_sizes(side: int, direction: str):
    """Of a map of one row or column, and of a source of its size and a smaller one."""

    def of(length: int) -> tuple[int, int, int]:
        return (3, length, 1) if direction == "high" else (3, 1, length)

    return [of(side), of(side // 3)], [of(side)], [(0, 0), (1, 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_the_direct_form_may_be(algorithm, shape, dtype):
    problem = in_dtype(draw(*SHAPES[shape], batch=3), *values.DTYPES[dtype])
    directions = draw_directions(problem)
    direct, gram = answers_of(problem, directions, algorithm, "direct", "gram")
    assert not same_bits(direct.parts(), gram.parts())
    assert_accurate(gram, problem, directions, roundings=4 * 2**12)


def assert_near(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor], dtype: str) -> None:
    """Of one target: what is of its map's size has the error of rounded factors, all else nearly all of float32."""
    of_maps, others = (2e-3, 1e-5) if dtype == "float32" else (2e-2, 2e-5)
    for name, value in found.items():
        bound = of_maps if name.endswith(" 0") else others
        assert float((value.double() - exact[name]).abs().max()) < bound * float(exact[name].abs().max()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16 features"])
def test_weights_and_coefficients_have_nearly_all_of_float32(algorithm, dtype):
    """Three products of tf32, or those of bfloat16 maps, which are exact: only dT, of rounded factors, has its error.

    T U, which smaller sources are multiplied with, is two numbers of bfloat16.
    """
    problem = in_dtype(draw(*SHAPES["several tiles"]), *values.DTYPES[dtype])
    directions = draw_directions(problem)
    (gram,) = answers_of(problem, directions, algorithm, "gram")
    assert_near(gram.parts(), truth(problem, directions).parts(), dtype)


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_no_sum_of_squares_is_negative(algorithm, form):
    algorithm(form)
    assert_no_negative_squares(draw_matched(), native.matching_loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(algorithm, layout, dtype):
    problem = draw(*SHAPES["several sizes and targets"], dtype=dtype)
    problem = replace(
        problem,
        sources=[laid_out(s, layout) for s in problem.sources],
        targets=[laid_out(t, layout) for t in problem.targets],
        weights=[w.t().contiguous().t() for w in problem.weights],
        biases=[torch.stack([b, b], dim=1)[:, 1] for b in problem.biases],
        alpha=problem.alpha.t().contiguous().t(),
    )
    directions = draw_directions(problem)
    (gram,) = answers_of(problem, directions, algorithm, "gram")
    assert_accurate(gram, problem, directions, roundings=4 * 2**12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "offset", "expanded"])
def test_directions_in_another_layout_than_their_map(algorithm, layout, dtype):
    problem = draw([(64, 8, 8), (32, 4, 4)], [(64, 8, 8)], [(0, 0), (1, 0)], dtype=dtype)
    directions = draw_directions_laid_out(problem, layout)
    (gram,) = answers_of(problem, directions, algorithm, "gram")
    products = native.hessian_vector_product(*arguments_of(problem), directions, [True] * len(problem.slots))
    for answer in (gram, replace(gram, products=products)):
        assert_accurate(answer, problem, directions, roundings=4 * 2**12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16 features"])
@pytest.mark.parametrize("seed", range(12))
def test_some_needs_and_some_directions(algorithm, seed, dtype):
    problem = draw(*SHAPES["several sizes and targets"], biased=[True, False] * 3 + [True])
    problem = in_dtype(problem, *values.DTYPES[dtype])
    directions, needs = draw_some(problem, seed)

    def both(problem, directions):
        loss, gradients = native.loss_and_gradients(*arguments_of(problem), needs)
        return [loss, *gradients, *native.hessian_vector_product(*arguments_of(problem), directions, needs)]

    algorithm("gram")
    found = both(problem, directions)
    _native.extension.emulate_cuda(0)
    exact = both(in_dtype(problem, torch.float64), [None if v is None else v.double() for v in directions])
    for value, right in zip(found, exact, strict=True):
        assert (value is None) == (right is None)
        if right is not None:
            bound = 2e-3 if dtype == "float32" else 2e-2
            torch.testing.assert_close(value.double(), right, rtol=0, atol=bound * float(right.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_threads_and_blocks_changes_no_bit(algorithm, emulate, shape, dtype):
    problem = draw(*SHAPES[shape], batch=3, dtype=dtype)
    directions = draw_directions(problem)
    (forwards,) = answers_of(problem, directions, algorithm, "gram")
    emulate(reversed=True)
    (backwards,) = answers_of(problem, directions, algorithm, "gram")
    assert same_bits(forwards.parts(), backwards.parts())


def test_the_planner_takes_it_for_many_pixels_and_few_channels(algorithm):
    def both(problem, name: str) -> list[bool]:
        """Whether the planner's gradients have the bits of the algorithm's."""
        found = []
        for each in ("auto", name):
            algorithm(each)
            found.append(native.loss_and_gradients(*arguments_of(problem), [True] * len(problem.slots))[1])
        return [torch.equal(a, b) for a, b in zip(*found, strict=True)]

    many = draw([(256, 16, 16), (512, 8, 8)], [(64, 32, 32)], [(0, 0), (1, 0)], batch=1, dtype=torch.float32)
    assert all(both(many, "gram")) and not all(both(many, "direct"))
    few = draw([(16, 4, 4)], [(32, 4, 4)], [(0, 0)], batch=1, dtype=torch.float32)
    assert all(both(few, "direct")) and not all(both(few, "gram"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16 features"])
def test_sums_over_pixels_are_shared_out(algorithm, emulate, dtype):
    """Where there are more processors than tiles: those of T T^T, S T^T and, in the second derivative, S vT^T."""
    problem = draw([(9, 36, 36), (6, 3, 4)], [(5, 36, 36)], [(0, 0), (1, 0)], batch=1)
    problem = in_dtype(problem, *values.DTYPES[dtype])
    directions = draw_directions(problem)
    exact = truth(problem, directions).parts()
    answers = []
    for processors in (1, 8):
        emulate(processors=processors)
        answers += [answer.parts() for answer in answers_of(problem, directions, algorithm, "gram")]
        assert_near(answers[-1], exact, dtype)
    assert not any(torch.equal(answers[0][name], answers[1][name]) for name in ("gradient 1", "gradient 5"))


@pytest.mark.parametrize(
    "why_not", ["float32 asked for", "float16", "other sources", "channels_last", "larger sources", "high", "wide"]
)
def test_where_it_cannot_serve_the_direct_form_does(algorithm, why_not):
    shape = SHAPES["of one size"]
    if why_not == "larger sources":
        shape = ([(40, 12, 9), (130, 10, 8)], *shape[1:])
    if why_not in ("high", "wide"):  # by one pixel
        shape = long_sizes(1025, why_not)
    problem = draw(*shape, dtype=torch.float32)
    if why_not == "float16":
        problem = in_dtype(problem, *values.DTYPES["float16 features"])
    if why_not == "other sources":  # of another type than bfloat16 targets
        problem = replace(problem, targets=[t.bfloat16() for t in problem.targets])
    if why_not == "channels_last":
        problem = replace(problem, targets=[laid_out(t, "channels_last") for t in problem.targets])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=why_not != "float32 asked for"):
        direct, gram = answers_of(problem, draw_directions(problem), algorithm, "direct", "gram")
    assert same_bits(direct.parts(), gram.parts())


@pytest.mark.parametrize("direction", ["high", "wide"])
def test_it_serves_up_to_1024_pixels_a_side(algorithm, direction):
    problem = draw(*long_sizes(1024, direction), dtype=torch.float32)
    directions = draw_directions(problem)
    direct, gram = answers_of(problem, directions, algorithm, "direct", "gram")
    assert not same_bits(direct.parts(), gram.parts())
    assert_accurate(gram, problem, directions, roundings=4 * 2**12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1e-1, 1e-2, 1e-3])
def test_the_error_where_a_projection_fits_its_source(algorithm, share, dtype):
    """D small against S~: Q is a difference of large numbers, and its error stays within 5e-7 of what they sum up to.

    Maps as after a ReLU: all terms of T T^T are positive, and what tensor cores cut off adds up.
    """
    problem = draw([(24, 40, 40), (8, 40, 40)], [(8, 40, 40)], [(0, 0), (1, 0)], batch=1, dtype=torch.float32)
    targets = [t.relu().to(dtype) for t in problem.targets]
    problem = replace(problem, targets=targets, weights=[w.abs() for w in problem.weights])

    def projected(dtype, shifts):
        products = [torch.einsum("mc,bchw->bmhw", w.to(dtype), problem.targets[0].to(dtype)) for w in problem.weights]
        return [p + b.to(dtype)[:, None, None] for p, b in zip(products, shifts, strict=True)]

    biases = problem.biases
    sources = [(p * (1 + share * torch.randn_like(p))).to(dtype) for p in projected(torch.float32, biases)]
    differences = [p - s for p, s in zip(projected(torch.float64, biases), sources, strict=True)]
    sums = [p + s.abs() for p, s in zip(projected(torch.float64, [b.abs() for b in biases]), sources, strict=True)]
    wanted, scale = (torch.cat([x.double().square().sum((2, 3)) for x in maps], 1) for maps in (differences, sums))
    needs = [False] * (len(problem.slots) - 1) + [True]
    algorithm("gram")
    _, gradients = native.loss_and_gradients(*arguments_of(replace(problem, sources=sources)), needs)
    assert float(((gradients[-1].double() - wanted).abs() / scale).max()) < 5e-7
