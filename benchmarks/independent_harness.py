"""The loss's two main figures once more, by a harness that shares nothing with `l2t-fast bench`.

    python -m benchmarks.independent_harness [--output FILE]

Tensors of its own, the plain loss written out again, PyTorch's own timer (``torch.utils.benchmark``) and no cold cache;
compare with ``l2t-fast bench run --modes forward_backward --warm_cache`` in the same minutes. Rows are appended.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.benchmark as timing
from torch import Tensor

from benchmarks.csv_rows import append
from l2t_fast import feature_matching_loss
from l2t_fast.environment import describe_environment

RESNET = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
CIFAR_SOURCE = ((16, 32, 32), (32, 16, 16), (64, 8, 8))
CIFAR_TARGET = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2))
CASES = {"cifar": (CIFAR_SOURCE, CIFAR_TARGET, 128), "imagenet": (RESNET, RESNET, 16)}
FIELDS = ("date", "commit", "device", "torch", "threads", "workload", "batch", "provider", "median_ms", "timings")

Arguments = tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]], list[tuple[int, int]], list, list]


def arguments(sources: Sequence, targets: Sequence, batch: int) -> Arguments:
    """What the loss is called with, all-to-all; everything but the source's maps wants a gradient."""
    made = torch.Generator().manual_seed(1)
    maps = [torch.rand(batch, *size, generator=made) for size in sources]
    own = [torch.rand(batch, *size, generator=made).requires_grad_() for size in targets]
    pairs = [(m, n) for m in range(len(sources)) for n in range(len(targets))]
    projections, weights, lambdas = [], [], []
    for m, n in pairs:
        rows, columns = sources[m][0], targets[n][0]
        weight = torch.randn(rows, columns, generator=made) / columns**0.5
        projections.append((weight.requires_grad_(), torch.zeros(rows).requires_grad_()))
        weights.append(torch.softmax(torch.randn(batch, rows, generator=made), 1).requires_grad_())
        lambdas.append(torch.rand(batch, 1, generator=made).requires_grad_())
    return maps, own, projections, pairs, weights, lambdas


def plain(maps: list, own: list, projections: list, pairs: list, weights: list, lambdas: list) -> Tensor:
    """The paper's loss as one would write it."""
    total = torch.zeros(())
    for (m, n), (weight, bias), w, scale in zip(pairs, projections, weights, lambdas, strict=True):
        projected, wanted = F.conv2d(own[n], weight[:, :, None, None], bias), maps[m]
        if wanted.shape[-2:] != projected.shape[-2:]:
            wanted = F.interpolate(wanted, projected.shape[-2:], mode="bilinear", align_corners=False)
        squares = (projected - wanted).square().mean((2, 3))
        total = total + (scale * (w * squares).sum(1, keepdim=True)).mean()
    return total


def main() -> None:
    """Measure both set-ups and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "independent_harness.csv")
    parser.add_argument("--timings", type=int, default=5)
    options = parser.parse_args()
    environment = describe_environment()
    threads = torch.get_num_threads()
    for workload, (sources, targets, batch) in CASES.items():
        given = arguments(sources, targets, batch)
        inputs = [*given[1], *(t for p in given[2] for t in p), *given[4], *given[5]]
        calls: dict[str, Callable[[], object]] = {
            "plain": lambda g=given, i=inputs: torch.autograd.grad(plain(*g), i),
            "l2t_fast": lambda g=given, i=inputs: torch.autograd.grad(feature_matching_loss(*g), i),
        }
        for call in calls.values():
            call(), call()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.timings):
            for name, call in calls.items():
                timer = timing.Timer("call()", globals={"call": call}, num_threads=threads)
                seconds[name].append(timer.timeit(2).mean)
        for name, found in seconds.items():
            median = 1e3 * statistics.median(found)
            print(f"{workload}, batch {batch}: {name} {median:.1f} ms")
            device = environment["machine"]["processor"], environment["versions"]["torch"], threads
            date = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", environment["l2t_fast"]["commit"]
            row = [*date, *device, workload, batch, name, f"{median:.2f}", options.timings]
            append([dict(zip(FIELDS, row, strict=True))], options.output)


if __name__ == "__main__":
    main()
