"""The Gram form of the Triton kernels: all derivatives without E, of maps of many pixels and few channels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from l2t_fast.bench.workloads import WORKLOADS
from l2t_fast.ops.triton import gram_planning, launching
from l2t_fast.ops.triton.arguments import Arguments
from l2t_fast.ops.triton.planning import Planner
from l2t_fast.ops.triton.tiles import GRAM, TABLES
from tests.ops.conftest import Backend
from tests.ops.empty_workloads import empty_tensors
from tests.ops.problems import (
    Answer,
    Problem,
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

# Of one size, smaller, and mixed with a target that has a larger source and so keeps to the direct form; several tiles
# of rows, of channels and of pixels, and tails.
SHAPES = {
    "of one size": ([(20, 5, 8), (7, 5, 8)], [(12, 5, 8)], [(0, 0), (1, 0)]),
    "smaller": ([(18, 5, 4), (3, 5, 4), (4, 2, 3)], [(12, 7, 6)], [(2, 0), (0, 0), (1, 0)]),
    "flat": ([(9, 1, 4), (6, 1, 1)], [(5, 1, 40)], [(0, 0), (1, 0)]),
    "with a direct one": (
        [(4, 5, 4), (18, 6, 5), (6, 7, 8)],
        [(20, 6, 5), (3, 6, 5)],
        [(0, 0), (2, 1), (1, 0), (0, 1), (0, 0)],
    ),
}


@pytest.fixture
def form(monkeypatch) -> Iterator[Callable[[bool], None]]:
    """Say whether targets that can take the Gram form do, with tf32 allowed."""

    def take(gram: bool) -> None:
        launching._PLANS.clear()
        monkeypatch.setattr(gram_planning, "pays", lambda *_: gram)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        yield take
    launching._PLANS.clear()


def answer_of(backend: Backend, problem: Problem, directions: Sequence[Tensor]) -> Answer:
    problem = problem.map(lambda t: t.to(backend.device))
    return solve(backend.matching_loss, problem, [v.to(backend.device) for v in directions])


def check(backend: Backend, problem: Problem, directions: Sequence[Tensor] | None = None) -> Answer:
    directions = draw_directions(problem) if directions is None else directions
    answer = answer_of(backend, problem, directions)
    # the interpreter does not round to tf32
    roundings = 64 if backend.device == "cpu" else 4 * 2**12
    assert_accurate(answer, problem, directions, roundings=roundings)
    return answer


# Of features and of parameters, which mixed precision leaves in float32.
TYPES = [
    (torch.float32, torch.float32),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]


@pytest.mark.parametrize("types", TYPES, ids=lambda types: " and ".join(str(t).removeprefix("torch.") for t in types))
@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_the_direct_form(triton_backend, form, shape, types):
    if types[0] not in triton_backend.dtypes:
        pytest.skip(f"no {types[0]} in Triton's interpreter")
    problem = in_dtype(draw(*SHAPES[shape], batch=2, dtype=torch.float32), *types)
    form(True)
    gram = check(triton_backend, problem)
    form(False)
    direct = answer_of(triton_backend, problem, draw_directions(problem))
    for derivative in ("gradients", "products"):
        both = zip(getattr(gram, derivative), getattr(direct, derivative), strict=True)
        assert any(not torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("gram", [False, True])
def test_no_sum_of_squares_is_negative(triton_backend, form, gram):
    form(gram)
    assert_no_negative_squares(draw_matched().map(lambda t: t.to(triton_backend.device)), triton_backend.matching_loss)


@pytest.mark.parametrize("layout", ["sliced", "offset", "expanded", "channels_last"])
def test_layouts(triton_backend, form, layout):
    problem = draw(*SHAPES["smaller"], biased=[True, False, True], batch=2, dtype=torch.float32)
    form(True)
    check(
        triton_backend,
        replace(
            problem,
            sources=[laid_out(s, layout) for s in problem.sources],
            targets=[laid_out(t, layout) for t in problem.targets],
            weights=[w.t().contiguous().t() for w in problem.weights],
            alpha=problem.alpha.t().contiguous().t(),
        ),
    )


@pytest.mark.parametrize("layout", ["sliced", "offset", "expanded", "channels_last"])
def test_directions_in_another_layout_than_their_map(triton_backend, form, layout):
    problem = draw([(5, 4, 5)], [(4, 4, 5)], [(0, 0)], dtype=torch.float32)
    problem = problem.map(lambda t: t.to(triton_backend.device))
    form(True)
    check(triton_backend, problem, draw_directions_laid_out(problem, layout))


def test_sums_over_more_columns_and_pixels_than_a_step(triton_backend, form):
    sizes = [(3, 7, 20), (2, 7, 19)], [(3, 7, 20)], [(0, 0), (1, 0)]
    form(True)
    check(triton_backend, draw(*sizes, batch=1, dtype=torch.float32))


@pytest.mark.parametrize("seed", range(6))
def test_some_needs_and_some_directions(triton_backend, form, seed):
    problem = draw(*SHAPES["with a direct one"], batch=2, dtype=torch.float32)
    directions, needs = draw_some(problem, seed)
    problem = problem.map(lambda t: t.to(triton_backend.device))
    directions = [None if v is None else v.to(triton_backend.device) for v in directions]
    flat = [index for pair in problem.pairs for index in pair]
    given = problem.sources, problem.targets, problem.weights, problem.biases, problem.alpha, flat
    answers = []
    for gram in (False, True):
        form(gram)
        found = launching.loss_and_gradient(Arguments(*given, needs))
        products = launching.hessian_vector(Arguments(*given, needs), directions)
        answers.append([found.loss, *found.results, *products])
    for wanted, found in zip(*answers, strict=True):
        assert (wanted is None) == (found is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))


def test_coefficients_alone_move(triton_backend, form):
    """Then all of hT is of the factors, which nothing else moves."""
    problem = draw([(5, 4, 5), (3, 2, 3)], [(4, 4, 5)], [(0, 0), (1, 0)], dtype=torch.float32)
    directions = [v if v.shape == problem.alpha.shape else torch.zeros_like(v) for v in draw_directions(problem)]
    wanted = truth(problem, directions).products
    problem = problem.map(lambda t: t.to(triton_backend.device))
    *arguments, needs = problem.operator_arguments()
    form(True)
    given = Arguments(*arguments, needs)
    found = launching.hessian_vector(given, [*[None] * (len(needs) - 1), directions[-1].to(triton_backend.device)])
    for product, right in zip(found, wanted, strict=True):
        bound = 1e-6 if triton_backend.device == "cpu" else 2e-3  # the interpreter does not round to tf32
        torch.testing.assert_close(product.cpu().double(), right, rtol=0, atol=bound * float(right.abs().max()))


@pytest.mark.parametrize("narrow", ["sources", "targets"])
def test_maps_of_two_types_keep_to_the_direct_form(triton_backend, form, narrow):
    problem = draw([(5, 4, 5)], [(4, 4, 5)], [(0, 0)], dtype=torch.float32)
    problem = replace(problem, **{narrow: [t.half() for t in getattr(problem, narrow)]})
    directions = draw_directions(problem)
    form(False)
    direct = answer_of(triton_backend, problem, directions).parts()
    form(True)
    gram = check(triton_backend, problem, directions).parts()
    assert all(torch.equal(gram[name], direct[name]) for name in direct)


def planner_of(name: str, dtype: torch.dtype = torch.float32, batch: int | None = None, **changes) -> Planner:
    """Of a benchmark's workload with features of a type, on an H100; ``batch``: of some of its samples."""
    tensors = empty_tensors(name, "meta")
    some = slice(batch)
    tensors = tensors._replace(
        sources=[t[some] for t in tensors.sources],
        targets=[t[some] for t in tensors.targets],
        alpha=tensors.alpha[some],
    )
    tensors = tensors._replace(
        **{maps: [t.to(dtype) for t in getattr(tensors, maps)] for maps in ("sources", "targets")}
    )
    pairs = [index for pair in WORKLOADS[name].pairs for index in pair]
    slots = tensors.slots
    arguments = Arguments(*tensors, pairs, [True] * len(slots))
    options = {"precision": "tf32", "directions": None} | changes
    tiles = TABLES[options["precision"]]
    return Planner(arguments, results=slots, tiles=tiles, processors=132, compiles=True, **options)


