"""Problems that meet every way a tile can lie: across samples, pairs, borders and blocks of channels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

import triton.language as tl

from l2t_fast.ops.triton import kernels, launching, planning, records
from l2t_fast.ops.triton.arguments import Arguments, empty_results
from l2t_fast.ops.triton.arguments import check as check_arguments
from l2t_fast.ops.triton.tiles import TABLES
from tests.ops.problems import (
    Problem,
    assert_accurate,
    draw,
    draw_directions,
    draw_directions_laid_out,
    laid_out,
    solve,
)

# (batch, source maps, target maps, pairs); tiles of the interpreter are 16 rows, 32 pixels and 16 channels
PROBLEMS = {
    "more channels than a tile": (2, [(5, 3, 3)], [(37, 3, 3)], [(0, 0)]),
    "more rows than a tile": (2, [(37, 3, 3)], [(5, 3, 3)], [(0, 0)]),
    "tiles across two samples": (3, [(3, 4, 5)], [(4, 5, 9)], [(0, 0)]),
    "tiles of exactly one sample": (3, [(3, 4, 8)], [(4, 4, 8)], [(0, 0)]),
    "tiles of many samples": (40, [(2, 1, 1)], [(3, 1, 1)], [(0, 0)]),
    "vectors of four": (2, [(8, 2, 2)], [(8, 4, 8)], [(0, 0)]),
    "vectors of four, of two and single elements": (
        2,
        [(8, 2, 2)],
        [(8, 4, 8), (8, 5, 6), (8, 3, 5)],
        [(0, 0), (0, 1), (0, 2)],
    ),
    "layers of different class": (
        2,
        [(3, 2, 2), (17, 3, 3)],
        [(3, 5, 5), (18, 2, 2)],
        [(0, 0), (1, 1), (1, 0), (0, 1)],
    ),
    "more weights than are packed or summed up at once": (1, [(130, 1, 1)], [(66, 1, 1)], [(0, 0)]),
    "more pixels than are summed up at once": (1, [(3, 24, 24)], [(2, 24, 24)], [(0, 0)]),
}


def on(backend, problem: Problem) -> Problem:
    return problem.map(lambda t: t.to(backend.device))


def check(backend, problem: Problem) -> None:
    problem = on(backend, problem)
    directions = draw_directions(problem)
    assert_accurate(solve(backend.matching_loss, problem, directions), problem, directions)


@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles(triton_backend, name):
    batch, *sizes = PROBLEMS[name]
    check(triton_backend, draw(*sizes, batch=batch, dtype=torch.float32))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "offset", "expanded"])
def test_layouts(triton_backend, layout):
    """Of maps, and of projections and coefficients that are views of something larger."""
    problem = draw([(4, 3, 4)], [(8, 5, 4)], [(0, 0)], batch=2, dtype=torch.float32)
    check(
        triton_backend,
        replace(
            problem,
            sources=[laid_out(s, layout) for s in problem.sources],
            targets=[laid_out(t, layout) for t in problem.targets],
            weights=[F.pad(w, (1, 2, 1, 0), value=torch.nan)[1:, 1:-2] for w in problem.weights],
            biases=[torch.stack([b, b], dim=1)[:, 1] for b in problem.biases],
            alpha=problem.alpha.t().contiguous().t(),
        ),
    )


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "offset", "expanded"])
def test_directions_in_another_layout_than_their_map(triton_backend, layout):
    problem = on(triton_backend, draw([(5, 4, 5)], [(4, 4, 5)], [(0, 0)], dtype=torch.float32))
    directions = draw_directions_laid_out(problem, layout)
    assert_accurate(solve(triton_backend.matching_loss, problem, directions), problem, directions)


PARTS = {
    "one sample at a time": (400, [(4, 3, 5), (2, 2, 2)], [(0, 0), (0, 1)]),
    "two, and the last one alone": (800, [(4, 3, 5), (2, 2, 2)], [(0, 0), (0, 1)]),
    "two, and the last one in fewer tiles": (1000, [(4, 5, 8)], [(0, 0)]),
}


@pytest.mark.parametrize("parts", PARTS)
def test_parts(triton_backend, monkeypatch, parts):
    """E in memory for some samples at a time."""
    most, targets, pairs = PARTS[parts]
    monkeypatch.setattr(planning.Planner, "_bytes_of_differences", lambda *_: most)
    monkeypatch.setattr(launching, "_PLANS", type(launching._PLANS)())
    check(triton_backend, draw([(3, 2, 2)], targets, pairs, batch=3, dtype=torch.float32))


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_the_order_of_a_launch_s_programs_changes_no_bit(triton_backend, monkeypatch, form):
    """Programs run in any order, each on the item of its number: here the items are turned round."""
    sizes = [(3, 3, 5), (18, 2, 2)], [(4, 3, 5), (2, 2, 2)], [(0, 0), (1, 0), (1, 1)]
    problem = on(triton_backend, draw(*sizes, batch=5, dtype=torch.float32))
    directions = draw_directions(problem)
    monkeypatch.setattr(planning.Planner, "_bytes_of_differences", lambda *_: 1600)  # of two samples at a time
    monkeypatch.setattr(planning.gram_planning, "pays", lambda *_: form == "gram")
    launch = planning.Planner.launch
    answers = []
    for turn in (1, -1):
        monkeypatch.setattr(launching, "_PLANS", type(launching._PLANS)())
        monkeypatch.setattr(
            planning.Planner,
            "launch",
            lambda self, kernel, items, *more, turn=turn: launch(self, kernel, items[::turn], *more),
        )
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=form == "gram"):
            answers.append(solve(triton_backend.matching_loss, problem, directions).parts())
    assert all(torch.equal(answers[0][name], answers[1][name]) for name in answers[0])


def test_the_loss_of_more_programs_than_its_sum_reads_at_once(triton_backend):
    """The kernel alone: so many programs take the interpreter half a minute."""
    count, device = 2 * kernels.SUM_CHUNK.value + 1, triton_backend.device
    sums = torch.rand(count + 1, device=device)
    sums[-1] = torch.nan  # is no program's
    loss = torch.empty((), device=device)
    table = [0] * records.HEADER_WORDS.value
    header = {records.LOSS_SUMS: sums.data_ptr(), records.LOSS_COUNT: count, records.LOSS: loss.data_ptr()}
    for word, value in header.items():
        table[word.value] = value
    item = torch.zeros(1, kernels.SUMS_ITEM.value, dtype=torch.int32, device=device)
    item[0, 0] = kernels.OF_LOSS.value
    kernels.sums_kernel[(1,)](torch.tensor(table, device=device), item, tl.float32, tl.float32)
    torch.testing.assert_close(loss.double(), sums[:-1].double().sum(), rtol=1e-6, atol=0)


def planner_of(problem: Problem, directions: Sequence[Tensor | None] | None = None) -> planning.Planner:
    """Of all derivatives, on a GPU; nothing is computed, and tensors may be without data."""
    pairs = [n for pair in problem.pairs for n in pair]
    needs = [True] * len(problem.slots)
    arguments = Arguments(
        problem.sources, problem.targets, problem.weights, problem.biases, problem.alpha, pairs, needs
    )
    own = {"precision": "tf32x3", "tiles": TABLES["tf32x3"], "processors": 132, "compiles": True}
    return planning.Planner(arguments, directions, empty_results(arguments), **own)


def planned(problem: Problem, kernel: Any) -> list[planning.Launch]:
    """A kernel's launches for loss and gradient."""
    return [launch for launch in planner_of(problem).plan().launches if launch.kernel is kernel]


