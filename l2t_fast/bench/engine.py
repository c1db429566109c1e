"""What every mode is measured with: set-up, correctness, time in turns, peak memory, in this order."""

from __future__ import annotations

import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from l2t_fast.bench.memory import at_most, is_exhaustion, peak
from l2t_fast.bench.rows import OK, OUT_OF_MEMORY, UNSUPPORTED, WRONG
from l2t_fast.bench.timing import Run, Stopwatch, alternate


class Contender(ABC):
    """One provider on one piece of work.

    Attributes:
        why_not: why it has no figure here, or None
        approximation: how far its results may be from float64 by design, where rounding does not take more
        results_bytes: size of what one call returns, once ``error`` was called; None where that is nothing of its own
    """

    why_not: str | None = None
    approximation: float = 0.0
    results_bytes: int | None = None

    @abstractmethod
    def start(self) -> None:
        """Set up and call once; what it takes is reported by itself."""

    @abstractmethod
    def error(self) -> float:
        """The largest relative error of the results against float64; it may call again."""

    @property
    @abstractmethod
    def run(self) -> Run:
        """What is timed, after ``start`` and ``error``."""


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        repeats: timed calls a provider; 0 checks the results only
        cold: empty the caches before every timed call
        memory_limit: bytes that a provider may take beyond what the process holds; None for no limit. CPU only: a GPU's
            memory is its own limit.
        progress: told about every provider that was checked
    """

    device: torch.device
    repeats: int = 9
    cold: bool = True
    memory_limit: int | None = None
    progress: Callable[[str], None] = lambda line: None

    @property
    def flags(self) -> str:
        """What of it decides a figure, for the rows."""
        flags = ["cold cache" if self.cold else "warm cache"]
        if self.device.type == "cuda":
            flags.append("TF32" if torch.backends.cudnn.allow_tf32 else "no TF32")
        return ", ".join(flags)


def measure(contenders: Mapping[str, Contender], tolerance: float, protocol: Protocol) -> dict[str, dict[str, object]]:
    """The columns of :class:`l2t_fast.bench.rows.Row` from ``status`` to ``results_mib`` by provider.

    Only right results get times. Memory that runs out, in the first call or in any later one, is a status as well.
    """
    found: dict[str, dict[str, object]] = {}
    runs: dict[str, Run] = {}
    for name, contender in contenders.items():
        found[name] = _check(contender, tolerance, protocol)
        if found[name]["status"] == OK:
            runs[name] = contender.run
        protocol.progress(f"  {name}: {_told(found[name])}")
    if protocol.repeats == 0:
        return found
    times = alternate(runs, protocol.repeats, protocol.device, cold=protocol.cold)
    for name, run in runs.items():
        taken = times[name]
        found[name] |= {
            "repeats": protocol.repeats,
            "median_ms": 1e3 * taken.median,
            "p20_ms": 1e3 * taken.quantile(0.2),
            "p80_ms": 1e3 * taken.quantile(0.8),
        }
        memory = peak(run, protocol.device)
        size = contenders[name].results_bytes
        found[name] |= {
            "peak_mib": memory.allocator / 2**20,
            "process_mib": None if memory.process is None else memory.process / 2**20,
            "results_mib": None if size is None else size / 2**20,
        }
    return found


def _check(contender: Contender, tolerance: float, protocol: Protocol) -> dict[str, object]:
    if contender.why_not is not None:
        return {"status": UNSUPPORTED, "note": contender.why_not}
    limit = protocol.memory_limit if protocol.device.type == "cpu" else None
    try:
        with at_most(limit):
            seconds = Stopwatch(protocol.device, cold=False).seconds(contender.start)
            contender.run.prepare()
            contender.run.call()
            error = contender.error()
        tolerance = max(tolerance, contender.approximation)
    except Exception as problem:
        if not is_exhaustion(problem, limited=limit is not None):
            if not _compiler_failed(problem):
                raise
            reason = str(problem).strip().partition("\n\n")[0]  # PyTorch's advice for debugging it follows
            return {"status": UNSUPPORTED, "note": textwrap.shorten(f"torch.compile failed: {reason}", 150)}
        if protocol.device.type == "cuda":
            torch.cuda.empty_cache()
        note = None if limit is None else f"more than {limit / 2**30:.3g} GiB"
        return {"status": OUT_OF_MEMORY, "note": note}
    return {
        "status": OK if error <= tolerance else WRONG,
        "error": error,
        "tolerance": tolerance,
        "first_call_ms": 1e3 * seconds,
    }


def _compiler_failed(problem: Exception) -> bool:
    """Whether torch.compile could not compile, for want of a C++ compiler for example."""
    # imported already where it was raised, and slow to import anywhere else
    compiler = sys.modules.get("torch._dynamo.exc")
    return compiler is not None and isinstance(problem, compiler.TorchDynamoException)


def _told(columns: Mapping[str, object]) -> str:
    if columns.get("error") is None:
        return ", ".join(str(value) for value in columns.values() if value is not None)
    return (
        f"{columns['status']}, relative error {columns['error']:.1e} (may be {columns['tolerance']:.1e}), "
        f"set-up and first call {columns['first_call_ms']:.0f} ms"
    )
