"""The fast 3x3 convolution: its operators against float64, and where it takes the place of PyTorch's."""

import io
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from l2t_fast import _native, convolution
from l2t_fast.bilevel.second_order import CheapSecondDerivatives
from l2t_fast.convolution import fast_convolutions
from l2t_fast.ops import own_dual_level

CPU = torch.device("cpu")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
#: (B, C_in, C_out, H, W): single pixels, odd sides, channels around the kernels' panels, more patches than one chunk.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 17, 9, 5, 7),
    (2, 3, 64, 32, 32),
    (2, 64, 64, 8, 8),
    (5, 16, 33, 2, 2),
    (1, 40, 100, 13, 6),
    (2, 8, 8, 1, 9),
    (1, 70, 3, 33, 1),
    (2, 5, 7, 3, 1030),
    (3, 64, 48, 56, 57),
    (2, 200, 40, 40, 40),
]
needs_native = pytest.mark.skipif(_native.extension is None, reason="no native extension")


def operators():
    return torch.ops.l2t_fast.convolution3x3, torch.ops.l2t_fast.convolution3x3_weight_gradient


def tensors(shape, maps="NCHW", weights="NCHW", seed=0):
    """input, weight, bias, gradient of the output; of mixed signs and sizes."""
    batch, c_in, c_out, height, width = shape
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, c_in, height, width, generator=draw) * 3 + 1
    w, b = torch.randn(c_out, c_in, 3, 3, generator=draw) * 0.2, torch.randn(c_out, generator=draw)
    g = torch.randn(batch, c_out, height, width, generator=draw)
    x, g = (t.contiguous(memory_format=LAYOUTS[maps]) for t in (x, g))
    return x, w.contiguous(memory_format=LAYOUTS[weights]), b, g


def gradients(g, x, w):
    """Of input and weight, by PyTorch in the tensors' dtype."""
    return torch.ops.aten.convolution_backward(
        g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )[:2]


def assert_rounded(found: Tensor, wanted: Tensor, magnitudes: Tensor) -> None:
    """Within eight roundings of the largest sum of magnitudes: a pixel's error is of its whole patch."""
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert (found - wanted).abs().max() <= 8 * torch.finfo(torch.float32).eps * magnitudes.max()


def check(x, w, b, g):
    """The operators against PyTorch in float64."""
    forward, weight_gradient = operators()
    exact = [t.double() for t in (x, w, b, g)]
    size = [t.abs() for t in exact]
    assert_rounded(forward(x, w, b, False), F.conv2d(*exact[:3], padding=1), F.conv2d(*size[:3], padding=1))
    assert torch.equal(forward(x, w, None, False), forward(x, w, torch.zeros_like(b), False))
    of_input, of_weight = gradients(exact[3], exact[0], exact[1])
    size_of_input, size_of_weight = gradients(size[3], size[0], size[1])
    assert_rounded(forward(g, w, None, True), of_input, size_of_input)
    assert_rounded(weight_gradient(g, x), of_weight, size_of_weight)


