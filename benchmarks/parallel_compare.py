"""`l2t-fast compare` by several processes at once and for a limited time: small networks leave most of a GPU idle.

    python -m benchmarks.parallel_compare --workers 12 --seconds 240 --rows rows.csv \
        --config configs/cifar10_limited.yaml --config configs/compare/limited_data.yaml \
        --data.data_dir DIR --source.checkpoint FILE --threads 1 --out runs/limited

All other options are those of `l2t-fast compare` but --plugin, and so are the runs. They begin N by N, within an N
seed by seed, and within a seed in the order of --methods: name those first that take longest. When the time is over,
the processes are ended; the rows of finished runs are on the disk by then, and the same command with another --rows
makes the others. A run that was not finished begins anew: there are no checkpoints but that of the best epoch, at the
end, since to write one takes longer than an epoch on a few hundred images. Seconds in the rows are of processes that
shared a device: they tell no speed.
"""

import argparse
import collections
import copy
import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.csv_rows import append
from benchmarks.training_rows import training_row
from l2t_fast.config import CompareConfig, TrainConfig, write_config
from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError, one_sentence
from l2t_fast.files import held
from l2t_fast.parsing import add_config_options, new_parser, parse, to_config
from l2t_fast.report.statistics import summarise
from l2t_fast.transfer.compare import LastImages, check_comparison, check_finished, trainings
from l2t_fast.transfer.method_entries import parse_method
from l2t_fast.transfer.progress import TrainingProgress
from l2t_fast.transfer.run import Pretraining, makes_source
from l2t_fast.transfer.run_folder import RunFolder
from l2t_fast.transfer.trainer import Trainer

CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


def main(arguments: list[str] | None = None) -> int:
    began = time.monotonic()
    own = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    own.add_argument("--workers", type=int, default=8, help="processes that train at once")
    own.add_argument("--seconds", type=float, required=True, help="time until the processes are ended")
    own.add_argument("--rows", type=Path, required=True, help="CSV file to make, with a row for each finished run")
    own.add_argument(
        "--epochs_at", nargs="+", default=[], metavar="N=EPOCHS", help="other epochs than --epochs at an N"
    )
    own.add_argument("--commit", help="what the rows say of the code, where it is no checkout")
    options, rest = own.parse_known_args(arguments)
    if options.rows.exists():
        raise L2TFastError(f"{options.rows} exists: name another file with --rows")
    if not options.rows.parent.is_dir():  # told now, and not when the first run has finished
        raise L2TFastError(f"--rows {options.rows}: there is no folder {options.rows.parent}, make it or name another")
    if options.workers < 1:
        raise L2TFastError(f"--workers is {options.workers}, it must be 1 or more")
    parser = new_parser()
    add_config_options(parser, CompareConfig)
    config = to_config(parse(parser, rest), CompareConfig)
    config.check()
    epochs_at = read_epochs(options.epochs_at, config)
    check_comparison(config)
    with held(Path(config.out)):  # not each run alone: a second command would call those of this one failed
        check_comparison(config)
        return make_rows(planned(config, epochs_at), options, began)


def make_rows(runs: list[TrainConfig], options: argparse.Namespace, began: float) -> int:
    """Do the runs until the time is over, and write a row for each that finishes; returns the exit code."""
    images: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    failed = 0
    for training, result in outcomes(runs, options.workers, began + options.seconds):
        at = f"{time.monotonic() - began:.0f} s: {RunFolder(training.folder()).path.name}"
        if "problem" in result:
            failed += 1
            print(f"{at}: failed: {result['problem']}", flush=True)
            continue
        images = images or image_counts(training.data)  # while the processes train: none depends on N or the seed
        rows.append({"label": training.label} | training_row(training, result, images, commit=options.commit))
        append([{name: value for name, value in rows[-1].items() if name != "label"}], options.rows)
        print(f"{at}: test {result['test_accuracy']:.2%}, {result['seconds']:.1f} s", flush=True)
    print(f"{len(rows)} of {len(runs)} runs finished in {time.monotonic() - began:.0f} s")
    if rows:
        print(table(rows))
    return 2 if failed else 0


def read_epochs(texts: list[str], config: CompareConfig) -> dict[int, int]:
    """What --epochs_at says: epochs by N."""
    numbers = {str(n): n for n in config.per_class or [config.data.per_class] if n is not None}
    found: dict[int, int] = {}
    for text in texts:
        n, _, epochs = text.partition("=")
        if n not in numbers or not (epochs.isascii() and epochs.isdigit() and int(epochs) > 0):
            known = f"with an N of {', '.join(numbers)}" if numbers else "which takes an N, and there is no --per_class"
            raise L2TFastError(f"--epochs_at {text}: it must be N=EPOCHS, {known}, and 1 epoch or more")
        found[numbers[n]] = int(epochs)
    return found


