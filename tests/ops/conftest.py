"""What every test of an operator runs under: the backends in turn, and memory that is NaN until it is written."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from l2t_fast.ops import implementation, why_unavailable


@dataclass(frozen=True)
class Backend:
    """A fused backend under test."""

    name: str
    device: str
    matching_loss: Callable[..., Tensor]
    dtypes: tuple[torch.dtype, ...]

    @property
    def ops(self):
        """Its operators, as torch.ops has them."""
        return torch.ops.l2t_fast_triton if self.name == "triton" else torch.ops.l2t_fast


_LOW = (torch.float32, torch.bfloat16, torch.float16)
_BACKENDS = {"cpu": ("cpu", (torch.float64, *_LOW))}
if why_unavailable("triton") is None:
    # Triton's interpreter takes CPU tensors; its products of bfloat16 are wrong.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    _BACKENDS["triton"] = ("cpu", (torch.float32, torch.float16)) if interpreted else ("cuda", _LOW)
if why_unavailable("cuda") is None:
    _BACKENDS["cuda"] = ("cuda", _LOW)


@pytest.fixture(scope="session", params=list(_BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    problem = why_unavailable(request.param)
    if problem is not None:
        pytest.skip(f"the {request.param} backend is not available: {problem}")
    device, dtypes = _BACKENDS[request.param]
    return Backend(request.param, device, implementation(request.param), dtypes)


@pytest.fixture(scope="session")
def exact_backend(backend: Backend) -> Backend:
    """A backend that computes in float64, as gradcheck needs."""
    if torch.float64 not in backend.dtypes:
        pytest.skip(f"the {backend.name} backend has no float64")
    return backend


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """torch.empty, from C++ too, returns NaN: an output that is not written, or is read before, shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """No tf32, on a GPU: errors are judged by float32's roundings. What tf32 does has tests of its own."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone at the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