@needs_native
class TestOperators:
    @pytest.mark.parametrize("weights", LAYOUTS)
    @pytest.mark.parametrize("maps", LAYOUTS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_like_pytorch_in_float64(self, shape, maps, weights):
        check(*tensors(shape, maps, weights))

    @pytest.mark.parametrize("seed", range(40))
    def test_drawn_shapes(self, seed):
        draw = torch.Generator().manual_seed(seed)

        def number(most):
            return int(torch.randint(1, most + 1, (), generator=draw))

        layouts = [list(LAYOUTS)[number(2) - 1] for _ in range(2)]
        check(*tensors((number(6), number(90), number(90), number(24), number(24)), *layouts, seed=seed))

    def test_strided_arguments(self):
        x, w, b, g = tensors((4, 20, 24, 9, 10))
        check(x[::2, 2:12], w[3:20, ::2], b[3:20], g[::2, 3:20])
        check(x.transpose(2, 3), w.transpose(2, 3), b, g.transpose(2, 3))

    def test_layout_of_the_results(self):
        forward, weight_gradient = operators()
        for maps, layout in LAYOUTS.items():
            x, w, _, g = tensors((2, 6, 5, 4, 4), maps)
            found = forward(x, w, None, False), forward(g, w, None, True), weight_gradient(g, x)
            assert all(t.is_contiguous(memory_format=layout) for t in found)

    @pytest.mark.parametrize("shape", [(3, 64, 48, 56, 57), (2, 200, 40, 40, 40), (32, 64, 64, 8, 8)], ids=str)
    def test_same_bits_at_any_number_of_threads(self, shape):
        forward, weight_gradient = operators()
        x, w, b, g = tensors(shape)
        threads, found = torch.get_num_threads(), []
        try:
            for number in (1, 2, 3, 16):
                torch.set_num_threads(number)
                found.append([forward(x, w, b, False), forward(g, w, None, True), weight_gradient(g, x)])
        finally:
            torch.set_num_threads(threads)
        for others in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))

    def test_an_image_does_not_depend_on_its_batch(self):
        forward, _ = operators()
        x, w, b, _ = tensors((7, 24, 40, 10, 11))
        whole = forward(x, w, b, False)
        for i in range(7):
            assert torch.equal(forward(x[i : i + 1], w, b, False), whole[i : i + 1])

    @pytest.mark.parametrize("sizes", [(0, 3, 4, 5, 5), (2, 0, 4, 5, 5), (2, 3, 0, 5, 5), (2, 3, 4, 0, 5)], ids=str)
    def test_nothing(self, sizes):
        x, w, b, g = tensors(sizes)
        forward, weight_gradient = operators()
        assert torch.equal(forward(x, w, b, False), b.view(1, -1, 1, 1).expand_as(g))
        assert torch.equal(forward(g, w, None, True), torch.zeros_like(x))
        assert torch.equal(weight_gradient(g, x), torch.zeros_like(w))

    def test_not_a_number_stays_in_its_neighbourhood(self):
        forward, _ = operators()
        x, w, _, _ = tensors((2, 20, 20, 12, 12))
        clean = forward(x, w, None, False)
        x[1, 3, 6, 6] = torch.nan
        found = forward(x, w, None, False)
        touched = found.isnan()
        assert touched[1, :, 5:8, 5:8].all()
        assert not touched[0].any() and not touched[1, :, :4].any() and not touched[1, :, 8:].any()
        assert torch.equal(found[~touched], clean[~touched])

    def test_operators_keep_their_contracts(self):
        forward, weight_gradient = operators()
        for maps in LAYOUTS:
            x, w, b, g = tensors((2, 3, 4, 5, 6), maps)
            torch.library.opcheck(forward.default, (x, w, b, False))
            torch.library.opcheck(forward.default, (g, w, None, True))
            torch.library.opcheck(weight_gradient.default, (g, x))

    def test_errors(self):
        forward, weight_gradient = operators()
        x, w, b, g = tensors((2, 3, 4, 5, 6))
        with pytest.raises(ValueError, match=r"input has shape \[3, 5, 6\], but a convolution needs"):
            forward(x[0], w, b, False)
        with pytest.raises(TypeError, match="weight is Double, use float32"):
            forward(x, w.double(), b, False)
        with pytest.raises(ValueError, match="this convolution is 3x3"):
            forward(x, w[..., :1], b, False)
        with pytest.raises(ValueError, match="needs 3 channels"):
            forward(g, w, b, False)
        with pytest.raises(ValueError, match="needs 4 channels"):
            forward(x, w, None, True)
        with pytest.raises(ValueError, match="needs 4 values"):
            forward(x, w, b[:2], False)
        with pytest.raises(ValueError, match="no bias"):
            forward(g, w, b, True)
        with pytest.raises(ValueError, match="gradient has shape"):
            weight_gradient(g[:1], x)


def derivatives(x, w, b, modes):
    """Value, gradients and Hessian-vector products of the mean cube of a convolution, under ``modes``."""
    torch.manual_seed(1)
    for mode in modes:
        mode.__enter__()
    value = F.conv2d(x, w, b, padding=1)
    for mode in reversed(modes):
        mode.__exit__(None, None, None)
    wanted = [t for t in (x, w, b) if t is not None and t.requires_grad]
    first = torch.autograd.grad((value - 0.3).pow(3).mean(), wanted, create_graph=True)
    directions = [torch.randn(t.shape, dtype=torch.float64).to(t.dtype) for t in wanted]
    return [value, *first, *torch.autograd.grad(first, wanted, directions)]


