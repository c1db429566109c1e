"""How the host launches compiled kernels, on a GPU that is not there: a driver writes down what it is handed."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from triton import JITFunction
from triton.runtime import driver

from benchmarks.host_time import CountingDriver
from l2t_fast.ops.triton import kernels, launching
from l2t_fast.ops.triton.arguments import Arguments
from tests.ops.problems import Problem, draw

pytestmark = pytest.mark.skipif(launching.INTERPRETED, reason="the interpreter compiles nothing")

KERNELS = [kernel for kernel in vars(kernels).values() if isinstance(kernel, JITFunction)]
OF_TRITON = 9  # grid (3), stream, function, metadata (2) and hooks (2) come before a kernel's arguments


@pytest.fixture
def launches(monkeypatch):
    """What the driver has been handed, a tuple a launch."""
    counting = CountingDriver()
    properties = SimpleNamespace(name="none", multi_processor_count=132)
    monkeypatch.setattr(driver, "_active", counting)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(launching, "_PLANS", type(launching._PLANS)())
    for kernel in KERNELS:
        kernel.device_caches.clear()
    yield counting.launches
    for kernel in KERNELS:  # what was compiled for this driver is for nobody else, and goes while it is there
        kernel.device_caches.clear()
    launching._PLANS.clear()
    gc.collect()


def squares(problem: Problem) -> None:
    """The loss and alpha's gradient: three kernels, of which each is compiled."""
    needs = [False] * (len(problem.slots) - 1) + [True]
    launching.loss_and_gradient(Arguments(*problem.operator_arguments(needs)))


def grid_and_arguments(handed: tuple) -> tuple:
    """But for the table, which is another one at every call."""
    _, items, *constants = handed[OF_TRITON:]
    return handed[:4], items if isinstance(items, int) else items.data_ptr(), constants


def test_later_launches_are_the_first_without_triton_s_way_in(launches, monkeypatch):
    problem = draw([(3, 4, 3), (2, 2, 2)], [(2, 4, 3)], [(0, 0), (1, 0)], dtype=torch.float32)
    squares(problem)
    first = launches.copy()
    assert len(first) == 3
    tables = []
    to_device = launching.to_device
    monkeypatch.setattr(launching, "to_device", lambda *given: tables.append(to_device(*given)) or tables[-1])
    monkeypatch.setattr(JITFunction, "run", lambda *_, **__: pytest.fail("Triton was asked for the code again"))
    squares(problem)
    later = launches[len(first) :]
    assert list(map(grid_and_arguments, later)) == list(map(grid_and_arguments, first))
    assert [handed[OF_TRITON] for handed in later] == [tables[0].data_ptr()] * 3
    assert all(handed[4:6] == own[4:6] for handed, own in zip(later, first, strict=True))  # the code


def test_other_sizes_take_the_same_code(launches):
    """No batch size compiles anything anew: a second plan finds what the first had compiled."""
    squares(draw([(3, 4, 3)], [(2, 4, 3)], [(0, 0)], dtype=torch.float32))
    compiled = [len(cache[0]) for kernel in KERNELS for cache in kernel.device_caches.values()]
    squares(draw([(3, 4, 3)], [(2, 4, 3)], [(0, 0)], batch=37, dtype=torch.float32))
    assert sum(compiled) == 3
    assert compiled == [len(cache[0]) for kernel in KERNELS for cache in kernel.device_caches.values()]
    assert len(launches) == 6


def test_nothing_waits_for_the_collector(launches):
    """Not the maps of a plan's first call, nor a plan that is not kept any more, with items on the device."""
    gc.collect()
    gc.disable()
    try:
        problem = draw([(3, 4, 3)], [(2, 4, 3)], [(0, 0)], dtype=torch.float32)
        squares(problem)
        squares(problem)
        (plan,) = map(weakref.ref, launching._PLANS.values())
        target = weakref.ref(problem.targets[0])
        del problem
        assert target() is None
        launching._PLANS.clear()
        assert plan() is None
    finally:
        gc.enable()
