"""`make gpu` without a GPU: stages that fail or hang cost the others nothing, and the summary says what happened."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu, stage_processes
from l2t_fast.bench.rows import Row, append_rows


def stage(name: str, code: str, seconds: int = 60) -> gpu.Stage:
    return gpu.Stage(name, seconds, [sys.executable, "-c", code], {"STAGE": name})


def run(one: gpu.Stage, logs: Path, left: float) -> gpu.Outcome:
    (outcome,) = gpu.run_together([one], logs, left)
    return outcome


def test_a_stage_s_output_is_in_its_log(tmp_path):
    outcome = run(stage("hello", "import os; print(os.environ['STAGE']); print('last'); print()"), tmp_path, 60)
    assert outcome.status == "ok" and outcome.last_line == "last"
    assert (tmp_path / "hello.log").read_text() == "hello\nlast\n\n"


def test_a_stage_that_hangs_is_stopped_with_all_it_started(tmp_path):
    child = "import subprocess, sys; print('began', flush=True); subprocess.run(['sleep', '600'])"
    outcome = run(stage("hangs", child, seconds=6), tmp_path, 600)
    assert outcome.status == "stopped after 6 s" and outcome.last_line == "began"


@pytest.mark.parametrize("code", ["", "import time; time.sleep(600)"], ids=["ends", "hangs"])
def test_nothing_outlives_a_stage(tmp_path, code):
    child = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
    outcome = run(stage("leaves", f"{child}; {code}", seconds=6), tmp_path, 600)
    assert has_ended(outcome.last_line)


def has_ended(pid: str) -> bool:
    status = Path("/proc", pid, "stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_nothing_outlives_a_stage_within_a_stage(tmp_path):
    inner = "from benchmarks.stage_processes import *; stage = Stage('inner', 60, ['sleep', '600'], {})"
    outer = f"{inner}; next(run_together([stage], Path({str(tmp_path)!r}), 60))"
    outcome = run(stage("outer", outer, seconds=8), tmp_path, 60)
    assert outcome.status == "stopped after 8 s" and (tmp_path / "inner.log").exists()
    assert not any(path.read_bytes() == b"sleep\x00600\x00" and b"inner" in environment(path) for path in commands())


def commands() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path.parent / "environ", os.R_OK)]


def environment(command: Path) -> bytes:
    try:
        return (command.parent / "environ").read_bytes()
    except OSError:
        return b""


def test_tests_that_are_stopped_say_what_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_processes, "GRACE", 60)  # for a machine with other work
    file = tmp_path / "test_some.py"
    file.write_text("import time\ndef test_wrong(): assert 1 == 2\ndef test_endless(): time.sleep(600)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    outcome = run(gpu.Stage("tests", 8, command, {}), tmp_path, 60)
    assert outcome.status == "stopped after 8 s" and outcome.last_line.startswith("1 failed")
    assert "assert 1 == 2" in (tmp_path / "tests.log").read_text()


def test_an_interrupted_run_leaves_what_there_is(tmp_path):
    interrupts = "import os, signal, time; print('at work', flush=True); os.kill(os.getppid(), signal.SIGINT)"
    second = [stage("second", f"{interrupts}; time.sleep(600)"), stage("beside", "import time; time.sleep(600)")]
    assert gpu.run_all([[stage("first", "pass")], second, [stage("third", "pass")]], tmp_path) == 1
    text = (tmp_path / "summary.md").read_text()
    assert "| first | ok |" in text and "| second | interrupted |" in text and "third" not in text
    assert "| beside | interrupted |" in text
    with tarfile.open(tmp_path / "logs.tgz") as packed:
        assert packed.extractfile("second.log").read() == b"at work\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_any_signal_however_often_ends_all_stages_and_leaves_the_summary(number, tmp_path, monkeypatch):
    """As `timeout make gpu` sends two, or somebody in haste; the second comes while an outcome is written."""
    keep = gpu.keep

    def once_more(*arguments):
        os.kill(os.getpid(), number)
        keep(*arguments)

    monkeypatch.setattr(gpu, "keep", once_more)
    child = "import subprocess, time; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
    stages = [stage(name, f"{child}; time.sleep(600)") for name in ("one", "two", "three")]
    stages.append(stage("sends", f"import os, time; time.sleep(1); os.kill(os.getppid(), {int(number)}); {child}"))
    outside = signal.signal(number, signal.SIG_DFL)  # nohup, which these tests may run below, has one ignored
    try:
        assert gpu.run_all([stages, [stage("next", "pass")]], tmp_path) == 1
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    text = (tmp_path / "summary.md").read_text()
    assert all(f"| {name} | interrupted |" in text for name in ("one", "two", "three")) and "next" not in text
    with tarfile.open(tmp_path / "logs.tgz") as packed:
        for name in ("one", "two", "three"):
            assert has_ended(packed.extractfile(f"{name}.log").read().decode().strip())


def test_below_nohup_a_run_goes_on_when_its_terminal_is_closed(tmp_path):
    closes = stage("closes", f"import os; os.kill(os.getppid(), {int(signal.SIGHUP)})")
    outside = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert gpu.run_all([[closes], [stage("next", "pass")]], tmp_path) == 0
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_a_needed_stage_that_fails_ends_those_beside_it(tmp_path):
    failing = dataclasses.replace(stage("build", "raise SystemExit('no compiler')"), needed=True)
    found = list(gpu.run_together([stage("beside", "import time; time.sleep(600)"), failing], tmp_path, 600))
    status = {outcome.stage.name: outcome.status for outcome in found}
    assert status == {"build": "exit code 1", "beside": "ended: build failed"}
    assert all(outcome.seconds < 60 for outcome in found)


def test_without_what_all_stages_need_none_runs(tmp_path, capsys):
    failing = dataclasses.replace(stage("build", "raise SystemExit('no compiler')"), needed=True)
    assert gpu.run_all([[failing], [stage("next", "print('ran')")]], tmp_path) == 1
    told = capsys.readouterr().out
    assert "build: exit code 1" in told and "no compiler" in told and "next" not in told
    assert "build" in (tmp_path / "summary.md").read_text()


def test_a_folder_that_cannot_be_written_to_stops_no_stage(tmp_path, capsys):
    gone = tmp_path / "gone"
    assert gpu.run_all([[stage("first", "print('one')")], [stage("second", "print('two')")]], gone) == 0
    told = capsys.readouterr()
    assert "| second | ok |" in told.out and told.err.count(f"cannot be written to {gone}: No such file") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "tests", "nosuch"], "no stage is named nosuch: they are build, "),
        (["--output", __file__], "test_gpu.py: File exists"),
        ([], "rows.csv holds other columns than this version writes"),
    ],
    ids=["stage", "output", "rows"],
)
def test_what_cannot_begin_is_told(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert message in capsys.readouterr().err


def test_a_long_log_loses_its_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_processes, "LOG_BYTES", 400)
    outcome = run(stage("long", "for i in range(1000): print(i)"), tmp_path, 60)
    text = (tmp_path / "long.log").read_text()
    assert outcome.last_line == "999" and text.startswith("0\n1\n") and len(text) < 450
    gpu.pack(tmp_path, tmp_path / "logs.tgz")
    with tarfile.open(tmp_path / "logs.tgz") as packed:
        assert packed.getnames() == ["long.log"]


@pytest.mark.parametrize(
    ("change", "status"),
    [({"code": "raise SystemExit(3)"}, "exit code 3"), ({"left": 2}, "no time left")],
)
def test_what_went_wrong_is_told(tmp_path, change, status):
    options = {"code": "pass", "left": 60} | change
    assert run(stage("x", options["code"]), tmp_path, options["left"]).status == status


def test_a_command_that_is_not_there(tmp_path):
    missing = gpu.Stage("sanitizer", 60, ["/nowhere/compute-sanitizer"], {})
    assert run(missing, tmp_path, 60).status.startswith("did not start: /nowhere/compute-sanitizer: ")


def all_stages(output: Path) -> list[gpu.Stage]:
    return [one for together in gpu.rounds(output) for one in together]


def test_stages_of_a_round_run_at_the_same_time(tmp_path):
    """Each waits for the other one's file; one is stopped, one cannot start: both cost the others nothing."""
    waits = (
        "import pathlib, time; pathlib.Path('{0}').touch()\nwhile not pathlib.Path('{1}').exists(): time.sleep(0.01)"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    together = [
        stage("one", waits.format(one, two)),
        stage("hangs", "import time; time.sleep(600)", seconds=5),
        gpu.Stage("missing", 60, ["/nowhere/program"], {}),
        stage("two", waits.format(two, one)),
    ]
    status = {outcome.stage.name: outcome.status for outcome in gpu.run_together(together, tmp_path, 60)}
    assert status.pop("missing").startswith("did not start: ")
    assert status == {"one": "ok", "two": "ok", "hangs": "stopped after 5 s"}


def test_every_round_but_the_last_fits_into_the_nine_minutes(tmp_path):
    *others, last = gpu.rounds(tmp_path)
    first, *timed = others
    assert all(len(together) == 1 for together in timed), "what is timed runs alone"
    assert sum(max(one.seconds for one in together) for together in others) + 70 < gpu.SECONDS < 9 * 60
    assert {one.name for one in first if one.needed} == {"build"}
    assert min(one.seconds for one in last) >= 120


def test_no_file_with_tests_on_a_gpu_is_left_out(tmp_path):
    """The stage of all tests leaves out those named for a GPU: other stages must name their files."""
    commands = [s.command for s in all_stages(tmp_path) if s.name in ("tests_cuda", "tests_graph")]
    named = [gpu.ROOT / argument.partition("::")[0] for command in commands for argument in command]
    for path in (gpu.ROOT / "tests").rglob("test_*.py"):
        if re.search(r"pytest\.param\(\"cuda\"|needs a (CUDA )?GPU", path.read_text()) and path != Path(__file__):
            assert any(path.is_relative_to(name) for name in named), path


def test_without_xdist_tests_run_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "is_installed", lambda module: False)
    assert not any("-n" in s.command for s in all_stages(tmp_path))


