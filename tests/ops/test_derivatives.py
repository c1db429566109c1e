"""First and second derivatives: right where they exist, and raised where they do not."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from l2t_fast import feature_matching_loss
from l2t_fast.ops import native, reference
from tests.ops.problems import SIZES, draw, draw_directions, draw_sizes, in_dtype, laid_out, solve, truth

RICH = "all to all"


def close(found, wanted):
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_and_gradgradcheck(exact_backend, sizes, bias):
    pairs = SIZES[sizes][2]
    problem = draw_sizes(sizes, biased=[bias] * len(pairs)).requiring_grad()
    function = problem.as_function(exact_backend.matching_loss)
    assert gradcheck(function, problem.inputs)
    assert gradgradcheck(function, problem.inputs)


def test_some_pairs_have_a_bias_and_others_none(exact_backend):
    problem = draw_sizes(RICH, biased=[True, False, False, True]).requiring_grad()
    function = problem.as_function(exact_backend.matching_loss)
    assert gradcheck(function, problem.inputs)
    assert gradgradcheck(function, problem.inputs)


def test_a_factor_on_the_loss_is_differentiated_along(exact_backend):
    """grad_loss is then neither 1 nor a constant."""
    problem = draw_sizes(RICH, batch=1).requiring_grad()
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def scaled(factor, *inputs):
        return factor**3 * problem.with_inputs(inputs).loss(exact_backend.matching_loss)

    assert gradcheck(scaled, (factor, *problem.inputs))
    assert gradgradcheck(scaled, (factor, *problem.inputs))


def test_through_the_public_function(exact_backend):
    """Channel and pair weights, projections and features, as a user holds them."""
    problem = draw_sizes(RICH)
    generator = torch.Generator().manual_seed(3)
    count = len(problem.pairs)
    channel_weights = [
        torch.rand(2, w.shape[0], generator=generator, dtype=torch.float64) + 0.1 for w in problem.weights
    ]
    pair_weights = [torch.rand(2, 1, generator=generator, dtype=torch.float64) + 0.1 for _ in range(count)]
    inputs = [*problem.targets, *problem.weights, *problem.biases, *channel_weights, *pair_weights]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]

    def loss(*inputs):
        targets, rest = inputs[:2], inputs[2:]
        weights, biases, what, where = (rest[i * count : (i + 1) * count] for i in range(4))
        projections = list(zip(weights, biases, strict=True))
        return feature_matching_loss(
            problem.sources, targets, projections, problem.pairs, what, where, 0.5, backend=exact_backend.name
        )

    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:])
def test_inputs_without_grad_are_left_out(exact_backend, wanted):
    """Every choice among targets, weights, biases and alpha: the others' derivatives are the same as with all."""
    problem = draw_sizes(RICH, biased=[True, False, True, True])
    directions = draw_directions(problem)
    everything = truth(problem, directions)
    groups = [len(problem.targets), len(problem.weights), 3, 1]
    mask = [want for want, size in zip(wanted, groups, strict=True) for _ in range(size)]
    mixed = problem.with_inputs([t.detach().requires_grad_(want) for t, want in zip(problem.inputs, mask, strict=True)])
    chosen = [t for t in mixed.inputs if t.requires_grad]
    loss = mixed.loss(exact_backend.matching_loss)
    gradients = torch.autograd.grad(loss, chosen, create_graph=True)
    close(gradients, [g for g, want in zip(everything.gradients, mask, strict=True) if want])

    # the product along the chosen inputs' directions alone
    still = [d if want else torch.zeros_like(d) for d, want in zip(directions, mask, strict=True)]
    products = torch.autograd.grad(gradients, chosen, [d for d, want in zip(directions, mask, strict=True) if want])
    close(products, [h for h, want in zip(truth(problem, still).products, mask, strict=True) if want])


