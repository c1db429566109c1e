"""The rows of `make gpu`: what `l2t-fast bench run` measures, without the packages that only its options need.

    python -m benchmarks.gpu_rows loss rows.csv

Every finished run is appended at once, so that the rows of a process that is stopped are not lost.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from l2t_fast.bench.engine import Protocol
from l2t_fast.bench.loss_suite import measure_loss
from l2t_fast.bench.losses import LOSS_PROVIDERS, why_not
from l2t_fast.bench.roofline import measure_peaks
from l2t_fast.bench.rows import WRONG, Row, append_rows, check_output
from l2t_fast.bench.workloads import WORKLOADS
from l2t_fast.errors import L2TFastError

# the cheapest first; torch.compile takes its time over 128 pairs
LOSS_WORKLOADS = ("cifar", "imagenet", "multi_source_128")
STEP_WORKLOADS = ("cifar", "imagenet")
MODES = ("forward_backward", "second_order")
DTYPE = "float32"


def loss_rows(workloads: list[str], protocol: Protocol, providers: list[str] | None) -> Iterator[list[Row]]:
    peaks, rows = measure_peaks(protocol, DTYPE)
    yield rows
    wanted = [name for name in LOSS_PROVIDERS if providers is None or name in providers]
    reasons = {name: why_not(name, "forward", DTYPE, protocol.device) for name in wanted}
    for name, reason in reasons.items():
        if reason is not None:
            protocol.progress(f"{name} is left out: {reason}")
    providers = [name for name, reason in reasons.items() if reason is None]
    for name in workloads:
        case = WORKLOADS[name].case(protocol.device, dtype=DTYPE, layout="NCHW")
        yield from measure_loss(case, MODES, providers, protocol, peaks)


def step_rows(
    workloads: list[str], protocol: Protocol, providers: list[str] | None, parts: bool
) -> Iterator[list[Row]]:
    from l2t_fast.bench.setups import STEP_SETUPS
    from l2t_fast.bench.step_suite import measure_step
    from l2t_fast.bench.steps import step_providers

    for name in workloads:
        yield measure_step(STEP_SETUPS[name], providers or list(step_providers(protocol.device)), protocol, parts=parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loss", "step"])
    parser.add_argument("rows", type=Path, help="CSV file that rows are appended to")
    parser.add_argument(
        "--workloads",
        nargs="+",
        help="names of workloads; the three, or two for steps, of the project's goals when left out",
    )
    parser.add_argument("--providers", nargs="+", help="names of providers; all when left out")
    parser.add_argument("--parts", action="store_true", help="of a step, where its time goes, too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA GPU", file=sys.stderr)
        return 2
    try:
        check_output(arguments.rows)
    except L2TFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    protocol = Protocol(device, repeats=arguments.repeats, progress=lambda line: print(line, flush=True))
    if arguments.what == "loss":
        measured = loss_rows(arguments.workloads or list(LOSS_WORKLOADS), protocol, arguments.providers)
    else:
        workloads = arguments.workloads or list(STEP_WORKLOADS)
        measured = step_rows(workloads, protocol, arguments.providers, arguments.parts)
    wrong: list[str] = []
    for rows in measured:
        append_rows(arguments.rows, rows)
        for row in rows:
            time = "" if row.median_ms is None else f"{row.median_ms:.3f} ms"
            peak = "" if row.peak_mib is None else f", peak {row.peak_mib:.1f} MiB"
            name = f"{row.workload} {row.mode} {row.provider} {row.part or ''}".rstrip()
            print(f"{name}: {row.status} {time}{peak}", flush=True)
            wrong += [name] if row.status == WRONG else []
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
