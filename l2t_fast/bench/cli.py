"""``l2t-fast bench``: its options, and what each of its commands does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import ArgumentParser, Namespace

import l2t_fast
from l2t_fast.config import MOST_THREADS
from l2t_fast.errors import L2TFastError, out_of_memory
from l2t_fast.files import write_text
from l2t_fast.parsing import new_parser

# The suite is imported by the functions that need it: `l2t-fast --help` does not wait for networks and plots.
if TYPE_CHECKING:
    from l2t_fast.bench.engine import Protocol
    from l2t_fast.bench.rows import Row
    from l2t_fast.bench.workloads import Workload

STEP_MODES = ("hypergradient", "step")


def add_bench_commands(parser: ArgumentParser) -> None:
    """Give the parser of ``l2t-fast bench`` its commands, once it is part of the parser of ``l2t-fast``."""
    commands = parser.add_subcommands(dest="action")
    run = new_parser(
        usage="l2t-fast bench run [--OPTION VALUE ...]",
        description="Every provider is checked against float64 first; wrong ones get no time. Those that are left take "
        "turns. Each finished group of providers is appended to the rows at once. The defaults take about ten minutes "
        "on two cores.",
    )
    run.add_argument(
        "--modes",
        nargs="+",
        default=["forward_backward", "second_order", "step"],
        help="forward | forward_backward | second_order of the matching loss; hypergradient; step (a whole one)",
    )
    run.add_argument(
        "--workloads",
        nargs="+",
        help="cifar | imagenet | multi_source_128 | multi_source_1024 | high_resolution | tiny | single; cifar and "
        "imagenet when left out; for hypergradient and step: cifar | imagenet | tiny",
    )
    run.add_argument("--shapes", help="YAML or JSON file with feature maps of your own, see docs/benchmarks.md")
    run.add_argument("--providers", nargs="+", help="whose implementations; all of the mode when left out")
    run.add_argument("--dtypes", nargs="+", default=["float32"], help="of the features: float32 | bfloat16")
    run.add_argument("--layouts", nargs="+", default=["NCHW"], help="of the features: NCHW | channels_last")
    run.add_argument("--batch", type=int, help="batch size instead of the workload's own")
    run.add_argument("--sweep", help="measure one workload along pairs | batch | resolution | threads")
    run.add_argument("--sizes", nargs="+", type=int, default=[], help="the values along --sweep")
    run.add_argument("--threads", type=int, help="CPU threads of PyTorch; its own choice when left out")
    run.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 ...")
    run.add_argument("--repeats", type=int, default=9, help="timed calls a provider, after some that are not counted")
    run.add_argument("--warm_cache", action="store_true", help="do not empty the caches before each timed call")
    run.add_argument(
        "--memory_limit", type=float, help="GiB a provider may take on a CPU; all that is free if left out"
    )
    run.add_argument("--parts", action="store_true", help="also say where the time of a step goes")
    run.add_argument("--check", action="store_true", help="compare the results with float64 only, without timing")
    run.add_argument(
        "--output",
        help="CSV file that rows are appended to; in a checkout of the sources "
        "benchmarks/results/rows.csv, elsewhere l2t_fast_bench.csv",
    )
    commands.add_subcommand("run", run, help="measure, and append rows to a CSV file")
    report = new_parser(
        usage="l2t-fast bench report [--OPTION VALUE ...]",
        description="Tables go between the markers <!-- bench:NAME --> and <!-- /bench --> of the documents, figures "
        "into the folder of images. In a checkout of the sources, rows, documents and images are its own by default; "
        "elsewhere, rows are l2t_fast_bench.csv, and tables are printed where there are no documents.",
    )
    report.add_argument("--rows", nargs="+", help="CSV files of `l2t-fast bench run`")
    report.add_argument("--documents", nargs="*", help="Markdown files with markers")
    report.add_argument("--images", help="folder for bench_*.png")
    report.add_argument("--html", help="also write one self-contained page to this file")
    commands.add_subcommand("report", report, help="make tables, figures and a page from rows")
    comparison = new_parser(
        usage="l2t-fast bench compare BEFORE AFTER [--threshold RATIO]",
        description="Leaves with exit code 1 if a median or a peak of AFTER is more than --threshold times BEFORE's.",
    )
    comparison.add_argument("before", help="CSV file, or FILE@COMMIT for the rows of one commit in it")
    comparison.add_argument("after", help="likewise")
    comparison.add_argument("--threshold", type=float, default=1.15, help="ratio from which on it is a regression")
    commands.add_subcommand("compare", comparison, help="find what became slower or takes more memory")


def bench(options: Namespace) -> int:
    """Run what ``options`` ask for and return the exit code."""
    return _COMMANDS[options.action](options[options.action])


def default_rows() -> Path:
    """The sources' own file of recorded rows; outside a checkout, a file in the current folder."""
    results = Path(l2t_fast.__file__).parent.parent / "benchmarks" / "results"
    return results / "rows.csv" if results.is_dir() else Path("l2t_fast_bench.csv")


