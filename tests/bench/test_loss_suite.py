"""The matching loss's benchmark: results against float64, in every mode, dtype and layout; no time for wrong ones."""

import pytest
import torch

from l2t_fast.bench import losses
from l2t_fast.bench.engine import Protocol
from l2t_fast.bench.errors import relative_error
from l2t_fast.bench.loss_suite import measure_loss, sweep_loss
from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS, LossProvider, second_order, why_not
from l2t_fast.bench.roofline import Peaks
from l2t_fast.bench.rows import OK, OUT_OF_MEMORY, UNSUPPORTED, WRONG
from l2t_fast.bench.truth import truth
from l2t_fast.bench.work import work_of
from l2t_fast.bench.workloads import DTYPES, LAYOUTS, WORKLOADS, Workload

CPU = torch.device("cpu")
CHECK = Protocol(CPU, repeats=0)
TINY = WORKLOADS["tiny"]


def runnable(mode, dtype):
    names = [name for name in LOSS_PROVIDERS if name != "compile"]
    return [name for name in names if why_not(name, mode, dtype, CPU) is None]


# The oracle takes seconds for a thousand pairs, so they are checked once and to first order.
MANY = "multi_source_1024"
CASES = [(n, d, layout) for n in WORKLOADS if n != MANY for d in DTYPES for layout in LAYOUTS]


@pytest.mark.parametrize(("name", "dtype", "layout"), [*CASES, (MANY, "float32", "NCHW")])
def test_every_provider_is_right_on_every_workload(name, dtype, layout):
    workload = WORKLOADS[name] if name == "tiny" else Workload(name, 2, 2, *shrunk(WORKLOADS[name]))
    modes, providers = list(LOSS_MODES)[: 2 if name == MANY else 3], runnable("second_order", dtype)
    case = workload.case(CPU, dtype=dtype, layout=layout)
    for rows in measure_loss(case, modes, providers, CHECK, None):
        for row in rows:
            # Hundreds of terms that are rounded to bfloat16 one by one: no result worth timing.
            many_rounded = row.provider == "eager_low_precision" and row.pairs > 100
            assert row.status == OK or (many_rounded and row.status == WRONG), row
            assert (row.workload, row.dtype, row.layout) == (name, dtype, layout)