def test_every_input_alone(exact_backend):
    """One input that requires grad; and one gradient asked for where all inputs require grad."""
    problem = draw_sizes(RICH)
    directions = draw_directions(problem)
    everything = truth(problem, directions)
    full = problem.requiring_grad()
    for i in range(len(problem.inputs)):
        alone = problem.with_inputs([t.detach().requires_grad_(i == j) for j, t in enumerate(problem.inputs)])
        close(
            torch.autograd.grad(alone.loss(exact_backend.matching_loss), alone.inputs[i]),
            everything.gradients[i : i + 1],
        )
        loss = full.loss(exact_backend.matching_loss)
        (gradient,) = torch.autograd.grad(loss, full.inputs[i], create_graph=True)
        close([gradient], everything.gradients[i : i + 1])
        still = [d if i == j else torch.zeros_like(d) for j, d in enumerate(directions)]
        products = torch.autograd.grad(gradient, full.inputs, directions[i], materialize_grads=True)
        close(products, truth(problem, still).products)


def test_the_operator_s_gradients_are_differentiable_too(exact_backend):
    """Whoever calls the operator itself and differentiates the gradients it returns gets them right, not detached."""
    problem = draw_sizes("neither divides").requiring_grad()

    def outputs(*inputs):
        loss, gradients = torch.ops.l2t_fast.matching_forward(*problem.with_inputs(inputs).operator_arguments())
        return loss, *gradients

    assert gradcheck(outputs, problem.inputs)


def test_the_operator_s_loss_and_gradients_differentiated_together(exact_backend):
    problem = draw_sizes("neither divides").requiring_grad()

    def derivative(loss, gradients):
        return torch.autograd.grad(3 * loss + sum(g.square().sum() for g in gradients), problem.inputs)

    found = derivative(*torch.ops.l2t_fast.matching_forward(*problem.operator_arguments()))
    loss = problem.loss(reference.matching_loss)
    close(found, derivative(loss, torch.autograd.grad(loss, problem.inputs, create_graph=True)))


def test_loss_and_gradients_and_hessian_vector_product(exact_backend):
    problem = draw_sizes(RICH, biased=[True, False, True, True])
    directions = draw_directions(problem)
    wanted = truth(problem, directions)
    arguments = (problem.sources, problem.targets, problem.weights, problem.biases, problem.alpha, problem.pairs)
    following = iter(directions)
    slots = [None if slot is None else next(following) for slot in problem.slots]
    needs = [slot is not None for slot in problem.slots]
    loss, gradients = native.loss_and_gradients(*arguments, needs)
    products = native.hessian_vector_product(*arguments, slots, needs)
    close([loss], [wanted.loss])
    close([g for g in gradients if g is not None], wanted.gradients)
    close([h for h in products if h is not None], wanted.products)
    for skipped in range(len(needs)):
        fewer = [need and i != skipped for i, need in enumerate(needs)]
        _, some = native.loss_and_gradients(*arguments, fewer)
        assert [g is not None for g in some] == fewer
        close([g for g in some if g is not None], [g for g, need in zip(gradients, fewer, strict=True) if need])
        some = native.hessian_vector_product(*arguments, slots, fewer)
        close([h for h in some if h is not None], [h for h, need in zip(products, fewer, strict=True) if need])
    alone = native.hessian_vector_product(*arguments, [None] * len(slots), needs)
    assert all(not h.any() for h in alone if h is not None)


class Recorded(TorchDispatchMode):
    """The names of this library's operators that ran."""

    def __init__(self):
        super().__init__()
        self.calls, self.needs = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("l2t_fast"):
            self.calls.append(func._opname)
            self.needs.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


def test_a_backward_only_scales(backend):
    """The gradient is made in the forward pass: no other operator of this library runs in a first-order step."""
    problem = draw_sizes(RICH, dtype=torch.float32).map(lambda t: t.to(backend.device)).requiring_grad()
    with Recorded() as record:
        loss = problem.loss(backend.matching_loss)
        loss.backward()
    assert record.calls in (["matching_forward"], ["matching_forward", "matching_backward"])


def test_nothing_but_the_loss_is_computed_without_grad(backend):
    problem = draw_sizes(RICH, dtype=torch.float32).map(lambda t: t.to(backend.device)).requiring_grad()
    with torch.no_grad(), Recorded() as record:
        loss = problem.loss(backend.matching_loss)
    assert not loss.requires_grad
    assert record.calls == ["matching_forward"] and not any(record.needs[0])


