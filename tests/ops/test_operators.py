"""The operators as PyTorch sees them: schema, fake tensors, torch.compile, threads, memory, arguments."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from l2t_fast import FeatureMatching, _native, feature_matching_loss
from tests.ops.problems import Problem, draw, draw_directions, draw_sizes, in_dtype, laid_out, solve

FIELDS = ("targets", "weights", "biases", "alpha", "pairs")
SEVERAL = ([(16, 9, 9), (8, 5, 6)], [(12, 9, 9), (20, 4, 3)], [(0, 0), (1, 0), (0, 1), (1, 1)])


def rich(backend, dtype=torch.float32) -> Problem:
    problem = draw_sizes("all to all", biased=[True, False, True, True], dtype=dtype)
    return problem.map(lambda t: t.to(backend.device))


# ---- opcheck ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_opcheck_without_grad(backend, layout, dtype):
    problem = rich(backend, dtype)
    problem.targets[:] = [laid_out(t, layout) for t in problem.targets]
    arguments = problem.operator_arguments()
    torch.library.opcheck(backend.ops.matching_forward.default, arguments)
    _, gradients = backend.ops.matching_forward(*arguments)
    for factor in (2.0, 1.0):
        torch.library.opcheck(
            backend.ops.matching_backward.default, (torch.tensor(factor, device=backend.device), gradients, *arguments)
        )
    directions = iter(draw_directions(problem))
    slots = [None if slot is None else next(directions) for slot in problem.slots]
    slots[2] = None
    torch.library.opcheck(backend.ops.matching_hvp.default, (*arguments[:-1], slots, arguments[-1]))


def test_opcheck_with_grad(backend):
    problem = rich(backend).requiring_grad()
    arguments = problem.operator_arguments()
    torch.library.opcheck(backend.ops.matching_forward.default, arguments)
    if hasattr(backend.ops, "matching_loss"):
        torch.library.opcheck(backend.ops.matching_loss.default, arguments)
    gradients = [g.detach() for g in backend.ops.matching_forward(*arguments)[1]]
    grad_loss = torch.tensor(2.0, device=backend.device, requires_grad=True)
    torch.library.opcheck(backend.ops.matching_backward.default, (grad_loss, gradients, *arguments))


def test_opcheck_with_some_needs(backend):
    problem = rich(backend)
    needs = [slot is not None and i % 2 == 0 for i, slot in enumerate(problem.slots)]
    some = iter([need for need, slot in zip(needs, problem.slots, strict=True) if slot is not None])
    problem = problem.with_inputs([t.detach().requires_grad_(next(some)) for t in problem.inputs])
    torch.library.opcheck(backend.ops.matching_forward.default, problem.operator_arguments(needs))


def test_meta_tensors_have_the_shapes(backend):
    problem = rich(backend)
    loss, gradients = backend.ops.matching_forward(*problem.map(lambda t: t.to("meta")).operator_arguments())
    assert loss.is_meta and loss.shape == () and loss.dtype == torch.float32
    assert [g.shape for g in gradients] == [t.shape for t in problem.inputs]


# ---- torch.compile ---------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A small network with two maps, matched to two sources, in a training step."""

    def __init__(self, backend: str):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 20, 3, stride=2)
        self.matching = FeatureMatching([16, 8], [12, 20], SEVERAL[2], backend=backend)

    def forward(self, x, sources, channel_weights, pair_weights):
        first = self.first(x).relu()
        second = self.second(first).relu()
        loss = self.matching(sources, [first, second], channel_weights, 0.5, pair_weights)
        return loss + second.mean()


def batch_for(backend, batch):
    """Arguments of the model, and those of them that learn."""
    sources = [torch.randn(batch, *shape, device=backend.device) for shape in SEVERAL[0]]
    what = [torch.rand(batch, sources[m].shape[1], device=backend.device, requires_grad=True) for m, _ in SEVERAL[2]]
    where = [torch.rand(batch, 1, device=backend.device, requires_grad=True) for _ in SEVERAL[2]]
    return (torch.randn(batch, 3, 9, 9, device=backend.device), sources, what, where), [*what, *where]


def step(model, arguments, learned):
    loss = model(*arguments)
    return loss.detach(), *torch.autograd.grad(loss, [*model.parameters(), *learned])


def test_compile_without_graph_breaks(backend):
    """Two batch sizes: PyTorch compiles the second time with a symbolic batch."""
    torch.manual_seed(0)
    model = Model(backend.name).to(backend.device)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (4, 3):
        arguments, learned = batch_for(backend, batch)
        found = step(compiled, arguments, learned)
        torch.testing.assert_close(found, step(twin, arguments, learned), rtol=1e-5, atol=1e-7)


