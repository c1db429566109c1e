"""The hypergradient asks nothing of the host: a CUDA graph can hold it, and a GPU never waits.

Tensors on PyTorch's "meta" device stand for those of a GPU: they hold no numbers, so nothing can read one, and a tensor
that is made on the CPU meanwhile shows.
"""

import contextlib

import pytest
import torch

from l2t_fast.bilevel import hypergradient
from tests.bilevel.test_hypergradient import SGD, WAYS, assert_close, every_way, make_problem
from tests.transfer.graph_stand_in import NoHost


def on_meta(problem):
    """The same problem without numbers, and its learning rate with them."""
    target, matching, meta, optimizer, maps, x, y = problem
    for module in (target, matching, meta):
        module.to("meta")
    parameters = [*target.parameters(), *matching.parameters()]
    moved = torch.optim.SGD(parameters, **optimizer.defaults | {"lr": torch.tensor(0.05), "foreach": False})
    moved.param_groups[0]["lr"] = torch.empty((), device="meta")
    for parameter in parameters:
        if optimizer.defaults["momentum"]:
            moved.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
    return target, matching, meta, moved, [m.to("meta") for m in maps], x.to("meta"), y.to("meta")


@every_way
def test_nothing_is_read_and_nothing_comes_from_the_host(monkeypatch, way):
    hypergradient(*make_problem(), **WAYS[way][0])  # makes what a process needs once, as calls ahead of a capture do
    # The meta device knows no autocast, which is off here.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    problem = on_meta(make_problem(sgd="nesterov"))
    with NoHost("meta") as watch:
        found = hypergradient(*problem, steps=2, accumulation=2, capturable=True, **WAYS[way][0])
    assert watch.count > 100
    assert [f.shape for f in found] == [p.shape for p in problem[2].parameters()]


@pytest.mark.parametrize("way", ["exact", "double_backward"])
@pytest.mark.parametrize(("sgd", "warm"), [(sgd, True) for sgd in SGD] + [("nesterov", False)])
def test_a_learning_rate_on_the_device_is_that_number(way, sgd, warm):
    problem = make_problem(sgd=sgd, warm=warm)
    wanted = hypergradient(*problem, steps=2, **WAYS[way][0])
    for group in problem[3].param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    with NoHost():
        found = hypergradient(*problem, steps=2, **WAYS[way][0])
    assert_close(found, wanted, 10 * WAYS[way][1])
