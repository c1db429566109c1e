"""Who is timed when: turns that rotate, state that is put back first, caches that are emptied."""

import gc
import subprocess
import sys

import pytest
import torch

from l2t_fast.bench.memory import available, is_exhaustion, peak
from l2t_fast.bench.timing import FLUSH_BYTES, Run, Stopwatch, Times, alternate

CPU = torch.device("cpu")


def test_providers_take_turns_in_an_order_that_rotates():
    calls = []
    runs = {
        name: Run(lambda name=name: calls.append(name), lambda name=name: calls.append(f"prepare {name}"))
        for name in ("a", "b", "c")
    }
    times = alternate(runs, 3, CPU, cold=False)
    assert calls[::2] == [f"prepare {name}" for name in "abcbcacab"] and calls[1::2] == list("abcbcacab")
    assert [len(times[name].seconds) for name in runs] == [3, 3, 3]
    assert gc.isenabled()


def test_quantiles():
    times = Times((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (times.median, times.quantile(0.2), times.quantile(0.8)) == (3.0, pytest.approx(1.8), pytest.approx(4.2))
    assert Times((2.0,)).quantile(0.8) == 2.0


def test_the_cache_is_emptied_by_writing_more_than_it_holds(monkeypatch):
    written = []
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: written.append(tensor.nbytes))
    Stopwatch(CPU).seconds(lambda: None)
    assert written == [FLUSH_BYTES]
    Stopwatch(CPU, cold=False).seconds(lambda: None)
    assert written == [FLUSH_BYTES]


def test_allocator_peak_of_a_known_allocation():
    def call():
        first = torch.zeros(2**22)  # 16 MiB
        second = torch.zeros(2**22)
        del first
        return torch.zeros(2**20), second

    assert {peak(Run(call), CPU).allocator for _ in range(5)} == {32 * 2**20}


_IN_ITS_OWN_PROCESS = """
import torch
from l2t_fast.bench.memory import process_peak
from l2t_fast.bench.timing import Run

def one_freed_in_between():
    first = torch.zeros(2**22)  # 16 MiB
    second = torch.zeros(2**22)
    del first
    return torch.zeros(2**20), second

def small_blocks():
    return [torch.zeros(2**18) for _ in range(64)]  # 1 MiB each, which the C library keeps when freed

{call}()
found = [process_peak(Run({call})) for _ in range(5)]
print(-1 if None in found else max(found))
"""


@pytest.mark.parametrize(
    ("call", "least", "most"),
    [("one_freed_in_between", 32 * 2**20, 48 * 2**20), ("small_blocks", 60 * 2**20, 80 * 2**20)],
)
def test_process_peak_of_known_allocations(call, least, most):
    """Memory that an earlier call freed counts again.

    In a process of its own, because what other tests left on the heap takes some of the blocks without growing it;
    the highest of five, because the system may take back pages of libraries during a call.
    """
    script = _IN_ITS_OWN_PROCESS.format(call=call)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = int(told.stdout)
    assert found == -1 or least <= found < most


def test_available_memory_is_a_number():
    assert available() is None or available() > 2**20


@pytest.mark.parametrize(
    ("error", "with_limit", "without"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, True),
        (MemoryError(), True, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True, True),
        (RuntimeError("std::bad_alloc"), True, True),
        (RuntimeError("could not create a primitive"), True, False),
        (RuntimeError("could not create a memory object"), True, False),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive."), False, False),
        (RuntimeError("shapes do not fit"), False, False),
        (RuntimeError("backend='inductor' raised:\nMemoryError:\n"), True, False),
        (SystemError("<function f at 0x7f> returned NULL without setting an exception"), True, False),
        (SystemError("error return without exception set"), True, False),
    ],
)
def test_what_says_that_memory_ran_out(error, with_limit, without):
    assert (is_exhaustion(error, limited=True), is_exhaustion(error, limited=False)) == (with_limit, without)


_ONEDNN_UNDER_A_LIMIT = """
import torch
from l2t_fast.bench.memory import at_most, is_exhaustion

images, kernel = torch.zeros(16, 64, 112, 112, dtype=torch.bfloat16), torch.zeros(64, 64, 3, 3, dtype=torch.bfloat16)
try:
    with at_most(0):
        torch.nn.functional.conv2d(images, kernel, padding=1)
except RuntimeError as error:
    assert is_exhaustion(error, limited=True), error
else:
    raise SystemExit("there was memory enough")
"""


def test_a_convolution_that_the_limit_stops_says_so():
    """In a process of its own: free memory that other tests left on the heap is not limited."""
    done = subprocess.run([sys.executable, "-c", _ONEDNN_UNDER_A_LIMIT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_UNDER_A_HARD_LIMIT = """
import resource, sys
from l2t_fast.bench.memory import at_most

hard = 1 << 40
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
with at_most(sys.maxsize):
    assert resource.getrlimit(resource.RLIMIT_DATA) == (hard, hard)
"""


def test_a_limit_above_that_of_the_whole_process():  # ulimit -d
    done = subprocess.run([sys.executable, "-c", _UNDER_A_HARD_LIMIT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
