"""How a pass calls a module: with other parameters and copies of its buffers, and so that two derivatives come out."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointFunction

from l2t_fast.interrupts import let_interrupt


def call(
    module: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor | None], arguments: tuple
) -> tuple[Any, dict[str, Tensor | None]]:
    """A call with other parameters, and with copies of buffers: its result, and what became of the copies."""
    copies: dict[int, Tensor | None] = {}  # of a buffer with several names one
    for buffer in buffers.values():
        if id(buffer) not in copies:
            copies[id(buffer)] = None if buffer is None else buffer.clone()
    state = {**{name: copies[id(buffer)] for name, buffer in buffers.items()}, **parameters}
    with differentiable_twice(), _uncompiled(module):
        # All names are given. Tying them itself, functional_call breaks a module that is registered twice.
        result = functional_call(module, state, arguments, tie_weights=False)
    let_interrupt()
    after = {id(t): None if t is None else t.detach() for t in (state[name] for name in buffers)}
    return result, {name: after[id(state[name])] for name in buffers}


def by_name(module: nn.Module, kind: str) -> dict[str, Tensor | None]:
    """All parameters or buffers under all their names, but a module that is registered twice under one.

    None is a buffer that a forward pass may yet make.
    """
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, child in module.named_modules()
        for name, tensor in getattr(child, f"_{kind}").items()
    }


def names_of(module: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, by its id."""
    names: dict[int, list[str]] = {}
    for name, parameter in by_name(module, "parameters").items():
        names.setdefault(id(parameter), []).append(name)
    return names


@contextlib.contextmanager
def _uncompiled(module: nn.Module) -> Iterator[None]:
    """Run what `torch.compile` was given: what it made is not differentiated twice, and does not tell what it calls."""
    calls = {}
    for part in module.modules():
        if "_orig_mod" in part._modules and isinstance(part, torch._dynamo.OptimizedModule):
            calls[part] = part._orig_mod.__call__
        elif part._compiled_call_impl is not None:  # by part.compile()
            calls[part] = None
    kept = {part: part._compiled_call_impl for part in calls}
    try:
        for part, call in calls.items():
            part._compiled_call_impl = call
        yield
    finally:
        for part, call in kept.items():
            part._compiled_call_impl = call


_NO_CHECKPOINTS = (
    "hypergradient cannot go through torch.utils.checkpoint, switch it off in the network; accumulation saves memory "
    "too"
)
_enter_hooks = saved_tensors_hooks.__enter__
_entering = threading.Lock()
#: The threads that are in a pass, by their identity.
_in_a_pass: set[int] = set()
_while_in_a_pass = contextlib.ExitStack()


def _enter_unless_checkpoint(hooks: saved_tensors_hooks) -> Any:
    if type(hooks).__module__ == "torch.utils.checkpoint" and threading.get_ident() in _in_a_pass:
        raise RuntimeError(_NO_CHECKPOINTS)
    return _enter_hooks(hooks)


def _apply_unless_in_a_pass(*arguments: Any) -> Any:
    if torch.is_grad_enabled() and threading.get_ident() in _in_a_pass:
        raise RuntimeError(_NO_CHECKPOINTS)
    return super(CheckpointFunction, CheckpointFunction).apply(*arguments)


@contextlib.contextmanager
def differentiable_twice() -> Iterator[None]:
    """Refuse `torch.utils.checkpoint`, and have attention in its formula: its kernels have no second derivative.

    A checkpoint would run again when the module has its own parameters and buffers back. What it enters belongs to all
    threads, and so does the choice of kernels, so that the first thread in a pass puts the refusal there and the last
    one takes it away. With use_reentrant=True there are no hooks, and autograd would leave gradients out.
    """
    thread = threading.get_ident()
    with _entering:
        if not _in_a_pass:
            _while_in_a_pass.enter_context(sdpa_kernel(SDPBackend.MATH))
        _in_a_pass.add(thread)
        saved_tensors_hooks.__enter__ = _enter_unless_checkpoint
        CheckpointFunction.apply = _apply_unless_in_a_pass
    try:
        yield
    finally:
        with _entering:
            _in_a_pass.discard(thread)
            if not _in_a_pass:
                saved_tensors_hooks.__enter__ = _enter_hooks
                del CheckpointFunction.apply
                _while_in_a_pass.close()
