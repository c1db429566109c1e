"""Loss, gradients and Hessian-vector products by the CUDA kernels, emulated on the CPU, judged against float64.

What is shown: indices, tails, layouts, types, the resize, the pipeline's order, barriers, both stages of the sums. What
is not: the speed, and the GPU's own instructions, whose registers the emulator lays out as PTX's documentation says.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from l2t_fast.ops import native, reference
from tests.ops import test_values as values
from tests.ops.cuda.conftest import gram_form, same_bits
from tests.ops.problems import (
    LAYOUTS,
    SIZES,
    Answer,
    assert_accurate,
    draw,
    draw_directions,
    draw_sizes,
    draw_some,
    in_dtype,
    laid_out,
    solve,
    truth,
)

# Each has what the others lack: several tiles of rows, channels and pixels, samples smaller than a tile, and tails.
SHAPES = {
    "several tiles": ([(70, 5, 4), (8, 9, 9)], [(136, 6, 5), (64, 8, 8)], [(0, 0), (1, 0), (0, 1)]),
    "many small samples": ([(3, 2, 3), (5, 2, 2)], [(9, 2, 3)], [(1, 0), (0, 0)]),
    "smaller sources": ([(40, 7, 5), (33, 4, 4)], [(12, 14, 12)], [(0, 0), (1, 0)]),
    "aligned": ([(64, 8, 8), (32, 4, 4)], [(64, 8, 8)], [(0, 0), (1, 0)]),
    # 8 bytes are aligned, of 100 pixels in bfloat16 and of 98 in float32, and 16 are not
    "half vectors": (
        [(70, 10, 10), (33, 7, 14), (9, 14, 14)],
        [(136, 10, 10), (20, 7, 14)],
        [(0, 0), (1, 1), (2, 1), (2, 0)],
    ),
    "many pixels": ([(9, 32, 32)], [(12, 32, 32)], [(0, 0)]),  # whose sum is split
}


@pytest.mark.parametrize("sizes", SIZES)
def test_every_size(emulated, sizes):
    values.check(emulated, draw(*SIZES[sizes], batch=3, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [name for name in values.DTYPES if name != "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_dtype(emulated, shape, dtype):
    values.check(emulated, in_dtype(draw(*SHAPES[shape], batch=3), *values.DTYPES[dtype]))


@pytest.mark.parametrize("allow_tf32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(emulated, layout, dtype, allow_tf32):
    """With tf32 each of the up to four factors of a term is rounded to 10 bits; bfloat16's E, to 7, is the only one."""
    problem = draw(*SHAPES["aligned"], dtype=dtype)
    weights = [F.pad(w, (1, 2, 1, 0), value=torch.nan)[1:, 1:-2] for w in problem.weights]
    weights[1] = problem.weights[1].t().contiguous().t()
    problem = replace(
        problem,
        sources=[laid_out(s, layout) for s in problem.sources],
        targets=[laid_out(t, layout) for t in problem.targets],
        weights=weights,
        biases=[torch.stack([b, b], dim=1)[:, 1] for b in problem.biases],
        alpha=problem.alpha.t().contiguous().t(),
    )
    directions = draw_directions(problem)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32):
        answer = solve(emulated.matching_loss, problem, directions)
    assert_accurate(answer, problem, directions, roundings=4 * 2**12 if allow_tf32 else 64)