def test_compile_to_native_code(backend):
    """The default compiler, which plans memory and strides around the operators."""
    torch.manual_seed(0)
    problem = rich(backend).requiring_grad()
    sources = [laid_out(s, "channels_last") for s in problem.sources]

    def loss(*inputs):
        changed = problem.with_inputs([i * 2 - 1 for i in inputs])
        return backend.matching_loss(sources, *[getattr(changed, name) for name in FIELDS]).sin()

    compiled = torch.compile(loss, fullgraph=True)
    found = torch.autograd.grad(compiled(*problem.inputs), problem.inputs)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*problem.inputs), problem.inputs), rtol=1e-4, atol=1e-5)


def test_compile_without_grad(backend):
    problem = rich(backend)
    compiled = torch.compile(problem.as_function(backend.matching_loss), fullgraph=True)
    torch.testing.assert_close(compiled(*problem.inputs), problem.loss(backend.matching_loss))


def test_aot_autograd_with_some_inputs_frozen(backend):
    """The partitioner must cope with gradients that are saved from the forward graph and scaled in the backward one."""
    problem = rich(backend)
    frozen = problem.with_inputs([t.detach().requires_grad_(i % 3 > 0) for i, t in enumerate(problem.inputs)])
    chosen = [t for t in frozen.inputs if t.requires_grad]
    function = frozen.as_function(backend.matching_loss)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(3 * compiled(*frozen.inputs), chosen)
    wanted = torch.autograd.grad(3 * function(*frozen.inputs), chosen)
    torch.testing.assert_close(found, wanted)


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_functional_call_differentiates_to_its_parameters(backend):
    torch.manual_seed(0)
    model = Model(backend.name).to(backend.device)
    reference = copy.deepcopy(model)
    reference.matching.backend = "reference"
    sources = [torch.randn(2, *shape, device=backend.device) for shape in SEVERAL[0]]
    arguments = torch.randn(2, 3, 9, 9, device=backend.device), sources, None, None
    parameters = {name: (p.detach() * 1.1).requires_grad_() for name, p in model.named_parameters()}

    def derivatives(module):
        loss = torch.func.functional_call(module, parameters, arguments)
        first = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), list(parameters.values()))
        return [loss, *first, *second]

    torch.testing.assert_close(derivatives(model), derivatives(reference), rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_autocast_leaves_the_sums_in_float32(backend):
    problem = in_dtype(rich(backend), torch.bfloat16, torch.float32)
    outside = problem.loss(backend.matching_loss)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        inside = problem.loss(backend.matching_loss)
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


# ---- threads ---------------------------------------------------------------------------------------------------------


def several(backend, batch=5, dtype=torch.float32) -> Problem:
    sources, targets, pairs = [(16, 33, 31), (40, 8, 8)], [(24, 33, 31), (65, 8, 8), (70, 2, 2)], None
    pairs = [(m, n) for m in range(2) for n in range(3)]
    return draw(sources, targets, pairs, batch=batch, dtype=dtype).map(lambda t: t.to(backend.device))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_from_run_to_run(backend, threads, count, dtype):
    threads(count)
    problem = several(backend, dtype=dtype)
    directions = draw_directions(problem)
    first = solve(backend.matching_loss, problem, directions).parts()
    for _ in range(3):
        again = solve(backend.matching_loss, problem, directions).parts()
        assert all(torch.equal(again[name], value) for name, value in first.items())


def test_threads_change_roundings_alone(backend, threads):
    problem = several(backend)
    directions = draw_directions(problem)
    answers = []
    for count in (1, 2, 3):
        threads(count)
        answers.append(solve(backend.matching_loss, problem, directions).parts())
    for other in answers[1:]:
        for name, value in answers[0].items():
            assert float((other[name] - value).norm() / value.norm()) < 1e-5, name


def test_native_loops_are_parallel(threads):
    if _native.extension is None:
        pytest.skip(f"no native extension: {_native.why_unavailable()}")
    for count in (1, 2, 3):
        threads(count)
        assert _native.extension.parallel_threads() == count


def test_calls_from_several_python_threads(backend):
    from concurrent.futures import ThreadPoolExecutor

    problem = several(backend, batch=2)
    directions = draw_directions(problem)
    wanted = solve(backend.matching_loss, problem, directions).parts()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: solve(backend.matching_loss, problem, directions).parts(), range(12)))
    for answer in answers:
        for name, value in wanted.items():
            torch.testing.assert_close(answer[name], value, rtol=1e-4, atol=1e-6, msg=name)


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(run) -> int:
    """The most memory that PyTorch's CPU allocator held at once during ``run``, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "sliced channels_last", "offset", "expanded"])
def test_no_layout_is_copied(backend, layout):
    """A strided map costs no more memory than a contiguous one: far less than a copy of a single sample of it."""
    if backend.device != "cpu":
        pytest.skip("measures the CPU's allocator")
    problem = draw([(8, 40, 40)], [(16, 40, 40)], [(0, 0)], batch=16, dtype=torch.float32)
    other = Problem(
        [laid_out(s, layout) for s in problem.sources],
        [laid_out(t, layout) for t in problem.targets],
        problem.weights,
        problem.biases,
        problem.alpha,
        problem.pairs,
    )
    problem, other = problem.requiring_grad(), other.requiring_grad()
    usual = peak_bytes(lambda: problem.loss(backend.matching_loss))
    strided = peak_bytes(lambda: other.loss(backend.matching_loss))
    feature = problem.sources[0].numel() * 4
    assert strided <= usual + feature / 16


def test_a_backward_holds_one_set_of_gradients(backend):
    """They are scaled where they lie."""
    if backend.device != "cpu":
        pytest.skip("measures the CPU's allocator")
    problem = draw([(4, 8, 8)], [(16, 40, 40)], [(0, 0)], batch=16, dtype=torch.float32).requiring_grad()
    target = problem.targets[0]
    loss = 2 * problem.loss(backend.matching_loss)
    assert peak_bytes(loss.backward) < target.numel() * 4 / 8
    assert target.grad is not None


def test_a_double_backward_holds_one_set_of_gradients_and_one_of_products(backend):
    if backend.device != "cpu":
        pytest.skip("measures the CPU's allocator")
    problem = draw([(4, 8, 8)], [(16, 40, 40)], [(0, 0)], batch=16, dtype=torch.float32).requiring_grad()
    directions = [t.detach() for t in problem.inputs]

    def run():
        gradients = torch.autograd.grad(problem.loss(backend.matching_loss), problem.inputs, create_graph=True)
        return gradients, torch.autograd.grad(gradients, problem.inputs, directions)

    assert peak_bytes(run) < 2.5 * problem.targets[0].numel() * 4


def test_large_results_in_use_are_left_alone(backend):
    """Large blocks are used again: never those of a result that somebody holds."""
    held = []
    for seed, height in enumerate([64, 48, 64, 80, 48]):
        problem = draw([(3, 8, 8)], [(17, height, 64)], [(0, 0)], batch=8, seed=seed, dtype=torch.float32)
        problem = problem.map(lambda t: t.to(backend.device)).requiring_grad()
        directions = [t.detach() for t in problem.inputs]
        gradients = torch.autograd.grad(problem.loss(backend.matching_loss), problem.inputs, create_graph=True)
        products = torch.autograd.grad(gradients, problem.inputs, directions)
        held += [(t, t.detach().clone()) for t in (gradients[0], products[0])]
        if seed == 2:
            del held[:2]
    for tensor, snapshot in held:
        assert torch.equal(tensor, snapshot)


# Each target is more than an eighth larger than the one before it: no block is of use again.
GROWING_TARGETS = """
import os
from pathlib import Path
import torch
from l2t_fast.ops import native

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def call(height):
    target, source = torch.ones(8, 16, height, 64), torch.ones(8, 2, 1, 1)
    slots = [target], [torch.ones(2, 16)], [torch.ones(2)], torch.ones(8, 2)
    native.loss_and_gradients([source], *slots, [(0, 0)], [True] * 4)
    return target.nbytes