def _run(options: Namespace) -> int:
    from l2t_fast.bench.engine import Protocol
    from l2t_fast.bench.memory import available
    from l2t_fast.bench.rows import WRONG, append_rows, check_output
    from l2t_fast.transfer.device import choose_device

    for name, least in (("repeats", 1), ("batch", 1), ("threads", 1), ("memory_limit", 0)):
        value = options[name]
        if value is not None and value < least:
            raise L2TFastError(f"--{name} is {value}, it must be {least} or more")
    if options.sizes and options.sweep is None:
        raise L2TFastError("--sizes are the values along --sweep: name what to sweep too")
    for size in options.sizes:
        if size < 1:
            raise L2TFastError(f"--sizes holds {size}, each must be 1 or more")
    threads = [("--threads is", options.threads or 1)]
    threads += [("--sizes holds", size) for size in options.sizes if options.sweep == "threads"]
    for found, number in threads:
        if number > MOST_THREADS:
            raise L2TFastError(f"{found} {number}, it must be {MOST_THREADS} or less")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    limit = options.memory_limit
    protocol = Protocol(
        device,
        repeats=0 if options.check else options.repeats,
        cold=not options.warm_cache,
        memory_limit=available() if limit is None else int(min(limit * 2**30, sys.maxsize)),
        progress=lambda line: print(line, flush=True),
    )
    output = default_rows() if options.output is None else Path(options.output)
    if not options.check:
        check_output(output)
    wrong = 0
    measured = written = False
    try:
        for rows in _measured(options, protocol):
            measured = True
            wrong += sum(row.status == WRONG for row in rows)
            if not options.check:
                append_rows(output, rows)
                written = True
                print("\n".join(_line(row, rows) for row in rows), flush=True)
    except KeyboardInterrupt as pressed:
        if not written:
            raise
        raise KeyboardInterrupt(f"interrupted: the rows of what was finished are in {output}") from pressed
    except Exception as error:
        if not out_of_memory(error):
            raise
        # A provider's is a row; this is of the features, or of the truth that all are compared with.
        raise L2TFastError(
            "there is too little memory for the workload itself, lower --batch, or name another with --workloads"
        ) from error
    if not measured:
        raise L2TFastError(
            "nothing was measured: --modes, --workloads and --providers have nothing in common, name others"
        )
    if not options.check:
        print(f"rows appended to {output}")
    if wrong:
        print(f"{wrong} results were wrong")
    return 1 if wrong else 0


