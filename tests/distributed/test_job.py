"""Ranks that are killed, stopped, stuck or that fail: the job ends with one sentence, told once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from l2t_fast.cli import main
from l2t_fast.distributed.job import PATIENCE, join_job
from l2t_fast.errors import L2TFastError
from tests.distributed.ranks import CONTEXT
from tests.distributed.ranks import PATIENCE as TEST_PATIENCE

FAILED = 2
ON_CPU = ["--device", "cpu"]  # each rank would take a GPU of its own, and here may be one


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def become_rank(rank: int, size: int, port: int, patience: float | None = None) -> None:
    """As a launcher says it to a process."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if patience is not None:
        os.environ[PATIENCE] = str(patience)


def member(
    rank: int, size: int, port: int, folder: Path, patience: float, stuck: int | None, steady: bool = True
) -> None:
    """Join a job and reduce for ever, as in training if `steady`, or sleep after some reductions as rank `stuck`."""
    become_rank(rank, size, port, patience)
    os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT), 2)
    job = join_job()
    job.group.steady = steady
    try:
        for step in range(10**9):
            job.group.total(1)
            if step == 20:
                (folder / f"goes-{rank}").touch()
                if rank == stuck:
                    time.sleep(10**6)
            time.sleep(0.01)
    except L2TFastError as error:
        job.end(f"error: {error}", FAILED, error)


class RunningJob:
    """Ranks as `member`, all of which have met."""

    def __init__(
        self, folder: Path, size: int, patience: float, stuck: int | None = None, *, steady: bool = True
    ) -> None:
        self.folder = folder
        arguments = (size, free_port(), folder, patience, stuck, steady)
        self.ranks = [CONTEXT.Process(target=member, args=(rank, *arguments), daemon=True) for rank in range(size)]
        for rank in self.ranks:
            rank.start()
        deadline = time.monotonic() + TEST_PATIENCE
        while len(list(folder.glob("goes-*"))) < size:
            assert time.monotonic() < deadline and all(rank.is_alive() for rank in self.ranks), self.said()
            time.sleep(0.02)

    def ends(self) -> list[int | None]:
        """Exit codes."""
        for rank in self.ranks:
            rank.join(TEST_PATIENCE)
        return [rank.exitcode for rank in self.ranks]

    def said(self) -> list[str]:
        return told(self.folder)


def told(folder: Path) -> list[str]:
    """Our sentences; PyTorch's warnings about lost connections are left out."""
    lines = [line for path in folder.glob("stderr-*") for line in path.read_text().splitlines()]
    return [line for line in lines if line.startswith("error: ")]


# Rank 0 keeps the store here; under torchrun another process does.
@pytest.mark.parametrize(("size", "victim"), [(2, 1), (3, 1), (2, 0)])
def test_a_killed_rank(tmp_path, size, victim):
    job = RunningJob(tmp_path, size, patience=60)
    os.kill(job.ranks[victim].pid, signal.SIGKILL)
    codes = job.ends()
    assert codes.pop(victim) == -signal.SIGKILL and codes == [FAILED] * (size - 1)
    said = f"error: rank {victim} of {size} (process {job.ranks[victim].pid} on "
    assert len(job.said()) == 1 and job.said()[0].startswith(said)
    assert job.said()[0].endswith("was killed or crashed, training stops")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank(tmp_path, victim):
    job = RunningJob(tmp_path, 2, patience=3)
    os.kill(job.ranks[victim].pid, signal.SIGSTOP)
    codes = job.ends()
    assert codes.pop(victim) == -signal.SIGKILL, "the hung rank is ended too"
    assert codes == [FAILED]
    (said,) = job.said()
    assert f"rank {victim} of 2 (process {job.ranks[victim].pid} on " in said
    assert ("hangs: its store has not answered for 3 s" if victim == 0 else "hangs: no sign of life for 3 s") in said


@pytest.mark.parametrize("steady", [True, False])
def test_a_rank_that_is_alive_and_stuck(tmp_path, steady):
    job = RunningJob(tmp_path, 2, patience=3, stuck=1, steady=steady)
    assert job.ends() == [FAILED, -signal.SIGKILL]
    (said,) = job.said()
    assert "rank 1 of 2" in said and "hangs: the others have waited for it for 3 s, training stops" in said


def reader(rank: int, size: int, port: int, folder: Path) -> None:
    """Join a job and compute as rank 1 for longer than the ranks' patience, as when it reads images."""
    become_rank(rank, size, port, patience=2)
    job = join_job()
    job.group.wait()
    deadline = time.monotonic() + 6 * rank
    while time.monotonic() < deadline:
        sum(range(1000))
    job.group.wait()
    (folder / f"came-{rank}").touch()
    job.leave(0)


