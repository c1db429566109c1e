import torch

from benchmarks.step_memory import peak_by_place
from l2t_fast.bench.memory import alive_at_peak, peak
from l2t_fast.bench.timing import Run


def twice(x):
    a = torch.relu(x)
    b = a + a
    del a
    return b * b


def test_it_is_the_allocators_peak_by_operator():
    x = torch.randn(300, 1000)
    found = peak_by_place(lambda: twice(x))
    assert sum(size for size, _ in found.values()) == peak(Run(lambda: twice(x)), torch.device("cpu")).allocator
    # the sum, and either what it is made of or what is made of it
    assert len(found) == 2 and all(of == (x.nbytes, 1) for of in found.values())
    assert any(place.startswith("aten::add") for place in found)


def test_blocks_at_the_peak():
    changes = [(1, 5, "a"), (9, 0, "from before"), (2, 3, "b"), (1, -5, "a"), (1, 4, "c"), (2, 0, "b"), (3, 4, "d")]
    assert alive_at_peak(changes) == [(5, "a"), (3, "b")]
    assert alive_at_peak([*changes, (4, 1, "e")]) == [(4, "c"), (4, "d"), (1, "e")]
    assert alive_at_peak([]) == []
