"""The CUDA kernels on the CPU: the same code, its threads one after the other; see csrc/cuda/emulator.h."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from l2t_fast import _native
from tests.ops.conftest import Backend

Emulate = Callable[..., None]


@pytest.fixture
def emulate() -> Iterator[Emulate]:
    """Emulate a chip from now on to the end of the test; see ``emulate_cuda``."""
    if _native.extension is None:
        pytest.skip("there is no native extension")
    yield partial(_native.extension.emulate_cuda, processors=3)
    _native.extension.emulate_cuda(0)


@pytest.fixture
def emulated(emulate: Emulate) -> Backend:
    from l2t_fast.ops import native

    emulate()
    return Backend("cuda", "cpu", native.matching_loss, (torch.float32, torch.bfloat16, torch.float16))


@contextmanager
def gram_form() -> Iterator[None]:
    """The CUDA kernels' Gram form wherever it can serve, with tf32 allowed, without which it nowhere can."""
    with _form("gram"):
        yield


@contextmanager
def direct_form() -> Iterator[None]:
    """The CUDA kernels' direct form alone, with tf32 allowed."""
    with _form("direct"):
        yield


@contextmanager
def _form(name: str) -> Iterator[None]:
    _native.extension.force_algorithm(name)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            yield
    finally:
        _native.extension.force_algorithm("auto")


def fake_on_gpu(*shape: int, dtype: torch.dtype = torch.float32, gpu: int = 0) -> Tensor:
    """A tensor without data on a GPU that need not be there."""
    with pytest.MonkeyPatch.context() as real:
        real.setattr(torch.cuda, "is_available", lambda: False)  # or PyTorch 2.11 would look for its driver
        with FakeTensorMode():
            return torch.empty(*shape, device=f"cuda:{gpu}", dtype=dtype)


def same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[name], wanted[name]) for name in wanted)
