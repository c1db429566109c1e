"""Everything that only a GPU can tell, in one command that ends within nine minutes and needs no network.

    make gpu            # or: python3 -m benchmarks.gpu --output FOLDER

Stages run in processes of their own with a time limit, so that one that fails or hangs costs the others nothing. First
the native build and, beside it, the tests of Triton's kernels as they are without native code. Then, one after the
other, the environment and the benchmarks of the matching loss and of a training step. At the end, at the same time, the
tests (those of backends that need a GPU among them), the limited-data run, and compute-sanitizer's memcheck and
racecheck on small problems. The folder then holds the rows, summary.md, and all logs in logs.tgz, also of a run that is
interrupted. It works in a checkout, whether or not the package is installed.
"""

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TextIO

from benchmarks.stage_processes import ROOT, Outcome, Signals, Stage, run_together
from l2t_fast.bench.rows import check_output
from l2t_fast.errors import L2TFastError

SECONDS = 9 * 60 - 15  # in all; the rest is for the summary

#: Tests that cannot even be collected without a package that not every machine with a GPU has.
NEEDED_BY = {
    "jsonargparse": [
        "tests/bench/test_command.py",
        "tests/bench/test_report.py",
        "tests/benchmarks/test_gpu_training.py",
        "tests/benchmarks/test_parallel_compare.py",
        "tests/benchmarks/test_step_variants.py",
        "tests/distributed",
        "tests/saliency/test_explain_runs.py",
        "tests/test_cli.py",
        "tests/test_config.py",
        "tests/test_hostile_files.py",
        "tests/test_plugins.py",
        "tests/transfer/test_compare.py",
        "tests/transfer/test_trained.py",
    ],
    "captum": ["tests/saliency"],
}

#: Tests of GPU code that need no GPU, and take the time of those that do: `make test` has them.
WITHOUT_GPU = [
    "tests/ops/cuda/test_emulated.py",
    "tests/ops/cuda/test_gram.py",
    "tests/ops/triton/test_interpreter.py",
    "tests/ops/triton/test_resources.py",
]

#: Tests of training that are skipped without a GPU; none of the other stages' limits may leave them out.
NEEDING_A_GPU = [
    "tests/transfer/test_step_graph_gpu.py",
    "tests/transfer/test_source.py::test_side_by_side_on_a_gpu_is_one_after_the_other",
]

#: Files beside tests/ops with tests that a GPU is a parameter of.
ON_A_GPU_TOO = ["tests/bilevel/test_second_order.py", "tests/data/test_loader.py", "tests/fuzz/test_fuzz.py"]