def _measured(options: Namespace, protocol: Protocol) -> Iterator[list[Row]]:
    """All groups of rows that the options ask for, one after the other."""
    from l2t_fast.bench.hypergradients import hypergradient_providers
    from l2t_fast.bench.loss_suite import AXES, measure_loss, sweep_loss
    from l2t_fast.bench.losses import LOSS_MODES, LOSS_PROVIDERS, why_not
    from l2t_fast.bench.roofline import measure_peaks
    from l2t_fast.bench.setups import STEP_SETUPS
    from l2t_fast.bench.step_suite import measure_hypergradient, measure_step
    from l2t_fast.bench.steps import step_providers
    from l2t_fast.bench.workloads import DTYPES, LAYOUTS, WORKLOADS

    loss_modes = [mode for mode in options.modes if mode in LOSS_MODES]
    step_modes = [mode for mode in options.modes if mode in STEP_MODES]
    known = {
        "loss": list(LOSS_PROVIDERS),
        "hypergradient": list(hypergradient_providers()),
        "step": list(step_providers(protocol.device)),
    }
    _check("--modes", options.modes, [*LOSS_MODES, *STEP_MODES])
    _check("--dtypes", options.dtypes, list(DTYPES))
    _check("--layouts", options.layouts, list(LAYOUTS))
    name_a_loss = f"name one of {', '.join(LOSS_MODES)} in --modes"
    if options.shapes and not loss_modes:
        raise L2TFastError(f"--shapes are those of the matching loss: {name_a_loss}")
    for option, of_steps in (("dtypes", ["float32"]), ("layouts", ["NCHW"])):
        if options[option] != of_steps and not loss_modes:
            raise L2TFastError(
                f"--{option} are those of the matching loss, a step is measured with {of_steps[0]}: {name_a_loss}"
            )
    if options.parts and "step" not in step_modes:
        raise L2TFastError("--parts are those of a step: name step in --modes")
    asked = set(step_modes) | ({"loss"} if loss_modes else set())
    _check("--providers", options.providers or [], {name: 0 for kind in asked for name in known[kind]})
    workloads = _workloads(options)
    known_workloads = {**(WORKLOADS if loss_modes else {}), **(STEP_SETUPS if step_modes else {})}
    _check("--workloads", options.workloads or [], known_workloads)

    def providers(kind: str) -> list[str]:
        return [name for name in known[kind] if options.providers is None or name in options.providers]

    def loss_providers(dtype: str) -> list[str]:
        # Those that cannot run here for any mode are left out, unless they were asked for by name.
        everywhere = options.providers or [
            name for name in known["loss"] if why_not(name, "forward", dtype, protocol.device) is None
        ]
        return [name for name in known["loss"] if name in everywhere]

    if options.sweep is not None:
        _check("--sweep", [options.sweep], list(AXES))
        if not loss_modes:
            raise L2TFastError(f"--sweep is one of the matching loss: {name_a_loss}")
        if len(workloads) != 1:
            raise L2TFastError(f"--sweep takes one workload, not {', '.join(workloads)}: name one with --workloads")
        if not options.sizes:
            raise L2TFastError(f"--sweep {options.sweep} needs the values to measure at: name them with --sizes")
        for dtype in options.dtypes:
            for layout in options.layouts:
                yield from sweep_loss(
                    *(next(iter(workloads.values())), options.sweep, options.sizes, loss_modes),
                    *(loss_providers(dtype), protocol),
                    batch=options.batch,
                    dtype=dtype,
                    layout=layout,
                )
        return
    for dtype in options.dtypes if loss_modes and providers("loss") else ():
        peaks = None
        if protocol.repeats:
            protocol.progress("what the machine can do at most:")
            peaks, rows = measure_peaks(protocol, dtype)
            yield rows
        for workload in workloads.values():
            for layout in options.layouts:
                case = workload.case(protocol.device, batch=options.batch, dtype=dtype, layout=layout)
                yield from measure_loss(case, loss_modes, loss_providers(dtype), protocol, peaks)
    of_steps = ("cifar", "imagenet") if options.workloads is None and not options.shapes else options.workloads or ()
    setups = [STEP_SETUPS[name] for name in of_steps if name in STEP_SETUPS]
    for setup in setups if step_modes else ():
        if "hypergradient" in step_modes and providers("hypergradient"):
            protocol.progress(f"{setup.name}, hypergradient:")
            yield measure_hypergradient(setup, providers("hypergradient"), protocol, batch=options.batch)
        if "step" in step_modes and providers("step"):
            protocol.progress(f"{setup.name}, training step:")
            yield measure_step(setup, providers("step"), protocol, batch=options.batch, parts=options.parts)


def _workloads(options: Namespace) -> dict[str, Workload]:
    """Those of the matching loss that are asked for, by name."""
    from l2t_fast.bench.workloads import WORKLOADS, read_shapes

    own = read_shapes(Path(options.shapes)) if options.shapes else []
    names = options.workloads
    if names is None:
        names = [] if own else ["cifar", "imagenet"]
    return {name: WORKLOADS[name] for name in names if name in WORKLOADS} | {w.name: w for w in own}


