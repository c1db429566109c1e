"""A folder that one process has, and no other; file systems that do not do all."""

import contextlib
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest

from l2t_fast.errors import L2TFastError
from l2t_fast.files import held, why_not_writable, write_whole

TAKEN = "run is in use by another process: wait for it, or name another folder with --out"


def test_a_folder_is_for_one_at_a_time(tmp_path):
    folder = tmp_path / "a" / "run"
    with held(folder):
        with pytest.raises(L2TFastError, match=TAKEN), held(folder):
            pass
        with held(tmp_path / "a"), held(folder / "source"):
            pass  # those above and below are other folders
    with held(folder):
        pass
    with pytest.raises(ValueError, match="a mistake"), held(folder):
        raise ValueError("a mistake")
    with held(folder):
        assert [path.name for path in folder.iterdir()] == ["source"]


HOLD = """
import os, pathlib, signal, subprocess, sys
from l2t_fast.files import held

with held(pathlib.Path(sys.argv[1])):
    if sys.argv[2] == "exec":
        print(subprocess.Popen(["sleep", "600"], close_fds=False).pid, flush=True)
    elif sys.argv[2] == "alone" or os.fork() == 0:
        print(os.getpid(), flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("child", ["alone", "fork", "exec"])
def test_a_killed_process_holds_nothing(tmp_path, child):
    """Nor do its children: workers that read images see only after seconds that they are alone."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), child]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    left = int(other.stdout.readline())
    try:
        with pytest.raises(L2TFastError, match=TAKEN), held(tmp_path / "run"):
            pass
        other.kill()
        other.wait()
        with held(tmp_path / "run"):
            pass
    finally:
        other.kill()
        if child != "alone":
            os.kill(left, signal.SIGKILL)
        other.communicate()


def test_the_end_of_a_child_does_not_give_the_folder_away(tmp_path):
    with held(tmp_path / "run"):
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(L2TFastError, match=TAKEN), held(tmp_path / "run"):
            pass


def test_where_the_system_has_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    def without(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with held(tmp_path / "run"), held(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(L2TFastError, match=rf"{folder} cannot be written: Not a directory"), held(folder):
            pass


@pytest.mark.parametrize(("answer", "told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch, answer, told):
    """Some file systems flush files alone. A disk that fails is another matter."""
    flush = os.fsync

    def without(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(answer, os.strerror(answer))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", without)
    with pytest.raises(OSError, match="Input/output error") if told else contextlib.nullcontext():
        write_whole(b"all of it", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"all of it"


def test_why_a_folder_cannot_be_written(tmp_path, monkeypatch):
    assert why_not_writable(tmp_path) is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert why_not_writable(tmp_path) == errno.EACCES
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID))
    assert why_not_writable(tmp_path) == errno.EROFS
