"""Layers with cheap second derivatives against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2t_fast import _native
from l2t_fast.bilevel import second_order
from l2t_fast.bilevel.second_order import (
    CheapSecondDerivatives,
    RightSecondDerivatives,
    SmallPooling,
    batch_norm_double_backward,
)
from l2t_fast.ops import why_unavailable


def derivatives(function, inputs, cheap):
    """Value, gradients and Hessian-vector products of the mean cube of a function."""
    torch.manual_seed(1)
    if cheap:
        with CheapSecondDerivatives():
            value = function(*inputs)
    else:
        value = function(*inputs)
    wanted = [i for i in inputs if i is not None and i.requires_grad]
    first = torch.autograd.grad((value - 0.3).pow(3).mean(), wanted, create_graph=True)
    directions = [torch.randn_like(w) for w in wanted]
    second = torch.autograd.grad(first, wanted, directions, allow_unused=True)
    return [value, *first, *second]


def assert_same(function, inputs, tolerance=1e-12):
    plain, cheap = (derivatives(function, inputs, c) for c in (False, True))
    for p, c in zip(plain, cheap, strict=True):
        torch.testing.assert_close(c, p, rtol=tolerance, atol=tolerance)


def leaf(*shape, channels_last=False):
    tensor = torch.randn(*shape, dtype=torch.float64)
    if channels_last:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.requires_grad_()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"stride": 2, "padding": 1}, {"dilation": (2, 1), "padding": (2, 0)}, {"groups": 2}, {"padding": "same"}],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(arguments, channels_last, bias):
    x, w = leaf(3, 4, 7, 6, channels_last=channels_last), leaf(6, 4 // arguments.get("groups", 1), 3, 3)
    b = leaf(6) if bias else None
    assert_same(lambda x, w, b: F.conv2d(x, w, b, **arguments), [x, w, b])


def test_convolution_of_an_input_without_gradient():
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    assert_same(lambda x, w: F.relu(F.conv2d(x, w)).square(), [x, leaf(5, 4, 3, 3)])


BATCH_NORM_SHAPES = [
    ((5, 4), False),
    ((4, 3, 9), False),
    ((4, 3, 5, 7), False),
    ((4, 19, 5, 7), True),
    ((70, 33, 3, 3), True),
]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape, channels_last", BATCH_NORM_SHAPES, ids=str)
def test_batch_norm(shape, channels_last, affine, native, monkeypatch):
    if native and _native.extension is None:
        pytest.skip("no native extension")
    if not native:
        monkeypatch.setattr(second_order._native, "extension", None)
    x = leaf(*shape, channels_last=channels_last)
    w, b = (leaf(shape[1]), leaf(shape[1])) if affine else (None, None)
    assert_same(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [x, w, b], tolerance=1e-10)


def test_batch_norm_of_an_input_without_gradient():
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    assert_same(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [x, leaf(4), leaf(4)], 1e-10)


def test_batch_norm_of_one_value_per_channel_is_refused_as_by_pytorch():
    with CheapSecondDerivatives(), pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.randn(1, 3, 1, 1), None, None, training=True)


def test_batch_norm_updates_its_statistics_once():
    plain, cheap = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    plain(x)
    with CheapSecondDerivatives():
        cheap(x)
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, cheap.get_buffer(name))


@pytest.mark.parametrize(
    "rectifier",
    [F.relu, lambda x: F.relu(x, inplace=True), torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, nn.ReLU(True)],
    ids=["F.relu", "F.relu inplace", "torch.relu", "torch.relu_", "relu", "relu_", "ReLU inplace"],
)
@pytest.mark.parametrize("of", ["a result", "a view", "an input"])
def test_rectifier(rectifier, of):
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64) if of == "an input" else leaf(3, 4, 5, 5)

    def function(x, w):
        x = x * 1.5
        return rectifier(x[1:] if of == "a view" else x).square() * w

    assert_same(function, [x, leaf(4, 1, 1)])


def test_a_rectifier_in_place_is_in_place():
    x = leaf(2, 3)
    with CheapSecondDerivatives():
        y = x * 2
        z = F.relu(y, inplace=True)
    assert z is y and torch.equal(y, (x * 2).relu())


@pytest.mark.parametrize("mode", [CheapSecondDerivatives, RightSecondDerivatives])
def test_hardsigmoid(mode):
    x = torch.linspace(-4.1, 3.9, 20, dtype=torch.float64).requires_grad_()
    plain = F.hardsigmoid(x)
    with mode():
        found = nn.Hardsigmoid()(x)
        assert torch.autograd.gradgradcheck(lambda x: F.hardsigmoid(x).square(), x)
        y = x * 1
        assert F.hardsigmoid(y, inplace=True) is y and torch.equal(y, found)
        assert torch.autograd.gradgradcheck(lambda x: F.hardsigmoid(x * 1, inplace=True).square(), x)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)  # PyTorch's factor 1/6 is float32


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [(2,), (3, 2, 1), ((2, 3), None, (1, 0)), (3, 1, 1, 2), (3, 2, 0, 1, True)],
    ids=str,
)
def test_max_pooling(arguments, channels_last):
    x = leaf(3, 4, 9, 8, channels_last=channels_last)
    assert_same(
        lambda x, w: F.max_pool2d(x * w, *arguments) + torch.max_pool2d(x.square(), 3)[:, :, :1, :1], [x, leaf(1)]
    )
    assert_same(nn.MaxPool2d(*arguments[:4], ceil_mode=len(arguments) > 4), [x])
    with CheapSecondDerivatives():
        y, indices = F.max_pool2d(x, *arguments, return_indices=True)
    assert indices.shape == y.shape
    assert_same(lambda x: F.max_pool2d(x[0], *arguments), [x])


class Block(nn.Module):
    """Convolutions whose gradients come from batch normalisation, from a sum and from a hook."""

    def __init__(self, hook):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.hook = hook

    def forward(self, x):
        maps = []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            y = convolution(x)
            if self.hook is not None:
                y.register_hook(self.hook)
            maps.append(y)
            x = F.relu(norm(y), inplace=True) + x
        return F.max_pool2d(x, 2) + maps[1].mean()  # the second convolution's map is used twice


@pytest.mark.parametrize("hook", [None, lambda g: 2 * g, lambda g: g.mul_(2)], ids=["", "new", "in place"])
def test_gradients_that_are_made_again(hook):
    torch.manual_seed(0)
    block = Block(hook).double()
    parameters = list(block.parameters())

    def function(*values):
        named = dict(zip((name for name, _ in block.named_parameters()), values[1:], strict=True))
        return torch.func.functional_call(block, named, (values[0],))

    assert_same(function, [leaf(5, 4, 6, 6), *(p.detach().clone().requires_grad_() for p in parameters)], 1e-10)


@pytest.mark.parametrize("layers", ["convolution and batch normalisation", "rectifier", "max-pooling"])
def test_a_third_derivative_is_an_error(layers):
    x, w = leaf(1, 1, 6, 6), leaf(1, 1, 3, 3)
    function = {
        "convolution and batch normalisation": lambda: F.batch_norm(F.conv2d(x, w), None, None, training=True),
        "rectifier": lambda: F.relu(x * w[0, 0, 0, 0]),
        "max-pooling": lambda: F.max_pool2d(x * w[0, 0, 0, 0], 2),
    }[layers]
    with CheapSecondDerivatives():
        y = function().pow(4).sum()
    (first,) = torch.autograd.grad(y, w, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(first.sum(), w, create_graph=True)


NO_GPU = why_unavailable("cuda")


def batch_norm_arguments(shape, dtype=torch.float32, device="cpu"):
    maps = [torch.randn(shape, dtype=dtype, device=device) for _ in range(3)]
    return [*maps, *(torch.randn(shape[1], dtype=dtype, device=device) for _ in range(5))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    arguments = batch_norm_arguments((6, 5, 7, 3), dtype)
    found = batch_norm_double_backward(*arguments)
    wanted = batch_norm_double_backward(*(t.double() for t in arguments))
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == dtype
        # One rounding of the result, beside what float32 loses.
        assert ((f - w).abs() <= torch.finfo(dtype).eps / 2 * w.abs() + 1e-5 * w.abs().max()).all()


@pytest.mark.skipif(_native.extension is None, reason="no native extension")
class TestNativeBatchNorm:
    @pytest.mark.parametrize(
        "shape", [(1, 1, 1, 1), (3, 1, 4, 4), (2, 5, 31, 3), (9, 64, 2, 2), (2, 3, 130, 17), (0, 3, 2, 2)]
    )
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize(
        "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU)))]
    )
    def test_float32_is_as_good_as_pytorch(self, shape, channels_last, device):
        arguments = batch_norm_arguments(shape, device=device)
        if channels_last:
            arguments[:3] = [t.contiguous(memory_format=torch.channels_last) for t in arguments[:3]]
        found = torch.ops.l2t_fast.batch_norm_double_backward(*arguments)
        wanted = batch_norm_double_backward(*(t.cpu().double() for t in arguments))
        for f, w in zip([f.cpu() for f in found], wanted, strict=True):
            assert f.shape == w.shape and f.dtype == torch.float32
            if w.numel():
                scale = w.abs().max().clamp(min=1.0)
                assert (f - w).abs().max() <= 1e-5 * scale

    def test_same_bits_at_any_number_of_threads(self):
        arguments = batch_norm_arguments((64, 32, 9, 9))
        arguments[:3] = [t.contiguous(memory_format=torch.channels_last) for t in arguments[:3]]
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = torch.ops.l2t_fast.batch_norm_double_backward(*arguments)
            torch.set_num_threads(2)
            two = torch.ops.l2t_fast.batch_norm_double_backward(*arguments)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    def test_operator(self):
        torch.library.opcheck(
            torch.ops.l2t_fast.batch_norm_double_backward.default, tuple(batch_norm_arguments((2, 3, 4, 4)))
        )

    def test_errors(self):
        arguments = batch_norm_arguments((2, 3, 4, 4))
        with pytest.raises(ValueError, match="adjoint has shape"):
            torch.ops.l2t_fast.batch_norm_double_backward(arguments[0][:1], *arguments[1:])
        with pytest.raises(ValueError, match="mean has shape"):
            torch.ops.l2t_fast.batch_norm_double_backward(*arguments[:4], arguments[4][:2], *arguments[5:])
        with pytest.raises(TypeError, match="use float32 or float64"):
            torch.ops.l2t_fast.batch_norm_double_backward(*(t.half() for t in arguments))


@pytest.mark.parametrize(("size", "saved"), [((9, 7), torch.int16), ((256, 200), torch.int32)])
def test_pooling_saves_small_indices(size, saved):
    x = torch.randn(2, 3, *size, requires_grad=True)
    plain = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    with SmallPooling():
        small = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    assert torch.equal(small, plain)
    assert saved in {t.dtype for t in small.grad_fn.saved_tensors}
    g = torch.randn_like(plain)
    assert torch.equal(torch.autograd.grad(small, x, g)[0], torch.autograd.grad(plain, x, g)[0])