def test_files_with_marks_are_collected(tmp_path):
    """With the options of the stages, strict about unknown ones."""
    file = tmp_path / "test_marked.py"
    file.write_text("import pytest\n@pytest.mark.filterwarnings('ignore')\ndef test_one(): pass\n")
    tests = next(s.command for s in all_stages(tmp_path) if s.name == "tests")
    options = ["-c", str(gpu.ROOT / "pyproject.toml"), "-p", "no:cacheprovider", str(file)]
    done = subprocess.run([*tests[: tests.index("tests")], *options], capture_output=True, text=True)
    assert "1 passed" in done.stdout and done.returncode == 0, done.stdout + done.stderr


def test_triton_s_tests_run_beside_the_build_without_native_code(tmp_path):
    """In each worker; and the build goes first."""
    file = tmp_path / "test_native.py"
    file.write_text(
        "import os\nfrom l2t_fast import _native\n"
        "def test_it(): assert _native.extension is None and 'PYTEST_XDIST_WORKER' in os.environ\n"
    )
    command = next(s.command for s in all_stages(tmp_path) if s.name == "tests_triton_alone")
    options = [option for option in command[command.index("-k") + 2 :] if not option.startswith("tests/")]
    assert command[:2] == ["nice", "--adjustment=19"]
    command = [*command[2 : command.index("tests/ops")], "-n", "1", "-p", "no:cacheprovider", *options, str(file)]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True)
    assert "1 passed" in done.stdout and done.returncode == 0, done.stdout + done.stderr


