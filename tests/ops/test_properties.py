"""Any matching problem: hypothesis draws sizes, pairs, dtypes, layouts and what requires grad; the truth is float64.

`pytest --hypothesis-profile=thorough tests/ops/test_properties.py` looks much longer, and somewhere else each time.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from l2t_fast import _native
from tests.ops.problems import LAYOUTS, Answer, Problem, assert_accurate, draw, draw_directions, laid_out, solve

# Around the widths of vectors and blocks, and small.
_CHANNELS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))
_SIDE = st.one_of(st.integers(1, 6), st.sampled_from([7, 8, 9, 13, 16, 17]))
_MAPS = st.lists(st.tuples(_CHANNELS, _SIDE, _SIDE), min_size=1, max_size=3)
_LOW = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def problems(draw_from, dtypes: tuple[torch.dtype, ...]) -> Problem:
    sources, targets = draw_from(_MAPS), draw_from(_MAPS)
    indices = st.tuples(st.integers(0, len(sources) - 1), st.integers(0, len(targets) - 1))
    pairs = draw_from(st.lists(indices, min_size=1, max_size=6))
    biased = draw_from(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    problem = draw(
        sources, targets, pairs, batch=draw_from(st.integers(0, 4)), biased=biased, seed=draw_from(st.integers(0, 99))
    )
    double = torch.float64 in dtypes and draw_from(st.booleans())
    low = [torch.float64] if double else [dtype for dtype in _LOW if dtype in dtypes]
    one = draw_from(st.sampled_from(low))
    mixed = draw_from(st.booleans())

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(draw_from(st.sampled_from(low)) if mixed else one)

    def place(tensor: torch.Tensor) -> torch.Tensor:
        return laid_out(cast(tensor), draw_from(st.sampled_from(LAYOUTS)))

    return replace(
        problem,
        sources=[place(s) for s in problem.sources],
        targets=[place(t) for t in problem.targets],
        weights=[cast(w) for w in problem.weights],
        biases=[None if b is None else cast(b) for b in problem.biases],
        alpha=problem.alpha.to(torch.float64 if double else torch.float32),
    )


@contextmanager
def cpu_ways(draw_from, threads):
    """The ways the CPU may go: either algorithm, and cut for several threads, which small problems would not be."""
    native = _native.extension
    native.force_algorithm(draw_from(st.sampled_from(["auto", "direct", "gram"])))
    native.force_chunks(draw_from(st.booleans()))
    threads(draw_from(st.sampled_from([1, 2, 3])))
    try:
        yield
    finally:
        native.force_algorithm("auto")
        native.force_chunks(False)


@given(data=st.data())
def test_any_problem(backend, threads, data):
    with cpu_ways(data.draw, threads) if backend.name == "cpu" else nullcontext():
        check_any_problem(backend, data)


def check_any_problem(backend, data):
    problem = data.draw(problems(backend.dtypes)).map(lambda t: t.to(backend.device))
    directions = draw_directions(problem)
    answer = solve(backend.matching_loss, problem, directions)
    assert_accurate(answer, problem, directions)

    # the same numbers, whichever of them are wanted
    wanted = data.draw(st.lists(st.booleans(), min_size=len(problem.inputs), max_size=len(problem.inputs)))
    fewer = problem.with_inputs([t.detach().requires_grad_(w) for t, w in zip(problem.inputs, wanted, strict=True)])
    chosen = [t for t in fewer.inputs if t.requires_grad]
    loss = fewer.loss(backend.matching_loss)
    gradients = torch.autograd.grad(loss, chosen, create_graph=True) if chosen else ()
    moving = [d if w else torch.zeros_like(d) for d, w in zip(directions, wanted, strict=True)]
    products = torch.autograd.grad(
        gradients, chosen, [d for d, w in zip(directions, wanted, strict=True) if w]
    ) if chosen else ()  # fmt: skip
    following = iter(zip(gradients, products, strict=True))
    both = [next(following) if w else (None, None) for w in wanted]
    assert_accurate(Answer(loss, *([pair[i] for pair in both] for i in (0, 1))), problem, moving)
