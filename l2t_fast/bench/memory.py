"""Peak memory of one call beyond what was held before it, two ways, and a limit that turns exhaustion into an error.

* ``allocator``: what PyTorch's allocator handed out, at its highest, blocks that our kernels keep for the next call
  included. On a CPU from the profiler's memory events, the same to the byte from run to run, but blind to scratch
  buffers that libraries allocate themselves (oneDNN's and MKL's; ours are counted). On a GPU
  ``torch.cuda.max_memory_allocated``, and all memory of the CUDA graphs that are replayed. It is the figure that
  tables show.
* ``process``: the highest resident set size during the call minus that before it, as Linux counts it (VmHWM, reset
  through ``/proc/self/clear_refs``). It counts everything that is touched, scratch buffers too, but not what was kept
  from an earlier call. Free memory that the C library holds back is given to the system first (``malloc_trim``).
"""

import contextlib
import ctypes
import gc
import os
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from l2t_fast.bench.timing import Run
from l2t_fast.errors import out_of_memory

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
# The last: a tensor from before the profile was freed in it, and rightly does not count.
_KINETO_LOG = re.compile(r"SyncActivityProfilerHandler|DeviceProperties\.cpp|allocated before the profiling started")
# Of work that oneDNN does not support it cannot create the primitive's descriptor.
_ONEDNN_FAILED = r"could not create a (primitive(?! descriptor)|memory object)"
# What Python and torch.compile make of a MemoryError that something swallowed.
_SWALLOWED = r"MemoryError|without (setting an )?exception( set)?$"
_MAY_BE_MEMORY = re.compile(f"{_ONEDNN_FAILED}|{_SWALLOWED}", re.MULTILINE)


@dataclass(frozen=True)
class Peak:
    """Bytes; None where this system cannot tell."""

    allocator: int
    process: int | None


def peak(run: Run, device: torch.device) -> Peak:
    """Peak memory of one call of ``run``, which must have been called before."""
    if device.type == "cuda":
        return Peak(run.kept() + _cuda_peak(run, device), None)
    return Peak(run.kept() + _allocator_peak(run), process_peak(run))


def process_peak(run: Run) -> int | None:
    """Growth of this process's resident set during one call, in bytes; None where Linux's counters are missing."""
    run.prepare()
    gc.collect()
    if not _trim() or not _CLEAR_REFS.exists():
        return None
    try:
        _CLEAR_REFS.write_text("5")  # sets the peak back to the present size
    except OSError:
        return None
    before = _status("VmRSS")
    result = run.call()
    after = _status("VmHWM")
    del result
    return max(after - before, 0)


def _allocator_peak(run: Run) -> int:
    run.prepare()
    with without_profiler_log(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run.call()
    del result
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def alive_at_peak(changes: Iterable[tuple[int, int, T]]) -> list[tuple[int, T]]:
    """(bytes, what) of the blocks that are there when most is held.

    ``changes`` are (address, bytes, what) in the order of time, with bytes of 0 or less where the block is given back;
    of a block from before them nothing is known.
    """
    alive: dict[int, tuple[int, T]] = {}
    at_peak: list[tuple[int, T]] = []
    held = highest = 0
    for address, size, what in changes:
        if size > 0:
            alive[address] = size, what
            held += size
        else:
            held -= alive.pop(address, (0, None))[0]
        if held > highest:
            highest, at_peak = held, list(alive.values())
    return at_peak


@contextlib.contextmanager
def without_profiler_log() -> Iterator[None]:
    """Drop what the profiler's library writes to standard error: its own starts and stops, and that there is no GPU.

    Its log level can only be set before PyTorch is imported. Everything else that comes meanwhile is passed on.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines(keepends=True):
                if not _KINETO_LOG.search(line):
                    sys.stderr.write(line)


def _cuda_peak(run: Run, device: torch.device) -> int:
    run.prepare()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run.call()
    torch.cuda.synchronize(device)
    after = torch.cuda.max_memory_allocated(device)
    del result
    return after - before


@contextlib.contextmanager
def at_most(extra_bytes: int | None) -> Iterator[None]:
    """Inside, the process may take ``extra_bytes`` more than it has now; an allocation beyond that fails.

    So a provider that needs too much gets an error that is recorded, instead of the system's out-of-memory killer
    ending some process. Memory that the C library holds back already is not counted. None sets no limit.
    """
    if extra_bytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    gc.collect()
    _trim()
    # Never above what this process was given when it was started, which no process may raise.
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_DATA, (min(_status("VmData") + extra_bytes, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_exhaustion(error: BaseException, *, limited: bool) -> bool:
    """Whether an exception says that memory ran out, or may say so.

    ``limited`` tells whether it was raised inside :func:`at_most` with a limit. oneDNN does not say why it could not
    create something, nor others what became of a MemoryError: under a limit that is taken for want of memory, without
    one for a fault.
    """
    return out_of_memory(error) or (limited and _MAY_BE_MEMORY.search(str(error)) is not None)


def available() -> int | None:
    """Bytes that could be taken without swapping, as Linux estimates them; None where it does not tell."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(Path("/proc/meminfo")))
    return int(found[1]) * 1024 if found else None


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _read(_STATUS))
    return int(found[1]) * 1024 if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _trim() -> bool:
    """Give free memory of the C library back to the system; False where the C library cannot."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True