@needs_native
@pytest.mark.parametrize("needs", ["input, weight and bias", "weight", "input and weight"])
@pytest.mark.parametrize("modes", ["first order", "second order"])
def test_derivatives_like_pytorch_in_float64(modes, needs):
    x, w, b, _ = tensors((3, 17, 20, 7, 6))
    x.requires_grad_("input" in needs), w.requires_grad_()
    b = b.requires_grad_() if "bias" in needs else None
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (x, w, b)]
    mode = fast_convolutions(CPU) if modes == "first order" else CheapSecondDerivatives()
    for found, wanted in zip(derivatives(x, w, b, [mode]), derivatives(*exact, []), strict=True):
        assert (found - wanted).abs().max() <= 3e-6 * wanted.abs().max()


@needs_native
@pytest.mark.parametrize("carriers", ["x", "w", "b", "xw", "xwb"])
def test_tangents_like_pytorch_in_float64(carriers):
    x, w, b, _ = tensors((3, 17, 20, 7, 6))
    tangents = [torch.randn_like(t) if name in carriers else None for name, t in zip("xwb", (x, w, b), strict=True)]

    def run(dtype, mode):
        with torch.no_grad(), forward_ad.dual_level(), mode:
            duals = [
                t.to(dtype) if v is None else forward_ad.make_dual(t.to(dtype), v.to(dtype))
                for t, v in zip((x, w, b), tangents, strict=True)
            ]
            return forward_ad.unpack_dual(F.conv2d(*duals, padding=1))

    found, wanted = run(torch.float32, fast_convolutions(CPU)), run(torch.float64, fast_convolutions(CPU))
    for f, e in zip(found, wanted, strict=True):
        assert (f - e).abs().max() <= 1e-6 * e.abs().max()


class Calls:
    """Counts the calls of the fast operators."""

    def __init__(self, monkeypatch):
        self.count = 0
        served = convolution._served

        def counted(*arguments):
            self.count += served(*arguments)
            return served(*arguments)

        monkeypatch.setattr(convolution, "_served", counted)


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


SMALL = (2, 8, 8, 8, 8)


@needs_native
def test_what_is_served(calls):
    x, w, b, _ = tensors(SMALL)
    with fast_convolutions(CPU):
        for arguments in (
            {"padding": 1},
            {"padding": (1, 1), "stride": (1, 1), "dilation": [1, 1]},
            {"padding": np.int64(1), "stride": torch.tensor(1)},
        ):
            F.conv2d(x, w, b, **arguments)
            assert calls.count
            calls.count = 0
        nn.Conv2d(8, 8, 3, padding=1)(x)
        assert calls.count


@needs_native
def test_what_is_left_to_pytorch(calls):
    x, w, b, _ = tensors(SMALL)
    others = {
        "stride": (x, w, b, 2, 1),
        "no padding": (x, w, b),
        "dilation": (x, w, b, 1, 1, 2),
        "groups": (x, w[:, :4], b, 1, 1, 1, 2),
        "1x1": (x, w[..., :1, :1], b, 1, 1),
        "float64": (x.double(), w.double(), b.double(), 1, 1),
        "one image": (x[0], w, b, 1, 1),
        "padding by name": (x, w, b, 1, "same"),
        "few channels": (x[:, :7], w[:, :7], b, 1, 1),
        "few results": (x, w[:7], b[:7], 1, 1),
        "few pixels": (x[:1, :, :4], w, b, 1, 1),
        "many columns": (torch.randn(1, 8, 1, 1025), w, b, 1, 1),
    }
    for name, arguments in others.items():
        with fast_convolutions(CPU):
            found = torch.conv2d(*arguments)
        assert torch.equal(found, torch.conv2d(*arguments)), name
    with fast_convolutions(CPU), torch.autocast("cpu", torch.bfloat16):
        assert F.conv2d(x, w, b, padding=1).dtype == torch.bfloat16
    with fast_convolutions(torch.device("cuda")):
        F.conv2d(x, w, b, padding=1)
    assert not calls.count


@needs_native
def test_what_pytorch_refuses_is_still_refused():
    x, w, b, _ = tensors(SMALL)
    with fast_convolutions(CPU):
        with pytest.raises(RuntimeError, match="channels"):
            F.conv2d(x[:, :3], w, b, padding=1)
        with pytest.raises(RuntimeError, match="type"):
            F.conv2d(x, w, b.double(), padding=1)
        with pytest.raises(RuntimeError, match="bias"):
            F.conv2d(x, w, b[:2], padding=1)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            F.conv2d(x[..., :0], w, b, padding=1)
        with pytest.raises(TypeError):
            F.conv2d(x, w, b, padding=1.0)


