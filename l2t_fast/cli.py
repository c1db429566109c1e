"""The command ``l2t-fast``: train | compare | inspect | saliency | predict | bench | env."""

import csv
import io
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track

from l2t_fast import __version__
from l2t_fast.bench.cli import add_bench_commands, bench
from l2t_fast.config import CompareConfig, TrainConfig, embedded_config
from l2t_fast.distributed.group import Group
from l2t_fast.distributed.job import Job, join_job
from l2t_fast.environment import describe_environment, format_environment
from l2t_fast.errors import L2TFastError, one_sentence, out_of_memory, worker_killed
from l2t_fast.interrupts import OutputClosed, kept_interrupts, raise_again
from l2t_fast.output import watched_output
from l2t_fast.parsing import add_config_options, new_parser, parse, to_config
from l2t_fast.plugins import load_plugin
from l2t_fast.predict import find_images, predict
from l2t_fast.report import results_table
from l2t_fast.saliency import explain_runs
from l2t_fast.text import printable
from l2t_fast.transfer import run
from l2t_fast.transfer.compare import compare
from l2t_fast.transfer.inspect import inspect_run
from l2t_fast.transfer.run_folder import RunFolder

#: What an interruption is told with. Not a command to paste: how the ranks of a job were started is not known.
_RESUME_HINTS = {
    "train": ": the same command with --resume continues where it stopped",
    "compare": ": the same command continues where it stopped",
}

