"""Who is timed when: turns that rotate, state that is put back first, caches that are emptied."""

import gc
import subprocess
import sys

import pytest
import torch

from l2t_fast.bench.memory import available, peak
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


def test_peaks_of_a_known_allocation():
    def call():
        first = torch.zeros(2**22)  # 16 MiB
        second = torch.zeros(2**22)
        del first
        return torch.zeros(2**20), second

    found = [peak(Run(call), CPU) for _ in range(5)]
    assert {of_call.allocator for of_call in found} == {32 * 2**20}
    if found[0].process is not None:
        # Where the system takes back pages of libraries during a call, that call's figure is too low.
        assert 32 * 2**20 <= max(of_call.process for of_call in found) < 48 * 2**20


_FREED_AND_TAKEN_AGAIN = """
import torch
from l2t_fast.bench.memory import process_peak
from l2t_fast.bench.timing import Run

def call():
    return [torch.zeros(2**18) for _ in range(64)]  # 64 blocks of 1 MiB, which the C library keeps when freed

call()
found = [process_peak(Run(call)) for _ in range(5)]
print(-1 if None in found else max(found))
"""


def test_memory_that_an_earlier_call_freed_counts_again():
    """In a process of its own: what other tests left on the heap holds some of the blocks back."""
    told = subprocess.run([sys.executable, "-c", _FREED_AND_TAKEN_AGAIN], capture_output=True, text=True, check=True)
    found = int(told.stdout)
    assert found == -1 or found >= 60 * 2**20


def test_available_memory_is_a_number():
    assert available() is None or available() > 2**20
