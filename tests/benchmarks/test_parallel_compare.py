"""Runs of a comparison by several processes: those that finish, those that fail, and those that the time ends."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.parallel_compare import main, table
from l2t_fast.errors import L2TFastError
from l2t_fast.files import held

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arguments(tmp_path):
    rows = ["--rows", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out"), "--commit", "abc"]
    data = ["--data.classes", "[5, 6]", "--data.batch_size", "8", "--target.model", "vgg5bn"]
    runs = ["--methods", "[scratch]", "--per_class", "[8, 4]", "--seeds", "[0]", "--epochs", "2"]
    return [*rows, *data, *runs, "--device", "cpu", "--threads", "1"]


def test_runs_become_rows(arguments, tmp_path, capsys):
    """No class has 400 images: that run fails, and stops no other."""
    own = ["--workers", "2", "--seconds", "300", "--epochs_at", "8=1"]
    assert main([*own, *arguments, "--per_class", "[8, 400, 4]"]) == 2
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = {row["per_class"]: row for row in csv.DictReader(file)}
    told = {n: (row["epochs"], row["updates"], row["commit"], row["pairs"]) for n, row in rows.items()}
    assert told == {"4": ("2", "2", "abc", "0"), "8": ("1", "2", "abc", "0")}
    out = capsys.readouterr().out
    assert "scratch-n400-seed0: failed: class" in out and "2 of 3 runs finished" in out
    with pytest.raises(L2TFastError, match="exists"):
        main(["--seconds", "300", *arguments])


def test_a_run_that_was_ended_before_its_result_begins_anew(arguments, tmp_path, capsys):
    own = ["--workers", "1", "--seconds", "300", *arguments, "--per_class", "[4]"]
    assert main(own) == 0
    (tmp_path / "rows.csv").unlink()
    run = tmp_path / "out" / "runs" / "scratch-n4-seed0"
    (run / "result.json").unlink()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best.pt"]
    assert main(own) == 0
    assert (run / "result.json").exists()


def test_a_second_command_in_the_folder_ends_with_a_sentence(arguments, tmp_path, capsys):
    with held(tmp_path / "out"), pytest.raises(L2TFastError, match="out is in use by another process: wait for it"):
        main(["--workers", "1", "--seconds", "300", *arguments])
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "rows.csv").exists()


def test_other_settings_are_told_first_and_no_run_is_called_failed(arguments, tmp_path, capsys):
    own = ["--workers", "1", "--seconds", "300", *arguments, "--per_class", "[4]"]
    assert main(own) == 0
    (tmp_path / "rows.csv").unlink()
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(L2TFastError, match=r"out was made with lr: 0\.1, but now lr is 0\.2"):
        main([*own, "--lr", "0.2"])
    with pytest.raises(L2TFastError, match=r"seed0 was made with epochs: 2, but now epochs is 3"):
        main([*own, "--epochs_at", "4=3"])
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == files


def test_an_interrupted_run_of_l2t_fast_compare_keeps_what_it_needs_to_go_on(arguments, tmp_path, capsys):
    own = ["--workers", "1", "--seconds", "300", *arguments, "--per_class", "[4]"]
    run = tmp_path / "out" / "runs" / "scratch-n4-seed0"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("last.pt", "best.pt"):
        (run / "checkpoints" / name).write_bytes(b"of epoch 1")
    assert main(own) == 2
    assert "already holds a run: continue it with --resume" in capsys.readouterr().out
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.parametrize("text", ["x=3", "8", "8=", "8=0", "8=-1", "8=1.5", "9=3"])
def test_epochs_at_no_n_or_no_number_are_told_first(text, arguments, tmp_path):
    with pytest.raises(L2TFastError, match=f"--epochs_at {text}: it must be N=EPOCHS, with an N of 8, 4, and 1 epoch"):
        main(["--seconds", "300", "--epochs_at", text, *arguments])
    assert not (tmp_path / "out").exists()


def test_what_would_lose_the_rows_is_told_first(arguments, tmp_path):
    with pytest.raises(L2TFastError, match=f"there is no folder {tmp_path / 'missing'}"):
        main(["--seconds", "300", *arguments, "--rows", str(tmp_path / "missing" / "rows.csv")])
    with pytest.raises(L2TFastError, match="--workers is 0, it must be 1 or more"):
        main(["--seconds", "300", *arguments, "--workers", "0"])
    assert not (tmp_path / "out").exists()


def test_time_ends_the_processes(arguments, tmp_path, capsys):
    assert main(["--workers", "1", "--seconds", "0", *arguments]) == 0
    out = capsys.readouterr().out
    assert "0 of 2 runs finished" in out and "| method |" not in out
    assert not (tmp_path / "rows.csv").exists()
    for process in multiprocessing.active_children():
        process.join(10)
    assert not multiprocessing.active_children()


def test_ctrl_c_ends_all_processes_with_a_sentence(arguments):
    """As from a terminal, to the group of processes."""
    own = [sys.executable, "-u", "-m", "benchmarks.parallel_compare", "--workers", "1", "--seconds", "600"]
    environment = {**os.environ, "PYTHONPATH": "."}
    parent = subprocess.Popen(
        [*own, *arguments, "--epochs", "100000"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert appears((Path(arguments[3]) / "runs").exists)  # it trains
        os.killpg(parent.pid, signal.SIGINT)
        _, told = parent.communicate(timeout=60)  # until the processes that share the pipe are over
    finally:
        parent.kill()
    assert parent.returncode == 130
    assert told == "\ninterrupted: the same command with another --rows makes the runs that are missing\n"


def test_a_killed_parent_takes_its_processes_along(arguments):
    own = [sys.executable, "-u", "-m", "benchmarks.parallel_compare", "--workers", "1", "--seconds", "600"]
    parent = subprocess.Popen([*own, *arguments, "--epochs", "100000"], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    try:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        assert appears(lambda: "spawn_main" in "".join(map(command_line, children.read_text().split())))
        worker = next(pid for pid in children.read_text().split() if "spawn_main" in command_line(pid))
        assert appears((Path(arguments[3]) / "runs").exists)  # it trains
    finally:
        parent.kill()
        parent.wait()
    assert appears(lambda: "spawn_main" not in command_line(worker))


def command_line(pid):
    """Empty for a process that is over or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def appears(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_table():
    rows = [
        {"label": label, "per_class": n, "test_accuracy": accuracy}
        for label, n, accuracy in [("fm", 100, 0.5), ("scratch", 50, 0.25), ("fm", 50, 0.5), ("fm", 50, 0.75)]
    ]
    assert table(rows).splitlines() == [
        "| method | N=50 | N=100 |",
        "|---|---|---|",
        "| fm | 62.50% ± 17.68% (2) | 50.00% (1) |",
        "| scratch | 25.00% (1) |  |",
    ]