call(40)
before = resident()
for k in range(17):
    largest = call(int(40 * 1.2**k))
print((resident() - before) / largest)
"""


@pytest.mark.skipif(_native.extension is None, reason="there is no native extension")
@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers keep what was freed")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to tell what memory is resident")
def test_large_blocks_that_are_of_no_use_again_are_not_kept():
    """All of the gradients together are six times the largest one."""
    # malloc gives what is freed of this size back to the system, from which it is resident no more
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", GROWING_TARGETS]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) < 2.5


# ---- arguments -------------------------------------------------------------------------------------------------------


# what is wrong -> (how, the error, what it says); the arguments are changed in place, or replaced
BROKEN = {
    "a map without a dimension": (
        lambda a: a["targets"].__setitem__(1, a["targets"][1][0]),
        ValueError,
        r"target feature 1 has shape \[4, 3, 5\]",
    ),
    "another batch": (
        lambda a: a["sources"].__setitem__(0, a["sources"][0][:1]),
        ValueError,
        r"source feature 0 .* one batch size",
    ),
    "a pair out of range": (
        lambda a: a["pairs"].__setitem__(2, 2),
        ValueError,
        r"pair 1 is \(2, 0\) but there are 2 source",
    ),
    "a negative index": (lambda a: a["pairs"].__setitem__(3, -1), ValueError, r"pair 1 is \(1, -1\)"),
    "a weight of another shape": (
        lambda a: a["weights"].__setitem__(0, a["weights"][0].t()),
        ValueError,
        r"pair 0 \(0, 0\): the weight has shape",
    ),
    "a bias of another shape": (
        lambda a: a["biases"].__setitem__(3, a["biases"][3][:1]),
        ValueError,
        r"pair 3 \(1, 1\): the bias has shape",
    ),
    "too few columns in alpha": (
        lambda a: a.update(alpha=a["alpha"][:, 1:]),
        ValueError,
        "source channels sum to 10",
    ),
    "too few weights": (lambda a: a["weights"].pop(), ValueError, "two indices a pair"),
    "too few needs": (lambda a: a["needs"].pop(), ValueError, "11 in all, are needed"),
    "float64 with float32": (
        lambda a: a["targets"].__setitem__(0, a["targets"][0].double()),
        TypeError,
        "either all tensors or none are float64",
    ),
    "integers": (
        lambda a: a["sources"].__setitem__(1, a["sources"][1].int()),
        TypeError,
        "source feature 1 has dtype Int",
    ),
    "alpha in half precision": (lambda a: a.update(alpha=a["alpha"].half()), TypeError, "alpha has dtype Half"),
    "a need for a bias that is None": (lambda a: a["biases"].__setitem__(0, None), ValueError, "bias of pair 0"),
    "no pixels to resize": (
        lambda a: a["sources"].__setitem__(0, a["sources"][0][:, :, :0]),
        ValueError,
        "no pixels to resize",
    ),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_wrong_arguments_raise(backend, wrong):
    """The operators are callable by anyone, and read memory by what they are told."""
    names = ("sources", "targets", "weights", "biases", "alpha", "pairs", "needs")
    problem = draw_sizes("all to all", dtype=torch.float32).map(lambda t: t.to(backend.device))
    arguments = dict(zip(names, problem.operator_arguments(), strict=True))
    change, error, message = BROKEN[wrong]
    change(arguments)
    with pytest.raises(error, match=message):
        backend.ops.matching_forward(*arguments.values())


def test_wrong_directions_raise(backend):
    problem = draw_sizes("all to all", dtype=torch.float32).map(lambda t: t.to(backend.device))
    arguments = problem.operator_arguments()
    good = draw_directions(problem)
    for slot, wrong, error, message in (
        (0, good[0][:1], ValueError, "direction 0 has shape"),
        (3, good[3].double(), TypeError, "direction 3 has dtype Double"),
        (None, good[:-1], ValueError, "got 10 directions"),
    ):
        directions = wrong if slot is None else [wrong if i == slot else d for i, d in enumerate(good)]
        with pytest.raises(error, match=message):
            backend.ops.matching_hvp(*arguments[:-1], directions, arguments[-1])


@pytest.mark.parametrize("wrong", ["no need", "needs more", "a gradient less"])
def test_wrong_needs_of_the_backward_operator_raise(backend, wrong):
    problem = draw_sizes("all to all", dtype=torch.float32).map(lambda t: t.to(backend.device))
    *arguments, needs = problem.operator_arguments()
    loss, gradients = backend.ops.matching_forward(*arguments, needs)
    grad_loss = torch.ones_like(loss).requires_grad_()
    gradients = gradients[:-1] if wrong == "a gradient less" else gradients
    needs = {"no need": [], "needs more": [*needs, True]}.get(wrong, needs)
    with pytest.raises(ValueError, match="needs"):
        backend.ops.matching_backward(grad_loss, gradients, *arguments, needs)


def lazily_negated(tensor):
    """The same numbers, whose sign PyTorch changes when it reads them."""
    tensor = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert tensor.is_neg()
    return tensor


def test_numbers_that_are_not_in_memory_as_they_are(backend):
    problem = draw_sizes("all to all", dtype=torch.float32).map(lambda t: t.to(backend.device))
    directions = draw_directions(problem)
    directions[3] = torch.zeros_like(directions[3])
    wanted = solve(backend.matching_loss, problem, directions)
    lazy = [lazily_negated(d) for d in directions]
    lazy[3] = torch._efficientzerotensor(directions[3].shape, device=backend.device)
    found = solve(backend.matching_loss, problem.map(lazily_negated), lazy)
    assert torch.equal(found.loss, wanted.loss)
    assert all(map(torch.equal, found.gradients + found.products, wanted.gradients + wanted.products))


def test_the_public_function_takes_the_fused_backend_by_itself(backend):
    problem = rich(backend)
    projections = list(zip(problem.weights, problem.biases, strict=True))
    by_name = feature_matching_loss(problem.sources, problem.targets, projections, problem.pairs, backend=backend.name)
    by_itself = feature_matching_loss(problem.sources, problem.targets, projections, problem.pairs)
    assert torch.equal(by_name, by_itself)