@pytest.mark.parametrize("kernel", [kernels.differences_kernel, kernels.gradients_kernel], ids=lambda k: k.__name__)
def test_maps_that_are_read_by_fours_share_no_launch_with_others(kernel):
    """A map of 7x7 would have all others read element by element."""
    _, *sizes = PROBLEMS["vectors of four, of two and single elements"]
    found = planned(draw(*sizes, batch=2, dtype=torch.float32).map(lambda t: t.to("meta")), kernel)
    assert sorted(launch.constants["T_VECTOR"] for launch in found) == [1, 2, 4]


def differences_index(source: tuple[int, ...], target: tuple[int, ...], **changed: Tensor) -> tl.dtype:
    """The type of offsets in the kernel of differences."""
    a = draw([source], [target], [(0, 0)], batch=1, dtype=torch.float32).map(lambda t: t.to("meta"))
    a = replace(a, **{name: [value] if name != "alpha" else value for name, value in changed.items()})
    (launch,) = planned(a, kernels.differences_kernel)
    return launch.constants["INDEX"]


def test_offsets_and_taps_beyond_32_bits():
    """The numerators of a resize's shares reach twice the product of both sides."""
    assert differences_index((3, 1, 30000), (2, 1, 35000)) == tl.int32
    assert differences_index((3, 1, 20000), (2, 1, 70000)) == tl.int64
    assert differences_index((3, 20000, 1), (2, 70000, 1)) == tl.int64
    far = torch.empty_strided((300,), (2**23,), device="meta")
    assert differences_index((300, 2, 2), (2, 2, 2), biases=far) == tl.int64
    assert differences_index((300, 2, 2), (2, 2, 2), weights=far[:, None].expand(300, 2)) == tl.int64
    assert differences_index((300, 2, 2), (2, 2, 2), alpha=far[None]) == tl.int64