#: Exit codes; 130 is what a shell gives a program that Ctrl-C ended.
FAILED, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A mistake is one sentence; ``--debug`` adds the traceback."""
    # PyTorch compiles some of its own derivatives with torch.jit.script and warns users that it is deprecated.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    resume_hint = ""
    job = Job()
    try:
        raise_again()
        with kept_interrupts(), watched_output():
            job = join_job()
            given, plugins = _without_plugins(given)
            for plugin in plugins:
                load_plugin(plugin)
            command, options = _parse(given)
            resume_hint = _RESUME_HINTS.get(command, "")
            job.set_hint(resume_hint)
            return job.leave(_run(command, options, job))
    except KeyboardInterrupt as error:
        if isinstance(error, OutputClosed) and not resume_hint:
            return INTERRUPTED  # `l2t-fast env | head -1`: its reader has what it wanted
        return job.end(f"\n{str(error) or 'interrupted'}{resume_hint}", INTERRUPTED, error)
    except SystemExit as request:  # --help
        job.leave(request.code or 0)
        raise
    except Exception as error:
        foreseen = isinstance(error, (L2TFastError, ValueError, TypeError, OSError))
        if not foreseen and not out_of_memory(error) and not worker_killed(error):
            if job.group.size == 1:
                raise
            debug = True
        if debug:
            traceback.print_exc()
        # Most are of a method or a network of somebody's own, and Python's words alone do not tell where it went wrong.
        unforeseen = isinstance(error, (ValueError, TypeError)) and not debug
        where = f" ({type(error).__name__}; --debug shows where)" if unforeseen else ""
        return job.end(f"error: {one_sentence(error)}{where}", FAILED, error)


def _without_plugins(given: list[str]) -> tuple[list[str], list[str]]:
    """The arguments, and what ``--plugin`` names among them: no key of a configuration, whose files run no code."""
    kept, plugins = [], []
    rest = iter(given)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag != "--plugin":
            kept.append(argument)
            continue
        plugins.append(value if equals else next(rest, ""))
    return kept, plugins


def _run(command: str, options: Namespace, job: Job) -> int:
    if command == "train":
        _train(options, job.group)
        return 0
    if job.group.size > 1:
        raise L2TFastError(
            f"l2t-fast {command} takes one process, but {job.group.size} ranks were started: only train takes several"
        )
    return _COMMANDS[command](options) or 0


def _train(options: Namespace, group: Group) -> None:
    config = to_config(options, TrainConfig)
    folder = RunFolder(config.folder())
    # No mistake: what starts runs again when they were killed always says --resume. But its name may be mistyped.
    if options.resume and group.leads and not folder.holds_run():
        folder.check(config, resume=True)
        print(f"{printable(folder.path)} holds no run to continue: one begins there", flush=True)
    result = run(config, resume=options.resume, group=group)
    if not group.leads:
        return
    print(
        f"{printable(result['method'])}: test accuracy {result['test_accuracy']:.2%} with the model of epoch "
        f"{result['best_epoch']} (validation accuracy {result['validation_accuracy']:.2%})",
        flush=True,  # as long as the job of several ranks is one
    )


def _compare(options: Namespace) -> int:
    config = to_config(options, CompareConfig)
    outcome = compare(config)
    Console().print(results_table(config.folder()))
    print(f"the page with plots and conditions: {outcome.page}")
    for label, sentence in outcome.failures.items():
        print(f"error: {label}: {sentence}", file=sys.stderr)
    return FAILED if outcome.failures else 0


def _inspect(options: Namespace) -> None:
    inspect_run(options.run, Console())


def _saliency(options: Namespace) -> None:
    if options.out == "":
        raise L2TFastError("--out is empty, it must be a folder, or . for the one you are in")
    made = explain_runs(
        options.runs,
        options.out,
        images=options.images,
        seed=options.seed,
        maps=options.maps,
        device=options.device,
    )
    print(f"what the networks look at: {made}")


def _predict(options: Namespace) -> int:
    images = [image for path in options.images for image in find_images(path)]
    found = predict(options.run, images, top=options.top, device=options.device, batch_size=options.batch_size)
    _print_row("image", "rank", "class", "probability")
    failed = False
    # Where rows go into a file, a bar shows how far they are.
    quiet = None in (sys.stdout, sys.stderr) or sys.stdout.isatty() or not sys.stderr.isatty()
    for prediction in track(found, "images", len(images), console=Console(stderr=True), disable=quiet):
        if prediction.problem is not None:
            failed = True
            print(f"error: {prediction.problem}", file=sys.stderr)
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            _print_row(prediction.image, rank, name, f"{probability:.6f}")
    return FAILED if failed else 0


def _print_row(*values: object) -> None:
    line = io.StringIO()
    csv.writer(line).writerow(values)  # quotes what its own end of a line, \r\n, has a part of
    print(line.getvalue().removesuffix("\r\n"))


def _env(options: Namespace) -> None:
    print(format_environment(describe_environment()))


# What a command returns is the exit code, None for 0.
_COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "compare": _compare,
    "inspect": _inspect,
    "saliency": _saliency,
    "predict": _predict,
    "bench": bench,
    "env": _env,
}


def _parser() -> ArgumentParser:
    """All commands. Every field of a configuration class is a flag and, in a file given by --config, a YAML key."""
    top = new_parser(
        prog="l2t-fast",
        description="Learn what and where to transfer. Every command takes --plugin FILE, a Python file with methods, "
        "networks or data sets of your own, and --debug, which shows tracebacks.",
        version=__version__,
    )
    commands = top.add_subcommands(dest="command")
    train = new_parser(usage="l2t-fast train [--config FILE] [--resume] [--OPTION VALUE ...]")
    add_config_options(train, TrainConfig)
    train.add_argument(
        "--resume", action="store_true", help="continue the run in the folder --out; begin it if there is none"
    )
    commands.add_subcommand("train", train, help="run one method")
    comparison = new_parser(usage="l2t-fast compare [--config FILE] [--OPTION VALUE ...]")
    add_config_options(comparison, CompareConfig)
    commands.add_subcommand("compare", comparison, help="run methods x N x seeds; makes a table, plots and a page")
    inspect = new_parser(usage="l2t-fast inspect RUN")
    inspect.add_argument("run", type=str, help="folder of a run or of a comparison")
    commands.add_subcommand("inspect", inspect, help="show a run as tables: accuracies, lambda, channels")
    saliency = new_parser(usage="l2t-fast saliency RUN [RUN ...] [--OPTION VALUE ...]")
    saliency.add_argument("runs", type=str, nargs="+", help="folders of finished runs, or of one comparison")
    saliency.add_argument(
        "--out", type=str, help="folder for the maps; without it the page of the comparison shows them"
    )
    saliency.add_argument("--images", type=int, default=6, help="number of test images")
    saliency.add_argument("--seed", type=int, default=0, help="that the images are drawn with")
    saliency.add_argument("--maps", type=str, default="last", help="feature maps for Grad-CAM: none | last | all")
    saliency.add_argument("--device", type=str, default="auto", help="auto | cpu | cuda | cuda:1 ...")
    commands.add_subcommand("saliency", saliency, help="show what the networks of runs look at, on the same images")
    prediction = new_parser(usage="l2t-fast predict RUN IMAGE [IMAGE ...] [--OPTION VALUE ...]")
    prediction.add_argument("run", type=str, help="folder of a run, whose best network is asked")
    prediction.add_argument("images", type=str, nargs="+", help="image files, or folders of them at any depth")
    prediction.add_argument("--top", type=int, default=1, help="number of classes an image, the most probable first")
    prediction.add_argument("--device", type=str, default="auto", help="auto | cpu | cuda | cuda:1 ...")
    prediction.add_argument("--batch_size", type=int, default=64, help="images that go through the network together")
    commands.add_subcommand("predict", prediction, help="print the classes of images as CSV, by a trained network")
    benchmarks = new_parser(usage="l2t-fast bench {run,report,compare} ...")
    commands.add_subcommand("bench", benchmarks, help="measure speed and memory, make tables, compare rows")
    add_bench_commands(benchmarks)
    commands.add_subcommand("env", new_parser(usage="l2t-fast env"), help="print versions, device, build and backend")
    return top


def _parse(given: list[str]) -> tuple[str, Namespace]:
    """(command, its options). Where no file is named, those of the embedded digits, unless other images are."""
    if given and given[0] in ("train", "compare") and not any(a.split("=")[0] == "--config" for a in given):
        command = given[0]
        embedded = [command, "--config", str(embedded_config()), *given[1:]]
        # which shows what it is given, and ends
        silent = [argument for argument in embedded if argument.partition("=")[0] != "--print_config"]
        options = parse(_parser(), silent)[command]
        if options.data.dataset == "digits":
            if silent == embedded:
                return command, options
            given = embedded
    parsed = parse(_parser(), given or ["--help"])
    return parsed.command, parsed[parsed.command]


if __name__ == "__main__":
    sys.exit(main())
