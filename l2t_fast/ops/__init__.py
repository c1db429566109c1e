"""The matching op: one contract, one file a backend, and the choice between them.

Every backend offers ``matching_loss(sources, targets, weights, biases, alpha, pairs) -> Tensor``:

* ``sources[m]`` (B, C_m, H_m, W_m) and ``targets[n]`` (B, C_n, H_n, W_n), float32, bfloat16, float16 or float64;
* per pair ``weights[p]`` (C_m, C_n), or as a convolution has it (C_m, C_n, 1, 1), but for the reference, and
  ``biases[p]`` (C_m,) or None;
* ``alpha`` (B, sum over pairs of C_m), float32, or float64 with float64 features: the one coefficient per sample and
  channel, beta * lambda * w / (B * P), its columns in the order of ``pairs``;
* ``pairs[p]`` = (m, n).

The loss is a scalar of alpha's dtype, twice differentiable in targets, weights, biases and alpha.
"""

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from l2t_fast import _native
from l2t_fast.ops import batching, reference  # noqa: F401  (batching registers with the native operators)

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
ENVIRONMENT_VARIABLE = "L2T_FAST_BACKEND"

# Which backends `auto` takes for a kind of device, the first that is available. Both of a GPU's were timed on an H200
# (docs/performance.md); Triton's serves where the extension has no CUDA kernels or the GPU cannot run them.
FUSED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

MatchingLoss = Callable[..., Tensor]

# A GPU's backends that were found to run, with its number. Nothing takes that back, and to ask the driver again at
# every call would take the host as long as some launches.
_found: set[tuple[str, int]] = set()


class Choice(NamedTuple):
    """A backend and, in one sentence, why it was taken."""

    backend: str
    reason: str


def backend_of_environment() -> str:
    """What stands in for "auto": the backend that ``L2T_FAST_BACKEND`` names, "auto" where it is unset or empty."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or "auto"


def check_backend_name(name: str, named_by: str = "backend=") -> None:
    """Raise ValueError if there is no such backend, in any installation."""
    if name not in BACKENDS:
        raise ValueError(f"{named_by}{name!r} is not a backend, choose one of {', '.join(BACKENDS)}")


def implementation(backend: str) -> MatchingLoss:
    """The ``matching_loss`` function of a backend that :func:`choose_backend` returned."""
    if backend == "reference":
        return reference.matching_loss
    if backend == "triton":
        from l2t_fast.ops import triton

        return triton.matching_loss
    from l2t_fast.ops import native

    return native.matching_loss


def why_unavailable(backend: str, device: torch.device | None = None) -> str | None:
    """Why a backend cannot run in this installation, or None when it can; a GPU's, on that one, or the current one."""
    if backend == "reference":
        return None
    gpu = None if device is None or device.type != "cuda" else device.index
    asks_driver = (
        backend in FUSED["cuda"]
        and os.environ.get("TRITON_INTERPRET") != "1"
        and not torch.compiler.is_compiling()
        and torch.cuda.is_initialized()
    )
    if asks_driver:
        gpu = torch.cuda.current_device() if gpu is None else gpu
        if (backend, gpu) in _found:
            return None
    problem = _why_no_triton(gpu) if backend == "triton" else _why_no_extension()
    if problem is None and backend == "cuda":
        problem = _why_no_cuda(gpu)
    if problem is None and asks_driver:
        _found.add((backend, gpu))
    return problem


def kind_of_devices(backend: str) -> str | None:
    """The kind of device whose tensors a backend takes, None for any."""
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":  # whose tensors are the CPU's
        return None
    return next((kind for kind, backends in FUSED.items() if backend in backends), None)


def _why_no_extension() -> str | None:
    problem = _native.why_unavailable()
    if problem is None and not hasattr(torch.ops.l2t_fast, "matching_loss"):
        problem = "the native extension has no matching op, build it again"
    return problem


def _why_no_cuda(gpu: int | None) -> str | None:
    if not hasattr(_native.extension, "kernel_image"):
        return "the native extension is built without CUDA kernels (no nvcc was found, or PyTorch has no CUDA)"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    problem = _why_too_old(gpu)
    if problem is not None:
        return problem
    gpu = torch.cuda.current_device() if gpu is None else gpu
    shared = torch.cuda.get_device_properties(gpu).shared_memory_per_block_optin
    needed = _native.extension.cuda_shared_bytes
    if shared < needed:
        return f"{torch.cuda.get_device_name(gpu)} has {shared} bytes of shared memory a block, {needed} are needed"
    if torch.compiler.is_compiling():  # a graph holds no call of native code; where no kernel runs, its launch says so
        return None
    return _native.extension.kernel_image(gpu)["error"]


def _why_too_old(gpu: int | None) -> str | None:
    if torch.cuda.get_device_capability(gpu) < (8, 0):
        return f"{torch.cuda.get_device_name(gpu)} is older than compute capability 8.0"
    return None