def _check(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    for value in given:
        if value not in known:
            raise L2TFastError(f"{option}: there is no {value!r} here, choose from {', '.join(known)}")


def _line(row: Row, rows: list[Row]) -> str:
    """One row for the terminal; ratios are to the slowest of its group."""
    if row.part:
        return f"  {row.provider:<20} {row.part:<32} {row.median_ms:>9.1f} ms"
    if row.median_ms is None:
        return f"  {row.provider:<20} {row.status}" + (f": {row.note}" if row.note else "")
    text = f"  {row.provider:<20} {row.median_ms:>9.2f} ms ({row.p20_ms:.2f} to {row.p80_ms:.2f})"
    if row.mode == "peak":
        rate = f"{row.flop / row.p20_ms / 1e6:.1f} GFLOP/s" if row.flop else f"{row.bytes / row.p20_ms / 1e6:.1f} GB/s"
        return f"{text}  {row.workload}, {row.dtype}: {rate}"
    slowest = max(other.median_ms for other in rows if other.median_ms and not other.part)
    share = "" if row.roofline_share is None else f"  {row.roofline_share:.0%} of the roofline"
    return f"{text}  {slowest / row.median_ms:>6.2f} x  peak {row.peak_mib:.1f} MiB{share}"


def _report(options: Namespace) -> int:
    from l2t_fast.bench.documents import fill
    from l2t_fast.bench.groups import newest
    from l2t_fast.bench.page import render_page
    from l2t_fast.bench.plots import draw
    from l2t_fast.bench.rows import read_rows
    from l2t_fast.bench.tables import tables

    root = Path(l2t_fast.__file__).parent.parent
    checkout = (root / "benchmarks" / "results").is_dir()
    sources = [Path(name) for name in options.rows or [default_rows()]]
    if options.html and Path(options.html).resolve() in [path.resolve() for path in sources]:
        raise L2TFastError(f"--html {options.html} holds the rows that are to be read, name another file")
    groups = newest(row for path in sources for row in read_rows(path))
    if not groups:
        raise L2TFastError(f"there are no rows in {', '.join(map(str, sources))}, make some with `l2t-fast bench run`")
    own = [root / "README.md", root / "docs" / "performance.md"] if checkout and options.rows is None else []
    documents = own if options.documents is None else [Path(name) for name in options.documents]
    made = tables(groups)
    # Told when all is written: who reads no further than the first line must not keep the rest from being done.
    written = [f"{document}: {'updated' if fill(document, made) else 'as it was'}" for document in documents]
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(options.images) if options.images else root / "docs" / "images" if own else Path(scratch)
        plots = draw(groups, images)
        if images != Path(scratch):
            written.append(f"{images}: {', '.join(f'{plot.name}.png' for plot in plots)}")
    if options.html:
        page = Path(options.html)
        try:
            write_text(render_page(groups, made, plots, sources), page)
        except OSError as error:
            raise L2TFastError(f"the page cannot be written to {page}: {error.strerror or error}") from error
        written.append(f"{page}: the page with all figures and tables")
    for line in written:
        print(line)
    if not options.html and not documents:
        for table in (table for same in made.values() for table in same):
            print(f"\n## {table.title}\n\n{table.markdown()}")
    return 0


def _compare(options: Namespace) -> int:
    from l2t_fast.bench.compare import (
        compare,
        newest_by_key,
        not_measured_again,
        other_work,
        rows_of,
        why_nothing_in_common,
    )
    from l2t_fast.bench.groups import Group, conditions_line, label

    if options.threshold < 1:
        raise L2TFastError(f"--threshold is {options.threshold}, it must be 1 or more")
    before, after = rows_of(options.before), rows_of(options.after)
    changes = compare(before, after, options.threshold)
    if not changes:
        raise L2TFastError(
            f"{options.before} and {options.after} have no figure in common: {why_nothing_in_common(before, after)}"
        )

    def name(row: Row) -> str:
        size = f", {row.sweep} {row.size}" if row.sweep else ""
        return f"{row.workload}{size}, B={row.batch}, {row.dtype}, {row.layout}, {row.mode}, {label(row.provider)}"

    # What else than the code differs: rows of another PyTorch are compared, and say so.
    compared = {change.row.key() for change in changes}
    for side, rows in (("before", before), ("after", after)):
        newest = newest_by_key(row for row in rows if row.key() in compared)
        print(f"{side + ':':<8}{conditions_line([Group(tuple(newest.values()), ())])}")
    for change in changes:
        unit = {"time": " ms", "memory": " MiB", "status": ""}[change.what]
        values = [v if isinstance(v, str) else f"{v:.4g}" for v in (change.before, change.after)]
        ratio = "" if change.what == "status" else f" ({change.ratio:.2f} x)"
        mark = "REGRESSION" if change.regressed else "ok"
        print(f"{mark:<11} {change.what:<7} {name(change.row)}: {values[0]} -> {values[1]}{unit}{ratio}")
    missing = not_measured_again(before, after)
    for row in missing:
        print(f"{'missing':<11} {'status':<7} {name(row)}: was measured before, and not after")
    if left := other_work(before, after):
        print(f"only measured before: {', '.join(left)}")
    worse = sum(change.regressed for change in changes)
    more = f"; not counted: {len(missing)} missing" if missing else ""
    print(f"{worse} of {len(changes)} figures are more than {options.threshold:g} times worse, or wrong now{more}")
    return 1 if worse else 0


_COMMANDS = {"run": _run, "report": _report, "compare": _compare}
