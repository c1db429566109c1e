"""A CUDA graph without a GPU: a capture notes every operation that PyTorch runs, a replay runs these again.

As with a CUDA graph, a replay reads and writes the tensors of the capture and knows nothing of Python: a number that
the host knew at the capture stays what it was, an attribute that Python would have set is not set. A capture computes
nothing: what it changed is put back. And where a CUDA graph cannot be captured, because the host would wait for a
number, neither can this.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

_aten = torch.ops.aten
#: What makes the host wait for the device, or copies from the host what the host has just made.
HOST_SIDE = {
    _aten._local_scalar_dense,  # item, float, bool, tolist of a number
    _aten.equal,
    _aten.is_nonzero,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.bincount,
    _aten.lift_fresh,  # torch.tensor(...)
}


def no_host(func: Any) -> None:
    """Raise RuntimeError, as a capture does, for an operation that a CUDA graph cannot hold."""
    if func.overloadpacket in HOST_SIDE:
        raise RuntimeError(f"{func} needs the host")


class NoHost(TorchDispatchMode):
    """Fails for every operation that a CUDA graph cannot hold; with ``device``, for tensors elsewhere as well."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        no_host(func)
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for tensor in _tensors(args, kwargs, result) if self.device else ():
            assert tensor.device.type == self.device, f"{func} takes or makes a tensor on {tensor.device}"
        return result


class StandIn:
    """In place of `l2t_fast.transfer.step_graph.CudaRecorder`."""

    def __init__(self, device: torch.device) -> None:
        self.captures = 0
        self.replays = 0

    def run(self, function: Callable[[], T]) -> T:
        return function()

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        self.captures += 1
        tape = _Tape()
        with tape:
            result = function()
        tape.undo()

        def replay() -> None:
            self.replays += 1
            tape.play()

        return result, replay

    def memory(self) -> int:
        return 3 * 2**20


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], None]] = []
        self._made: dict[int, Tensor] = {}  # by storage; kept, so that no other tensor takes its address
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # of what was there: a tensor of its whole memory, a copy

    def __enter__(self) -> "_Tape":
        self._generator = torch.get_rng_state, torch.set_rng_state
        self._state_before = torch.get_rng_state()
        torch.get_rng_state, torch.set_rng_state = self._note_state, self._note_return
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.get_rng_state, torch.set_rng_state = self._generator
        torch.set_rng_state(self._state_before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        no_host(func)
        kwargs = kwargs or {}
        # All of them: batch normalisation's schema does not say that it writes running statistics.
        for tensor in _tensors(args, kwargs):
            key = _storage(tensor)
            if key not in self._made and key not in self._before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[key] = whole, whole.clone()
        result = func(*args, **kwargs)
        made = list(_tensors(result))
        for tensor in made:
            if _storage(tensor) not in self._before:
                self._made[_storage(tensor)] = tensor

        def again() -> None:
            for old, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if _storage(old) != _storage(new) and not old._is_zerotensor():
                    old.copy_(new)

        self._calls.append(again)
        return result

    # PyTorch's generator on a GPU counts from the beginning of a graph; the one of the CPU does not know of graphs.

    def _note_state(self) -> Tensor:
        get, _ = self._generator
        state = get()
        self._calls.append(lambda: state.copy_(get()))
        return state

    def _note_return(self, state: Tensor) -> None:
        _, set_ = self._generator
        set_(state)
        self._calls.append(lambda: set_(state))

    def undo(self) -> None:
        """Put back what the capture has changed."""
        for whole, copy in self._before.values():
            whole.copy_(copy)

    @torch.no_grad()
    def play(self) -> None:
        """Run all calls again."""
        for call in self._calls:
            call()


def capturable_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Adam's form for CUDA graphs run on the CPU, which PyTorch does not promise."""
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


def _tensors(*values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