@pytest.mark.parametrize("kernel", [kernels.differences_kernel, kernels.gradients_kernel], ids=lambda k: k.__name__)
def test_an_e_beyond_32_bits(kernel):
    for channels, wanted in ((3800, tl.int32), (3900, tl.int64)):
        problem = draw([(channels, 1, 1)], [(1, 800, 700)], [(0, 0)], batch=1, dtype=torch.float32)
        (launch,) = planned(problem.map(lambda t: t.to("meta")), kernel)
        assert launch.constants["INDEX"] == wanted


def gradients_constants(*targets: Tensor, moved: Tensor | None = None) -> dict[str, Any]:
    """Of a launch for targets without data, all of one source, where the first one may have a direction."""
    pairs = [(0, n) for n in range(len(targets))]
    problem = draw([(1, 1, 1)], [(1, 1, 1)] * len(targets), pairs, batch=len(targets[0]), dtype=torch.float32)
    weights = [torch.empty(1, target.shape[1]) for target in targets]
    problem = replace(problem, targets=list(targets), weights=weights).map(lambda t: t.to("meta"))
    planner = planner_of(problem, None if moved is None else [moved, *[None] * (len(problem.slots) - 1)])
    planner.bytes_of_differences = 2**20
    for layer in planner.direct:
        planner._place(layer)
    return planner.gradients_constants(planner.direct[0].gradients, planner.direct)


def test_turned_weights_and_results_beyond_32_bits():
    """A result is no view, even where its map is one of few numbers."""
    with torch.device("meta"):
        assert gradients_constants(torch.empty(1, 2**24, 1, 1))["INDEX"] == tl.int32
        assert gradients_constants(torch.empty(1, 2**25, 1, 1))["INDEX"] == tl.int64
        one = torch.empty(1, 1, 1, 1)
        assert gradients_constants(one.expand(1, 2**21, 32, 31))["INDEX"] == tl.int32
        assert gradients_constants(one.expand(1, 2**21, 32, 33))["INDEX"] == tl.int64


def test_maps_are_read_by_fours_where_all_of_them_and_their_directions_can_be():
    with torch.device("meta"):
        map_, other = torch.empty(2, 4, 4, 4), torch.empty(2, 4, 4, 5)[..., :4]
        far = torch.empty_strided((2, 4, 4, 4), (65, 16, 4, 1))
        assert gradients_constants(map_)["T_VECTOR"] == gradients_constants(map_, moved=map_)["T_VECTOR"] == 4
        assert gradients_constants(map_, moved=other)["T_VECTOR"] == 1
        assert gradients_constants(far)["T_VECTOR"] == 1
    beside = laid_out(torch.zeros(2, 4, 4, 4), "offset")
    assert beside.data_ptr() % 16 and planning._vector(beside, False) == 1


def test_results_are_written_by_fours_where_all_of_them_can_be():
    """Whatever their maps allow: a result is contiguous where its map has gaps."""
    with torch.device("meta"):
        far, odd = torch.empty_strided((2, 4, 4, 4), (65, 16, 4, 1)), torch.empty(2, 5, 3, 3)
        assert gradients_constants(far)["D_VECTOR"] == 4
        assert gradients_constants(far, odd)["D_VECTOR"] == 1


@pytest.mark.parametrize("side", ["source", "target"])
def test_more_pixels_than_are_counted_in_32_bits_are_refused(side):
    large, small = (1, 2**16, 2**15), (1, 2, 2)
    maps = ([large], [small]) if side == "source" else ([small], [large])
    with torch.device("meta"):
        sources, targets = ([torch.empty(1, *size) for size in sizes] for sizes in maps)
        given = Arguments(sources, targets, [torch.empty(1, 1)], [None], torch.empty(1, 1), [0, 0], [False] * 4)
    with pytest.raises(ValueError, match=f"{side} feature 0 .* takes maps of fewer than 2.31 pixels"):
        check_arguments(given)


def test_maps_of_different_dtypes(triton_backend):
    """Lists of one dtype each are read as they are, mixed lists through float32 copies."""
    problem = draw([(3, 2, 2), (2, 3, 3)], [(3, 2, 2), (4, 3, 3)], [(0, 0), (1, 1)], batch=2, dtype=torch.float32)
    half = torch.float16
    check(
        triton_backend,
        replace(
            problem,
            sources=[problem.sources[0].to(half), problem.sources[1]],
            targets=[t.to(half) for t in problem.targets],
            weights=[problem.weights[0], problem.weights[1].to(half)],
            biases=[problem.biases[0].to(half), problem.biases[1]],
        ),
    )


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_a_mixture_again(triton_backend, narrow):
    """The plan that is kept is for the float32 copies, which a later call makes too."""
    problem = draw([(3, 2, 2)], [(3, 2, 2), (4, 3, 3)], [(0, 0), (0, 1)], dtype=torch.float32)
    problem = replace(problem, targets=[problem.targets[0].to(narrow), problem.targets[1]])
    for _ in range(2):
        check(triton_backend, problem)


