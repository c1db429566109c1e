"""When the Triton backend is taken, and what is said where it cannot be."""

import importlib.util

import pytest
import torch

import l2t_fast
from l2t_fast import _native, ops
from l2t_fast.ops import choose_backend, why_unavailable
from tests.ops.cuda.conftest import fake_on_gpu

pytest.importorskip("triton")

from l2t_fast.ops.triton import launching  # before a test changes what Triton reads when the kernels are made


@pytest.fixture
def a_gpu(monkeypatch):
    """As PyTorch describes an H100."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ops, "_found", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(_native, "why_unavailable", lambda: "there is no extension")


def test_auto_takes_it_where_there_are_no_cuda_kernels(a_gpu):
    choice = l2t_fast.explain_backend("cuda")
    assert choice.backend == "triton"
    assert choice.reason.startswith(
        "the fused triton backend serves cuda tensors; the fused cuda backend is not available: "
    )


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.bfloat16, "triton"), (torch.float64, "reference")])
def test_auto_leaves_float64_to_the_reference(a_gpu, dtype, wanted):
    x = fake_on_gpu(2, 3, 4, 4, dtype=dtype)
    assert choose_backend("auto", [x], [x]).backend == wanted


def test_without_triton_or_a_gpu_it_is_told(monkeypatch, a_gpu):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert why_unavailable("triton") == "Tesla T4 is older than compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x = torch.zeros(1)
    with pytest.raises(RuntimeError, match="backend='triton' is not available: PyTorch sees no CUDA GPU"):
        choose_backend("triton", [x], [x])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in l2t_fast.explain_backend("cuda").reason


def test_cpu_tensors_are_refused_where_triton_runs_on_a_gpu(monkeypatch, a_gpu):
    feature, weight = torch.zeros(1, 2, 3, 3), torch.zeros(2, 2)
    problem = (feature, feature), (feature,), [(weight, None)], [(0, 0)]
    with pytest.raises(ValueError, match="backend='triton' takes cuda tensors, but one is on cpu"):
        l2t_fast.feature_matching_loss(*problem, backend="triton")
    monkeypatch.setenv("L2T_FAST_BACKEND", "triton")
    with pytest.raises(ValueError, match="L2T_FAST_BACKEND='triton' takes cuda tensors, but one is on cpu") as error:
        l2t_fast.feature_matching_loss(*problem)
    assert l2t_fast.explain_backend("cpu") == ("triton", f"calls are refused: {error.value}")
    assert l2t_fast.explain_backend("cuda") == ("triton", "L2T_FAST_BACKEND=triton asks for it")


def test_float32_is_computed_as_pytorch_s_convolutions_are():
    assert torch.backends.cudnn.allow_tf32 is False  # as tests/ops/conftest.py sets it
    assert launching.float32_precision() == "tf32x3"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert launching.float32_precision() == "tf32"
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for setting, wanted in (("tf32", "tf32"), ("ieee", "tf32x3")):
            torch.backends.cudnn.conv.fp32_precision = setting
            assert launching.float32_precision() == wanted
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_ordinary_tensors_take_the_native_code_s_short_way(monkeypatch):
    if not launching.INTERPRETED or _native.extension is None:
        pytest.skip("Triton takes CPU tensors in its interpreter alone, and there has to be native code")
    called = []
    own = _native.extension.matching_loss
    monkeypatch.setattr(_native.extension, "matching_loss", lambda *given: called.append(given[-1]) or own(*given))
    target, weight = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(5, 3)
    loss = l2t_fast.feature_matching_loss(
        [torch.rand(2, 5, 2, 2)], [target], [(weight, None)], [(0, 0)], backend="triton"
    )
    assert called == [True]
    assert "MatchingForward" in loss.grad_fn.name()  # the node of C++
    (gradient,) = torch.autograd.grad(loss, target, create_graph=True)
    assert "MatchingBackward" in gradient.grad_fn.name()
