"""When the CUDA backend is taken, and what is said where it cannot be."""

from types import SimpleNamespace

import pytest
import torch

import l2t_fast
from l2t_fast import _native, ops
from l2t_fast.ops import choose_backend, why_unavailable
from tests.ops.cuda.conftest import fake_on_gpu


@pytest.fixture
def a_gpu(monkeypatch):
    """As PyTorch describes an H100, with an extension that has kernels for it."""
    monkeypatch.setattr(ops, "_found", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    properties = SimpleNamespace(shared_memory_per_block_optin=232_448)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    image = {"error": None}
    extension = SimpleNamespace(kernel_image=lambda device: image, cuda_shared_bytes=166_912)
    monkeypatch.setattr(_native, "extension", extension)
    monkeypatch.setattr(_native, "why_unavailable", lambda: None)
    monkeypatch.setattr(torch.ops.l2t_fast, "matching_loss", None, raising=False)
    return SimpleNamespace(properties=properties, image=image)


def test_a_gpu_that_fits_is_taken_where_it_is_asked_for(a_gpu):
    assert why_unavailable("cuda") is None
    x = fake_on_gpu(2, 3, 4, 4)
    assert choose_backend("cuda", [x], [x]).backend == "cuda"


def test_auto_takes_it_for_cuda_tensors(a_gpu):
    assert l2t_fast.explain_backend("cuda") == ("cuda", "the fused cuda backend serves cuda tensors")
    x = fake_on_gpu(2, 3, 4, 4, dtype=torch.float64)
    assert choose_backend("auto", [x], [x]) == ("reference", "the cuda backend has no float64")


def test_where_it_cannot_run_the_reason_is_told(a_gpu, monkeypatch):
    a_gpu.image["error"] = "no kernel image is available"
    assert why_unavailable("cuda") == "no kernel image is available"
    a_gpu.properties.shared_memory_per_block_optin = 101_376
    assert why_unavailable("cuda") == "NVIDIA H100 has 101376 bytes of shared memory a block, 166912 are needed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert why_unavailable("cuda") == "NVIDIA H100 is older than compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_unavailable("cuda") == "PyTorch sees no CUDA GPU"
    monkeypatch.delattr(ops._native.extension, "kernel_image")
    assert why_unavailable("cuda").startswith("the native extension is built without CUDA kernels")


def test_the_driver_is_asked_once_for_each_gpu(a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert why_unavailable("cuda") is None
    a_gpu.image["error"] = "no kernel image is available"
    assert why_unavailable("cuda") is None
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert why_unavailable("cuda") == "no kernel image is available"
    a_gpu.image["error"] = None
    assert why_unavailable("cuda") is None  # what does not run is asked again


def test_the_gpu_that_tensors_are_on_is_asked(a_gpu, monkeypatch):
    """Which need not be the current one, nor of its kind."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    small = SimpleNamespace(shared_memory_per_block_optin=101_376)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: small if gpu == 1 else a_gpu.properties)
    assert l2t_fast.explain_backend("cuda:0").backend == "cuda"
    assert l2t_fast.explain_backend("cuda:1").backend == "triton"
    first, second = fake_on_gpu(2, 3, 4, 4), fake_on_gpu(2, 3, 4, 4, gpu=1)
    assert choose_backend("auto", [first], [first]).backend == "cuda"
    assert choose_backend("auto", [second], [second]).backend == "triton"
    assert choose_backend("cuda", [first], [first]).backend == "cuda"
    with pytest.raises(RuntimeError, match="has 101376 bytes of shared memory a block"):
        choose_backend("cuda", [second], [second])


def test_a_compiler_s_graph_does_not_ask_the_driver(a_gpu, monkeypatch):
    """PyTorch's compiler would break its graph at native code."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(_native.extension, "kernel_image", lambda gpu: pytest.fail("the driver was asked"))
    assert why_unavailable("cuda") is None


@pytest.mark.parametrize(("name", "device"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_tensors_elsewhere_are_refused(a_gpu, name, device):
    x = fake_on_gpu(2, 3, 4, 4) if device == "cuda" else torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=f"backend='{name}' takes {name} tensors, but one is on {device}"):
        choose_backend(name, [x], [x])


def test_gpus_of_amd_take_the_reference(a_gpu, monkeypatch):
    """They are "cuda" to PyTorch too."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.delattr(_native.extension, "kernel_image")
    choice = l2t_fast.explain_backend("cuda")
    assert choice.backend == "reference" and "PyTorch is that of AMD's GPUs" in choice.reason
    with pytest.raises(RuntimeError, match="backend='triton' is not available: PyTorch is that of AMD's GPUs"):
        choose_backend("triton", [], [])
