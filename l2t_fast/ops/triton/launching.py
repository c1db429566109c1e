"""Runs the kernels: from checked arguments to loss, gradients and Hessian-vector products. No autograd here."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from l2t_fast.ops.triton import kernels, tensor_lists, tuning
from l2t_fast.ops.triton.arguments import Arguments, check
from l2t_fast.ops.triton.plan import Launch, Plan
from l2t_fast.ops.triton.planning import Planner
from l2t_fast.ops.triton.tiles import INTERPRETER, TABLES, TileTable

INTERPRETED = not kernels.COMPILED.value
"""Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when Triton was imported): then on CPU tensors."""

_PLANS: OrderedDict[tuple, Plan] = OrderedDict()
_PLANS_KEPT = 128
_CAPTURED: list[Plan] = []  # whose device memory CUDA graphs read at every replay
_LOCK = Lock()


class Answer(NamedTuple):
    loss: Tensor | None
    results: list[Tensor | None]  # one a slot


def loss_and_gradient(arguments: Arguments) -> Answer:
    """The loss and, for the slots in need, its gradient."""
    return _run(arguments, None)


def hessian_vector(arguments: Arguments, directions: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The Hessian times ``directions``, for the slots in need."""
    return _run(arguments, directions).results


def float32_precision() -> str:
    """How float32 products are computed: as PyTorch's convolutions are asked to, "tf32" or, for ieee, "tf32x3".

    Three tf32 products of the operands' high and low halves come within an ulp or two of float32's, on tensor cores.
    """
    convolution = getattr(torch.backends.cudnn, "conv", None)
    setting = getattr(convolution, "fp32_precision", None)
    if setting is not None:  # beside which PyTorch refuses to answer by the older name
        return "tf32" if setting == "tf32" else "tf32x3"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _run(given: Arguments, directions: Sequence[Tensor | None] | None) -> Answer:
    key = _key(given, directions)
    with _LOCK:
        plan = _PLANS.get(key)
        if plan is not None:
            _PLANS.move_to_end(key)
    capturing = given.alpha.is_cuda and torch.cuda.is_current_stream_capturing()
    if plan is None:
        check(given, directions)
        if capturing:
            raise RuntimeError(
                "the matching loss is captured into a CUDA graph for sizes, strides and needs it has not been called "
                "with before; call it once before the capture, with tensors like those"
            )
    results = tensor_lists.empty_results(given)
    if plan is None or plan.is_of_mixtures:
        arguments, directions, own = _in_one_dtype_each(given, directions, results)
    else:
        arguments, own = given, results
    with torch.cuda.device(given.alpha.device) if given.alpha.is_cuda else nullcontext():
        if plan is None:
            plan = _plan(arguments, directions, own)
            plan.is_of_mixtures = arguments is not given
            with _LOCK:
                _PLANS[key] = plan
                while len(_PLANS) > _PLANS_KEPT:
                    _PLANS.popitem(last=False)
        if capturing:
            _CAPTURED.append(plan)
        loss = _launch(plan, arguments, directions, own)
    for result, computed in zip(results, own, strict=True):
        if computed is not result:
            result.copy_(computed)
    return Answer(loss if directions is None else None, results)


def _key(arguments: Arguments, directions: Sequence[Tensor | None] | None) -> tuple:
    """All that a plan depends on; addresses count by their alignment alone."""
    tensors = [*arguments.sources, *arguments.slots, *(directions or ())]
    counts = len(arguments.sources), len(arguments.targets), len(arguments.weights), directions is None
    return *counts, tensor_lists.facts(tensors), tuple(arguments.pairs), tuple(arguments.needs), float32_precision()


def _in_one_dtype_each(
    arguments: Arguments, directions: Sequence[Tensor | None] | None, results: list[Tensor | None]
) -> tuple[Arguments, list[Tensor | None] | None, list[Tensor | None]]:
    """Sources, targets, weights and biases of one dtype each, as a kernel takes them: mixtures become float32."""

    def same(tensors: Sequence[Tensor | None]) -> bool:
        return len({t.dtype for t in tensors if t is not None}) <= 1

    def widened(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if t is None else t.float() for t in tensors]

    groups = [arguments.targets, arguments.weights, arguments.biases]
    if all(map(same, [arguments.sources, *groups])):
        return arguments, None if directions is None else list(directions), results
    bounds, inputs, moved, own, begin = [], [], [], [], 0
    for group in groups:
        bounds.append((begin, begin + len(group)))
        begin += len(group)
    for (begin, end), group in zip(bounds, groups, strict=True):
        change = list if same(group) else widened
        inputs.append(change(group))
        moved += change(directions[begin:end]) if directions is not None else []
        own += results[begin:end] if same(group) else widened(results[begin:end])
    sources = arguments.sources if same(arguments.sources) else widened(arguments.sources)
    changed = Arguments(sources, *inputs, arguments.alpha, arguments.pairs, arguments.needs)
    own = [result if result is None or o.dtype == result.dtype else o for o, result in zip(own, results, strict=False)]
    return changed, None if directions is None else [*moved, directions[-1]], [*own, results[-1]]