def row(provider, median_ms, **others):
    same = {
        **dict.fromkeys(("version", "commit", "native", "device", "capability", "python", "torch", "flags"), "x"),
        **{"run": "now", "threads": 1, "workload": "cifar", "batch": 128, "pairs": 15},
        **{"dtype": "float32", "layout": "NCHW", "mode": "forward_backward"},
    }
    return Row(**same | {"provider": provider, "median_ms": median_ms} | others)


def test_the_summary_has_ratios_within_a_run(tmp_path):
    append_rows(
        tmp_path / "rows.csv",
        [
            row("triton", 0.5, peak_mib=10.0, floor_ms=0.25),
            row("eager", 4.0, peak_mib=50.0),
            row("eager", 9.0, run="later"),
            row("compile", None, status="wrong"),
        ],
    )
    noted = gpu.Stage("tests", 60, [], {}, "without some")
    text = gpu.summary([gpu.Outcome(noted, "ok", 12.3, "1 passed | 2")], tmp_path / "rows.csv")
    assert "| tests | ok | 12 | 1 passed / 2 |" in text and "* tests: without some." in text
    assert "| cifar | 128 | forward_backward | triton | 0.500 | 1.00 | 10 | 1.00 | 50% |" in text
    assert "| cifar | 128 | forward_backward | eager | 4.000 | 8.00 | 50 | 5.00 |  |" in text
    assert "| cifar | 128 | forward_backward | eager | 9.000 |  |" in text
    assert "compile" not in text