def shrunk(workload):
    """A few channels and pixels instead of many, all of the pairs."""

    def maps(sizes):
        return tuple(
            (max(2, channels // 16), max(1, height // 7), max(1, width // 7)) for channels, height, width in sizes
        )

    return maps(workload.sources), maps(workload.targets), workload.pairs


def test_compile_is_right_and_first_order_only():
    modes = ["forward_backward", "second_order"]
    (gradient,), (hessian,) = measure_loss(TINY.case(CPU), modes, ["compile"], CHECK, None)
    assert gradient.status == OK
    assert gradient.first_call_ms > 0 and gradient.median_ms is None
    assert hessian.status == UNSUPPORTED and "twice" in hessian.note


def test_a_compiler_that_fails_is_told_in_its_row(monkeypatch):
    def broken(graph, inputs):
        raise PermissionError("c++ is not to be had " * 50)

    added = LOSS_PROVIDERS | {
        "compile": LossProvider(lambda: torch.compile(lambda t: t.target_features[0].sum(), backend=broken))
    }
    monkeypatch.setattr("l2t_fast.bench.loss_suite.LOSS_PROVIDERS", added)
    ((eager, compiled),) = measure_loss(TINY.case(CPU), ["forward"], ["eager", "compile"], CHECK, None)
    assert eager.status == OK
    assert compiled.status == UNSUPPORTED and "c++ is not to be had" in compiled.note and len(compiled.note) <= 150


def test_truth_is_the_derivative_of_the_loss():
    case = Workload("w", 2, 2, ((3, 4, 4), (2, 2, 2)), ((4, 4, 4), (3, 3, 5)), ((0, 0), (1, 1), (1, 0))).case(CPU)
    tensors = case.tensors(CPU)
    expected = truth(tensors, "second_order")
    found = second_order(LOSS_PROVIDERS["eager"].make(), tensors)
    assert len(expected) == len(found) == 1 + 2 * len(tensors.inputs())
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-5
    for mode in LOSS_MODES:
        shorter = truth(tensors, mode)
        assert all(torch.equal(a, b) for a, b in zip(shorter, expected[: len(shorter)], strict=True))
        assert len(LOSS_MODES[mode](LOSS_PROVIDERS["eager"].make(), tensors)) == len(shorter)


def test_rows_hold_times_memory_and_the_roofline(monkeypatch):
    def wrong(tensors):
        return losses.LOSS_PROVIDERS["eager"].make()(tensors) * 1.001

    def greedy(tensors):
        return torch.zeros(2**28)

    added = {"wrong": LossProvider(lambda: wrong), "greedy": LossProvider(lambda: greedy)}
    monkeypatch.setattr(losses, "LOSS_PROVIDERS", LOSS_PROVIDERS | added)
    monkeypatch.setattr("l2t_fast.bench.loss_suite.LOSS_PROVIDERS", LOSS_PROVIDERS | added)
    monkeypatch.setattr("l2t_fast.bench.work.LOSS_PROVIDERS", LOSS_PROVIDERS | added)
    protocol = Protocol(CPU, repeats=3, memory_limit=2**29)
    peaks = Peaks(single=1e12, double=1e12, bytes=1e12)
    case = TINY.case(CPU)
    (rows,) = measure_loss(case, ["forward_backward"], ["eager", "wrong", "greedy"], protocol, peaks)
    eager, scaled, large = rows
    assert eager.status == OK and eager.p20_ms <= eager.median_ms <= eager.p80_ms
    assert eager.peak_mib > eager.results_mib > 0
    work = work_of(case, "forward_backward", "eager")
    assert (eager.flop, eager.bytes) == (work.single, work.bytes)
    assert eager.floor_ms == pytest.approx(1e3 * max(work.single, work.bytes) / 1e12)
    assert 0 < eager.roofline_share < 1
    assert scaled.status == WRONG and scaled.error == pytest.approx(1e-3, rel=0.1)
    assert large.status == OUT_OF_MEMORY and "0.5 GiB" in large.note
    for row in (scaled, large):
        assert row.median_ms is None and row.peak_mib is None


def test_work_is_counted_by_hand():
    workload = Workload("w", 5, 5, ((3, 4, 4),), ((7, 6, 2),), ((0, 0),))
    product = 2 * 5 * 12 * 3 * 7
    source, target = 4.0 * 5 * 3 * 16, 4.0 * 5 * 7 * 12
    work = work_of(workload.case(CPU), "forward_backward", "eager")
    assert (work.single, work.double, work.bytes) == (3 * product, 0, source + 2 * target)
    work = work_of(workload.case(CPU, dtype="bfloat16"), "second_order", "eager")
    assert (work.single, work.bytes) == (10 * product, (2 * source + 5 * target) / 2)


def test_a_sweep_names_axis_and_size_and_stops_where_memory_ran_out(monkeypatch):
    def hungry(tensors):
        return torch.zeros(1 if len(tensors.pairs) < 8 else 2**28) + losses.LOSS_PROVIDERS["eager"].make()(tensors)

    added = LOSS_PROVIDERS | {"hungry": LossProvider(lambda: lambda tensors: hungry(tensors).sum())}
    for module in ("losses", "loss_suite", "work"):
        monkeypatch.setattr(f"l2t_fast.bench.{module}.LOSS_PROVIDERS", added)
    protocol = Protocol(CPU, repeats=0, memory_limit=2**29)
    groups = list(sweep_loss(TINY, "pairs", [16, 4, 8], ["forward_backward"], ["eager", "hungry"], protocol))
    found = [[(row.provider, row.size, row.pairs, row.status) for row in rows] for rows in groups]
    assert found == [
        [("eager", 4, 4, OK), ("hungry", 4, 4, OK)],
        [("eager", 8, 8, OK), ("hungry", 8, 8, OUT_OF_MEMORY)],
        [("eager", 16, 16, OK)],
    ]
    assert {row.sweep for rows in groups for row in rows} == {"pairs"}


def test_a_sweep_over_threads_leaves_them_as_they_were():
    (one,), (two,) = sweep_loss(TINY, "threads", [1, 2], ["forward"], ["eager"], CHECK, batch=3)
    assert one.batch == two.batch == 3
    assert (one.threads, two.threads) == (1, 2)
    assert torch.get_num_threads() == 1