@needs_native
def test_transforms_and_compilers_see_pytorch():
    x, w, b, _ = tensors(SMALL)
    with fast_convolutions(CPU):
        found = torch.func.vmap(lambda x: F.conv2d(x[None], w, b, padding=1)[0])(x)
        _, tangent = torch.func.jvp(lambda x: F.conv2d(x, w, b, padding=1), (x,), (x,))
        tracer = torch.fx.symbolic_trace(nn.Conv2d(8, 8, 3, padding=1))
        saved = io.BytesIO()
        torch.jit.save(torch.jit.trace(nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False), x), saved)
        compiled = torch.compile(lambda x: F.conv2d(x, w, b, padding=1), backend="aot_eager", fullgraph=True)(x)
    assert any("conv" in node.name or node.op == "call_module" for node in tracer.graph.nodes)
    for value in (found, compiled):
        torch.testing.assert_close(value, F.conv2d(x, w, b, padding=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tangent, F.conv2d(x, w, None, padding=1))


@needs_native
def test_a_subclass_keeps_its_own_convolution():
    class Own(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return "own" if function is torch.conv2d else super().__torch_function__(function, types, args, kwargs)

    x, w, b, _ = tensors(SMALL)
    with fast_convolutions(CPU):
        assert F.conv2d(x.as_subclass(Own), w, b, padding=1) == "own"
        assert isinstance(F.conv2d(nn.Parameter(x), nn.Parameter(w), None, padding=1), Tensor)


@needs_native
def test_derivatives_beyond_the_second_are_pytorchs():
    x, w, b, _ = tensors((3, 17, 20, 7, 6))
    weights = {torch.float32: w, torch.float64: w.double()}
    direction = torch.randn(w.shape)

    def third(dtype, mode):
        w, d = weights[dtype].requires_grad_(), direction.to(dtype)
        with mode:
            value = (F.conv2d(x.to(dtype), w, b.to(dtype), padding=1)).pow(4).mean()
        first = torch.autograd.grad(value, w, create_graph=True)[0]
        second = torch.autograd.grad(first, w, d, create_graph=True)[0]
        return torch.autograd.grad(second, w, d)[0]

    wanted = third(torch.float64, fast_convolutions(CPU))
    assert (third(torch.float32, fast_convolutions(CPU)) - wanted).abs().max() <= 3e-6 * wanted.abs().max()


@needs_native
def test_tangents_of_a_gradient():
    """Forward over reverse: the tangent comes with the output's gradient."""
    x, w, b, g = tensors((3, 17, 20, 7, 6))
    v = torch.randn_like(g)

    def run(dtype):
        weight = w.to(dtype).requires_grad_()
        with forward_ad.dual_level(), fast_convolutions(CPU):
            value = F.conv2d(x.to(dtype), weight, b.to(dtype), padding=1)
            scale = forward_ad.make_dual(g.to(dtype), v.to(dtype))
            return forward_ad.unpack_dual(torch.autograd.grad((value * scale).sum(), weight)[0]).tangent

    wanted = run(torch.float64)
    assert (run(torch.float32) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@needs_native
def test_another_threads_dual_numbers_choose_no_kernel():
    """PyTorch counts levels a process: a hypergradient's own, in one thread, must not change another's bits."""
    x, w, *_ = tensors(SMALL)
    made = []

    def convolve():
        with fast_convolutions(CPU):
            made.append(type(F.conv2d(x, w.requires_grad_(), padding=1).grad_fn).__name__)

    with own_dual_level():
        convolve()  # here tangents may come along
        thread = threading.Thread(target=convolve)
        thread.start()
        thread.join()
    assert made == ["ConvolutionBackward0", "_ConvolutionBackward"]


def test_the_reference_is_plain_pytorch(calls, monkeypatch):
    monkeypatch.setenv("L2T_FAST_BACKEND", "reference")
    x, w, b, _ = tensors(SMALL)
    with fast_convolutions(CPU), CheapSecondDerivatives():
        assert torch.equal(F.conv2d(x, w, b, padding=1), torch.conv2d(x, w, b, padding=1))
    assert not calls.count


def test_without_the_extension_it_is_plain_pytorch(calls, monkeypatch):
    monkeypatch.setattr(_native, "_problem", "it is not there")
    x, w, b, _ = tensors(SMALL)
    with fast_convolutions(CPU):
        F.conv2d(x, w, b, padding=1)
    assert not calls.count