@pytest.mark.parametrize("allow_tf32", [False, True])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "offset"])
def test_directions_in_another_layout_than_their_map(emulated, layout, allow_tf32):
    problem = draw([(16, 17, 17), (31, 8, 8)], [(32, 8, 8)], [(0, 0), (1, 0)], dtype=torch.float32)
    directions = draw_directions(problem)
    laid = [laid_out(directions[0], layout), *directions[1:]]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32):
        answer = solve(emulated.matching_loss, problem, directions)
        products = native.hessian_vector_product(*arguments_of(problem), laid, [True] * len(problem.slots))
    assert_accurate(replace(answer, products=products), problem, directions, roundings=4 * 2**12 if allow_tf32 else 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bfloat16 features"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tensor_cores_types(emulated, shape, dtype):
    """With tf32 allowed: other products, errors of its size, and not less."""
    problem = in_dtype(draw(*SHAPES[shape]), *values.DTYPES[dtype])
    directions = draw_directions(problem)
    exact = solve(emulated.matching_loss, problem, directions)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        answer = solve(emulated.matching_loss, problem, directions)
    assert_accurate(answer, problem, directions, roundings=4 * 2**12)
    assert not torch.equal(answer.gradients[0], exact.gradients[0])


@pytest.mark.parametrize("allow_tf32", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(7, 9), (9, 14), (127, 1), (15, 17)])
def test_no_memory_is_read_that_nobody_wrote(emulated, size, dtype, allow_tf32):
    """Between the last column of E and its stride, a multiple of 16 bytes, lie zeros, wherever the last tile ends."""
    problem = in_dtype(draw([(9, *size)], [(12, *size)], [(0, 0)], batch=3), *values.DTYPES[dtype])
    directions = draw_directions(problem)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow_tf32):
        answer = solve(emulated.matching_loss, problem, directions)
    assert_accurate(answer, problem, directions, roundings=4 * 2**12 if allow_tf32 else 64)


def arguments_of(problem):
    return problem.sources, problem.targets, problem.weights, problem.biases, problem.alpha, problem.pairs