def test_a_rank_that_has_much_to_read(tmp_path):
    port = free_port()
    ranks = [CONTEXT.Process(target=reader, args=(rank, 2, port, tmp_path), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(TEST_PATIENCE)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert len(list(tmp_path.glob("came-*"))) == 2


def early_member(rank: int, size: int, port: int, folder: Path, number: int | None) -> None:
    """Sends itself a signal when it is about to connect to the other, which has come, or joins the job and waits."""
    connect = dist.init_process_group

    def instead(*arguments: object, **options: object) -> None:
        (folder / f"comes-{rank}").touch()
        while len(list(folder.glob("comes-*"))) < size:
            time.sleep(0.02)
        if number is None:
            connect(*arguments, **options)
        else:
            os.kill(os.getpid(), number)

    dist.init_process_group = instead
    member(rank, size, port, folder, 4.0, None)


# Before the ranks have met; the store is rank 0's.
@pytest.mark.parametrize(
    ("victim", "number", "said"),
    [
        (1, signal.SIGKILL, "was killed or crashed, training stops"),
        (1, signal.SIGSTOP, "hangs: no sign of life for 4 s, training stops"),
        (0, signal.SIGSTOP, "hangs: its store has not answered for 4 s, training stops"),
    ],
)
def test_a_rank_is_lost_before_the_ranks_have_met(tmp_path, victim, number, said):
    port = free_port()
    ranks = [
        CONTEXT.Process(target=early_member, args=(i, 2, port, tmp_path, number if i == victim else None), daemon=True)
        for i in range(2)
    ]
    for rank in ranks:
        rank.start()
    ranks[1 - victim].join(TEST_PATIENCE)
    ranks[victim].kill()  # the other has seen to it, if it had come to know the process
    assert ranks[1 - victim].exitcode == FAILED
    (line,) = told(tmp_path)
    assert line.startswith(f"error: rank {victim} of 2 ") and line.endswith(said)


def test_a_rank_that_does_not_come(tmp_path):
    alone = CONTEXT.Process(target=member, args=(0, 2, free_port(), tmp_path, 2.0, None), daemon=True)
    alone.start()
    alone.join(TEST_PATIENCE)
    assert alone.exitcode == FAILED
    assert told(tmp_path) == ["error: rank 1 of 2 has not come in 2 s, training stops"]


@pytest.mark.parametrize("listens", [False, True])
def test_a_store_that_does_not_answer(tmp_path, listens):
    """Nobody is there, or somebody who is stopped."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        last = CONTEXT.Process(target=member, args=(1, 2, other.getsockname()[1], tmp_path, 1.0, None), daemon=True)
        last.start()
        last.join(TEST_PATIENCE)
    assert last.exitcode == (FAILED if listens else 1)  # what is raised is the command line's to say
    said = (tmp_path / "stderr-1").read_text()
    assert "error: the ranks could not meet" in said.replace("L2TFastError", "error").lower()


def test_patience_must_be_a_number(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(PATIENCE, "soon")
    with pytest.raises(L2TFastError, match="L2T_FAST_PATIENCE is 'soon', it must be a number of seconds"):
        join_job()


def command_line(
    rank: int, size: int, port: int, folder: Path, arguments: list[str], patience: float | None = None
) -> None:
    become_rank(rank, size, port, patience)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    sys.exit(main(arguments))


def run_command(folder: Path, *arguments: str, size: int = 2) -> tuple[list[int | None], str]:
    """The command line on several ranks: exit codes and what they wrote to standard error."""
    folder.mkdir()
    port = free_port()
    ranks = [
        CONTEXT.Process(target=command_line, args=(rank, size, port, folder, list(arguments)), daemon=True)
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(TEST_PATIENCE)
    return [rank.exitcode for rank in ranks], "".join(p.read_text() for p in sorted(folder.glob("stderr-*")))


def test_a_mistake_is_told_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    train = ["train", "--method", "scratch", *ON_CPU]
    codes, said = run_command(tmp_path / "a", *train, "--out", str(tmp_path / "file" / "run"))
    assert codes == [FAILED] * 2 and said.count("cannot be written: Not a directory") == 1
    codes, said = run_command(tmp_path / "b", *train, "--lr", "-1")
    assert codes == [FAILED] * 2 and said.count("error: ") == 1 and "lr is -1" in said
    codes, said = run_command(tmp_path / "c", "env")
    assert codes == [FAILED] * 2 and said.count("env takes one process, but 2 ranks were started") == 1


@pytest.mark.parametrize(
    ("victim", "number", "said"),
    [
        (0, signal.SIGKILL, r"rank 0 of 2 \(process \d+ on .*\) was killed or crashed"),
        (0, signal.SIGSTOP, r"rank 0 of 2 \(process \d+ on .*\) hangs: its store has not answered for 6 s"),
        (1, signal.SIGKILL, r"rank 1 of 2 \(process \d+ on .*\) was killed or crashed"),
        (1, signal.SIGINT, "interrupted: the same command with --resume continues where it stopped"),
    ],
)
def test_the_log_says_once_why_a_run_stopped(tmp_path, victim, number, said):
    out, port = tmp_path / "run", free_port()
    options = ["train", "--method", "scratch", "--epochs", "100000", *ON_CPU, "--out", str(out)]
    patience = 6.0 if number == signal.SIGSTOP else None
    ranks = [
        CONTEXT.Process(target=command_line, args=(rank, 2, port, tmp_path, options, patience), daemon=True)
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + TEST_PATIENCE
    while not (out / "checkpoints" / "last.pt").exists():
        assert time.monotonic() < deadline and all(rank.is_alive() for rank in ranks)
        time.sleep(0.02)
    os.kill(ranks[victim].pid, number)
    for rank in ranks:
        rank.join(TEST_PATIENCE)
    stopped = (out / "log.txt").read_text().splitlines()[1:]
    assert len(stopped) == 1 and re.search(rf"^[-\d]+ [:\d]+ stopped in epoch \d+: {said}$", stopped[0]), stopped


def test_torchrun(tmp_path):
    out = tmp_path / "run"
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--method", "scratch", "--epochs", "1", "--data.batch_size", "256", *ON_CPU, "--out", str(out)]
    done = subprocess.run(
        [*program, "-m", "l2t_fast.cli", "train", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TEST_PATIENCE,
    )
    assert done.returncode == 0 and done.stdout.count("scratch: test accuracy") == 1, done.stderr
    assert "2 ranks" in (out / "log.txt").read_text() and (out / "result.json").exists()
