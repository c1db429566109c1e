"""The step benchmark: right results get times, wrong ones none; every provider does one and the same step."""

import math

import torch

from l2t_fast.bench import step_suite, steps
from l2t_fast.bench.engine import Protocol
from l2t_fast.bench.hypergradients import hypergradient_providers
from l2t_fast.bench.rows import OK, OUT_OF_MEMORY, UNSUPPORTED, WRONG
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.step_parts import step_parts
from l2t_fast.bench.step_suite import measure_hypergradient, measure_step
from l2t_fast.bench.steps import make_step, outcome, step_providers
from tests.transfer.graph_stand_in import StandIn, capturable_adam

CPU = torch.device("cpu")
TINY = STEP_SETUPS["tiny"]


def tolerance_of(row):
    """The most that a row's tolerance may be: finite differences are an approximation, and so is mixed precision."""
    if row.provider == "exact_bfloat16":
        return 0.25
    return 0.045 if row.provider.startswith("finite_difference") else 1e-3


def test_every_provider_takes_the_step_of_the_naive_loop():
    rows = measure_step(TINY, list(step_providers(CPU)), Protocol(CPU, repeats=0))
    assert [row.provider for row in rows] == list(step_providers(CPU))
    for row in rows:
        assert row.status == OK, row
        assert row.error <= row.tolerance <= tolerance_of(row)
        assert row.first_call_ms > 0
        assert row.median_ms is None and row.peak_mib is None
        if row.provider == "exact_bfloat16":
            assert row.error > 0.01  # it is computed in bfloat16


def test_hypergradients_of_methods_and_libraries_are_that_of_the_naive_loop():
    providers = hypergradient_providers()
    rows = measure_hypergradient(TINY, list(providers), Protocol(CPU, repeats=0))
    for row, (_, _, missing) in zip(rows, providers.values(), strict=True):
        assert row.mode == "hypergradient"
        if missing:
            assert row.status == UNSUPPORTED and row.note == missing
        else:
            assert row.status == OK and row.error <= row.tolerance <= tolerance_of(row), row


def test_rows_hold_times_memory_and_parts():
    rows = measure_step(TINY, ["exact"], Protocol(CPU, repeats=3), parts=True)
    whole = rows[0]
    assert whole.p20_ms <= whole.median_ms <= whole.p80_ms
    assert whole.peak_mib > 0
    assert (whole.repeats, whole.batch, whole.pairs, whole.flags) == (3, 8, 9, "cold cache")
    parts = {row.part: row.median_ms for row in rows[1:]}
    assert {"data", "source network", "real step: backward", "SGD and Adam", "rest"} <= set(parts)
    assert all(milliseconds >= 0 for milliseconds in parts.values())


def test_the_tolerance_is_that_of_the_unluckiest_rounding(monkeypatch):
    """In one call the naive loop may switch a ReLU that float64 does not, or switch none: neither decides."""
    trainings, images, errors = [], [], iter([1e-3, 2e-3, 5e-3, *[1e-3] * (step_suite.ROUNDINGS - 3)])

    def made(*arguments, **options):
        trainings.append(make_step(*arguments, **options))
        return trainings[-1]

    def error(result, truth):
        images.append(trainings[0][0].x)
        return next(errors)

    monkeypatch.setattr(step_suite, "make_step", made)
    monkeypatch.setattr(step_suite, "outcome_error", error)
    assert step_suite.step_field(TINY, [], CPU).tolerance == 2 * 5e-3
    own = TINY.build(CPU).x
    assert torch.equal(images[0], own) and torch.equal(trainings[0][0].x, own)
    for other in images[1:]:
        assert not torch.equal(other, own)
        torch.testing.assert_close(other, own, rtol=1.2e-7, atol=0)


def add_provider(monkeypatch, provider, **options):
    """Register one more step provider, called "added"."""
    known = {**step_providers(CPU), "added": (provider, options)}
    monkeypatch.setattr("l2t_fast.bench.steps.step_providers", lambda device: known)


def test_the_step_in_graphs_is_judged_by_its_replays(monkeypatch):
    """Their memory is kept where the state is put back."""
    recorders = []

    def stand_in(device):
        recorders.append(StandIn(device))
        return recorders[-1]

    monkeypatch.setattr(steps, "CudaRecorder", stand_in)
    capturable_adam(monkeypatch)
    add_provider(monkeypatch, steps.Graphed, cuda_graph=True)
    exact, added = measure_step(TINY, ["exact", "added"], Protocol(CPU, repeats=1))
    assert exact.status == added.status == OK and added.median_ms > 0
    assert math.isclose(added.error, exact.error, rel_tol=0.1)
    assert added.peak_mib >= 3
    assert recorders[0].captures == 2 and recorders[0].replays >= 2 * 3


def test_a_wrong_provider_gets_no_time(monkeypatch):
    def wrong(training):
        step = steps.ours(training)

        def scaled():
            step()
            for parameter in training.phi():
                parameter.grad *= 1.01

        return scaled

    add_provider(monkeypatch, wrong)
    exact, wrong_row = measure_step(TINY, ["exact", "added"], Protocol(CPU, repeats=1))
    assert exact.status == OK and exact.median_ms > 0
    assert wrong_row.status == WRONG and math.isclose(wrong_row.error, 0.01, rel_tol=0.05)
    assert wrong_row.median_ms is None and wrong_row.peak_mib is None


def test_too_little_memory_is_recorded(monkeypatch):
    add_provider(monkeypatch, lambda training: lambda: torch.zeros(2**28))
    exact, greedy = measure_step(TINY, ["exact", "added"], Protocol(CPU, repeats=0, memory_limit=2**29))
    assert exact.status == OK
    assert greedy.status == OUT_OF_MEMORY and greedy.median_ms is None


def test_every_call_starts_from_the_same_state():
    training, run = make_step(TINY, "exact", CPU)
    run.call()
    restore = training.remember()
    results = []
    for _ in range(2):
        restore()
        run.call()
        results.append(outcome(training))
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name])


def test_parts_add_up_and_leave_nothing_behind():
    training, run = make_step(TINY, "exact", CPU)
    run.call()
    names = set(vars(training.method)), set(vars(training.optimizer))
    grad = torch.autograd.grad
    parts = step_parts(training, run, 1)
    assert parts["second order: matching loss"] > 0
    assert torch.autograd.grad is grad
    assert (set(vars(training.method)), set(vars(training.optimizer))) == names
    assert not training.target._forward_hooks
