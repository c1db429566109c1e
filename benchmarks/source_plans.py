"""Bytes and memory of a training step under each plan of sources shared out over ranks: gloo processes on one machine.

    python -m benchmarks.source_plans [--output FILE]

Eight VGG9-BN with random weights are the sources of a VGG5-BN, on scikit-learn's digits at 16 pixels: all pairs,
L2T-ww, T = 2, 4 ranks. Steps after the first are measured. A row is a rank; times are not taken: ranks share a few
cores.
``sent`` is what a rank sends to others, a reduction taken for a ring; ``counted`` is what the planner expects of the
plan beside what all plans send; ``held`` is the networks', optimizers' and gradients' memory between steps, and
``peak`` what the step takes beyond it, as PyTorch's allocator hands it out (`l2t_fast.bench.memory`).
"""

import argparse
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from rich.console import Console
from torch import Tensor

from benchmarks.csv_rows import append
from l2t_fast.bench.memory import peak
from l2t_fast.bench.timing import Run
from l2t_fast.config import SourceConfig, TargetConfig, TrainConfig
from l2t_fast.data import DataConfig
from l2t_fast.distributed import Group
from l2t_fast.distributed.source_plan import PLANS, bytes_of
from l2t_fast.environment import describe_environment
from l2t_fast.models import build_model
from l2t_fast.transfer import Trainer, TrainingProgress

SOURCES, RANKS, BATCH = 8, 4, 32
FIELDS = ("date", "commit", "device", "torch", "sources", "pairs", "ranks", "batch", "plan", "rank")
FIELDS += ("sent_mb", "common_mb", "counted_mb", "held_mib", "peak_mib")


def configuration(folder: Path, plan: str) -> TrainConfig:
    """A run of `plan`, whose sources' weights lie in `folder`."""
    sources = {f"s{i}": SourceConfig("vgg9bn", str(folder / f"{i}.pt"), num_classes=10) for i in range(SOURCES)}
    return TrainConfig(
        method="l2t-ww",
        sources=sources,
        target=TargetConfig("vgg5bn"),
        data=DataConfig(dataset="digits", image_size=16, batch_size=BATCH),
        device="cpu",
        source_plan=plan,
        out=str(folder / plan),
    )


def held(trainer: Trainer) -> int:
    """Bytes of all that lives from one step to the next."""

    def tensors() -> Iterable[Tensor]:
        for module in (trainer.source, trainer.target, trainer.method):
            yield from module.state_dict().values()
            yield from (p.grad for p in module.parameters() if p.grad is not None)
        for optimizer in (trainer.step.optimizer, *trainer.method.optimizers().values()):
            yield from (v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))

    return bytes_of(t for t in tensors() if not t.is_meta)


def rank(number: int, folder: Path) -> None:
    """One process: all plans, one after the other."""
    torch.set_num_threads(1)
    where = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=number, world_size=RANKS)
    group = Group(dist.group.WORLD)
    rows = []
    for plan in PLANS:
        progress = TrainingProgress(Console(quiet=True), epoch_lines=False)
        trainer = Trainer(configuration(folder, plan), progress, group=group)
        x, y = next(iter(trainer.data.train))

        def step(trainer: Trainer = trainer, x: Tensor = x, y: Tensor = y) -> object:
            return trainer.train_batch(x, y, BATCH)

        step()
        before = group.reduced_bytes, group.exchanged_bytes
        step()
        ring = 2 * (group.size - 1) / group.size
        sent = ring * (group.reduced_bytes - before[0]) + group.exchanged_bytes - before[1]
        taken = peak(Run(step), torch.device("cpu")).allocator
        numbers = sent / 1e6, trainer.placement.plan.sent / 1e6, held(trainer) / 2**20, taken / 2**20
        rows.append([len(trainer.pairs), plan, number, *numbers])
    torch.save(rows, folder / f"rows-{number}.pt")
    dist.destroy_process_group()


def main() -> None:
    """Measure, print and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "source_plans.csv")
    options = parser.parse_args()
    environment = describe_environment()
    date = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", environment["l2t_fast"]["commit"]
    machine = environment["machine"]["processor"], environment["versions"]["torch"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(SOURCES):
            torch.manual_seed(i)
            torch.save({"model": build_model("vgg9bn", 10, in_channels=1).state_dict()}, folder / f"{i}.pt")
        multiprocessing.spawn(rank, (folder,), nprocs=RANKS)
        rows = [row for i in range(RANKS) for row in torch.load(folder / f"rows-{i}.pt", weights_only=True)]
    # What all plans send alike: all of what `images` sends but what the planner counts for it.
    common = {row[2]: row[3] - row[4] for row in rows if row[1] == "images"}
    for pairs, plan, number, sent, counted, *memory in sorted(rows, key=lambda row: (PLANS.index(row[1]), row[2])):
        numbers = [f"{v:.1f}" for v in (sent, common[number], counted, *memory)]
        row = [*date, *machine, SOURCES, pairs, RANKS, BATCH, plan, number, *numbers]
        append([dict(zip(FIELDS, row, strict=True))], options.output)
        print(*row[-8:])


if __name__ == "__main__":
    main()
