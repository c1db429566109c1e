"""The operators ``torch.ops.l2t_fast_triton.*``: schemas, shapes without data, and who has their derivatives.

The schemas, and what an operator's derivative is, are those of the native operators (csrc/README.md):

    matching_forward --backward--> matching_backward --backward--> matching_hvp --backward--> an error

and matching_loss is matching_forward without gradients among its results. They have a namespace of their own, so that
there is one way to define them whether or not the native extension is installed, and so that CUDA tensors can be served
by either.
"""

import torch

from l2t_fast import _native  # noqa: F401  (loads the native code)
from l2t_fast.ops.batching import refuse_batches
from l2t_fast.ops.triton import launching
from l2t_fast.ops.triton.arguments import Arguments, empty_results, in_memory, needed, scaled

_PROBLEM = "Tensor[] sources, Tensor[] targets, Tensor[] weights, Tensor?[] biases, Tensor alpha, int[] pairs"
_LIBRARY = torch.library.Library("l2t_fast_triton", "DEF")
for _schema in (
    f"matching_forward({_PROBLEM}, bool[] needs) -> (Tensor loss, Tensor[] gradients)",
    f"matching_loss({_PROBLEM}, bool[] needs) -> Tensor loss",
    f"matching_backward(Tensor grad_loss, Tensor[] gradients, {_PROBLEM}, bool[] needs) -> Tensor[] scaled",
    f"matching_hvp({_PROBLEM}, Tensor?[] directions, bool[] needs) -> Tensor[] products",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
OPS = torch.ops.l2t_fast_triton


# ---- with data -----------------------------------------------------------------------------------------------------


def _forward(sources, targets, weights, biases, alpha, pairs, needs):
    arguments = Arguments(sources, targets, weights, in_memory(biases), alpha, pairs, needs)
    answer = launching.loss_and_gradient(arguments)
    return answer.loss, needed(answer.results)


def _backward(grad_loss, gradients, *_problem):
    return scaled(gradients, grad_loss)


def _hvp(sources, targets, weights, biases, alpha, pairs, directions, needs):
    arguments = Arguments(sources, targets, weights, in_memory(biases), alpha, pairs, needs)
    return needed(launching.hessian_vector(arguments, in_memory(directions)))


def _loss_alone(*problem_and_needs):
    return OPS.matching_forward(*problem_and_needs)[0]


def _no_cpu(*_arguments):
    raise ValueError('backend="triton" was called with CPU tensors; it needs CUDA tensors')


# ---- without data --------------------------------------------------------------------------------------------------


def _forward_meta(sources, targets, weights, biases, alpha, pairs, needs):
    results = needed(empty_results(Arguments(sources, targets, weights, biases, alpha, pairs, needs)))
    return alpha.new_empty(()), results


def _backward_meta(grad_loss, gradients, *_problem):
    return [torch.empty_like(gradient) for gradient in gradients]


def _hvp_meta(sources, targets, weights, biases, alpha, pairs, directions, needs):
    return needed(empty_results(Arguments(sources, targets, weights, biases, alpha, pairs, needs)))


# ---- registration --------------------------------------------------------------------------------------------------

for _name, _compute, _meta in (
    ("matching_forward", _forward, _forward_meta),
    ("matching_backward", _backward, _backward_meta),
    ("matching_hvp", _hvp, _hvp_meta),
):
    _LIBRARY.impl(_name, _compute, "CUDA")
    _LIBRARY.impl(_name, _compute if launching.INTERPRETED else _no_cpu, "CPU")
    _LIBRARY.impl(_name, _meta, "Meta")
_LIBRARY.impl("matching_loss", _loss_alone, "CompositeExplicitAutograd")
refuse_batches(_LIBRARY)

# Native code has registered them, where it is loaded.
if not torch._C._dispatch_has_kernel_for_dispatch_key("l2t_fast_triton::matching_loss", "Autograd"):
    from l2t_fast.ops.triton.derivatives import AUTOGRAD

    for _name, _autograd in AUTOGRAD.items():
        _LIBRARY.impl(_name, _autograd, "Autograd", with_keyset=True)