def test_a_factor_that_lies_negated_in_memory(backend):
    """The imaginary part of a conjugate is a view with PyTorch's negative bit."""
    problem = draw_sizes(RICH, dtype=torch.float32).map(lambda t: t.to(backend.device))
    weights = [weight.requires_grad_() for weight in problem.weights]
    factor = torch.tensor(1 + 2j, device=backend.device).conj().imag
    assert factor.is_neg()
    loss = problem.loss(backend.matching_loss)
    wanted = [-2 * gradient for gradient in torch.autograd.grad(loss, weights, retain_graph=True)]
    torch.testing.assert_close(torch.autograd.grad(loss, weights, factor, retain_graph=True), wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, weights, factor), wanted)


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_factor_that_is_no_whole_number(backend, retain_graph):
    problem = draw_sizes(RICH, dtype=torch.float32).map(lambda t: t.to(backend.device)).requiring_grad()
    loss = problem.loss(backend.matching_loss)
    wanted = [1.5 * gradient for gradient in torch.autograd.grad(loss, problem.inputs, retain_graph=True)]
    found = torch.autograd.grad(1.5 * loss, problem.inputs, retain_graph=retain_graph)
    torch.testing.assert_close(list(found), wanted)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_loss_scale_saves_the_gradients_of_float16(backend, layout, create_graph):
    """As it does with plain PyTorch, which rounds them to float16 when they have been scaled.

    Without a scale nearly all of these are less than float16 has.
    """
    problem = draw([(20, 9, 9), (7, 4, 4)], [(12, 9, 9)], [(0, 0), (1, 0)], batch=3)
    problem = in_dtype(problem, torch.float16)
    problem = replace(problem, targets=[laid_out(t, layout) for t in problem.targets], alpha=problem.alpha * 1e-10)
    problem = problem.map(lambda t: t.to(backend.device)).requiring_grad()
    loss = problem.loss(backend.matching_loss) * 2.0**32
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=create_graph)
    exact = truth(problem, draw_directions(problem)).gradients
    for gradient, tensor, wanted in zip(gradients[:-1], problem.inputs, exact, strict=False):
        assert gradient.dtype == tensor.dtype == torch.float16
        wanted = wanted * 2.0**32
        error = (gradient.detach().cpu().double() - wanted).norm() / wanted.norm()
        assert error < torch.finfo(torch.float16).eps, f"{float(error):.2g}"


def test_a_factor_is_not_rounded_to_the_gradients_bfloat16(backend):
    """0.3 would be by 0.26 %, for all of them alike."""
    problem = in_dtype(draw([(20, 9, 9)], [(12, 9, 9)], [(0, 0)], batch=3), torch.bfloat16)
    problem = problem.map(lambda t: t.to(backend.device)).requiring_grad()
    loss = problem.loss(backend.matching_loss)
    for create_graph in (True, False):
        whole = torch.autograd.grad(loss, problem.targets, retain_graph=True)
        factor = torch.tensor(0.3, device=backend.device)
        some = torch.autograd.grad(loss * factor, problem.targets, retain_graph=True, create_graph=create_graph)
        ratio = some[0].detach().double().norm() / whole[0].double().norm()
        assert abs(float(ratio) / 0.3 - 1) < 5e-4


def test_the_derivative_along_a_factor_is_not_summed_in_bfloat16(backend):
    problem = draw_sizes("neither divides", dtype=torch.bfloat16, batch=8)
    problem = problem.map(lambda t: t.to(backend.device)).requiring_grad()
    factor = torch.ones((), device=backend.device, requires_grad=True)
    gradients = torch.autograd.grad(factor * problem.loss(backend.matching_loss), problem.inputs, create_graph=True)
    directions = draw_directions(problem)
    (found,) = torch.autograd.grad(gradients, factor, directions)
    terms = [v.double() * g.detach().double() for v, g in zip(directions, gradients, strict=True)]
    assert abs(found.double() - sum(t.sum() for t in terms)) < 1e-5 * sum(t.abs().sum() for t in terms)


