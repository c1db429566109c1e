"""Measures whole training steps and hypergradients by themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.data_part import data_seconds
from l2t_fast.bench.engine import Contender, Protocol, measure
from l2t_fast.bench.errors import outcome_error, relative_error
from l2t_fast.bench.hypergradients import hypergradient_providers
from l2t_fast.bench.rows import DATA, OK, Row
from l2t_fast.bench.setups import StepSetup, Training, load_in_place
from l2t_fast.bench.step_parts import step_parts
from l2t_fast.bench.steps import make_step, outcome
from l2t_fast.bench.timing import Run

#: A provider may be this many times as far from float64 as the naive loop is in the same precision, the furthest of
#: ROUNDINGS calls whose images differ by float32's rounding. A single call says little: whether it switches a ReLU
#: that float64 does not makes its error 4e-4 or 7e-3.
TOLERANCE_RATIO = 2.0
ROUNDINGS = 6
#: ... and is right in any case up to here: float32's rounding over the some hundred operations of a step.
TOLERANCE_FLOOR = 1e-4
#: What may lie between two neighbouring numbers of float32, relative to them.
ROUNDING = torch.finfo(torch.float32).eps
#: What an approximation of the hypergradient may miss: a cosine of 0.999 with the exact one.
APPROXIMATIONS = {"finite_difference": (1 - 0.999**2) ** 0.5}
#: What a step in mixed precision may: a cosine of 0.97. Activations of 8 bits make SGD's gradient a tenth off, in the
#: published loop too, where they spoil the hypergradient.
MIXED_PRECISION = (1 - 0.97**2) ** 0.5


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
        self.approximation = APPROXIMATIONS.get(self.training.method.hypergradient, 0.0)
        if self.training.precision != torch.float32:
            self.approximation = MIXED_PRECISION
        run.call()
        _copy_state(self._first, self.training)
        self._run = Run(run.call, self.training.remember(), run.kept)

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
        self.approximation = APPROXIMATIONS.get(provider, 0.0)

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


@dataclass(frozen=True)
class Field:
    """Contenders for one piece of work, and what the largest relative error of each may be."""

    contenders: dict[str, Contender]
    tolerance: float
    columns: dict[str, object]


def hypergradient_field(
    setup: StepSetup, providers: Sequence[str], device: torch.device, batch: int | None = None
) -> Field:
    """The hypergradient by itself, against the one in the naive loop's step in float64."""
    first, truth, tolerance = _second_step(setup, device, batch)
    # The SGD step that comes before the look-ahead.
    channel_weights, pair_weights = first.method.meta(first.source(first.x).features)
    logits, maps = first.target(first.x)
    beta = first.method.beta
    matching = first.method.matching(first.source(first.x).features, maps, channel_weights, beta, pair_weights)
    first.optimizer.zero_grad()
    (F.cross_entropy(logits, first.y) + matching).backward()
    first.optimizer.step()
    contenders = {name: _Hypergradient(setup, name, first, truth["hypergradient"], device) for name in providers}
    return Field(contenders, tolerance, _columns(first, "hypergradient"))


def step_field(setup: StepSetup, providers: Sequence[str], device: torch.device, batch: int | None = None) -> Field:
    """A whole training step, against the naive loop's in float64."""
    first, truth, tolerance = _second_step(setup, device, batch)
    contenders = {name: _Step(setup, name, first, truth, device, batch) for name in providers}
    return Field(contenders, tolerance, _columns(first, "step"))


def measure_hypergradient(
    setup: StepSetup, providers: Sequence[str], protocol: Protocol, *, batch: int | None = None
) -> list[Row]:
    """Rows of one alternating run, in the order of ``providers``."""
    began, field = now(), hypergradient_field(setup, providers, protocol.device, batch)
    found = measure(field.contenders, field.tolerance, protocol)
    shared = conditions(protocol.device) | {"run": began, "flags": protocol.flags} | field.columns
    return [Row(**shared, provider=name, **found[name]) for name in providers]


def measure_step(
    setup: StepSetup,
    providers: Sequence[str],
    protocol: Protocol,
    *,
    batch: int | None = None,
    parts: bool = False,
) -> list[Row]:
    """Rows of one alternating run, in the order of ``providers``; with ``parts`` also where each one's time goes."""
    began, field = now(), step_field(setup, providers, protocol.device, batch)
    found = measure(field.contenders, field.tolerance, protocol)
    shared = conditions(protocol.device) | {"run": began, "flags": protocol.flags} | field.columns
    rows = [Row(**shared, provider=name, **found[name]) for name in providers]
    if not parts or not protocol.repeats:
        return rows
    data = {DATA: data_seconds(setup, protocol.device, field.columns["batch"], max(protocol.repeats, 9))}
    for name in providers:
        # What replays a CUDA graph calls no part of the step.
        if found[name]["status"] == OK and not name.endswith("_graph"):
            step = field.contenders[name]
            phase = "all steps" if name == "naive" else "real step"  # its loop does not tell them apart
            taken = data | step_parts(step.training, step.run, protocol.repeats, phase=phase)
            rows += [
                Row(**shared, provider=name, part=part, repeats=protocol.repeats, median_ms=1e3 * seconds)
                for part, seconds in taken.items()
            ]
    return rows


def _columns(training: Training, mode: str) -> dict[str, object]:
    return {
        "workload": training.setup.name,
        "batch": len(training.x),
        "pairs": len(training.method.matching.pairs),
        "dtype": "float32",
        "layout": "NCHW",
        "mode": mode,
    }


def _second_step(
    setup: StepSetup, device: torch.device, batch: int | None
) -> tuple[Training, dict[str, Tensor], float]:
    """Networks after the naive loop's first step, the outcome of its second in float64, and the tolerance for it."""
    first, naive = make_step(setup, "naive", device, batch=batch)
    naive.call()
    truth, naive_error = _truth(setup, first, naive, device, batch)
    return first, truth, max(TOLERANCE_FLOOR, TOLERANCE_RATIO * naive_error)


def _truth(
    setup: StepSetup, first: Training, naive: Run, device: torch.device, batch: int | None
) -> tuple[dict[str, Tensor], float]:
    """The outcome of the next step in float64, and the naive loop's own error in its precision at the most.

    ``first`` is put back to the state before that step.
    """
    restore, x = first.remember(), first.x
    double, double_step = make_step(setup, "naive", device, batch=batch, dtype=torch.float64)
    double.x = first.x.double()
    double.source.load_state_dict(first.source.state_dict())
    _copy_state(first, double)
    double_step.call()
    truth = outcome(double)
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(ROUNDINGS):
        naive.call()
        errors.append(outcome_error(outcome(first), truth))
        restore()
        first.x = x * (1 + ROUNDING * (torch.rand(x.shape, generator=generator) - 0.5).to(x))
    first.x = x
    return truth, max(errors)


def _copy_state(source: Training, destination: Training) -> None:
    for name in ("target", "method"):
        getattr(destination, name).load_state_dict(getattr(source, name).state_dict())
    for name in ("optimizer", "meta_optimizer"):
        load_in_place(getattr(destination, name), getattr(source, name).state_dict())
