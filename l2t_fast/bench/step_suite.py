"""Measures whole training steps and hypergradients by themselves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.engine import Contender, Protocol, measure
from l2t_fast.bench.errors import outcome_error, relative_error
from l2t_fast.bench.hypergradients import hypergradient_providers
from l2t_fast.bench.rows import OK, Row
from l2t_fast.bench.setups import StepSetup, Training
from l2t_fast.bench.step_parts import step_parts
from l2t_fast.bench.steps import make_step, outcome, step_providers
from l2t_fast.bench.timing import Run

#: A provider may be this many times as far from float64 as the naive loop is in the same precision.
TOLERANCE_RATIO = 3.0
#: ... and is right in any case up to here: float32's rounding over the some hundred operations of a step.
TOLERANCE_FLOOR = 1e-4


class _Step(Contender):
    """The second step of training, when momentum exists, from the state that the naive loop's first step left."""

    def __init__(
        self,
        setup: StepSetup,
        provider: str,
        first: Training,
        truth: dict[str, Tensor],
        device: torch.device,
        batch: int | None,
    ) -> None:
        self._make = functools.partial(make_step, setup, provider, device, batch=batch)
        self._first, self._truth = first, truth

    def start(self) -> None:
        self.training, run = self._make()
        run.call()
        _copy_state(self._first, self.training)
        self._run = Run(run.call, self.training.remember())

    def error(self) -> float:
        return outcome_error(outcome(self.training), self._truth)

    @property
    def run(self) -> Run:
        return self._run


class _Hypergradient(Contender):
    """The hypergradient of that step by itself: from the state after its SGD step, source features given."""

    def __init__(self, setup: StepSetup, provider: str, after: Training, truth: Tensor, device: torch.device) -> None:
        self._make, options, self.why_not = hypergradient_providers()[provider]
        self._build = functools.partial(setup.build, device, batch=len(after.x), **options)
        self._after, self._truth = after, truth

    def start(self) -> None:
        training = self._build()
        _copy_state(self._after, training)
        self._call = self._make(training)
        self._call()

    def error(self) -> float:
        results = self._call()
        self.results_bytes = sum(result.nbytes for result in results)
        return relative_error(torch.cat([result.flatten() for result in results]), self._truth)

    @property
    def run(self) -> Run:
        return Run(self._call)


def measure_hypergradient(
    setup: StepSetup, providers: Sequence[str], protocol: Protocol, *, batch: int | None = None
) -> list[Row]:
    """Rows of one alternating run, in the order of ``providers``."""
    began, device = now(), protocol.device
    first, naive = make_step(setup, "naive", device, batch=batch)
    naive.call()
    truth, naive_error = _truth(setup, first, naive, device, batch)
    # The SGD step that comes before the look-ahead, without anything of ours.
    features = first.source(first.x).features
    first.optimizer.zero_grad()
    logits, maps = first.target(first.x)
    matching = first.method.matching(features, maps, *_with_beta(first, first.method.meta(features)))
    (torch.nn.functional.cross_entropy(logits, first.y) + matching).backward()
    first.optimizer.step()
    tolerance = max(TOLERANCE_FLOOR, TOLERANCE_RATIO * naive_error)
    contenders = {name: _Hypergradient(setup, name, first, truth["hypergradient"], device) for name in providers}
    found = measure(contenders, tolerance, protocol)
    return [
        Row(
            run=began,
            **conditions(device),
            flags=protocol.flags,
            workload=setup.name,
            batch=len(first.x),
            pairs=len(first.method.matching.pairs),
            dtype="float32",
            layout="NCHW",
            mode="hypergradient",
            provider=name,
            **found[name],
        )
        for name in providers
    ]


def _with_beta(training: Training, weights: tuple) -> tuple:
    return weights[0], training.method.beta, weights[1]


def measure_step(
    setup: StepSetup,
    providers: Sequence[str],
    protocol: Protocol,
    *,
    batch: int | None = None,
    parts: bool = False,
) -> list[Row]:
    """Rows of one alternating run, in the order of ``providers``; with ``parts`` also where each one's time goes."""
    unknown = [name for name in providers if name not in step_providers()]
    if unknown:
        raise ValueError(f"there is no step provider {unknown[0]!r}, choose from {', '.join(step_providers())}")
    began, device = now(), protocol.device
    first, naive = make_step(setup, "naive", device, batch=batch)
    naive.call()
    truth, naive_error = _truth(setup, first, naive, device, batch)
    tolerance = max(TOLERANCE_FLOOR, TOLERANCE_RATIO * naive_error)
    steps = {name: _Step(setup, name, first, truth, device, batch) for name in providers}
    found = measure(steps, tolerance, protocol)
    row = functools.partial(
        Row,
        run=began,
        **conditions(device),
        flags=protocol.flags,
        workload=setup.name,
        batch=len(first.x),
        pairs=len(first.method.matching.pairs),
        dtype="float32",
        layout="NCHW",
        mode="step",
    )
    rows = [row(provider=name, **found[name]) for name in providers]
    if parts and protocol.repeats:
        for name in providers:
            if found[name]["status"] == OK:
                seconds = step_parts(steps[name].training, steps[name].run, protocol.repeats)
                rows += [
                    row(provider=name, part=part, repeats=protocol.repeats, median_ms=1e3 * taken)
                    for part, taken in seconds.items()
                ]
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