def test_backward_twice_and_accumulation(exact_backend):
    """Gradients that are scaled where they lie must not be seen by anybody else."""
    problem = draw_sizes(RICH).requiring_grad()
    wanted = truth(problem, draw_directions(problem)).gradients
    loss = problem.loss(exact_backend.matching_loss)
    loss.backward(retain_graph=True)
    (3 * loss).backward(retain_graph=True)
    loss.backward()
    close([t.grad for t in problem.inputs], [5 * g for g in wanted])

    loss = problem.loss(exact_backend.matching_loss)
    first = torch.autograd.grad(loss, problem.inputs, retain_graph=True)
    second = torch.autograd.grad(loss, problem.inputs)
    for f in first:
        f.zero_()
    close(second, wanted)

    problem = problem.requiring_grad()
    for _ in range(3):
        (0.5 * problem.loss(exact_backend.matching_loss)).backward()
    close([t.grad for t in problem.inputs], [1.5 * g for g in wanted])
    assert not any(t.grad.requires_grad for t in problem.inputs)


def test_a_gradient_that_the_caller_writes_to_is_the_caller_s_own(exact_backend):
    """A factor of one copies nothing before somebody writes."""
    problem = draw_sizes(RICH).requiring_grad()
    directions = draw_directions(problem)
    wanted = truth(problem, directions)
    loss = problem.loss(exact_backend.matching_loss)
    first = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    again = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    with torch.no_grad():
        for gradient in first:
            gradient.fill_(7)
    close(again, wanted.gradients)
    close(torch.autograd.grad(first, problem.inputs, directions, retain_graph=True), wanted.products)
    close(torch.autograd.grad(loss, problem.inputs), wanted.gradients)
    close(again, wanted.gradients)
    assert all((gradient == 7).all() for gradient in first)