def rounds(output: Path) -> list[list[Stage]]:
    """What runs one after the other, and in each what runs at the same time: whatever takes no times."""
    python = [sys.executable, "-u"]
    rows = str(output / "rows.csv")
    one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    cores = len(os.sched_getaffinity(0))
    # Not `-p no:warnings`: pytest would not know its own mark `filterwarnings`, and collect no file that has it.
    quiet = ["-q", "--tb=short", "--disable-warnings", "-p", "no:benchmark", "--continue-on-collection-errors"]

    def tests(*arguments: str, share: int) -> list[str]:
        workers = ["-n", str(min(12, max(1, cores // share)))] if is_installed("xdist") else []
        return [*python, "-m", "pytest", *quiet, *workers, *arguments]

    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # Libraries ask drivers for what they may not have: such calls fail, and are no errors of memory.
    options = ["--report-api-errors", "no", "--print-limit", "1000", "--error-exitcode", "9"]
    checked = [[sanitizer, "--tool", tool, *options, *python] for tool in ("memcheck", "racecheck")]
    # PyTorch's allocator hands out parts of large blocks, whose borders the sanitizer would not see.
    no_blocks = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # A backend that is missing ends it with a sentence: benchmarks leave it out, and its tests are skipped.
    describe = (
        "import sys; from l2t_fast import environment as e, ops; "
        "print(e.format_environment(e.describe_environment())); "
        "sys.exit('; '.join(f'{b}: {why}' for b in ops.FUSED['cuda'] if (why := ops.why_unavailable(b))) or None)"
    )
    loss = [*python, "-m", "benchmarks.gpu_rows", "loss", rows, "--workloads"]
    step = [*python, "-m", "benchmarks.gpu_rows", "step", rows, "--workloads"]
    steps = ["--repeats", "5", "--providers", "naive", "exact", "exact_graph", "exact_bfloat16_graph"]
    missing = [name for name in NEEDED_BY if not is_installed(name)]
    left_out = [path for name in missing for path in NEEDED_BY[name]]
    gpu_tests = ["tests/ops", *(f"--ignore={path}" for path in WITHOUT_GPU)]
    # By the memory that is free now there may be fewer jobs: some machines get theirs as they use it.
    jobs = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(cores))}
    build = [*python, "setup.py", "build_ext", "--inplace"]
    if lacking := missing_tools():
        build = [*python, "-c", f"print('no native code, Triton alone: there is no {lacking[0]}')"]
    triton_tests = tests(*gpu_tests, "-k", "triton", share=2)
    return [
        [
            Stage("build", 150, build, jobs, needed=True),
            Stage(
                "tests_triton_alone",
                100,
                ["nice", "--adjustment=19", *triton_tests, "-p", "tests.without_native"],
                one_thread,
                "Triton's tests where there is no native code; later ones find compiled what these have compiled",
            ),
        ],
        [Stage("environment", 20, [*python, "-c", describe], {})],
        [Stage("loss_imagenet", 80, [*loss, "imagenet"], {})],
        [Stage("loss_cifar", 70, [*loss, "cifar"], {})],
        [
            Stage(
                "loss_multi_source",
                35,
                [*loss, "multi_source_128", "--providers", "eager", "cuda", "triton"],
                {},
                "torch.compile is left out: it compiles 128 pairs for minutes",
            )
        ],
        [Stage("step_cifar", 35, [*step, "cifar", *steps], {})],
        [Stage("step_imagenet", 60, [*step, "imagenet", *steps], {})],
        [
            Stage("memcheck", 150, [*checked[0], "-m", "benchmarks.gpu_small_case"], no_blocks),
            Stage("racecheck", 150, [*checked[1], "-m", "benchmarks.gpu_small_case", "cuda"], no_blocks),
            Stage(
                "tests_cuda",
                240,
                tests(*gpu_tests, *ON_A_GPU_TOO, "-k", "cuda and not triton", share=4),
                one_thread,
            ),
            Stage("tests_graph", 240, tests(*NEEDING_A_GPU, share=8), one_thread),
            Stage("tests_triton", 240, triton_tests, one_thread),
            Stage("limited_data", 240, [*python, "-m", "benchmarks.gpu_training", str(output / "training.csv")], {}),
            Stage(
                "tests",
                240,
                tests("tests", "-k", "not triton and not cuda", *(f"--ignore={path}" for path in left_out), share=1),
                one_thread,
                f"without {', '.join(left_out)}, which need {' and '.join(missing)}" if left_out else "",
            ),
        ],
    ]


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def missing_tools() -> list[str]:
    """What the native build needs and this machine has not; without nvcc it leaves the CUDA kernels out by itself."""
    beside_python = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = {name: shutil.which(name, path=beside_python) for name in ("cmake", "ninja")}
    compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++"]
    found["C++ compiler"] = any(shutil.which(compiler) for compiler in compilers)
    found["Python.h"] = Path(sysconfig.get_path("include"), "Python.h").is_file()
    versions = [distribution.version for distribution in importlib.metadata.distributions(name="setuptools")]
    found["setuptools 77"] = any(int(version.partition(".")[0]) >= 77 for version in versions[:1])
    return [name for name, there in found.items() if not there]


def missing_packages() -> list[str]:
    """What pyproject.toml asks for, tests included, and this Python has not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], "pytest", "pytest-xdist", "captum"]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in wanted]
    return [name for name in names if not any(importlib.metadata.distributions(name=name))]


def pack(logs: Path, archive: Path) -> None:
    """All logs in one file, written anew."""
    with tarfile.open(archive, "w:gz") as packed:
        for log in sorted(logs.glob("*.log")):
            packed.add(log, log.name)


def keep(outcomes: list[Outcome], logs: Path, output: Path, since: str) -> None:
    """Write logs and summary. Where that fails it is said, and the stages go on: their outcomes are printed too."""
    try:
        (output / "summary.md").write_text(summary(outcomes, output / "rows.csv", since), encoding="utf-8")
        pack(logs, output / "logs.tgz")
    except OSError as error:
        tell(f"error: results cannot be written to {output}: {error.strerror}", sys.stderr)


def tell(text: str, to: TextIO | None = None) -> None:
    """Print, if somebody still listens, in what letters they know."""
    to = to or sys.stdout
    encoding = to.encoding or "utf-8"
    with contextlib.suppress(OSError):
        print(text.encode(encoding, "replace").decode(encoding), file=to, flush=True)


def summary(outcomes: list[Outcome], rows: Path, since: str = "") -> str:
    lines = ["# Run on a GPU", "", "| stage | status | seconds | last line |", "|---|---|---|---|"]
    for outcome in outcomes:
        last = outcome.last_line.replace("|", "/")[:120]
        lines.append(f"| {outcome.stage.name} | {outcome.status} | {outcome.seconds:.0f} | {last} |")
    notes = [f"* {outcome.stage.name}: {outcome.stage.note}." for outcome in outcomes if outcome.stage.note]
    lines += ["", *notes] if notes else []
    if missing := missing_packages():
        lines += ["", f"Not installed: {', '.join(missing)}. What imports them fails or was left out."]
    if rows.exists():
        try:
            table = ratio_table(rows, since)
        except (OSError, ValueError, LookupError, ZeroDivisionError, csv.Error) as error:
            table = [f"No table of {rows.name}, which cannot be read: {type(error).__name__}: {error}."]
        lines += ["", *table]
    return "\n".join(lines) + "\n"


#: What the table holds the others against: the first of these that a run has.
OURS = ("cuda", "triton", "exact")


def ratio_table(rows: Path, since: str = "") -> list[str]:
    """Medians, and how many times longer than ours every provider of the same run takes; of runs that began since."""
    with rows.open(newline="") as file:
        new = [row for row in csv.DictReader(file) if row.get("run", "") >= since]  # old ones may have other columns
    found = [row for row in new if row["median_ms"] and not row["part"] and row["mode"] != "peak"]
    lines = [
        f"Ours is the first of {', '.join(OURS)} in a run.",
        "",
        "| workload | batch | mode | provider | median ms | times ours | peak MiB | of ours | roofline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        group = ("run", "workload", "mode", "dtype", "layout")
        same = {r["provider"]: r for r in found if all(r[k] == row[k] for k in group)}
        ours = next((same[name] for name in OURS if name in same), None)
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
    parser.add_argument("--output", type=Path, default=Path(default), help="folder for rows, summary and logs")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="some of the stages only")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    chosen = rounds(output)
    names = [stage.name for stages in chosen for stage in stages]
    if unknown := [name for name in arguments.stages or [] if name not in names]:
        parser.error(f"no stage is named {', '.join(unknown)}: they are {', '.join(names)}")
    wanted = arguments.stages or names
    chosen = [[stage for stage in stages if stage.name in wanted] for stages in chosen]
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "summary.md").write_text("")  # no older one stays
        check_output(output / "rows.csv")
    except OSError as error:
        parser.error(f"results cannot be written to {output}: {error.strerror}")
    except L2TFastError as error:
        parser.error(f"{error}; move the file away or name another folder with OUT or --output")
    return run_all(chosen, output)


def run_all(chosen: list[list[Stage]], output: Path) -> int:
    began, since = time.monotonic(), datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    outcomes: list[Outcome] = []
    with Signals() as interrupted, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for stages in filter(None, chosen):
            tell(f"{', '.join(stage.name for stage in stages)} ...")
            for last in run_together(stages, Path(folder), SECONDS - (time.monotonic() - began), interrupted):
                outcomes.append(last)
                tell(f"{last.stage.name}: {last.status}, {last.seconds:.0f} s, {last.last_line}")
                keep(outcomes, Path(folder), output, since)
            if interrupted():
                break
            if failed := [outcome.stage.name for outcome in outcomes if outcome.lacking]:
                tell(f"{failed[0]} is what all others need: they are left out")
                break
        tell(summary(outcomes, output / "rows.csv", since))
    return 0 if all(outcome.status == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
