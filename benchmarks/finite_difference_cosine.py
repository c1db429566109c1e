"""How close finite differences stay to the exact hypergradient while a network trains.

    python -m benchmarks.finite_difference_cosine --output benchmarks/results/finite_difference_cosine.csv

Each set-up of the step benchmark trains on images of class prototypes with noise; at intervals both methods judge the
same state and batch, and the exact method does so in float64 too: where float32 itself has lost the hypergradient, no
method in float32 can find it.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.csv_rows import append
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bilevel import hypergradient

#: Set-up, batch size, training steps, learning rate.
RUNS = (("tiny", 32, 60, 0.05), ("cifar", 8, 16, 0.01), ("cifar", 8, 16, 0.1), ("imagenet", 4, 4, 0.01))
JUDGED = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV file that rows are appended to")
    output = parser.parse_args().output
    began = now()
    for name, batch, steps, lr in RUNS:
        for row in judge(name, batch, steps, lr):
            row = {"run": began, **conditions(torch.device("cpu")), **row}
            append([row], output)
            print(
                {
                    k: row[k]
                    for k in (
                        "workload",
                        "lr",
                        "after_steps",
                        "loss",
                        "cosine",
                        "exact_float32_to_float64",
                        "found_to_float64",
                    )
                },
                flush=True,
            )


def judge(name: str, batch: int, steps: int, lr: float):
    """One row at each of JUDGED moments of training."""
    training = STEP_SETUPS[name].build(torch.device("cpu"), batch=batch)
    method, optimizer = training.method, training.optimizer
    for group in optimizer.param_groups:
        group["lr"] = lr
    classes = STEP_SETUPS[name].classes
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(classes, *training.x.shape[1:], generator=generator)
    for step in range(1, steps + 1):
        y = torch.randint(0, classes, (batch,), generator=generator)
        x = prototypes[y] + 0.5 * torch.randn(training.x.shape, generator=generator)
        source = training.source(x)
        logits, features = training.target(x)
        weights, pair_weights = method.weights(source.features)
        loss = F.cross_entropy(logits, y)
        loss = loss + method.matching(source.features, features, weights, method.beta, pair_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (steps // JUDGED):
            continue
        problem = (training.target, method.matching, method.meta, optimizer, source.features, x, y)
        exact, found = (
            torch.cat([g.double().flatten() for g in hypergradient(*problem, method=m)])
            for m in ("exact", "finite_difference")
        )
        truth = in_float64(problem)
        yield {
            "workload": name,
            "batch": batch,
            "lr": lr,
            "after_steps": step,
            "loss": f"{loss.item():.4g}",
            "cosine": f"{F.cosine_similarity(exact, found, dim=0).item():.6f}",
            "exact_float32_to_float64": f"{F.cosine_similarity(exact, truth, dim=0).item():.6f}",
            "found_to_float64": f"{F.cosine_similarity(found, truth, dim=0).item():.6f}",
            "length_ratio": f"{(found.norm() / exact.norm()).item():.4f}",
        }


def in_float64(problem: tuple) -> torch.Tensor:
    """The exact hypergradient of a float64 copy of the problem, flat."""
    target, matching, meta, optimizer, maps, x, y = copy.deepcopy(problem)
    for module in (target, matching, meta):
        module.double()
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].double()
    found = hypergradient(target, matching, meta, optimizer, [m.double() for m in maps], x.double(), y)
    return torch.cat([g.flatten() for g in found])


if __name__ == "__main__":
    main()