def test_a_second_derivative_needs_the_first_graph_no_more(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    directions = draw_directions(problem)
    loss = problem.loss(exact_backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True, retain_graph=False)
    close(torch.autograd.grad(gradients, problem.inputs, directions), truth(problem, directions).products)


def test_gradients_held_by_the_caller_are_not_scaled(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    wanted = truth(problem, draw_directions(problem)).gradients
    loss, held = torch.ops.l2t_fast.matching_forward(*problem.operator_arguments())
    close(torch.autograd.grad(5 * loss, problem.inputs), [5 * g for g in wanted])
    close(held, wanted)


def test_the_graph_is_freed_after_a_backward(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    loss = problem.loss(exact_backend.matching_loss)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_an_input_changed_in_place_before_the_backward_raises(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    loss = problem.loss(exact_backend.matching_loss)
    with torch.no_grad():
        problem.weights[0].add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(loss, problem.inputs)


@pytest.mark.parametrize("held", ["a copy", "the tensor itself"])
def test_saved_tensor_hooks_are_honoured(exact_backend, held):
    problem = draw_sizes(RICH).requiring_grad()
    wanted = truth(problem, draw_directions(problem)).gradients
    kept = []

    def keep(tensor):
        kept.append(tensor.detach())
        return tensor.detach() if held == "a copy" else kept[-1]

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = problem.loss(exact_backend.matching_loss)
    before = [t.clone() for t in kept]
    close(torch.autograd.grad(2 * loss, problem.inputs), [2 * g for g in wanted])
    assert kept and all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))


def test_saved_tensors_may_come_back_in_memory_of_another_library(exact_backend):
    """As from a hook that writes them to files: copy on write does not take such memory."""
    problem = draw_sizes(RICH).requiring_grad()
    directions = draw_directions(problem)
    wanted = truth(problem, directions)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
        loss = problem.loss(exact_backend.matching_loss)
        found = torch.autograd.grad(loss, problem.inputs, create_graph=True)
        close(found, wanted.gradients)
        close(torch.autograd.grad(found, problem.inputs, directions), wanted.products)


class Recorder(TorchDispatchMode):
    """Keeps every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.kept += [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        return result


@pytest.mark.parametrize("who", ["a hook", "a mode"])
def test_what_somebody_else_holds_is_not_scaled(backend, who):
    """A first-order backward pass scales saved gradients where they lie."""
    dtype = backend.dtypes[0]
    problem = draw_sizes("equal", dtype=dtype).map(lambda t: t.to(backend.device)).requiring_grad()
    wanted = torch.autograd.grad(problem.loss(backend.matching_loss), problem.inputs)
    recorder = Recorder()
    if who == "a mode":
        with recorder:
            loss = problem.loss(backend.matching_loss)
    else:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: recorder.kept.append(t) or t, lambda t: t):
            loss = problem.loss(backend.matching_loss)
    before = [t.clone() for t in recorder.kept]
    for found, right in zip(torch.autograd.grad(4 * loss, problem.inputs), wanted, strict=True):
        torch.testing.assert_close(found, 4 * right)
    assert before and all(map(torch.equal, before, recorder.kept))


# ---- derivatives that do not exist -----------------------------------------------------------------------------------


def test_a_third_derivative_raises(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    directions = draw_directions(problem)
    loss = problem.loss(exact_backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    products = torch.autograd.grad(gradients, problem.inputs, directions, create_graph=True)  # harmless in itself
    close(products, truth(problem, directions).products)
    for product in products:
        with pytest.raises(NotImplementedError, match="differentiated twice, not three times"):
            torch.autograd.grad(product.sum(), problem.inputs, retain_graph=True, allow_unused=True)


def test_a_third_derivative_through_the_directions_raises(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    directions = [d.requires_grad_() for d in draw_directions(problem)]
    loss = problem.loss(exact_backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    products = torch.autograd.grad(gradients, problem.inputs, directions, create_graph=True)
    with pytest.raises(NotImplementedError, match="three times"):
        torch.autograd.grad(products[0].sum(), directions)


def test_a_third_derivative_through_a_factor_on_the_loss_raises(exact_backend):
    """d/d factor of the gradient is the gradient again, which depends on every input."""
    problem = draw_sizes(RICH).requiring_grad()
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = factor * problem.loss(exact_backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    (slope,) = torch.autograd.grad(gradients, factor, draw_directions(problem), create_graph=True)
    with pytest.raises(NotImplementedError, match="three times"):
        torch.autograd.grad(slope, problem.inputs)


def test_a_source_that_requires_grad_raises_and_auto_takes_the_reference(exact_backend):
    problem = draw_sizes(RICH)
    problem.sources[1].requires_grad_()
    with pytest.raises(ValueError, match=r'source feature 1 requires grad.*backend="reference"'):
        problem.loss(exact_backend.matching_loss)
    wanted = truth(problem, draw_directions(problem)).loss
    with torch.no_grad():
        torch.testing.assert_close(problem.loss(exact_backend.matching_loss), wanted)
    projections = list(zip(problem.weights, problem.biases, strict=True))
    loss = feature_matching_loss(problem.sources, problem.targets, projections, problem.pairs)
    assert torch.autograd.grad(loss, problem.sources[1])[0].abs().sum() > 0


def test_a_source_that_requires_grad_is_refused_by_the_backward_operator_too(exact_backend):
    problem = draw_sizes(RICH)
    arguments = problem.operator_arguments()
    _, gradients = torch.ops.l2t_fast.matching_forward(*arguments)
    problem.sources[0].requires_grad_()
    with pytest.raises(ValueError, match="source feature 0 requires grad"):
        torch.ops.l2t_fast.matching_backward(torch.ones((), dtype=torch.float64), gradients, *arguments)


def test_a_need_that_leaves_out_an_input_that_requires_grad_raises(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    needs = [True] * len(problem.slots)
    needs[3] = False
    with pytest.raises(ValueError, match=r"input 3 .* requires grad, but needs says"):
        torch.ops.l2t_fast.matching_forward(*problem.operator_arguments(needs))


@pytest.mark.parametrize("which", range(13))
def test_a_forward_mode_tangent_raises(exact_backend, which):
    """On whichever tensor it sits, and whether or not anything requires grad. It is never dropped."""
    problem = draw_sizes(RICH)
    tensors = [*problem.sources, *problem.inputs]
    for requires in (False, True):
        with forward_ad.dual_level():
            given = [t.detach().requires_grad_(requires and i >= 2) for i, t in enumerate(tensors)]
            given = [forward_ad.make_dual(t, torch.ones_like(t)) if i == which else t for i, t in enumerate(given)]
            dual = problem.with_inputs(given[2:])
            dual.sources[:] = given[:2]
            with pytest.raises(NotImplementedError, match="forward-mode tangent"):
                dual.loss(exact_backend.matching_loss)
    # the other two operators, in a backward pass
    if which >= 2:
        problem = draw_sizes(RICH).requiring_grad()
        loss = problem.loss(exact_backend.matching_loss)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode tangent"):
            torch.autograd.grad(
                loss,
                problem.inputs,
                forward_ad.make_dual(torch.ones_like(loss), torch.ones_like(loss)),
                create_graph=True,
            )
        gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode tangent"):
            directions = [
                forward_ad.make_dual(d, d) if i == which - 2 else d for i, d in enumerate(draw_directions(problem))
            ]
            torch.autograd.grad(gradients, problem.inputs, directions)


def test_tangents_elsewhere_in_the_graph_do_no_harm(exact_backend):
    problem = draw_sizes(RICH).requiring_grad()
    with forward_ad.dual_level():
        elsewhere = forward_ad.make_dual(torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
        loss = problem.loss(exact_backend.matching_loss)
        total = loss + elsewhere**2
        primal, tangent = forward_ad.unpack_dual(total)
        assert tangent == 12
        close(torch.autograd.grad(primal, problem.inputs), truth(problem, draw_directions(problem)).gradients)


def test_function_transforms_raise(exact_backend):
    """torch.func cannot differentiate custom operators; what matters is that it says so."""
    problem = draw_sizes("neither divides")
    function = problem.as_function(exact_backend.matching_loss)
    inputs = tuple(problem.inputs)
    everything = tuple(range(len(inputs)))
    with pytest.raises(RuntimeError):
        torch.func.grad(function, everything)(*inputs)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(function, inputs, inputs)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.vmap(function, (0, *[None] * (len(inputs) - 1)))(inputs[0][None], *inputs[1:])


def test_batches_of_adjoints_are_refused_in_words(backend):
    problem = draw_sizes("neither divides", dtype=torch.float32).map(lambda t: t.to(backend.device)).requiring_grad()
    loss = problem.loss(backend.matching_loss)
    gradients = torch.autograd.grad(loss, problem.inputs, create_graph=True)
    message = r'the fused matching loss cannot be differentiated under vmap .* or backend="reference"'

    def derivative(adjoint):
        return torch.autograd.grad(loss, problem.inputs, adjoint, retain_graph=True)

    adjoints = torch.ones(2, device=backend.device)
    for retain_graph in (True, False):
        other = problem.loss(backend.matching_loss)
        with pytest.raises(NotImplementedError, match=message):
            torch.autograd.grad(other, problem.inputs, adjoints, retain_graph=retain_graph, is_grads_batched=True)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.vmap(derivative)(adjoints)
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(gradients[0], problem.inputs, torch.stack([gradients[0]] * 2), is_grads_batched=True)


def test_the_answer_of_an_empty_direction_is_zero(exact_backend):
    problem = draw_sizes(RICH)
    answer = solve(exact_backend.matching_loss, problem, [torch.zeros_like(t) for t in problem.inputs])
    assert all(not product.any() for product in answer.products)


def test_hundreds_of_pairs(exact_backend):
    pairs = [(m, n) for m in range(15) for n in range(15)] + [(3, 4)] * 20
    problem = draw(
        [(1 + m % 3, 2 + m % 4, 3) for m in range(15)],
        [(1 + n % 2, 3, 1 + n % 3) for n in range(15)],
        pairs,
        biased=[p % 3 > 0 for p in range(len(pairs))],
    )
    directions = draw_directions(problem)
    found, wanted = solve(exact_backend.matching_loss, problem, directions), truth(problem, directions)
    close(found.parts().values(), wanted.parts().values())
