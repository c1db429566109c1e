"""How much the matching loss computes and moves: the numerators of the roofline."""

from __future__ import annotations

from dataclasses import dataclass

from l2t_fast import plan
from l2t_fast.bench.losses import LOSS_PROVIDERS
from l2t_fast.bench.workloads import DTYPES, Case

#: Products of the size B P C_m C_n a pair: W T; then W^T E and E T^T; then the seven of a Hessian-vector product.
PRODUCTS = {"forward": 1, "forward_backward": 3, "second_order": 10}


@dataclass(frozen=True)
class Work:
    """Flop with float32 and with float64 operands, and the bytes that must move: every input and result once."""

    single: float
    double: float
    bytes: float


def work_of(case: Case, mode: str, provider: str) -> Work | None:
    """What a provider's algorithm has to do for a case, its elementwise operations not counted; None if unknown.

    The CPU backend says itself which algorithm it takes for each target layer and what it costs, for gradients and
    products, not for the loss alone. All others are counted as the direct form, and everybody's bytes are those of the
    features, however often a provider really moves them.
    """
    if LOSS_PROVIDERS[provider].backend == "cpu":
        return None if mode == "forward" else _planned(case, mode)
    products = 0.0
    for m, n in case.workload.pairs:
        rows, (columns, height, width) = case.workload.sources[m][0], case.workload.targets[n]
        products += 2.0 * case.batch * height * width * rows * columns
    return Work(PRODUCTS[mode] * products, 0.0, _bytes(case, mode))


def _planned(case: Case, mode: str) -> Work | None:
    sources = [(case.batch, *size) for size in case.workload.sources]
    targets = [(case.batch, *size) for size in case.workload.targets]
    single = double = 0.0
    try:
        for step in ("gradient", "hessian_vector") if mode == "second_order" else ("gradient",):
            for layer in plan(sources, targets, case.workload.pairs, work=step, dtype=DTYPES[case.dtype]).layers:
                single += layer.flops if layer.algorithm == "direct" else 0.0
                double += layer.flops if layer.algorithm == "gram" else 0.0
    except RuntimeError:  # no native code here, so the backend does not run either
        return None
    return Work(single, double, _bytes(case, mode))


def _bytes(case: Case, mode: str) -> float:
    item = DTYPES[case.dtype].itemsize
    sources, targets = (
        float(case.batch * item * sum(c * h * w for c, h, w in maps))
        for maps in (case.workload.sources, case.workload.targets)
    )
    # Target maps: read; and their gradient written; and read again with a direction, and the product written.
    passes = {"forward": (1, 1), "forward_backward": (1, 2), "second_order": (2, 5)}[mode]
    return passes[0] * sources + passes[1] * targets