def _why_no_triton(gpu: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    if torch.version.hip is not None:  # whose GPUs are "cuda" to PyTorch
        return "PyTorch is that of AMD's GPUs, and the Triton kernels are for NVIDIA's"
    return _why_too_old(gpu)


def backend_for_device(device: torch.device | str) -> Choice:
    """What "auto" stands for with ordinary tensors on one device, where ``L2T_FAST_BACKEND`` names nothing else."""
    device = torch.device(device)
    kind = device.type
    if kind not in FUSED:
        return Choice("reference", f"there is no fused backend for {kind} tensors")
    problems = []
    for fused in FUSED[kind]:
        problem = why_unavailable(fused, device)
        if problem is None:
            return Choice(fused, "; ".join([f"the fused {fused} backend serves {kind} tensors", *problems]))
        problems.append(f"the fused {fused} backend is not available: {problem}")
    return Choice("reference", "; ".join(problems))


def explain_backend(device: torch.device | str) -> Choice:
    """What a call with ``backend="auto"`` takes for ordinary tensors on one device, with the reason.

    Where ``L2T_FAST_BACKEND`` names what the call would refuse, the reason is the call's error.
    """
    device = torch.device(device)
    name, named_by = backend_of_environment(), f"{ENVIRONMENT_VARIABLE}="
    if name == "auto":
        return backend_for_device(device)
    try:
        check_backend_name(name, named_by)
        if name != "reference":
            _check_available(name, named_by, device)
            _check_devices(name, named_by, [device])
    except (ValueError, RuntimeError) as error:
        return Choice(name, f"calls are refused: {error}")
    return Choice(name, f"{named_by}{name} asks for it")


def _check_available(name: str, named_by: str, device: torch.device | None) -> None:
    problem = why_unavailable(name, device)
    if problem is not None:
        raise RuntimeError(f"{named_by}{name!r} is not available: {problem}")


def _check_devices(name: str, named_by: str, devices: Iterable[torch.device]) -> None:
    kind = kind_of_devices(name)
    elsewhere = [device for device in devices if device.type not in (kind, "meta")]
    if kind is not None and elsewhere:
        raise ValueError(f"{named_by}{name!r} takes {kind} tensors, but one is on {elsewhere[0]}")


def choose_backend(requested: str, sources: Iterable[Tensor], others: Iterable[Tensor]) -> Choice:
    """Resolve a ``backend`` argument for one call.

    ``auto`` yields to the environment variable ``L2T_FAST_BACKEND``; a backend named in the call yields to nothing.
    ``others`` are all tensors of the call but the source features.

    Raises:
        ValueError: an unknown name, or a fused backend named by hand for a source feature that requires grad, for
            tensors that are elsewhere or inside a ``torch.func`` transform.
        TypeError: "cuda" or "triton" named by hand for float64 tensors.
        RuntimeError: a backend named by hand that this installation does not have.
    """
    name, named_by = requested, "backend="
    if name == "auto":
        name, named_by = backend_of_environment(), f"{ENVIRONMENT_VARIABLE}="
    check_backend_name(name, named_by)
    if name == "reference":
        return Choice("reference", f"{named_by}{name} asks for it")

    sources, others = list(sources), list(others)
    learns_source = torch.is_grad_enabled() and any(s.requires_grad for s in sources)
    if name != "auto":
        _check_available(name, named_by, sources[0].device if sources else None)
        if learns_source:
            raise ValueError(
                f"{named_by}{name!r} gives no gradient for source features, but one requires grad; "
                'detach it, or use backend="reference"'
            )
        if name in FUSED["cuda"] and any(t.dtype == torch.float64 for t in (*sources, *others)):
            raise TypeError(f'{named_by}{name!r} has no float64, use backend="reference"')
        _check_devices(name, named_by, [t.device for t in (*sources, *others)])
        if inside_transform():
            raise ValueError(f'{named_by}{name!r} does not run inside torch.func transforms, use backend="reference"')
        return Choice(name, f"{named_by}{name} asks for it")

    tensors = sources + others
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        return Choice("reference", "the tensors are on more than one device")
    if learns_source:
        return Choice("reference", "a source feature requires grad, and the fused backends give it none")
    if inside_transform() or any(is_transformed(t) for t in tensors):
        return Choice("reference", "the fused backends do not run inside torch.func transforms or forward-mode AD")
    choice = backend_for_device(devices.pop())
    if choice.backend in FUSED["cuda"] and any(t.dtype == torch.float64 for t in tensors):
        return Choice("reference", f"the {choice.backend} backend has no float64")
    return choice


def inside_transform() -> bool:
    """Whether a torch.func transform runs, whose operators wrap tensors that it was not given too."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


#: The thread that is in :func:`own_dual_level`, by its identity.
_dual_thread: int | None = None


@contextlib.contextmanager
def own_dual_level() -> Iterator[None]:
    """A level of dual numbers whose tensors no other thread gets: one thread at a time."""
    global _dual_thread
    _dual_thread = threading.get_ident()
    try:
        with forward_ad.dual_level():
            yield
    finally:
        _dual_thread = None


def inside_dual_level() -> bool:
    """Whether tensors may carry tangents. PyTorch's level is the process's, and says nothing of a thread."""
    return forward_ad._current_level >= 0 and _dual_thread in (None, threading.get_ident())


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor carries a forward-mode tangent or is wrapped by a torch.func transform."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return inside_dual_level() and forward_ad.unpack_dual(tensor).tangent is not None
