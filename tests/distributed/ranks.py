"""Runs a function as several ranks of a job, each a process of its own, and returns what each of them returns."""

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from l2t_fast.distributed import Group

#: Seconds; for a machine that has much else to do.
PATIENCE = 120

# A server that has imported PyTorch once, and that starts each rank by a fork: it has no threads and no open files.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed", "l2t_fast.cli", "tests.distributed.test_job"])


def run_ranks(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(group, *arguments)`` on `count` gloo ranks that meet by a file; the results in the ranks' order.

    Results are tensors and plain values. An exception of a rank is raised here, with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, count, folder, function, arguments), daemon=True)
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE)
    errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
    assert not errors, "\n".join(errors)
    assert [process.exitcode for process in ranks] == [0] * count
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(count)]


def _rank(rank: int, count: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=PATIENCE / 2),
        )
        result = function(Group(dist.group.WORLD), *arguments)
        torch.save(result, folder / f"result-{rank}.pt")
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise SystemExit(1) from None
    dist.destroy_process_group()