def image_counts(config: DataConfig) -> dict[str, int]:
    """How many images there are to validate and to test with, as the rows name them."""
    bundle = load_data(config)
    return {"validation_images": len(bundle.validation.dataset), "test_images": len(bundle.test.dataset)}


def planned(config: CompareConfig, epochs_at: dict[int, int]) -> list[TrainConfig]:
    """All runs, N by N; a source without a checkpoint is trained first."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    source = config.source
    if makes_source(config, [parse_method(entry).method for entry in config.methods]):
        with TrainingProgress(Console(quiet=True)) as progress:
            source = Pretraining(config, out / "source", progress).finish()
    runs = sorted(trainings(config, source), key=lambda training: training.data.per_class or 0)
    runs = [dataclasses.replace(run, epochs=epochs_at.get(run.data.per_class, run.epochs)) for run in runs]
    check_finished(runs)
    write_config(config, out / "config.yaml")
    return runs


class Worker:
    """A process that takes runs, one after the other."""

    def __init__(self) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=work, args=(theirs,), daemon=True)
        # A terminal sends Ctrl-C to all processes; this one's parent sees to its end. It inherits that it ignores it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()


class UnsavedTrainer(Trainer):
    """Keeps the best networks on the device, and writes them after the last epoch."""

    def _save(self, improves: bool) -> None:
        if improves:
            networks = {"model": self.target, "method": self.method}
            self._networks = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
        if self.reached.epoch == self.config.epochs:
            self.state.save_best({**self._networks, "best": self.reached.best})


def attempt(training: TrainConfig, progress: TrainingProgress, images: LastImages) -> dict[str, Any]:
    """The result of a run, read if it is finished; or a problem, in a sentence."""
    folder = RunFolder(training.folder())
    try:
        if folder.result.exists():
            folder.check_same(training)
            return folder.read_result()
        if not folder.last.exists():  # else it is a run of `l2t-fast compare`, which needs it to go on
            folder.best.unlink(missing_ok=True)  # of a run that was ended before its result
        result = UnsavedTrainer(training, progress, load=images.load).fit()
        folder.failure.unlink(missing_ok=True)  # of the time before
        return result
    except Exception as error:
        failure = {"method": training.label, "seed": training.seed, "problem": one_sentence(error)}
        folder.write_failure(failure, traceback.format_exc())
        return failure


def end_with_parent() -> None:
    """A parent that is killed cannot end its processes; each sees to it itself."""

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(connection: Connection) -> None:
    """Answer every run that comes with its result, until there are no more."""
    end_with_parent()
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    images = LastImages()
    with TrainingProgress(Console(quiet=True), epoch_lines=False) as progress:
        while True:
            try:
                training = connection.recv()
            except EOFError:
                return
            connection.send(attempt(training, progress, images))
            gc.collect()
            torch.cuda.empty_cache()  # of the run's CUDA graphs: the other processes need it


def outcomes(runs: Iterable[TrainConfig], workers: int, end: float) -> Iterator[tuple[TrainConfig, dict[str, Any]]]:
    """Every run that ends before the time `end` (of time.monotonic), as it does, with what `attempt` says of it."""
    waiting = collections.deque(runs)
    idle = [Worker() for _ in range(min(workers, len(waiting)))]
    busy: dict[Connection, tuple[Worker, TrainConfig]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, training = idle.pop(), waiting.popleft()
                worker.connection.send(training)
                busy[worker.connection] = worker, training
            ended = wait(list(busy), max(0.0, end - time.monotonic()))
            if not ended:
                return
            for connection in ended:
                worker, training = busy.pop(connection)
                try:
                    result = connection.recv()
                    idle.append(worker)
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    problem = f"its process ended with exit code {worker.process.exitcode}"
                    result = {"problem": problem}
                    idle.append(Worker())
                yield training, result
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.process.kill()


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: test accuracy of a method at an N, mean and standard deviation over the seeds that are finished."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for row in rows:
        found.setdefault((row["label"], row["per_class"]), []).append(row["test_accuracy"])
    numbers = sorted({n for _, n in found}, key=lambda n: n or 0)
    lines = [f"| method | {' | '.join(f'N={n}' for n in numbers)} |", "|---|" + "---|" * len(numbers)]
    for label in dict.fromkeys(label for label, _ in found):
        cells = []
        for n in numbers:
            summary = summarise(found.get((label, n), []))
            spread = f" ± {summary.spread:.2%}" if summary.has_interval else ""
            cells.append(f"{summary.mean:.2%}{spread} ({summary.n})" if summary.n else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except L2TFastError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted: the same command with another --rows makes the runs that are missing", file=sys.stderr)
        sys.exit(130)
