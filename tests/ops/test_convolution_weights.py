"""The operators take a pair's weight as a 1x1 convolution has it, (C_m, C_n, 1, 1), too."""

import dataclasses

import pytest
import torch

from tests.ops.problems import draw_directions, draw_sizes, solve


def as_convolutions(problem, memory_format=torch.contiguous_format):
    weights = [weight[:, :, None, None].contiguous(memory_format=memory_format) for weight in problem.weights]
    return dataclasses.replace(problem, weights=weights)


def rich(backend):
    problem = draw_sizes("all to all", biased=[True, False, True, True], dtype=torch.float32)
    return problem.map(lambda t: t.to(backend.device))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_same_bits_in_the_weights_shape(backend, memory_format):
    matrices = rich(backend)
    convolutions = as_convolutions(matrices, memory_format)
    directions = draw_directions(matrices)
    shaped = [d.reshape(t.shape) for d, t in zip(directions, convolutions.inputs, strict=True)]
    wanted = solve(backend.matching_loss, matrices, directions).parts()
    found = solve(backend.matching_loss, convolutions, shaped)
    assert [g.shape for g in found.gradients] == [t.shape for t in convolutions.inputs]
    assert [h.shape for h in found.products] == [t.shape for t in convolutions.inputs]
    for name, value in found.parts().items():
        assert torch.equal(value.reshape(wanted[name].shape), wanted[name]), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(backend, memory_format):
    problem = as_convolutions(rich(backend), memory_format)
    arguments = problem.operator_arguments()
    torch.library.opcheck(backend.ops.matching_forward.default, problem.requiring_grad().operator_arguments())
    _, gradients = backend.ops.matching_forward(*arguments)
    factor = torch.tensor(2.0, device=backend.device, requires_grad=True)
    torch.library.opcheck(backend.ops.matching_backward.default, (factor, gradients, *arguments))
    directions = iter(draw_directions(problem))
    slots = [None if slot is None else next(directions) for slot in problem.slots]
    torch.library.opcheck(backend.ops.matching_hvp.default, (*arguments[:-1], slots, arguments[-1]))


def test_other_kernels_than_1x1_raise(backend):
    problem = rich(backend)
    problem.weights[0] = problem.weights[0][:, :, None, None].expand(-1, -1, 3, 3)
    with pytest.raises(ValueError, match=r"pair 0 \(0, 0\): the weight has shape \[3, 2, 3, 3\]"):
        backend.ops.matching_forward(*problem.operator_arguments())
