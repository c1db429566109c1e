"""``l2t-fast bench``: its options, and what each of its commands does."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace

import l2t_fast
from l2t_fast.errors import L2TFastError
from l2t_fast.parsing import new_parser


def add_bench_commands(parser: ArgumentParser) -> None:
    """Give the parser of ``l2t-fast bench`` its commands, once it is part of the parser of ``l2t-fast``."""
    commands = parser.add_subcommands(dest="action")
    run = new_parser()
    run.add_argument("--modes", nargs="+", default=["step"], help="what to measure: step")
    run.add_argument("--workloads", nargs="+", default=["cifar", "imagenet"], help="names, such as cifar or tiny")
    run.add_argument("--providers", nargs="+", help="whose implementations; all that can when left out")
    run.add_argument("--batch", type=int, help="batch size instead of the workload's own")
    run.add_argument("--threads", type=int, help="CPU threads of PyTorch; its own choice when left out")
    run.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 ...")
    run.add_argument("--repeats", type=int, default=9, help="timed calls a provider, after some that are not counted")
    run.add_argument("--check", action="store_true", help="compare the results with float64 only, without timing")
    run.add_argument("--parts", action="store_true", help="also say where the time of a step goes")
    run.add_argument("--warm_cache", action="store_true", help="do not empty the caches before each timed call")
    run.add_argument("--memory_limit", type=float, help="GiB a provider may take; what is free, when left out")
    run.add_argument("--output", type=str, help="CSV file that rows are appended to")
    commands.add_subcommand("run", run, help="measure, and append rows to a CSV file")


def bench(options: Namespace) -> int:
    """Run what ``options`` ask for and return the exit code."""
    return _COMMANDS[options.action](options[options.action])


def default_output() -> Path:
    """The sources' own file of recorded rows; outside a checkout, a file in the current folder."""
    results = Path(l2t_fast.__file__).parent.parent / "benchmarks" / "results"
    return results / "rows.csv" if results.is_dir() else Path("l2t_fast_bench.csv")


def _run(options: Namespace) -> int:
    # PyTorch and the networks are imported with the suite: `l2t-fast --help` does not wait for them.
    from l2t_fast.bench.memory import available
    from l2t_fast.bench.rows import OK, append_rows
    from l2t_fast.bench.setups import STEP_SETUPS
    from l2t_fast.bench.step_suite import measure_step
    from l2t_fast.bench.steps import step_providers
    from l2t_fast.transfer.trainer import choose_device

    for name, known, given in (
        ("--modes", ["step"], options.modes),
        ("--workloads", list(STEP_SETUPS), options.workloads),
        ("--providers", list(step_providers()), options.providers or []),
    ):
        for value in given:
            if value not in known:
                raise L2TFastError(f"{name}: there is no {value!r}, choose from {', '.join(known)}")
    if options.repeats < 1:
        raise L2TFastError(f"--repeats is {options.repeats}, it must be 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    limit = None if options.memory_limit is None else int(options.memory_limit * 2**30)
    if limit is None and device.type == "cpu":
        limit = available()
    output = default_output() if options.output is None else Path(options.output)
    for workload in options.workloads:
        rows = measure_step(
            STEP_SETUPS[workload],
            options.providers or list(step_providers()),
            device,
            repeats=0 if options.check else options.repeats,
            batch=options.batch,
            cold=not options.warm_cache,
            memory_limit=limit,
            parts=options.parts,
            progress=lambda line: print(line, flush=True),
        )
        if options.check:
            continue
        append_rows(output, rows)
        slowest = max((row.median_ms for row in rows if row.median_ms and not row.part), default=0)
        for row in rows:
            if row.part:
                print(f"  {row.provider:<18} {row.part:<30} {row.median_ms:>9.1f} ms")
            elif row.status == OK:
                print(
                    f"{row.workload:<12} {row.mode:<16} {row.provider:<18} {row.median_ms:>9.1f} ms "
                    f"({row.p20_ms:.1f} to {row.p80_ms:.1f})  {slowest / row.median_ms:.2f} x  "
                    f"peak {row.peak_mib:.0f} MiB  error {row.error:.1e} of {row.tolerance:.1e}"
                )
            else:
                print(f"{row.workload:<12} {row.mode:<16} {row.provider:<18} {row.status}")
    if not options.check:
        print(f"rows appended to {output}")
    return 0


_COMMANDS = {"run": _run}
