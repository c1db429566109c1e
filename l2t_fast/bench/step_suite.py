"""Measures whole training steps: correctness first, then time in turns, then memory."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.errors import outcome_error
from l2t_fast.bench.memory import Peak, at_most, is_exhaustion, peak
from l2t_fast.bench.rows import OK, OUT_OF_MEMORY, WRONG, Row
from l2t_fast.bench.setups import StepSetup, Training
from l2t_fast.bench.step_parts import step_parts
from l2t_fast.bench.steps import make_step, outcome, step_providers
from l2t_fast.bench.timing import Run, Times, alternate

#: A provider may be this many times as far from float64 as the naive loop is in the same precision.
TOLERANCE_RATIO = 3.0
#: ... and is right in any case up to here: float32's rounding over the some hundred operations of a step.
TOLERANCE_FLOOR = 1e-4


def measure_step(
    setup: StepSetup,
    providers: Sequence[str],
    device: torch.device,
    *,
    repeats: int,
    batch: int | None = None,
    cold: bool = True,
    memory_limit: int | None = None,
    parts: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Rows of one alternating run, in the order of ``providers``; with ``parts`` also where each one's time goes.

    The second step of training is measured, when momentum exists; with ``repeats=0`` it is checked only. All
    providers, and the float64 truth, start it from the state that the naive loop's first step left.
    """
    unknown = [name for name in providers if name not in step_providers()]
    if unknown:
        raise ValueError(f"there is no step provider {unknown[0]!r}, choose from {', '.join(step_providers())}")
    began = now()
    first, naive = make_step(setup, "naive", device, batch=batch)
    naive.call()
    truth, naive_error = _truth(setup, first, naive, device, batch)
    tolerance = max(TOLERANCE_FLOOR, TOLERANCE_RATIO * naive_error)

    trainings: dict[str, Training] = {}
    runs: dict[str, Run] = {}
    notes: dict[str, dict[str, object]] = {}
    for name in providers:
        try:
            with at_most(memory_limit):
                start = time.perf_counter()
                training, run = make_step(setup, name, device, batch=batch)
                run.call()
                first_call_ms = 1e3 * (time.perf_counter() - start)
                _copy_state(first, training)
                run = Run(run.call, training.remember())
                run.call()
            error = outcome_error(outcome(training), truth)
            notes[name] = {
                "status": OK if error <= tolerance else WRONG,
                "error": error,
                "tolerance": tolerance,
                "first_call_ms": first_call_ms,
            }
            if error <= tolerance:
                runs[name], trainings[name] = run, training
        except Exception as problem:
            if not is_exhaustion(problem):
                raise
            notes[name] = {"status": OUT_OF_MEMORY}
        progress(f"{setup.name} step {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in notes[name].items()))
    if repeats == 0:
        runs = {}
    times = alternate(runs, repeats, device, cold=cold)
    peaks = {name: peak(run, device) for name, run in runs.items()}
    row = functools.partial(
        Row,
        run=began,
        **conditions(device),
        flags="cold cache" if cold else "warm cache",
        workload=setup.name,
        batch=len(first.x),
        pairs=len(first.method.matching.pairs),
        dtype="float32",
        layout="NCHW",
        mode="step",
    )
    rows = [
        row(
            provider=name,
            **notes[name],
            **(_times(times[name], repeats) if name in times else {}),
            **(_memory(peaks[name]) if name in peaks else {}),
        )
        for name in providers
    ]
    for name in runs if parts else ():
        found = step_parts(trainings[name], runs[name], repeats)
        rows += [row(provider=name, part=p, repeats=repeats, median_ms=1e3 * s) for p, s in found.items()]
    return rows


def _truth(
    setup: StepSetup, first: Training, naive: Run, device: torch.device, batch: int | None
) -> tuple[dict[str, Tensor], float]:
    """The outcome of the next step in float64, and the naive loop's own error in its precision.

    ``first`` is put back to the state before that step.
    """
    restore = first.remember()
    double, double_step = make_step(setup, "naive", device, batch=batch, dtype=torch.float64)
    double.x = first.x.double()
    double.source.load_state_dict(first.source.state_dict())
    _copy_state(first, double)
    double_step.call()
    truth = outcome(double)
    naive.call()
    error = outcome_error(outcome(first), truth)
    restore()
    return truth, error


def _copy_state(source: Training, destination: Training) -> None:
    for name in ("target", "method", "optimizer", "meta_optimizer"):
        getattr(destination, name).load_state_dict(copy.deepcopy(getattr(source, name).state_dict()))


def _times(times: Times, repeats: int) -> dict[str, object]:
    return {
        "repeats": repeats,
        "median_ms": 1e3 * times.median,
        "p20_ms": 1e3 * times.quantile(0.2),
        "p80_ms": 1e3 * times.quantile(0.8),
    }


def _memory(found: Peak) -> dict[str, object]:
    return {
        "peak_mib": (found.allocator if found.process is None else found.process) / 2**20,
        "allocator_mib": found.allocator / 2**20,
    }


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