def _plan(arguments: Arguments, directions: Sequence[Tensor | None] | None, results: list[Tensor | None]) -> Plan:
    device, precision = arguments.alpha.device, float32_precision()
    if INTERPRETED:
        name, tiles, processors = "interpreter", INTERPRETER, 2
    else:
        properties = torch.cuda.get_device_properties(device)
        name, tiles = properties.name, TABLES[precision]
        processors = properties.multi_processor_count

    def planner(table: TileTable) -> Planner:
        own = {"precision": precision, "tiles": table, "processors": processors, "compiles": not INTERPRETED}
        return Planner(arguments, directions, results, **own)

    first = planner(tiles)
    plan = first.plan()
    if not tuning.wanted() or not first.classes:
        return plan

    def seconds(table: TileTable) -> float:
        tried = planner(table).plan()
        return tuning.seconds_of(lambda: _launch(tried, arguments, directions, results))

    return planner(tuning.tuned(tiles, f"{name}, {first.setting}", first.classes, seconds)).plan()


def _addresses(
    arguments: Arguments,
    directions: Sequence[Tensor | None] | None,
    results: Sequence[Tensor | None],
    loss: Tensor,
) -> np.ndarray:
    """What fills Plan.address_words, in that order."""
    targets, pairs = len(arguments.targets), len(arguments.weights)
    moved = [None] * arguments.slot_count if directions is None else directions
    tensors = [arguments.alpha, moved[-1], results[-1], loss]
    for n in range(targets):
        tensors += [arguments.targets[n], moved[n], results[n]]
    for p in range(pairs):
        weight, bias = targets + p, targets + pairs + p
        tensors += [arguments.sources[arguments.pairs[2 * p]], arguments.weights[p], moved[weight]]
        tensors += [arguments.biases[p], moved[bias], results[weight], results[bias]]
    return tensor_lists.addresses(tensors)


def _launch(
    plan: Plan, arguments: Arguments, directions: Sequence[Tensor | None] | None, results: list[Tensor | None]
) -> Tensor:
    alpha = arguments.alpha
    loss = alpha.new_empty(()) if plan.launches else alpha.new_zeros(())
    for slot in plan.zeroed:
        if results[slot] is not None:
            results[slot].zero_()
    if not plan.launches:
        return loss
    workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=alpha.device)
    values = plan.template.copy()
    values[plan.address_words] = _addresses(arguments, directions, results, loss)
    values[plan.place_words] += workspace.data_ptr()
    table = to_device(values, alpha.device)
    stream = None if INTERPRETED else triton.runtime.driver.active.get_current_stream(alpha.device.index)
    if alpha.is_cuda and stream not in plan.streams:
        plan.streams.add(stream)
        for launch in plan.launches:  # when the plan goes, its memory waits for this stream too
            launch.items.record_stream(torch.cuda.current_stream(alpha.device))
    for launch in plan.launches:
        _start(launch, table, stream)
    return loss


def _start(launch: Launch, table: Tensor, stream: int | None) -> None:
    """One kernel over its items.

    Triton's own way in looks at every argument at every call, for the code that was compiled for such: many times what
    the launch takes. The arguments of a plan's launch are always alike, so it is asked once, and so that addresses are
    not looked up either, they are handed over as numbers. What Triton would look at again besides, its switches for
    debugging and instrumentation, counts when a plan is first launched; its launch hooks are called each time.
    """
    if launch.again is not None:
        launch.again(table.data_ptr(), stream=stream)
        return
    programs, options = len(launch.items), {}
    if not INTERPRETED:
        options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    compiled = launch.kernel[(programs,)](table, launch.items, **options, **launch.constants)
    if compiled is None:  # as it is in the interpreter
        return
    if hasattr(compiled, "result"):  # under triton.AsyncCompileMode
        compiled = compiled.result()
    run, rest = compiled[(programs, 1, 1)], (launch.items.data_ptr(), *launch.constants.values())
    launch.again = lambda address, stream: run(address, *rest, stream=stream)


# ---- host to device ------------------------------------------------------------------------------------------------


def _pinned(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device="cpu", pin_memory=True)  # the default device may be a GPU


class _Arena:
    """Pinned memory for tables that a CUDA graph copies from at every replay: handed out once, never used again.

    It is allocated before any capture, because memory cannot be pinned during one.
    """

    WORDS = 1 << 17

    def __init__(self) -> None:
        self.memory = _pinned(self.WORDS)
        self.used = 0

    def take(self, count: int) -> Tensor:
        if self.used + count > self.WORDS:
            raise RuntimeError(
                "the matching loss was captured into so many CUDA graphs that the memory set aside for them, "
                f"{self.WORDS * 8 // 2**20} MiB, is used up; reuse the graphs, or capture in another process"
            )
        self.used += count
        return self.memory[self.used - count : self.used]


_arena: _Arena | None = None


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy of ``values`` (int64) on the device, in the order of the current stream and without waiting for it."""
    global _arena
    if device.type != "cuda":
        return torch.from_numpy(values)
    if _arena is None:
        with _LOCK:
            _arena = _arena or _Arena()
    if torch.cuda.is_current_stream_capturing():
        with _LOCK:
            host = _arena.take(len(values))
    else:
        host = _pinned(len(values))  # PyTorch keeps it until it is copied
    host.numpy()[:] = values
    return host.to(device, non_blocking=True)