@pytest.mark.parametrize("seed", range(6))
def test_some_needs_and_some_directions(emulate, seed):
    problem = draw(*SHAPES["several tiles"], biased=[True, False, True], dtype=torch.float32)
    directions, needs = draw_some(problem, seed)

    def both():
        loss, gradients = native.loss_and_gradients(*arguments_of(problem), needs)
        return [loss, *gradients, *native.hessian_vector_product(*arguments_of(problem), directions, needs)]

    wanted = both()
    emulate()
    for found, right in zip(both(), wanted, strict=True):
        assert (found is None) == (right is None)
        if right is not None:
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_threads_and_blocks_changes_no_bit(emulate, shape):
    """As it would where a barrier is missing."""
    problem = draw(*SHAPES[shape], batch=3, dtype=torch.float32)
    directions = draw_directions(problem)
    answers = []
    for reverse in (False, True):
        emulate(reversed=reverse)
        answers.append(solve(native.matching_loss, problem, directions).parts())
    assert same_bits(*answers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gram", [False, True], ids=["direct", "gram"])
def test_parts(emulate, gram, dtype):
    """E in memory for a few samples at a time, after which the Gram form of the other target takes its place."""
    sizes = [(70, 9, 8), (150, 5, 4)], [(12, 9, 8), (70, 7, 6)], [(0, 0), (1, 0), (0, 1), (1, 1)]
    problem = in_dtype(draw(*sizes, batch=7), *values.DTYPES[dtype])
    directions = draw_directions(problem)
    answers = []
    with gram_form() if gram else torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        for processors in (1, 30):
            emulate(processors=processors)
            answers.append(solve(native.matching_loss, problem, directions))
            assert_accurate(answers[-1], problem, directions, roundings=4 * 2**12)
    assert not same_bits(*(answer.parts() for answer in answers))


# The one has two parts in the second derivative, the other in the first, whose E would fit in memory together.
@pytest.mark.parametrize("batch", [6, 11])
def test_parts_of_a_target_are_not_in_one_launch(emulate, batch):
    """Blocks of a launch run in any order, and a part adds its dW to that of the part before it."""
    problem = in_dtype(draw([(87, 1, 1)], [(9, 9, 2)], [(0, 0)], batch=batch), *values.DTYPES["bfloat16 features"])
    directions = draw_directions(problem)
    answers = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        for reverse in (False, True):
            emulate(processors=1, reversed=reverse)
            answers.append(solve(native.matching_loss, problem, directions))
            assert_accurate(answers[-1], problem, directions, roundings=4 * 2**14)
    assert same_bits(*(answer.parts() for answer in answers))


LONG_SUMS = {
    "pixels": ([(3, 90, 90)], [(5, 90, 90)], [(0, 0)]),
    "rows": ([(1200, 2, 2)], [(5, 2, 2)], [(0, 0)]),
    "channels": ([(3, 2, 2)], [(1200, 2, 2)], [(0, 0)]),
}


@pytest.mark.parametrize("long", LONG_SUMS)
def test_long_sums_keep_float32_s_precision(emulate, long):
    """What tensor cores cut off, always towards zero, does not add up where all terms are positive.

    8,100 pixels are a thousand additions of 8 terms, each off by half of the machine's precision: by chance, 16 of it.
    """
    problem = draw(*LONG_SUMS[long], batch=1, dtype=torch.float32)
    problem = replace(
        problem,
        sources=[-s.abs() for s in problem.sources],
        targets=[t.abs() for t in problem.targets],
        weights=[w.abs() for w in problem.weights],
        biases=[b.abs() for b in problem.biases],
        alpha=problem.alpha.abs(),
    )
    directions = [d.abs() for d in draw_directions(problem)]
    emulate(processors=1)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = solve(native.matching_loss, problem, directions)
    assert_accurate(found, problem, directions, roundings=24)


@pytest.mark.parametrize(
    ("source", "target"), [(1_100_000, 2_100), (32_767, 66_000), (20_000, 32_767), (20_000, 32_768)]
)
def test_positions_of_a_resize_beyond_32_bits(emulated, source, target):
    """Judged by positions in integers: PyTorch's own are floats where it looks for the pixel above, in float64 too."""
    problem = draw([(1, source, 1)], [(1, target, 1)], [(0, 0)], batch=1, dtype=torch.float32)
    twice = ((2 * torch.arange(target) + 1) * source - target).clamp(min=0)  # the position, times 2 target
    above, share = twice // (2 * target), (twice % (2 * target)).double() / (2 * target)
    pixels = problem.sources[0].double().flatten()
    resized = pixels[above].lerp(pixels[(above + 1).clamp(max=source - 1)], share)
    exact = replace(problem.map(torch.Tensor.double), sources=[resized.view(1, 1, target, 1)])
    for needs in (False, True):  # with gradients, sources of few pixels are resized by products, but not to 2^15
        found, _ = native.loss_and_gradients(*arguments_of(problem), [needs] * 4)
        torch.testing.assert_close(found.double(), exact.loss(reference.matching_loss), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16 features"])
def test_a_tile_takes_of_the_row_below_its_last(emulated, dtype):
    """Of a smaller source whose rows are longer than a step of the sum."""
    problem = in_dtype(draw([(3, 3, 200)], [(5, 6, 230)], [(0, 0)], batch=1), *values.DTYPES[dtype])
    directions = draw_directions(problem)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype != "float32"):  # or they are not of the tiles' type
        answer = solve(emulated.matching_loss, problem, directions)
    # bfloat16 has E, W and the shares rounded to 8 bits
    assert_accurate(answer, problem, directions, roundings=64 if dtype == "float32" else 4 * 2**14)


def test_maps_of_different_dtypes(emulated):
    problem = draw(*SHAPES["several tiles"], dtype=torch.float32)
    mixed = [torch.float16, torch.float32, torch.bfloat16]
    values.check(
        emulated,
        replace(
            problem,
            sources=[s.to(d) for s, d in zip(problem.sources, mixed, strict=False)],
            targets=[t.to(d) for t, d in zip(problem.targets, mixed[::-1], strict=False)],
            weights=[w.to(d) for w, d in zip(problem.weights, mixed, strict=True)],
            biases=[b.to(d) for b, d in zip(problem.biases, mixed[::-1], strict=True)],
        ),
    )


def test_a_target_of_bfloat16_takes_no_digits_from_one_of_float32(emulated):
    problem = draw([(20, 6, 5)], [(12, 6, 5), (9, 6, 5)], [(0, 0), (0, 1)], dtype=torch.float32)
    problem = replace(problem, targets=[problem.targets[0], problem.targets[1].bfloat16()])
    directions = draw_directions(problem)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        found = solve(emulated.matching_loss, problem, directions).gradients[0].detach()
    exact = truth(problem, directions).gradients[0].detach()
    assert float((found.double() - exact).abs().max()) < 1e-3 * float(exact.abs().max())


@pytest.mark.parametrize("sizes", ["equal sizes", "smaller source", "many channels"])
def test_as_exact_as_float32_where_it_is_asked_for(emulated, sizes):
    values.test_error_is_at_most_twice_that_of_plain_pytorch(emulated, sizes, "float32")


def test_a_small_difference_is_not_lost(emulated):
    values.test_a_small_difference_is_not_lost(emulated, (16, 28, 28), (24, 14, 14), 1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums_of_few_tiles_are_shared_out(emulate, dtype, layout):
    """dT's, where a tile takes longer than all else of a launch shared out: for 132 processors, not for a single one.

    A part of one pair comes first, so that what is added up does not begin where all sums do.
    """
    sizes = [(700, 5, 7), (530, 3, 3), (40, 2, 2)], [(9, 3, 2), (136, 5, 7)], [(2, 0), (0, 1), (1, 1)]
    problem = draw(*sizes, batch=2, dtype=dtype).map(
        lambda tensor: tensor.to(memory_format=layout) if tensor.dim() == 4 else tensor
    )
    directions = draw_directions(problem)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        answers = []
        for processors, reverse in ((1, False), (132, False), (132, True)):
            emulate(processors=processors, reversed=reverse)
            answers.append(solve(native.matching_loss, problem, directions))
            assert_accurate(answers[-1], problem, directions, roundings=4 * 2**12)
    one, many, reversed_ = answers
    assert torch.equal(one.gradients[0], many.gradients[0])  # of a map with few rows
    assert not torch.equal(one.gradients[1], many.gradients[1])
    assert not torch.equal(one.products[1], many.products[1])
    assert same_bits(many.parts(), reversed_.parts())


def test_long_sums_of_a_multiple_of_four_columns_are_shared_out(emulate):
    problem = draw(
        *([(700, 6, 6), (530, 3, 3), (40, 2, 2)], [(9, 3, 2), (136, 6, 6)], [(2, 0), (0, 1), (1, 1)]),
        dtype=torch.float32,
    )
    directions = draw_directions(problem)
    emulate(processors=132)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        answer = solve(native.matching_loss, problem, directions)
    assert_accurate(answer, problem, directions, roundings=4 * 2**12)


def test_long_sums_of_several_targets_in_one_launch_are_shared_out(emulate):
    """Each has a place of its own for what its shares come to."""
    problem = draw([(640, 2, 2)], [(20, 2, 2)] * 3, [(0, 0), (0, 1), (0, 2)], batch=1, dtype=torch.float32)
    directions = draw_directions(problem)
    needs = [slot < 3 for slot in range(len(problem.slots))]
    answers = []
    for processors in (1, 132):
        emulate(processors=processors)
        loss, gradients = native.loss_and_gradients(*arguments_of(problem), needs)
        assert_accurate(Answer(loss, gradients, []), problem, directions)
        answers.append(gradients[:3])
    assert not any(torch.equal(one, many) for one, many in zip(*answers, strict=True))


def test_the_loss_of_more_blocks_than_its_sum_reads_at_once(emulated):
    """A block adds up what the others leave, a number of each: 256 threads, eight numbers at a time."""
    problem = draw([(515, 1, 1)], [(1, 1, 1)], [(0, 0)], batch=1024, dtype=torch.float32)
    exact = problem.map(torch.Tensor.double).loss(reference.matching_loss)
    found, _ = native.loss_and_gradients(*arguments_of(problem), [False] * 4)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("source", "target"), [(3, 0), (0, 3)])
def test_no_channels(emulate, source, target):
    """As the CPU's own kernels have it: D is b - S~."""
    problem = draw([(source, 4, 4)], [(target, 5, 5)], [(0, 0)], dtype=torch.float32)
    directions = draw_directions(problem)
    wanted = solve(native.matching_loss, problem, directions).parts()
    emulate()
    torch.testing.assert_close(solve(native.matching_loss, problem, directions).parts(), wanted)


@pytest.mark.parametrize("sizes", ["all to all", "source of one pixel"])
def test_an_empty_batch(emulated, sizes):
    values.test_an_empty_batch(emulated, sizes)


def test_nothing_to_compute(emulated):
    values.test_no_pairs(emulated)
    values.test_a_target_without_pixels(emulated)
    values.test_a_map_that_no_pair_uses_gets_a_zero_gradient(emulated)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_loss(emulated, value):
    problem = draw(*SHAPES["several tiles"], dtype=torch.float32)
    problem.sources[0][1, 2, 3, 1] = value
    assert not problem.loss(emulated.matching_loss).isfinite()


def test_float64_is_refused(emulated):
    with pytest.raises(TypeError, match="alpha has dtype Double; the cuda backend needs float32"):
        draw_sizes("equal").loss(emulated.matching_loss)
