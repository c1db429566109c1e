"""Where a training step's time goes: parts that exclude each other and add up to the step.

Nothing in the step is changed for it. Module hooks, wrapped ``torch.autograd`` entry points and optimizers, and a
dispatch mode that sees our operators switch a clock from part to part; what none of them claims is "rest" (the
look-ahead's SGD arithmetic, Python). On a GPU each switch waits for the device, so there the parts show work, not
overlap; the step without the clock is reported beside their sum.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from l2t_fast.bench.setups import Training
from l2t_fast.bench.timing import Run
from l2t_fast.bilevel.exact import Exact
from l2t_fast.bilevel.finite_difference import FiniteDifference

REST = "rest"


class _Clock:
    """One part runs at any time; entering another stops the one that ran."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._open = [REST]
        self._since = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _book(self) -> None:
        now = self._now()
        part = self._open[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def enter(self, part: str) -> None:
        self._book()
        self._open.append(part)

    def leave(self) -> None:
        self._book()
        self._open.pop()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def finish(self) -> dict[str, float]:
        self._book()
        return self.seconds


class _Parts:
    """Names the part that work belongs to, from the phase of the step it happens in."""

    def __init__(self, clock: _Clock, phase: str) -> None:
        self.clock = clock
        self.phase = phase

    def name(self, what: str) -> str:
        return f"{self.phase}: {what}"

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class _NativeOps(TorchDispatchMode):
    """Books the matching operators of the fused backends, also those that autograd calls from C++."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self._parts = parts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        fused = func.namespace in ("l2t_fast", "l2t_fast_triton")
        if not (fused and func._schema.name.partition("::")[2].startswith("matching")):
            return func(*args, **(kwargs or {}))
        with self._parts.clock.part(self._parts.name("matching loss")):
            return func(*args, **(kwargs or {}))


def step_parts(training: Training, run: Run, repeats: int, *, phase: str = "real step") -> dict[str, float]:
    """Seconds of each part of ``run``, a step of ``training``: of the call with the median total of ``repeats``.

    ``phase`` names what runs outside the method's own step: the real step, in a loop that has one.
    """
    measured = []
    for _ in range(repeats):
        run.prepare()
        with contextlib.ExitStack() as stack:
            clock = _Clock(training.x.device)
            _install(stack, training, _Parts(clock, phase))
            run.call()
            measured.append(clock.finish())
    return sorted(measured, key=lambda parts: sum(parts.values()))[len(measured) // 2]


def _install(stack: contextlib.ExitStack, training: Training, parts: _Parts) -> None:
    method = training.method
    _hook(stack, parts, training.source, lambda: "source network")
    _hook(stack, parts, training.target, lambda: parts.name("target forward"))
    _hook(stack, parts, method.matching, lambda: parts.name("matching loss"))
    _hook(stack, parts, method.meta, lambda: "weight networks")
    for optimizer in (training.optimizer, training.meta_optimizer):
        _wrap(stack, optimizer, "step", parts, lambda: "SGD and Adam")
    _wrap(stack, torch.autograd, "grad", parts, lambda: parts.name("backward"))
    _wrap(stack, torch.autograd, "backward", parts, lambda: parts.name("backward"))

    after_step = method.after_step

    def in_hypergradient(*arguments: object) -> None:
        with parts.during("look-ahead"):
            after_step(*arguments)

    stack.callback(delattr, method, "after_step")
    method.after_step = in_hypergradient
    stack.enter_context(_NativeOps(parts))
    # With its graphs made again in it, where they are not kept.
    for second_order in (Exact, FiniteDifference):
        _in_phase(stack, second_order, "add_products_", parts, "second order")


def _hook(stack: contextlib.ExitStack, parts: _Parts, module: torch.nn.Module, name: Callable[[], str]) -> None:
    before = module.register_forward_pre_hook(lambda *_: parts.clock.enter(name()))
    after = module.register_forward_hook(lambda *_: parts.clock.leave())
    stack.callback(before.remove)
    stack.callback(after.remove)


def _in_phase(stack: contextlib.ExitStack, owner: type, attribute: str, parts: _Parts, phase: str) -> None:
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def phased(*arguments: object, **options: object) -> object:
        with parts.during(phase):
            return original(*arguments, **options)

    setattr(owner, attribute, phased)
    stack.callback(setattr, owner, attribute, original)


def _wrap(stack: contextlib.ExitStack, owner: object, attribute: str, parts: _Parts, name: Callable[[], str]) -> None:
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def timed(*arguments: object, **options: object) -> object:
        with parts.clock.part(name()):
            return original(*arguments, **options)

    own = attribute in vars(owner)
    setattr(owner, attribute, timed)
    stack.callback(setattr, owner, attribute, original) if own else stack.callback(delattr, owner, attribute)