def test_equal_sizes_in_other_pairs(triton_backend):
    for pairs in ([(0, 0), (1, 1)], [(0, 1), (1, 0)]):
        check(triton_backend, draw([(3, 2, 2)] * 2, [(4, 2, 2)] * 2, pairs, dtype=torch.float32))


def test_a_plan_is_for_one_precision(triton_backend):
    problem = on(triton_backend, draw([(3, 2, 2)], [(3, 2, 2)], [(0, 0)], dtype=torch.float32))
    keys = []
    for allowed in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            keys.append(launching._key(Arguments(*problem.operator_arguments()), None))
    assert keys[0] != keys[1]


def test_directions_that_are_none(triton_backend):
    """None stands for zero, slot by slot; a bias that is None has no direction."""
    problem = on(
        triton_backend,
        draw([(3, 2, 3), (2, 3, 3)], [(4, 3, 3)], [(0, 0), (1, 0)], biased=[True, False], dtype=torch.float32),
    )
    directions = draw_directions(problem)
    following = iter(directions)
    slots = [None if slot is None else next(following) for slot in problem.slots]
    arguments = problem.operator_arguments()
    hvp = triton_backend.ops.matching_hvp
    for kept in range(len(slots)):
        some = [d if i == kept else None for i, d in enumerate(slots)]
        zeros = [None if d is None else d if i == kept else torch.zeros_like(d) for i, d in enumerate(slots)]
        found, wanted = (hvp(*arguments[:-1], ds, arguments[-1]) for ds in (some, zeros))
        assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


def test_what_is_not_needed_changes_nothing_else(triton_backend):
    problem = on(triton_backend, draw([(3, 4, 4)], [(2, 3, 3)], [(0, 0)], dtype=torch.float32))
    arguments = problem.operator_arguments()
    forward = triton_backend.ops.matching_forward
    loss, gradients = forward(*arguments)
    for slot in range(len(gradients)):
        needs = [i == slot for i in range(len(gradients))]
        alone_loss, (alone,) = forward(*arguments[:-1], needs)
        # another kernel, whose compiler may round otherwise
        torch.testing.assert_close([alone_loss, alone], [loss, gradients[slot]], rtol=1e-5, atol=1e-6)


def test_the_same_bits_from_call_to_call(triton_backend):
    problem = on(triton_backend, draw([(3, 4, 4), (5, 2, 2)], [(6, 5, 7)], [(0, 0), (1, 0)], dtype=torch.float32))
    directions = draw_directions(problem)
    once, again = (solve(triton_backend.matching_loss, problem, directions).parts() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_derivatives_that_do_not_exist_raise(triton_backend):
    problem = on(triton_backend, draw([(2, 2, 2)], [(2, 2, 2)], [(0, 0)], dtype=torch.float32)).requiring_grad()
    loss = problem.loss(triton_backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    products = torch.autograd.grad(gradients, problem.inputs, draw_directions(problem), create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated twice, not three times"):
        torch.autograd.grad(products[0].sum(), problem.inputs)
    problem.sources[0].requires_grad_()
    with pytest.raises(ValueError, match=r'source feature 0 requires grad.*backend="reference"'):
        problem.loss(triton_backend.matching_loss)


def test_saved_gradients_are_scaled_in_place_only_where_nobody_reads_them(triton_backend):
    problem = on(triton_backend, draw([(2, 2, 2)], [(2, 2, 2)], [(0, 0)], dtype=torch.float32)).requiring_grad()
    loss, held = triton_backend.ops.matching_forward(*problem.operator_arguments())
    before = [g.detach().clone() for g in held]
    first = torch.autograd.grad(3 * loss, problem.inputs, retain_graph=True)
    second = torch.autograd.grad(3 * loss, problem.inputs)
    for value, one, two, kept in zip(before, first, second, held, strict=True):
        torch.testing.assert_close(one, 3 * value)
        assert torch.equal(one, two) and torch.equal(kept, value)
    alone = problem.loss(triton_backend.matching_loss)
    torch.testing.assert_close(torch.autograd.grad(3 * alone, problem.inputs), first)


def test_float64_is_refused(triton_backend):
    problem = on(triton_backend, draw([(2, 2, 2)], [(2, 2, 2)], [(0, 0)]))
    with pytest.raises(TypeError, match="float32"):
        problem.loss(triton_backend.matching_loss)