def takes_it(name: str, **changes) -> list[bool]:
    """For each target of a benchmark's workload."""
    planner = planner_of(name, **changes)
    return [layer in planner.gram.layers for layer in planner.layers]


def all_that_moves(name: str) -> list[Tensor]:
    return empty_tensors(name, "meta").slots


def test_the_planner_takes_it_for_many_pixels_and_few_channels():
    assert takes_it("imagenet") == [True, False, False, False]
    assert not any(takes_it("cifar"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_and_so_of_maps_of_16_bits(dtype):
    assert takes_it("imagenet", dtype=dtype) == [True, False, False, False]
    assert not any(takes_it("cifar", dtype=dtype))


def test_of_the_second_derivative_where_much_moves():
    assert takes_it("imagenet", directions=all_that_moves("imagenet")) == [True, False, False, False]
    assert not any(takes_it("cifar", directions=all_that_moves("cifar")))


def can_take(height: int, width: int, step: int = 1) -> bool:
    """Whether 64 channels of a size, with a source of a quarter of its pixels, can; rows of the weight lie apart."""
    target, source = torch.empty(8, 64, height, width), torch.empty(8, 256, height, width // 4)
    weight = torch.empty_strided((256, 64), (64 * step, 1))
    arguments = Arguments([source], [target], [weight], [None], torch.empty(8, 256), [0, 0], [True, True, False, True])
    results = [target, weight, None, arguments.alpha]
    options = {"precision": "tf32", "tiles": TABLES["tf32"], "processors": 132, "compiles": True}
    planner = Planner(arguments, None, results, **options)
    return gram_planning.can_serve(planner, planner.layers[0])


def test_never_where_offsets_or_taps_need_more_than_32_bits():
    with torch.device("meta"):
        assert can_take(100, 1000)
        assert not can_take(1, 100_000)
        assert not can_take(100, 1000, step=2**20)


def test_sources_without_channels(triton_backend, form):
    problem = draw([(0, 4, 4)], [(3, 4, 4)], [(0, 0)], batch=2, dtype=torch.float32)
    problem = problem.map(lambda t: t.to(triton_backend.device))
    form(True)
    found = launching.loss_and_gradient(Arguments(*problem.operator_arguments([True] * 4)))
    assert found.loss == 0 and not found.results[0].any()


def codes_of(planner: Planner) -> set[tuple]:
    """What Triton compiles for a plan."""
    return {
        (launch.kernel.__name__, launch.warps, launch.stages, *map(str, launch.constants.items()))
        for launch in planner.plan().launches
    }


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_other_batches_compile_nothing_anew(name, precision):
    """Unless a target takes another form."""
    codes = [codes_of(planner_of(name, batch=batch, precision=precision)) for batch in (2, 3, 16, None)]
    assert codes == codes[:1] * 4


def test_a_single_sample_is_not_worth_its_launches():
    assert not any(takes_it("imagenet", batch=1))
    direct, gram = (codes_of(planner_of("imagenet", batch=batch)) for batch in (1, 2))
    assert {code[0] for code in gram - direct} == {f"{kernel}_kernel" for kernel in GRAM}


def test_never_where_all_of_float32_is_asked_for():
    assert not any(takes_it("imagenet", precision="tf32x3"))
