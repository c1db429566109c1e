"""Providers of a whole training step: the published loop in plain PyTorch, and ours with every hypergradient method.

A step is what the trainer does with a batch that is on the device: the source's pass, the target's real SGD step, the
look-ahead, the hypergradient, Adam's step. Every call starts from the same state.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l2t_fast.bench.naive_step import NaiveStep
from l2t_fast.bench.setups import StepSetup, Training
from l2t_fast.bench.timing import Run
from l2t_fast.bilevel import METHODS
from l2t_fast.convolution import fast_convolutions
from l2t_fast.transfer.methods import Batch
from l2t_fast.transfer.step_graph import CudaRecorder, StepGraph

#: Makes the function that trains one step.
StepProvider = Callable[[Training], Callable[[], object]]


def naive(training: Training) -> Callable[[], object]:
    """The loop of the published code."""
    step = NaiveStep(
        training.source,
        training.target,
        training.method.matching,
        training.method.meta,
        training.optimizer,
        training.meta_optimizer,
        steps=training.setup.steps,
        beta=training.method.beta,
    )
    return lambda: step(training.x, training.y)


class Ours:
    """The calls of ``l2t_fast.transfer.Trainer`` for a batch, in the halves that a CUDA graph holds.

    ``plain``: with PyTorch's own convolutions.
    """

    def __init__(self, training: Training, *, plain: bool = False) -> None:
        self._training, self._plain = training, plain
        self.optimizer, self.method = training.optimizer, training.method

    def plain_step(self, x: Tensor, y: Tensor) -> Tensor:
        batch, numbers = self.gradients(x, y)
        self.update(batch)
        return numbers

    def gradients(self, x: Tensor, y: Tensor, *, check: bool = True) -> tuple[Batch, Tensor]:
        precision = self._training.precision
        autocast = torch.autocast(x.device.type, precision, enabled=precision != torch.float32)
        with autocast, contextlib.nullcontext() if self._plain else fast_convolutions(x.device):
            batch = Batch(x, y, self._training.source(x))
            logits, features = self._training.target(x)
            cross_entropy = F.cross_entropy(logits, y)
            loss = sum(self.method.loss_terms(batch, logits, features).values(), start=cross_entropy)
        if check:
            loss.item()  # the trainer looks whether it is finite
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return batch, torch.stack([cross_entropy.detach(), loss.detach()])

    def update(self, batch: Batch) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self._training.target, self.optimizer, batch)


def ours(training: Training) -> Callable[[], object]:
    """The trainer's step."""
    step = Ours(training)
    return lambda: step.plain_step(training.x, training.y)


def eager(training: Training) -> Callable[[], object]:
    """The trainer's step in plain PyTorch."""
    step = Ours(training, plain=True)
    return lambda: step.plain_step(training.x, training.y)


class Graphed:
    """The same in CUDA graphs; the first call warms up and captures, which is four steps."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._recorder = CudaRecorder(training.x.device)
        self._graph = StepGraph(Ours(training), self._recorder)

    def __call__(self) -> None:
        while not self._graph.is_captured:
            self._graph(self._training.x, self._training.y)
        self._graph(self._training.x, self._training.y)

    def kept(self) -> int:
        """Bytes of the graphs' memory."""
        return self._recorder.memory()


def step_providers(device: torch.device) -> dict[str, tuple[StepProvider, dict[str, Any]]]:
    """Provider by name, with the options of :meth:`StepSetup.build` that it wants.

    ``eager`` is the strongest baseline in plain PyTorch: nested autograd over the reference matching loss, with the
    source run once and nothing deep-copied. The others are our hypergradient methods over the fastest matching loss;
    ``exact_kept`` is the exact one that keeps its graphs, ``exact_bfloat16`` has the source and the real step in mixed
    precision, and those that end in ``_graph`` are the whole step in CUDA graphs, on a GPU.
    """
    exact = {
        "exact": {"hypergradient": "exact"},
        "exact_kept": {"hypergradient": "exact", "keep_graphs": True},
        "exact_bfloat16": {"hypergradient": "exact", "precision": "bfloat16"},
    }
    graphs = {f"{name}_graph": (Graphed, options | {"cuda_graph": True}) for name, options in exact.items()}
    return {
        "naive": (naive, {}),
        "eager": (eager, {"hypergradient": "double_backward", "backend": "reference"}),
        **{method: (ours, {"hypergradient": method}) for method in METHODS},
        **{name: (ours, options) for name, options in exact.items()},
        **(graphs if device.type == "cuda" else {}),
    }


def make_step(setup: StepSetup, provider: str, device: torch.device, **options: object) -> tuple[Training, Run]:
    """Fresh networks of one provider, and its step. Nothing has run yet."""
    make, own = step_providers(device)[provider]
    training = setup.build(device, **options, **own)
    step = make(training)
    return training, Run(step, kept=step.kept) if isinstance(step, Graphed) else Run(step)


def outcome(training: Training) -> dict[str, Tensor]:
    """What a step left behind, in float64 on the CPU: the hypergradient, and SGD's momentum of theta.

    Momentum stands for theta itself: in float32, the difference of two values of theta has lost most of its digits.
    """
    state = training.optimizer.state
    momenta = [state[p]["momentum_buffer"] for p in training.theta()]
    hypergradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in training.phi()]
    return {"hypergradient": _flat(hypergradient), "momentum": _flat(momenta)}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().cpu().flatten() for t in tensors])