def test_the_summary_is_of_this_run_alone(tmp_path):
    """Rows of earlier runs stay in the file, and their columns may be another version's."""
    rows = tmp_path / "rows.csv"
    append_rows(rows, [row("cuda", 1.0, run="2026-01-01T00:00:00Z"), row("cuda", 2.0, run="2026-01-02T00:00:00Z")])
    text = gpu.summary([], rows, "2026-01-01T12:00:00Z")
    assert "| cuda | 2.000 |" in text and "| cuda | 1.000 |" not in text
    rows.write_text("time\n1\n")
    assert "| cuda |" not in gpu.summary([], rows, "2026-01-01T12:00:00Z")


@pytest.mark.parametrize("content", [b"run,median_ms\n9999,1\n", b"run\n9999\n", b"\xff\xfe"])
def test_rows_that_cannot_be_read_cost_nothing_else(content, tmp_path):
    (tmp_path / "rows.csv").write_bytes(content)
    outcome = gpu.Outcome(stage("tests", "pass"), "ok", 1.0, "1 passed")
    text = gpu.summary([outcome], tmp_path / "rows.csv")
    assert "| tests | ok | 1 | 1 passed |" in text and "No table of rows.csv, which cannot be read: " in text


@pytest.mark.parametrize(("missing", "named"), [(["cmake"], "cmake"), (["c++", "g++"], "C++ compiler")])
def test_without_tools_of_the_build_triton_is_left(missing, named, tmp_path, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **options: None if name in missing else which(name, **options))
    monkeypatch.delenv("CXX", raising=False)
    build = next(s for s in all_stages(tmp_path) if s.name == "build")
    outcome = run(build, tmp_path, 60)
    assert outcome.status == "ok" and outcome.last_line == f"no native code, Triton alone: there is no {named}"


@pytest.mark.parametrize("wish", ["", "g++ -O1"])
def test_an_empty_cxx_and_one_with_options_are_taken(wish, tmp_path, monkeypatch):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", wish)
    assert "C++ compiler" not in gpu.missing_tools()


def test_without_packages_that_a_gpu_s_machine_may_lack_tests_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "is_installed", lambda module: module not in gpu.NEEDED_BY)
    tests = next(s.command for s in all_stages(tmp_path) if s.name == "tests")
    hidden = f"import sys; sys.modules |= dict.fromkeys({list(gpu.NEEDED_BY)}); import pytest; sys.exit(pytest.main("
    options = [*tests[tests.index("pytest") + 1 :], "--collect-only", "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", f"{hidden}{options}))"]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_the_summary_names_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.importlib.metadata, "distributions", lambda name: [] if name == "rich" else ["one"])
    assert "Not installed: rich." in gpu.summary([], tmp_path / "rows.csv")
