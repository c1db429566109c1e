"""Wall-clock times of several providers that take turns, none of them served by a warm cache or timed on a first call.

What a figure holds: one call, from its start until its work is done (on a GPU: between two CUDA events), the release
of what it allocated included. What it never holds: making the provider, torch.compile's compilation, autotuning and
the first calls (set-up and first call are reported by themselves), putting the state back before a call, and emptying
the cache.

Providers take turns and the order rotates from round to round, so that a slow moment of the machine meets all of them,
and none always follows the same neighbour. Garbage collection waits until the round is over.
"""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Name = TypeVar("Name", bound=Hashable)

#: Bytes written between two timed calls; more than the last cache level of processors and GPUs in use.
FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Run:
    """What is timed. ``prepare`` is called before every ``call`` and is not timed.

    ``kept`` tells the bytes that calls work in without allocating them, such as those of a CUDA graph.
    """

    call: Callable[[], object]
    prepare: Callable[[], None] = lambda: None
    kept: Callable[[], int] = lambda: 0


@dataclass(frozen=True)
class Times:
    """Seconds of every timed call of one provider."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, fraction: float) -> float:
        """Linear between the two nearest values."""
        return float(np.quantile(self.seconds, fraction))


class Stopwatch:
    """Seconds of one call on a device, with the caches emptied before it unless ``cold`` is False."""

    def __init__(self, device: torch.device, *, cold: bool = True) -> None:
        self._device = device
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device) if cold else None

    def seconds(self, call: Callable[[], object]) -> float:
        if self._flush is not None:
            self._flush.zero_()
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):  # whose events they are, and whose stream is the current one
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                torch.cuda.synchronize()
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                return start.elapsed_time(end) / 1e3
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def alternate(runs: Mapping[Name, Run], repeats: int, device: torch.device, *, cold: bool = True) -> dict[Name, Times]:
    """Times of ``repeats`` calls a provider; all of them must have been called at least twice before."""
    watch = Stopwatch(device, cold=cold)
    names = list(runs)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    was_collecting = gc.isenabled()
    try:
        for turn in range(repeats):
            gc.collect()
            gc.disable()
            for i in range(len(names)):
                name = names[(i + turn) % len(names)]
                runs[name].prepare()
                seconds[name].append(watch.seconds(runs[name].call))
    finally:
        if was_collecting:
            gc.enable()
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}
