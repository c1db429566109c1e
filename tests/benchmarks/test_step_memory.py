import torch

from benchmarks.step_memory import alive_at_peak
from l2t_fast.bench.memory import peak
from l2t_fast.bench.timing import Run


def twice(x):
    a = torch.relu(x)
    b = a + a
    del a
    return b * b


def test_it_is_the_allocators_peak_by_operator():
    x = torch.randn(300, 1000)
    found = alive_at_peak(lambda: twice(x))
    assert sum(size for size, _ in found.values()) == peak(Run(lambda: twice(x)), torch.device("cpu")).allocator
    # the sum, and either what it is made of or what is made of it
    assert len(found) == 2 and all(of == (x.nbytes, 1) for of in found.values())
    assert any(place.startswith("aten::add") for place in found)
