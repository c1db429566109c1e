"""A training step as two CUDA graphs, which two calls launch instead of some thousand.

The first holds the source and the target's forward and backward pass. Then the host looks at the loss, as it does
without a graph, so that a loss that is not finite changes no parameter. The second holds the SGD step, the look-ahead,
the hypergradient and Adam's step. Both are captured from the step's own functions, after a few ordinary steps on the
stream of the capture: they make momenta, plans and handles of libraries, and being ordinary steps they leave nothing to
be undone.

What a graph fixes is what the host knew at the capture: shapes, addresses and numbers. So the learning rate, which
changes once an epoch, is a tensor on the device, and whatever a step adds up is added up in its place there.
"""

import gc
import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from l2t_fast.config import TransferOptions
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer.methods import Batch, Method

T = TypeVar("T")

#: Ordinary steps before the capture: the first makes the momenta, a second runs what the others will.
WARM_UP = 3


class Recorder(Protocol):
    """What runs a function so that it can be captured, and captures it."""

    def run(self, function: Callable[[], T]) -> T:
        """Call it where it will be captured."""

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What it returns, without having computed it; and a function that computes it anew, in the same memory."""


class CudaRecorder:
    """Captures CUDA graphs on a stream of its own; they share their memory, so they have to be replayed in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": a data loader's thread may pin memory meanwhile.
        mode = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        # What the collector would free in the middle, such as the graphs of an earlier run, would spoil the capture.
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, **mode):
                result = function()
        finally:
            if collects:
                gc.enable()
        return result, graph.replay

    def memory(self) -> int:
        """Bytes of the device that belong to the graphs."""
        segments = torch.cuda.memory_snapshot()
        pool = tuple(self._pool)
        return sum(s["total_size"] for s in segments if tuple(s.get("segment_pool_id", ())) == pool)


class Halves(Protocol):
    """The step that is captured: :class:`l2t_fast.transfer.step.Step` says what its methods do."""

    optimizer: torch.optim.SGD
    method: Method

    def plain_step(self, x: Tensor, y: Tensor) -> Tensor: ...

    def gradients(self, x: Tensor, y: Tensor, *, check: bool) -> tuple[Batch, Tensor]: ...

    def update(self, batch: Batch) -> None: ...


class StepGraph:
    """Runs steps on batches: those of the form of the first batch by graphs, others, which are smaller, without."""

    def __init__(self, halves: Halves, recorder: Recorder) -> None:
        self._halves = halves
        self._recorder = recorder
        self._form: list[tuple] | None = None
        self._warm = 0
        self._captured: _Captured | None = None

    @property
    def is_captured(self) -> bool:
        """Whether the next step on a batch of the form of the first one is a replay."""
        return self._captured is not None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """As ``plain_step`` of the step.

        Raises:
            L2TFastError: the loss is not finite, or the step cannot be captured; no parameter was changed.
        """
        form = [(t.shape, t.stride(), t.dtype) for t in (x, y)]
        if self._form is None:
            self._form = form
        if form != self._form:
            return self._halves.plain_step(x, y)
        if self._warm < WARM_UP:
            self._warm += 1
            return self._recorder.run(lambda: self._halves.plain_step(x, y))
        if self._captured is None:
            self._captured = self._capture(x, y)
        numbers = self._captured.first(x, y)
        if not math.isfinite(numbers[1].item()):
            return self._halves.plain_step(x, y)  # which finds out what is not finite, and raises
        self._captured.second()
        return numbers

    def _capture(self, x: Tensor, y: Tensor) -> "_Captured":
        try:
            return _Captured(self._halves, self._recorder, x, y)
        except RuntimeError as error:
            # Where a capture is left by an exception, ending it may raise another.
            for cause in (error, error.__context__):
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            reason = str(error.__context__ or error).splitlines()[0]
            raise L2TFastError(
                f"cuda_graph is true, but the step cannot be captured ({reason}): a network or method reads a number "
                "of the GPU, or does something else that a graph cannot hold; leave cuda_graph out"
            ) from error


class _Captured:
    """The two graphs, and the tensors that they read and write at every replay."""

    def __init__(self, halves: Halves, recorder: Recorder, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x.clone(), y.clone()
        # What the second graph reads of the first must stay alive: memory that nobody holds is given to other tensors.
        (self._batch, self._numbers), self._replay_first = recorder.capture(
            lambda: halves.gradients(self._x, self._y, check=False)
        )
        _, self._replay_second = recorder.capture(lambda: halves.update(self._batch))
        self._gradients = [(p, p.grad) for p in _parameters(halves)]

    def first(self, x: Tensor, y: Tensor) -> Tensor:
        """(cross-entropy, loss, correct predictions), and the gradients."""
        self._x.copy_(x)
        self._y.copy_(y)
        self._replay_first()
        return self._numbers.clone()

    def second(self) -> None:
        """The parameters' steps."""
        self._replay_second()
        for parameter, gradient in self._gradients:  # a step without the graph has put others there
            parameter.grad = gradient


def _parameters(halves: Halves) -> list[nn.Parameter]:
    optimizers = [halves.optimizer, *halves.method.optimizers().values()]
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def check_cuda_graph(options: TransferOptions, device: torch.device, ranks: int) -> None:
    """Raise L2TFastError if ``cuda_graph`` is asked for where there can be none."""
    if not options.cuda_graph:
        return
    problem = None
    if device.type != "cuda":
        problem = (
            f"the run is on a {device.type.upper()}, not on a GPU of NVIDIA's: leave it out, or name another device"
        )
    elif ranks > 1:
        problem = f"{ranks} ranks train together: a graph holds the step of a process alone"
    elif options.compile:
        problem = "so is compile: take one of them"
    elif options.precision == "float16":
        problem = "precision is float16, whose loss scale the host looks after: take bfloat16 or float32"
    if problem is not None:
        raise L2TFastError(f"cuda_graph is true, but {problem}")
    # Adam of a method is made for the capture, and warns of the ordinary steps.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)


def sgd_options(options: TransferOptions, device: torch.device) -> dict[str, Any]:
    """Learning rate and implementation of the target's ``torch.optim.SGD``."""
    if not options.cuda_graph:
        return {"lr": options.lr}
    # The only implementation that takes the learning rate from the device.
    return {"lr": torch.tensor(options.lr, dtype=torch.float32, device=device), "fused": True}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups; where it is a tensor, in its memory, which a graph reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
