"""Everything that only a GPU can tell, in one command that ends within nine minutes and needs no network.

    make gpu            # or: python3 benchmarks/gpu.py --output FOLDER

Stages run one after the other, each in a process of its own with a time limit, so that one that fails or hangs costs
the others nothing: the environment, the native build, the tests (those of backends that need a GPU among them),
compute-sanitizer's memcheck and racecheck on small problems, the benchmarks of the matching loss and of a training
step. The folder then holds a log of each, the rows, and summary.md. It works in a checkout, whether or not the package
is installed.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 9 * 60 - 15  # in all; the rest is for the summary


@dataclass(frozen=True)
class Stage:
    """A command, its time limit in seconds, and what else its environment holds."""

    name: str
    seconds: int
    command: list[str]
    variables: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    status: str
    seconds: float
    last_line: str


def stages(output: Path) -> list[Stage]:
    python = [sys.executable, "-u"]
    rows = str(output / "rows.csv")
    one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    tests = [*python, "-m", "pytest", "-q", "-n", str(min(8, os.cpu_count() or 1)), "--continue-on-collection-errors"]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    checked = [[sanitizer, "--tool", tool, "--error-exitcode", "9", *python] for tool in ("memcheck", "racecheck")]
    # PyTorch's allocator hands out parts of large blocks, whose borders the sanitizer would not see.
    no_blocks = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    describe = "from l2t_fast import environment as e; print(e.format_environment(e.describe_environment()))"
    return [
        Stage("environment", 30, [*python, "-c", describe], {}),
        Stage("build", 130, [*python, "setup.py", "build_ext", "--inplace"], {}),
        Stage("tests_triton", 70, [*tests, "tests/ops", "-k", "triton"], one_thread),
        Stage("tests_cuda", 50, [*tests, "tests/ops", "-k", "cuda and not triton"], one_thread),
        Stage("tests_graph", 30, [*tests, "tests/transfer/test_step_graph_gpu.py"], one_thread),
        Stage("memcheck", 30, [*checked[0], "-m", "benchmarks.gpu_small_case"], no_blocks),
        Stage("racecheck", 25, [*checked[1], "-m", "benchmarks.gpu_small_case", "cuda"], no_blocks),
        Stage("benchmark_loss", 110, [*python, "-m", "benchmarks.gpu_rows", "loss", rows], {}),
        Stage("benchmark_step", 45, [*python, "-m", "benchmarks.gpu_rows", "step", rows], {}),
        Stage("tests", 120, [*tests, "tests", "-k", "not triton and not cuda"], one_thread),
    ]


def run(stage: Stage, output: Path, left: float) -> Outcome:
    """Run one stage, its output in a log."""
    limit = min(stage.seconds, left)
    if limit < 5:
        return Outcome(stage, "no time left", 0.0, "")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | stage.variables
    began = time.monotonic()
    log = output / f"{stage.name}.log"
    with log.open("w") as file:
        try:
            # a session of its own, so that what the command starts ends with it
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return Outcome(stage, f"did not start: {error.strerror}", 0.0, "")
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = f"stopped after {limit:.0f} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(stage, status, time.monotonic() - began, lines[-1] if lines else "")


def summary(outcomes: list[Outcome], rows: Path) -> str:
    lines = ["# Run on a GPU", "", "| stage | status | seconds | last line |", "|---|---|---|---|"]
    for outcome in outcomes:
        last = outcome.last_line.replace("|", "/")[:120]
        lines.append(f"| {outcome.stage.name} | {outcome.status} | {outcome.seconds:.0f} | {last} |")
    if rows.exists():
        lines += ["", *ratio_table(rows)]
    return "\n".join(lines) + "\n"


def ratio_table(rows: Path) -> list[str]:
    """Medians, and how many times longer than the Triton backend every provider of the same run takes."""
    with rows.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["median_ms"] and not row["part"] and row["mode"] != "peak"]
    lines = [
        "| workload | batch | mode | provider | median ms | times triton | peak MiB | of triton's | roofline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        group = ("run", "workload", "mode", "dtype", "layout")
        ours = next((r for r in found if r["provider"] == "triton" and all(r[k] == row[k] for k in group)), None)
        median, floor = float(row["median_ms"]), row["floor_ms"]
        ratio = f"{median / float(ours['median_ms']):.2f}" if ours else ""
        peaks = ours is not None and row["peak_mib"] and float(ours["peak_mib"] or 0) > 0
        memory = f"{float(row['peak_mib']) / float(ours['peak_mib']):.2f}" if peaks else ""
        share = f"{float(floor) / median:.0%}" if floor else ""
        cells = row["workload"], row["batch"], row["mode"], row["provider"], f"{median:.3f}", ratio
        lines.append(f"| {' | '.join((*cells, row['peak_mib'], memory, share))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("OUT") or str(ROOT / "build" / "gpu")
    parser.add_argument("--output", type=Path, default=Path(default), help="folder for logs, rows and the summary")
    parser.add_argument("--stages", nargs="+", help="some of the stages only")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for stage in stages(output):
        if arguments.stages and stage.name not in arguments.stages:
            continue
        print(f"{stage.name} ...", flush=True)
        outcomes.append(run(stage, output, SECONDS - (time.monotonic() - began)))
        print(
            f"{stage.name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s, {outcomes[-1].last_line}", flush=True
        )
        (output / "summary.md").write_text(summary(outcomes, output / "rows.csv"))
    print((output / "summary.md").read_text())
    return 0 if all(outcome.status == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
