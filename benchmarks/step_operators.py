"""How many operators a training step hands to PyTorch, each of which costs the host a few microseconds.

    python -m benchmarks.step_operators --output benchmarks/results/step_operators.csv

Counted on the CPU, where one operator is one call; views, which compute nothing, are counted apart. The numbers are the
same for any batch. On a GPU optimizers join some calls, and the matching loss is several launches.
"""

import argparse
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.csv_rows import append
from l2t_fast.bench.conditions import conditions, now
from l2t_fast.bench.setups import STEP_SETUPS
from l2t_fast.bench.steps import make_step

SETUPS = ("cifar", "imagenet")
PROVIDERS = ("naive", "exact", "exact_kept", "finite_difference")
BATCH = 2


class Count(TorchDispatchMode):
    """Counts operators while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.views = self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.views += view
        self.operators += not view
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV file that rows are appended to")
    output = parser.parse_args().output
    device = torch.device("cpu")
    shared = {"run": now(), **conditions(device)}
    for name in SETUPS:
        for provider in PROVIDERS:
            _, run = make_step(STEP_SETUPS[name], provider, device, batch=BATCH)
            run.call()  # the first step makes momenta
            with Count() as count:
                run.call()
            counted = {"workload": name, "batch": BATCH, "provider": provider}
            row = shared | counted | {"operators": count.operators, "views": count.views}
            append([row], output)
            print(counted, count.operators, flush=True)


if __name__ == "__main__":
    main()
